"""The diffusion prior against live dalle2-pytorch: schedules, predictions, guidance, losses,
gradients, weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.diffusion.denoiser import training_losses
from t2i_jax.diffusion.discrete import BETAS, DiscreteDdpm
from t2i_jax.models import diffusion_prior
from t2i_jax.models.decoder_cascade import buffers
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

dalle2 = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through a few layers, products in another order
GRADIENT = 1e-4  # as much again in the backward pass

CONFIGURATIONS = {
    "default": dict(dim=32, depth=2, dim_head=16, heads=2, max_text_len=8),
    "many tokens": dict(
        dim=24, depth=1, dim_head=8, heads=3, ff_mult=2, max_text_len=4, num_timesteps=40,
        num_time_embeds=2, num_image_embeds=3, num_text_embeds=2, self_cond=True, norm_in=True,
        normformer=True,
    ),
    "bare": dict(
        dim=16, depth=1, dim_head=40, heads=1, max_text_len=24, norm_out=False, final_proj=False,
        rotary_emb=False, num_time_embeds=2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def made(request):
    torch.manual_seed(0)
    theirs = dalle2.DiffusionPriorNetwork(**CONFIGURATIONS[request.param]).eval()
    with torch.no_grad():  # gains that start at one would not show that they are used
        for key, parameter in theirs.named_parameters():
            if key.endswith(".g"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model, params = convert.from_torch(theirs)
    rng = np.random.default_rng(0)
    x, text, eps, last = rng.normal(size=(4, 3, model.dim)).astype(np.float32)
    encodings = rng.normal(size=(3, 6, model.dim)).astype(np.float32)
    encodings[1, 3:] = 0  # the package takes rows of zeros for padding
    return theirs, model, params, (x, np.array([0, 17, 38]), text, encodings, eps, last)


def test_predictions_guidance_losses_and_gradients(made):
    theirs, model, params, (x, times, text, encodings, eps, last) = made
    prior = dalle2.DiffusionPrior(
        theirs, image_embed_dim=model.dim, timesteps=40, cond_drop_prob=0.0, predict_v=True
    ).eval()
    tensors = [torch.tensor(a) for a in (x, times, text, encodings, eps, last)]
    t_x, t_times, t_text, t_encodings, t_eps, t_last = tensors
    more = {"self_cond": t_last} if model.self_cond else {}
    given = {"text_embed": t_text, "text_encodings": t_encodings}
    with torch.no_grad():
        guided = theirs.forward_with_cond_scale(t_x, t_times, cond_scale=2.5, **given, **more)
        plain = theirs(t_x, t_times, text_embed=t_text, **more)
    theirs.zero_grad()
    _self_conditioned_never(prior)
    lost = prior.p_losses(t_x, t_times, given, noise=t_eps)
    lost.backward()
    mask, noise = (encodings != 0).any(-1), DiscreteDdpm(40, objective="v")
    before = last if model.self_cond else None

    def net(params, keep=None, tokens=encodings, last=None):
        def call(x, condition, keep_B=None):
            of_tokens = (None, None) if tokens is None else (tokens, mask)
            return model.apply({"params": params}, x, condition, text, *of_tokens, keep, keep, last)

        return call

    @jax.jit
    def ours(params):
        def loss(params):
            level = jnp.asarray(times + 1, jnp.float32)
            return jnp.mean(training_losses(net(params), noise, jnp.asarray(x), eps, level))

        cond = net(params, last=before)(x, times)
        null = net(params, jnp.zeros(3, bool), last=before)(x, times)
        without = net(params, tokens=None, last=before)(x, times)
        return null + 2.5 * (cond - null), without, jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        mine, without, (value, gradients) = ours(params)
    assert error(mine, guided) < NETWORK and error(without, plain) < NETWORK
    assert error(value, lost) < NETWORK
    got = convert.to_state(model, gradients)
    wanted = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    assert {k: e for k, g in wanted.items() if (e := error(got[k], g)) > GRADIENT} == {}


def _self_conditioned_never(prior):
    """The package tosses a coin for every batch; here it always falls on the same side."""
    dalle2.random.seed(0)
    while dalle2.random.random() < 0.5:
        pass
    state = dalle2.random.getstate()
    probe = [dalle2.random.random() for _ in range(64)]
    steps = next(i for i, value in enumerate(probe) if value >= 0.5)
    dalle2.random.setstate(state)
    for _ in range(steps):
        dalle2.random.random()


@pytest.mark.parametrize("schedule", BETAS)
def test_schedules(schedule):
    theirs = dalle2.NoiseScheduler(
        beta_schedule=schedule, timesteps=40, loss_type="l2", p2_loss_weight_gamma=0.5
    )
    ours = DiscreteDdpm(40, schedule, p2_gamma=0.5)
    levels = jnp.arange(1, 41)
    alpha, sigma = ours.marginal(levels)
    np.testing.assert_allclose(alpha, theirs.sqrt_alphas_cumprod, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sigma, theirs.sqrt_one_minus_alphas_cumprod, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.weight(levels), theirs.p2_loss_weight, rtol=1e-5)
    for name, value in buffers(ours).items():
        np.testing.assert_allclose(value, getattr(theirs, name), rtol=1e-4, atol=1e-7)


def test_weights_both_ways(made, tmp_path):
    theirs, model, params, _ = made
    state = theirs.state_dict()
    torch.save(state, tmp_path / "net.pt")
    again = convert.from_torch(tmp_path / "net.pt", self_cond=model.self_cond)
    for network, loaded in ((model, params), again):
        out = convert.to_torch(network, loaded)
        assert out.keys() == state.keys()
        assert all(torch.equal(out[k], state[k]) for k in state)
        assert network == model
    theirs.load_state_dict(out, strict=True)


def test_rates_of_rotation_are_those_of_the_package():
    for dim_head in (4, 6, 8, 10, 12, 16, 20, 24, 26, 28, 30, 32, 64, 128):
        theirs = dalle2.RotaryEmbedding(dim=min(32, dim_head)).freqs.detach().numpy()
        np.testing.assert_array_equal(diffusion_prior.rates(dim_head), theirs)


def test_the_paper_s_network_has_a_billion_parameters():
    shapes = jax.eval_shape(
        lambda key: diffusion_prior.init(diffusion_prior.DALLE2_PRIOR, key), jax.random.key(0)
    )
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert 1.0e9 < count < 1.6e9
