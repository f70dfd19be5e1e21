"""The transformers of muse-maskgit-pytorch against the live package: logits, vectors, guidance,
critics, gradients, weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.decoding import masked
from t2i_jax.models.maskgit import SelfCritic
from tests.parity.muse_models import noise_per_place
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

muse = load("muse_maskgit_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through a few layers, products in another order
GRADIENT = 1e-4  # as much again in the backward pass

CONFIGURATIONS = {
    "default": dict(num_tokens=32, dim=32, seq_len=16, depth=2, dim_head=8, heads=2),
    "self-conditioned": dict(
        num_tokens=16, dim=24, seq_len=9, depth=1, dim_head=8, heads=3, ff_mult=3, self_cond=True
    ),
    "text as wide as the network": dict(
        num_tokens=16, dim=512, seq_len=4, depth=1, dim_head=8, heads=1, ff_mult=1,
        t5_name="t5-small",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def made(request):
    return _make(muse.MaskGitTransformer, request.param)


def _make(network, name):
    torch.manual_seed(0)
    theirs = network(flash=False, **CONFIGURATIONS[name])
    with torch.no_grad():  # gains that start at one would not show that they are used
        for key, parameter in theirs.named_parameters():
            if key.endswith(("gamma", "_scale")):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model, params = convert.from_torch(theirs)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.codebook_size, (3, model.num_tokens))
    text = rng.normal(size=(3, 5, model.text_embed_dim)).astype(np.float32)
    text[1, 3:] = 0  # the package takes rows of zeros for padding
    return theirs, model, params, ids, text


def _masked(model, ids):
    return np.where(np.random.default_rng(1).random(ids.shape) < 0.6, model.mask_id, ids)


def test_logits_and_vectors(made):
    theirs, model, params, ids, text = made
    x, mask, cond = _masked(model, ids), (text != 0).any(-1), ids[:, :4]
    t_x, t_text, t_cond = torch.tensor(x), torch.tensor(text), torch.tensor(cond)
    before = np.random.default_rng(2).normal(size=(*x.shape, model.dim)).astype(np.float32)
    own = {"self_cond_embed": torch.tensor(before)} if model.self_cond else {}
    with torch.no_grad():
        plain = theirs(t_x, text_embeds=t_text, conditioning_token_ids=t_cond)
        logits, vectors = theirs(t_x, text_embeds=t_text, return_embed=True, **own)
        dropped = theirs(t_x, text_embeds=t_text, cond_drop_prob=1.0)

    @jax.jit
    def ours(params):
        def embed(keep=None, **inputs):
            return model.apply({"params": params}, x, text, mask, keep, method="embed", **inputs)

        def head(vectors):
            return model.apply({"params": params}, vectors, method="logits")

        own = embed(self_cond_BNC=jnp.asarray(before)) if model.self_cond else embed()
        conditioned, without = embed(cond_ids_BM=jnp.asarray(cond)), embed(jnp.zeros(3, bool))
        return own, head(own), head(conditioned), head(without)

    with jax.default_matmul_precision("highest"):
        embed, *found = ours(params)
    assert error(embed, vectors) < NETWORK
    for mine, wanted in zip(found, (logits, plain, dropped), strict=True):
        assert error(mine, wanted) < NETWORK


def test_loss_and_its_gradients(made):
    theirs, model, params, ids, text = made
    x, mask = _masked(model, ids), (text != 0).any(-1)
    labels = np.where(x == model.mask_id, ids, -1)
    theirs.zero_grad()
    lost = theirs(torch.tensor(x), text_embeds=torch.tensor(text), labels=torch.tensor(labels),
                  ignore_index=-1)  # fmt: skip
    lost.backward()

    @jax.jit
    def ours(params):
        def loss(params):
            logits = model.apply({"params": params}, x, text, mask)
            nats = (
                jax.nn.logsumexp(logits, -1)
                - jnp.take_along_axis(logits, jnp.asarray(ids)[..., None], -1)[..., 0]
            )
            return jnp.sum(nats * (labels >= 0)) / (labels >= 0).sum()

        return jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        value, gradients = ours(params)
    assert error(value, lost) < NETWORK
    mine = convert.to_state(model, gradients)
    wanted = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    assert {k: e for k, g in wanted.items() if (e := error(mine[k], g)) > GRADIENT} == {}


def test_critics():
    theirs, model, params, ids, text = _make(muse.TokenCritic, "default")
    mask, t_text = (text != 0).any(-1), torch.tensor(text)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids), text_embeds=t_text)[..., 0]
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)({"params": params}, ids, text, mask)
    assert error(found, wanted) < NETWORK
    theirs, model, params, ids, text = _make(muse.MaskGitTransformer, "default")
    own = muse.muse_maskgit_pytorch.SelfCritic(theirs)
    with torch.no_grad():
        wanted = own(torch.tensor(ids), text_embeds=t_text)[..., 0]
    head = {"to_pred": {"kernel": own.to_pred.weight.detach().numpy().T,
                        "bias": own.to_pred.bias.detach().numpy()}}  # fmt: skip

    @jax.jit
    def ours(params, head):
        vectors = model.apply({"params": params}, ids, text, mask, method="embed")
        return SelfCritic().apply({"params": head}, vectors)

    with jax.default_matmul_precision("highest"):
        assert error(ours(params, head), wanted) < NETWORK


@pytest.mark.parametrize("network", [muse.MaskGitTransformer, muse.TokenCritic])
def test_weights_both_ways(network, tmp_path):
    theirs, model, params, *_ = _make(network, "default")
    state = theirs.state_dict()
    torch.save(state, tmp_path / "net.pt")
    for again, loaded in ((model, params), convert.from_torch(tmp_path / "net.pt")):
        out = convert.to_torch(again, loaded)
        assert out.keys() == state.keys()
        unused = ("norm.", "self_cond_to_init_embed.")
        assert all(torch.equal(out[k], state[k]) for k in state if not k.startswith(unused))
        assert again == model
    theirs.load_state_dict(out, strict=True)


@pytest.mark.parametrize("critic", [False, True], ids=["confidence", "critic"])
def test_sampling_token_for_token(critic, monkeypatch):
    """The package with the noise that our keys give."""
    theirs, model, params, _, text = _make(muse.MaskGitTransformer, "default")
    package, steps, rows = muse.muse_maskgit_pytorch, 7, len(text)
    judge = _make(muse.TokenCritic, "default") if critic else None
    vae = muse.VQGanVAE(dim=16, layers=2, codebook_size=32, use_vgg_and_gan=False)
    whole = muse.MaskGit(
        image_size=16, transformer=theirs, vae=vae, token_critic=judge and judge[0]
    )
    keys = jax.random.split(jax.random.key(7), rows)

    def noise(step):
        own = [jax.random.split(jax.random.fold_in(key, step), 3) for key in keys]
        gumbel = [noise_per_place(k[0], model.num_tokens, model.codebook_size) for k in own]
        uniform = [jax.random.uniform(k[1], (model.num_tokens,)) for k in own]
        return torch.tensor(np.stack(gumbel)), torch.tensor(np.stack(uniform))

    draws = [noise(step) for step in range(steps)]
    gumbels, uniforms = (iter(side) for side in zip(*draws, strict=True))
    monkeypatch.setattr(package, "gumbel_noise", lambda t: next(gumbels))
    monkeypatch.setattr(package, "uniform", lambda shape, device=None: next(uniforms))
    monkeypatch.setattr(theirs, "encode_text", lambda texts: torch.tensor(text))
    monkeypatch.setattr(whole.vae, "decode_from_ids", lambda ids: ids)
    wanted = whole.generate(["a"] * rows, timesteps=steps, cond_scale=3.0, temperature=1.0)

    mask = jnp.asarray((text != 0).any(-1))
    both, seen = jnp.concatenate([text, text]), jnp.concatenate([mask, mask])
    keep = jnp.arange(2 * rows) < rows

    @jax.jit
    def ours(params, critic_params):
        def predict(ids, memory):
            return model.apply({"params": params}, ids, both, seen, keep), memory

        def score(ids):
            twice = jnp.concatenate([ids, ids])
            logits = judge[1].apply({"params": critic_params}, twice, both, seen, keep)
            return logits[rows:] + 3.0 * (logits[:rows] - logits[rows:])

        return masked.generate(
            predict, keys, model.num_tokens, model.mask_id, guidance=3.0,
            sampling=masked.Sampling(steps=steps, top_k=1 - 0.9),
            critic=score if critic else None,
        )[0]  # fmt: skip

    with jax.default_matmul_precision("highest"):
        ids = ours(params, judge[2] if critic else {})
    np.testing.assert_array_equal(ids, wanted.numpy().reshape(rows, -1))
