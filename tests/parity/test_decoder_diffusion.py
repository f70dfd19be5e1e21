"""DALL-E 2's decoder as dalle2-pytorch 1.15.6 trains and samples it, against the live package:
losses with a learned variance, the smaller images, whole sampling runs.

A small function stands in for the U-Net on both sides, and the random numbers of both come from the
same arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion import dalle2_ddim
from t2i_jax.diffusion.blur import LowresBlur, LowresDraws
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.diffusion.draws import injected
from t2i_jax.diffusion.guidance import for_rows
from t2i_jax.diffusion.learned_variance import LearnedVariance, log_likelihood
from t2i_jax.errors import UserError
from t2i_jax.models.decoder_unet import DecoderUnet
from t2i_jax.systems.cascade.stage import StageSampling, run
from t2i_jax.systems.decoder.stage import COMPAT, DecoderDraws, DecoderStage, losses
from tests.parity.reference import load

dalle2_pytorch = load("dalle2_pytorch")
package = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

FORMULA = 1e-5  # float32, a handful of operations
RUN = 1e-4  # float32 through 25 steps
ROWS, SIZE, CHANNELS, STEPS = 2, 8, 3, 25
SHAPE = (ROWS, SIZE, SIZE, CHANNELS)
_rng = np.random.default_rng(0)
EMBEDS = _rng.normal(size=(ROWS, 6)).astype(np.float32)
IMAGES = _rng.uniform(size=SHAPE).astype(np.float32)
MASK = np.zeros(SHAPE[:3], bool)
MASK[:, :, :4] = True
NULL = 0.3
UNET = DecoderUnet(dim=8, dim_mults=(1,), image_embed_dim=6, cond_on_image_embeds=True)
SELF = UNET.clone(self_cond=True)


def _error(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.isfinite(theirs).all() and ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _torch(a):
    """NHWC to the package's NCHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 1)))


def _numpy(a):
    return np.moveaxis(a.detach().numpy(), 1, -1)


def _toy(lib, x, time_B, embed_B, last, lowres, slope, learned):
    """The stand-in, NHWC: it mixes neighbours and uses all that it is given; its second half says
    where a learned variance lies.
    """

    def tall(a):
        return a.reshape(-1, 1, 1, 1)

    mixed = slope * (x + 0.5 * lib.roll(x, 1, 1)) * tall(lib.cos(0.1 * time_B))
    out = mixed + 0.4 * lib.tanh(2 * x + tall(embed_B)) + 0.2 * last + lowres
    if not learned:
        return out
    both = (out, lib.sin(3 * x) * slope)
    return lib.cat(both, -1) if lib is torch else lib.concatenate(both, -1)


class _Unet(torch.nn.Module):
    """The stand-in as the package calls its U-Net."""

    def __init__(self, learned, self_cond=False):
        super().__init__()
        self.learned, self.self_cond = learned, self_cond
        self.slope = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, time, *, image_embed=None, self_cond=None, lowres_cond_img=None,
                image_cond_drop_prob=0.0, **_):  # fmt: skip
        embed = image_embed.mean(1) if image_cond_drop_prob < 1 else torch.full((ROWS,), NULL)
        last, low = (
            torch.zeros(()) if a is None else f * a.movedim(1, -1)
            for a, f in ((self_cond, 1.0), (lowres_cond_img, 0.1))
        )
        out = _toy(torch, x.movedim(1, -1), time, embed, last, low, self.slope, self.learned)
        return out.movedim(-1, 1)

    forward_with_cond_scale = package.Unet.forward_with_cond_scale


def _reference(learned=False, **options):
    unet = package.Unet(dim=8, dim_mults=(1,), image_embed_dim=6)
    return package.Decoder(
        unet,
        image_size=SIZE,
        timesteps=STEPS,
        learned_variance=learned,
        image_cond_drop_prob=0.1,
        **options,
    )


def _bind(slope=0.5, learned=False):
    def bind(lowres=None, lowres_condition=None, cond_image=None):
        low = 0.0 if lowres is None else 0.1 * lowres

        def net(x, condition_B, keep_B=None, last=0.0):
            embed = for_rows(jnp.asarray(EMBEDS).mean(1), x.shape[0])
            embed = embed if keep_B is None else jnp.where(keep_B, embed, NULL)
            return _toy(jnp, x, condition_B, embed, last, low, slope, learned)

        return net

    return bind


def _feed(monkeypatch, arrays):
    """Lets the package draw these arrays, one after the other."""
    queue = [_torch(a) for a in arrays]

    def draw(like, *args, **kwargs):
        drawn = queue.pop(0)
        assert tuple(drawn.shape) == tuple(getattr(like, "shape", like))
        return drawn.clone()

    monkeypatch.setattr(torch, "randn", draw)
    monkeypatch.setattr(torch, "randn_like", draw)
    return queue


OBJECTIVES = {
    "noise": {},
    "x_start": {"predict_x_start": True},
    "v": {"predict_v": True},
}


@pytest.mark.parametrize("variance", [None, "free", "constrained"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_their_gradients(objective, variance):
    """At timesteps from 1 on; the likelihood of bytes, which counts at 0, has a test of its own."""
    gamma = 0.5 if objective == "v" else 0.0
    learned, constrained = variance is not None, variance == "constrained"
    theirs = _reference(
        learned, p2_loss_weight_gamma=gamma, learned_variance_constrain_frac=constrained,
        vb_loss_weight=0.1, loss_type="huber" if objective == "noise" else "l2",
    )  # fmt: skip
    unet, eps, times = _Unet(learned), _rng.normal(size=SHAPE).astype(np.float32), [1, 17]
    loss = theirs.p_losses(
        unet, _torch(IMAGES), torch.tensor(times), image_embed=torch.tensor(EMBEDS),
        noise_scheduler=theirs.noise_schedulers[0], noise=_torch(eps), learned_variance=learned,
        **OBJECTIVES[objective],
    )  # fmt: skip
    loss.backward()
    distance = "huber" if objective == "noise" else "l2"
    noise = DiscreteDdpm(STEPS, "cosine", objective, distance, p2_gamma=gamma)
    own = LearnedVariance(0.1, constrained, COMPAT) if learned else None
    stage = DecoderStage(UNET, SIZE, noise, learned_variance=own)
    keep = jnp.ones(ROWS, bool)
    draws = DecoderDraws(jnp.array(times, jnp.float32) + 1, jnp.asarray(eps), keep, keep)

    def ours(slope):
        bind, image = _bind(slope, learned), jnp.asarray(IMAGES) * 2 - 1
        return losses(stage, bind, image, draws, None, lambda image: image).mean()

    value, slope = jax.jit(jax.value_and_grad(ours))(0.5)
    assert _error(value, loss.detach()) < FORMULA
    assert _error(slope, unet.slope.grad) < FORMULA


def test_likelihood_of_bytes():
    """Within three deviations: the package's float32 has no digits beyond."""
    x0 = np.linspace(-1, 1, 41, dtype=np.float32)
    spread = np.array([[-4.0], [-1.0]], np.float32)
    mean = x0 + _rng.uniform(-3, 3, (2, 41)).astype(np.float32) * np.exp(spread)
    given = np.broadcast_to(x0, (2, 41)), mean, np.broadcast_to(spread, (2, 41))
    x, means, scales = (torch.tensor(np.array(one)) for one in given)
    wanted = package.discretized_gaussian_log_likelihood(x, means=means, log_scales=scales)
    assert _error(log_likelihood(*map(jnp.asarray, given)), wanted) < 1e-3  # of small differences


def test_blurred_and_noised_smaller_images(monkeypatch):
    theirs = package.LowresConditioner(
        blur_prob=1.0, blur_sigma=0.8, blur_kernel_size=5, use_noise=True,
        normalize_img_fn=package.normalize_neg_one_to_one,
        unnormalize_img_fn=package.unnormalize_zero_to_one,
    )  # fmt: skip
    large = _rng.normal(size=(ROWS, 16, 16, CHANNELS)).astype(np.float32)
    image, eps = _rng.uniform(size=large.shape).astype(np.float32), large
    levels = torch.tensor([10, 700])
    monkeypatch.setattr(theirs.noise_scheduler, "sample_random_times", lambda batch: levels)
    _feed(monkeypatch, [eps])
    wanted, told = theirs(_torch(image), target_image_size=16, downsample_image_size=8)
    own = LowresBlur(1.0, 0.8, 5, noise=True)
    draws = LowresDraws(jnp.full(ROWS, 0.8), jnp.full(ROWS, 5), jnp.array([11.0, 701.0]), eps)
    small = own.blurred(jnp.asarray(image)[:, ::2, ::2] * 2 - 1, draws)
    noised, condition = own.noised(small.repeat(2, 1).repeat(2, 2), draws.level_B, draws.eps_BHWC)
    assert _error((noised + 1) / 2, _numpy(wanted)) < FORMULA
    np.testing.assert_array_equal(condition, told)
    at_rest, condition = own.for_sampling(jnp.asarray(image), jnp.asarray(eps))
    assert (condition == 200).all() and at_rest.shape == image.shape


RUNS = {
    "posterior": {},
    "learned variance": {"learned": True, "dynamic": True},
    "v and itself": {"objective": "v", "self_cond": True, "schedule": "jsd"},
    "ddim": {"steps": 7, "eta": 0.5, "objective": "x_start"},
    "inpainting": {"resample": 2},
    "ddim inpainting": {"resample": 2, "steps": 7, "eta": 0.5, "objective": "v"},
}


@pytest.mark.parametrize("name", RUNS)
def test_sampling_runs(name, monkeypatch):
    has = RUNS[name]
    objective, learned = has.get("objective", "noise"), has.get("learned", False)
    steps, self_cond = has.get("steps", STEPS), has.get("self_cond", False)
    schedule = has.get("schedule", "cosine")
    theirs = _reference(
        learned, use_dynamic_thres=has.get("dynamic", False), ddim_sampling_eta=has.get("eta", 0.0),
        beta_schedule=schedule,
    )  # fmt: skip
    unet = _Unet(learned, self_cond)
    inpaint = "resample" in has
    count = 1 + (3 * 2 * steps if inpaint else steps)
    noises = _rng.normal(size=(count, *SHAPE)).astype(np.float32)
    more = OBJECTIVES[objective]
    drawn = list(noises)
    if inpaint:
        more = {**more, "inpaint_image": _torch(IMAGES), "inpaint_mask": torch.tensor(MASK),
                "inpaint_resample_times": 2}  # fmt: skip
        drawn = [noises[0]]
        for i in range(steps):
            for r in range(2):  # ours has a number for each, theirs draws what it uses
                used = (0, 1) if r == 1 or i == steps - 1 else (0, 1, 2)
                if steps < STEPS and i == steps - 1:
                    used = (0,)
                drawn += [noises[1 + 3 * (2 * i + r) + j] for j in used]
    queue = _feed(monkeypatch, drawn)
    with torch.no_grad():
        wanted = theirs.p_sample_loop(
            unet, (ROWS, CHANNELS, SIZE, SIZE), torch.tensor(EMBEDS), cond_scale=2.0,
            noise_scheduler=theirs.noise_schedulers[0], timesteps=steps, learned_variance=learned,
            **more,
        )  # fmt: skip
    # DDIM's last step is not noisy
    assert len(queue) == (name == "ddim")
    stage = DecoderStage(
        SELF if self_cond else UNET,
        SIZE,
        DiscreteDdpm(STEPS, schedule, objective),
        learned_variance=LearnedVariance() if learned else None,
        eta=has.get("eta", 0.0),
    )
    sampling = StageSampling(
        "ddim" if steps < STEPS else "ancestral", steps, resample=2, compat=COMPAT,
        percentile=0.95 if has.get("dynamic") else None,
    )  # fmt: skip
    more = {}
    if inpaint:
        more = {"init_BHWC": jnp.asarray(IMAGES) * 2 - 1, "keep_BHW": jnp.asarray(MASK)}

    @jax.jit
    def ours(noises):
        return run(stage, _bind(0.5, learned), sampling, SHAPE, injected(noises), 2.0, **more)

    # ours ends within the range of images
    wanted = np.clip(_numpy(wanted), 0, 1)
    assert _error((ours(noises) + 1) / 2, wanted) < RUN


@pytest.mark.parametrize("timesteps", [25, 1000])
def test_timesteps_of_ddim(timesteps):
    """In the decoder and in the prior; PyTorch's float32 may come out just below a whole number."""
    for steps in range(2, 25):
        for ours, theirs, whole in (
            (
                dalle2_ddim.decoder_levels(timesteps, steps) - 1,
                torch.linspace(0.0, timesteps, steps + 2)[:-1],
                np.arange(steps + 1) * timesteps % (steps + 1) == 0,
            ),
            (
                dalle2_ddim.prior_levels(timesteps, steps) - 1,
                torch.linspace(-1.0, timesteps, steps + 1)[:-1],
                np.arange(steps) * (timesteps + 1) % steps == 0,
            ),
        ):
            below = np.asarray(ours)[::-1] - theirs.int().numpy()
            assert set(below) <= {0, 1} and not below[~whole].any()
    with pytest.raises(UserError, match="steps=1 of dalle2-pytorch's DDIM calls no network"):
        dalle2_ddim.prior_levels(timesteps, 1)
