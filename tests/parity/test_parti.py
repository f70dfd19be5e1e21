"""Our Parti against a live parti-pytorch: logits, loss, gradients, guidance, greedy images, weights
both ways.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.convert import from_torch, to_torch
from t2i_jax.decoding.autoregressive import Sampling, generate
from t2i_jax.decoding.logits import guide
from t2i_jax.models import image_tokenizer
from t2i_jax.models.parti import Parti, PartiAndTokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.parti.task import cross_entropy
from tests.parity import reference

# Float32 against float32; sums in another order. Relative to the largest value of the array.
TOLERANCE = 1e-5

_NAMES = (
    "dim",
    "depth",
    "heads",
    "dim_head",
    "ff_mult",
    "max_text_len",
    "text",
    "side",
    "vocab",
    "length",
)
_CONFIGS = {
    "small": dict(zip(_NAMES, (32, 2, 2, 16, 4, 128, 12, 4, 64, 5), strict=True)),
    "one head": dict(zip(_NAMES, (24, 1, 1, 32, 4, 128, 24, 3, 32, 1), strict=True)),
    "wide": dict(zip(_NAMES, (48, 2, 3, 8, 2, 128, 40, 5, 128, 9), strict=True)),
    "cut text": dict(zip(_NAMES, (16, 3, 4, 4, 4, 6, 7, 2, 16, 8), strict=True)),
}


def _built(torch, name, vae=None):
    config = dict(_CONFIGS[name])
    side, vocab, text, _ = (config.pop(key) for key in ("side", "vocab", "text", "length"))
    package = reference.load("parti_pytorch")
    torch.manual_seed(3)
    vae = vae if vae is not None else _sizes_only(torch, side, vocab)
    theirs = package.Parti(vae=vae, text_embed_dim=text, **config).eval()
    return theirs


def _sizes_only(torch, side, vocab):
    """The package wants a tokenizer object for two numbers."""
    stand_in = torch.nn.Module()
    stand_in.unused = torch.nn.Parameter(torch.zeros(1))
    stand_in.codebook_size, stand_in.image_size = vocab, side
    stand_in.get_encoded_fmap_size = lambda size: side
    return stand_in


def _without_vae(module):
    return {key: value for key, value in module.state_dict().items() if not key.startswith("vae.")}


def _batch(torch, name, rows=3):
    config = _CONFIGS[name]
    rng = np.random.default_rng(5)
    embeds = rng.normal(size=(rows, config["length"], config["text"])).astype(np.float32)
    mask = np.arange(config["length"])[None] < rng.integers(1, config["length"] + 1, (rows, 1))
    ids = rng.integers(0, config["vocab"], (rows, config["side"] ** 2))
    return (embeds, mask, ids), (
        torch.from_numpy(embeds),
        torch.from_numpy(mask),
        torch.from_numpy(ids),
    )


def _close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the parity tests need the 'test' extra")


@pytest.mark.parametrize("name", _CONFIGS)
def test_logits_loss_and_gradients(torch, name):
    """With the text, and with it dropped: one program of ours."""
    theirs = _built(torch, name)
    model, params = from_torch(_without_vae(theirs), max_text_len=theirs.max_text_len)
    (embeds, mask, ids), (t_embeds, t_mask, t_ids) = _batch(torch, name)

    def loss(params, keep):
        logits = model.apply({"params": params}, ids[:, :-1], embeds, mask, keep)
        return jnp.mean(cross_entropy(logits, ids)), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for drop in (0.0, 1.0):
        (ours, logits), gradients = run(params, np.full(len(ids), drop == 0))
        given = {"text_token_embeds": t_embeds, "text_mask": t_mask, "cond_drop_prob": drop}
        _close(logits, theirs(image_token_ids=t_ids[:, :-1], **given))
        theirs.zero_grad()
        t_loss = theirs(image_token_ids=t_ids, return_loss=True, **given)
        t_loss.backward()
        _close(ours, t_loss)
        found = to_torch(model, jax.tree.map(np.asarray, gradients))
        _close_gradients(torch, theirs, found)


def _close_gradients(torch, theirs, found):
    theirs_by_name = {
        key: p.grad for key, p in theirs.named_parameters() if not key.startswith("vae.")
    }
    largest = max(float(g.abs().max()) for g in theirs_by_name.values() if g is not None)
    for key, gradient in theirs_by_name.items():
        gradient = torch.zeros_like(found[key]) if gradient is None else gradient
        # A dropped text leaves some gradients at exactly 0; an absolute floor of the same relative
        # size covers those.
        error = (found[key] - gradient).abs().max()
        assert error <= TOLERANCE * max(float(gradient.abs().max()), 1e-2 * largest), key


def test_imported_parameters_are_those_of_a_new_network(torch):
    model, params = from_torch(_without_vae(_built(torch, "small")))
    assert model.compat == ("misaligned_bias",)
    new = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, 2, 12)),
        jnp.ones((1, 2), bool),
    )

    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)

    assert shapes(params) == shapes(sharding.unbox(new["params"]))


def test_guided_logits(torch):
    theirs = _built(torch, "small")
    model, params = from_torch(_without_vae(theirs))
    (embeds, mask, ids), (t_embeds, t_mask, t_ids) = _batch(torch, "small")
    apply = jax.jit(model.apply)

    def logits(keep):
        return apply({"params": params}, ids[:, :-1], embeds, mask, np.full(len(ids), keep))

    ours = [logits(True), logits(False)]
    for scale in (1, 3, 7.5):
        expected = theirs.forward_with_cond_scale(
            text_token_embeds=t_embeds,
            text_mask=t_mask,
            image_token_ids=t_ids[:, :-1],
            cond_scale=scale,
        )
        _close(guide(*ours, scale), expected)


@pytest.mark.parametrize("name", ["small", "wide"])
def test_greedy_generation_token_for_token(torch, name):
    theirs = _built(torch, name)
    theirs.vae = None  # it then returns tokens
    model, params = from_torch(_without_vae(theirs))
    (embeds, mask, _), (t_embeds, t_mask, _) = _batch(torch, name)
    theirs.encode_texts = lambda texts, output_device=None: (t_embeds, t_mask)
    # k = 1; the package's scale is always 3
    expected = theirs.generate(texts=[""] * len(mask), filter_thres=1.0)

    @jax.jit
    def ours(params):
        variables, twice = {"params": params}, lambda x: jnp.concatenate([x, x])
        keep = jnp.arange(2 * len(mask)) < len(mask)
        return generate(
            lambda ids, position, cache: model.apply(
                variables, ids, position, cache, method="decode"
            ),
            model.apply(variables, twice(embeds), twice(mask), keep, method="init_cache"),
            jax.random.split(jax.random.key(0), len(mask)),
            model.num_tokens,
            sampling=Sampling(top_k=1),
            guidance=3.0,
        )

    assert np.array_equal(ours(params), expected.reshape(len(mask), -1).numpy())


@pytest.mark.parametrize("name", _CONFIGS)
def test_weights_bit_for_bit_and_strict(torch, name):
    theirs = _built(torch, name)
    theirs.vae = None
    model, params = from_torch(theirs)
    assert model.max_text_len == theirs.max_text_len
    exported = to_torch(model, params)
    state = theirs.state_dict()
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    theirs.load_state_dict(exported, strict=True)


def test_weights_of_version_0_1(torch):
    theirs = _built(torch, "small")
    state = dict(_without_vae(theirs))
    for i in range(2):
        for j in range(2):
            state[f"layers.{i}.{j}.to_out.2.gamma"] = torch.full((32,), 1.5)
            state[f"layers.{i}.{j}.to_out.2.beta"] = torch.zeros(32)
    model, params = from_torch(state)
    assert model.compat == ("misaligned_bias", "output_norm")
    exported = to_torch(model, params)
    assert exported.keys() == state.keys() and all(
        torch.equal(exported[key], state[key]) for key in state
    )
    package_norm = type(theirs.init_norm)
    for self_attention, cross_attention, _ in theirs.layers:
        for attention in (self_attention, cross_attention):
            attention.to_out.append(package_norm(32))
    theirs.load_state_dict(
        state | {k: v for k, v in theirs.state_dict().items() if k.startswith("vae.")}, strict=True
    )
    (embeds, mask, ids), (t_embeds, t_mask, t_ids) = _batch(torch, "small")
    expected = theirs(
        text_token_embeds=t_embeds,
        text_mask=t_mask,
        image_token_ids=t_ids[:, :-1],
        cond_drop_prob=0.0,
    )
    _close(jax.jit(model.apply)({"params": params}, ids[:, :-1], embeds, mask), expected)


def test_saved_with_its_tokenizer(torch):
    package = reference.load("parti_pytorch")
    torch.manual_seed(1)
    vae = package.VitVQGanVAE(
        dim=16,
        image_size=64,
        layers=1,
        encdec_patch_size=16,
        encdec_heads=2,
        encdec_dim_head=8,
        codebook_size=64,
        vgg=torch.nn.Identity(),
        discr_layers=4,
    )
    theirs = _built(torch, "small", vae)
    model, weights = from_torch(theirs)
    assert isinstance(model, PartiAndTokenizer)
    assert isinstance(model.parti, Parti) and isinstance(model.tokenizer, VitVQGanVAE)
    exported, state = to_torch(model, weights), theirs.state_dict()
    assert exported.keys() == state.keys() and all(
        torch.equal(exported[key], state[key]) for key in state
    )
    theirs.load_state_dict(exported, strict=True)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    t_image = torch.from_numpy(image.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    expected = theirs.vae.encode(t_image)[1].reshape(1, -1)
    tokens = jax.jit(functools.partial(image_tokenizer.tokens, model.tokenizer))
    assert np.array_equal(tokens(weights["tokenizer"], image), expected.numpy())
