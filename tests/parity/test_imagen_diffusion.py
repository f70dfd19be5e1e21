"""Diffusion as imagen-pytorch 2.1.0 does it, against the live package: formulas, losses, whole
sampling runs.

A small function stands in for the U-Net on both sides, and the random numbers of both come from the
same arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion.denoiser import denoiser, training_losses
from t2i_jax.diffusion.draws import injected
from t2i_jax.diffusion.guidance import for_rows, guide
from t2i_jax.diffusion.inpaint import repaint
from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.samplers import Churn, ancestral, heun, sample, start
from t2i_jax.diffusion.sdedit import from_image
from t2i_jax.diffusion.threshold import clamp, dynamic
from t2i_jax.models.unet import Unet
from t2i_jax.systems.cascade.stage import Stage, StageSampling, known, run
from t2i_jax.systems.imagen.options import COMPAT
from tests.parity.reference import load

imagen_pytorch = load("imagen_pytorch")
torch = pytest.importorskip("torch")
from imagen_pytorch import imagen_pytorch as package  # noqa: E402

FORMULA = 1e-5  # float32, a handful of operations
RUN = 1e-5  # float32 through 32 steps; thresholds and clipping keep pulling both runs together
ROWS, SIZE, CHANNELS = 2, 8, 3
SHAPE = (ROWS, SIZE, SIZE, CHANNELS)
_rng = np.random.default_rng(0)
TEXT = _rng.normal(size=(ROWS, 4, 6)).astype(np.float32)
IMAGES = _rng.uniform(size=SHAPE).astype(np.float32)
NULL = 0.3


def _error(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.isfinite(theirs).all() and ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _noises(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def _torch(a):
    """NHWC to the package's NCHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 1)))


def _numpy(a):
    return np.moveaxis(a.detach().numpy(), 1, -1)


def _toy(lib, x, condition_B, text_B, last, lowres, slope):
    """The stand-in: smooth, not linear, mixes neighbouring pixels, and uses everything it is given.
    x is NHWC.
    """

    def tall(a):
        return a.reshape(-1, 1, 1, 1)

    mixed = x + 0.5 * lib.roll(x, 1, 1)
    return (
        slope * mixed * tall(lib.cos(0.2 * condition_B))
        + 0.4 * lib.tanh(2 * x + tall(text_B))
        + 0.2 * last
        + lowres
    )


def _feed(monkeypatch, arrays):
    """Lets the package draw these arrays (NHWC or of rank 1), one after the other."""
    queue = [_torch(a) if a.ndim == 4 else torch.from_numpy(a) for a in arrays]

    def draw(like, *args, **kwargs):
        drawn = queue.pop(0)
        assert tuple(drawn.shape) == tuple(getattr(like, "shape", like))
        return drawn.clone()

    monkeypatch.setattr(torch, "randn", draw)
    monkeypatch.setattr(torch, "randn_like", draw)
    return queue


def _reference(kind=None, self_cond=False, **options):
    """An Imagen (or ElucidatedImagen) of the package whose U-Net is the stand-in; its `slope` has a
    gradient.
    """
    unet = imagen_pytorch.Unet(
        dim=8,
        dim_mults=(1,),
        attn_heads=2,
        text_embed_dim=TEXT.shape[-1],
        self_cond=self_cond,
        layer_attns=False,
    )
    imagen = (kind or imagen_pytorch.Imagen)(
        unet, image_sizes=(SIZE,), text_embed_dim=TEXT.shape[-1], cond_drop_prob=0.1, **options
    )
    unet = imagen.unets[0]
    unet.slope = torch.nn.Parameter(torch.tensor(0.5))

    def forward(
        x, time, *, text_embeds=None, cond_drop_prob=0.0, self_cond=None, lowres_cond_img=None, **_
    ):
        of_text = text_embeds.mean(dim=(1, 2)) if cond_drop_prob < 1 else torch.full((ROWS,), NULL)
        last = torch.zeros_like(x) if self_cond is None else self_cond

        def nhwc(a):
            return a.movedim(1, -1)

        lowres = 0.0 if lowres_cond_img is None else 0.1 * nhwc(lowres_cond_img)
        return _toy(torch, nhwc(x), time, of_text, nhwc(last), lowres, unet.slope).movedim(-1, 1)

    unet.forward = forward
    return imagen, unet


def _net(x, condition_B, keep_B, last=0.0, slope=0.5):
    of_text = for_rows(jnp.asarray(TEXT).mean(axis=(1, 2)), x.shape[0])
    of_text = of_text if keep_B is None else jnp.where(keep_B, of_text, NULL)
    return _toy(jnp, x, condition_B, of_text, last, 0.0, slope)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules(schedule):
    theirs, ours = package.GaussianDiffusionContinuousTimes(noise_schedule=schedule), Ddpm(schedule)
    times = np.linspace(0, 0.999, 200)
    exact = theirs.log_snr(torch.from_numpy(times)).numpy()
    # near 0.999 float32 holds 1 - t to 3e-5
    assert np.abs(ours.log_snr(jnp.asarray(times)) - exact).max() < 2e-4
    assert np.abs(ours.log_snr(jnp.asarray(times[:180])) - exact[:180]).max() < 1e-5
    end = theirs.log_snr(torch.ones(1)).numpy()
    assert _error(ours.log_snr(jnp.ones(1)), end) < FORMULA
    known = {
        "linear": [9.21029, 0.141065, -2.414458, -5.621488, -9.980063, -10.000054],
        # The first one is that of float64: the package's float32 loses digits there and gives
        # 8.76919.
        "cosine": [8.76929, 1.710342, -0.024934, -1.780433, -12.928216, -33.891315],
    }[schedule]
    np.testing.assert_allclose(
        ours.log_snr(jnp.array([0, 0.25, 0.5, 0.75, 0.999, 1])), known, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_noising_and_what_it_is_undone_by(schedule):
    theirs, ours = package.GaussianDiffusionContinuousTimes(noise_schedule=schedule), Ddpm(schedule)
    (eps, output), times = _noises(2), np.array([0.1, 0.8], np.float32)
    x, log_snr, *_ = theirs.q_sample(_torch(IMAGES), torch.from_numpy(times), _torch(eps))
    assert _error(ours.add(IMAGES, eps, times), _numpy(x)) < FORMULA
    assert _error(ours.condition(times), log_snr.numpy()) < FORMULA
    for objective, undo in (
        ("noise", theirs.predict_start_from_noise),
        ("v", theirs.predict_start_from_v),
    ):
        expected = _numpy(undo(x, torch.from_numpy(times), _torch(output)))
        got = Ddpm(schedule, objective).denoised(jnp.asarray(output), jnp.asarray(_numpy(x)), times)
        assert _error(got, expected) < FORMULA


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_posterior(schedule):
    theirs, ours = package.GaussianDiffusionContinuousTimes(noise_schedule=schedule), Ddpm(schedule)
    (x, eps), times = _noises(2), np.array([0.6, 0.45], np.float32)

    def one(t):
        return torch.full((ROWS,), float(t))

    mean, variance, _ = theirs.q_posterior(
        _torch(IMAGES), _torch(x), one(times[0]), t_next=one(times[1])
    )
    expected = _numpy(mean + variance.sqrt() * _torch(eps))
    step = ancestral(lambda *args: jnp.asarray(IMAGES), ours)
    got = sample(
        step, jnp.asarray(x), jnp.asarray(times), injected(jnp.asarray(np.stack([eps, eps])))
    )
    assert _error(got, expected) < FORMULA


@pytest.mark.parametrize("objective", ["noise", "x_start", "v"])
@pytest.mark.parametrize("min_snr", [True, False])
@pytest.mark.parametrize("distance", ["l2", "l1", "huber"])
def test_loss_and_its_gradient(objective, min_snr, distance):
    theirs, unet = _reference(
        pred_objectives=objective, min_snr_loss_weight=min_snr, loss_type=distance
    )
    times, (eps,) = np.array([0.15, 0.7], np.float32), _noises(1)
    loss = theirs.p_losses(
        unet,
        _torch(IMAGES),
        torch.from_numpy(times),
        noise=_torch(eps),
        text_embeds=torch.from_numpy(TEXT),
        noise_scheduler=theirs.noise_schedulers[0],
        pred_objective=objective,
        min_snr_gamma=theirs.min_snr_gamma[0],
    )
    loss.backward()
    noise = Ddpm(objective=objective, weighting="min_snr" if min_snr else "snr", distance=distance)

    def ours(slope):
        def net(*args):
            return _net(*args, slope=slope)

        return training_losses(
            net, noise, 2 * IMAGES - 1, jnp.asarray(eps), jnp.asarray(times)
        ).mean()

    value, gradient = jax.jit(jax.value_and_grad(ours))(0.5)
    assert _error(value, loss.item()) < FORMULA
    # the sum over pixels has both signs
    assert _error(gradient, unet.slope.grad.numpy()) < 3 * FORMULA


def test_elucidated_loss_gradient_and_noise_distribution(monkeypatch):
    theirs, unet = _reference(
        imagen_pytorch.ElucidatedImagen, P_mean=-1.0, P_std=1.5, sigma_data=0.4
    )
    normal, (eps,) = np.array([-0.7, 1.3], np.float32), _noises(1)
    left = _feed(monkeypatch, [normal, eps])
    loss = theirs(_torch(IMAGES), text_embeds=torch.from_numpy(TEXT), unet_number=1)
    loss.backward()
    assert not left
    noise = Edm(P_mean=-1.0, P_std=1.5, sigma_data=0.4)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(normal))
    sigma_B = noise.train_levels(None, ROWS)

    def ours(slope):
        def net(*args):
            return _net(*args, slope=slope)

        return training_losses(net, noise, 2 * IMAGES - 1, jnp.asarray(eps), sigma_B).mean()

    value, gradient = jax.jit(jax.value_and_grad(ours))(0.5)
    assert _error(value, loss.item()) < FORMULA
    assert _error(gradient, unet.slope.grad.numpy()) < 3 * FORMULA


def test_elucidated_preconditioning_and_levels():
    theirs, unet = _reference(imagen_pytorch.ElucidatedImagen)
    sigma, x = np.array([0.002, 60.0], np.float32), _noises(1)[0]
    expected = theirs.preconditioned_network_forward(
        unet.forward,
        _torch(x),
        torch.from_numpy(sigma),
        sigma_data=0.5,
        text_embeds=torch.from_numpy(TEXT),
    )
    assert _error(jax.jit(denoiser(_net, Edm()))(x, sigma), _numpy(expected)) < FORMULA
    for steps, low, high, rho in ((5, 0.002, 80.0, 7), (32, 0.01, 160.0, 5)):
        schedule = theirs.sample_schedule(steps, rho, low, high).numpy()
        assert (
            _error(Edm(sigma_min=low, sigma_max=high, rho=float(rho)).levels(steps), schedule)
            < FORMULA
        )


GUIDANCE = {  # scale, remove_parallel_component, keep_parallel_frac, our `parallel`
    "none": (1.0, True, 0.0, 0.0),
    "plain": (3.0, False, 0.0, 1.0),
    "parallel removed": (3.0, True, 0.0, 0.0),
    "parallel weighed": (4.0, True, 0.4, 0.4),
}


@pytest.mark.parametrize("form", GUIDANCE)
def test_guidance_on_the_answers_of_a_network(form):
    scale, remove, fraction, parallel = GUIDANCE[form]
    _, unet = _reference()
    x, condition = _noises(1)[0], np.array([-3.0, 2.0], np.float32)
    expected = unet.forward_with_cond_scale(
        _torch(x),
        torch.from_numpy(condition),
        text_embeds=torch.from_numpy(TEXT),
        cond_scale=scale,
        remove_parallel_component=remove,
        keep_parallel_frac=fraction,
    )
    guided = guide(_net, scale, parallel=parallel)
    got = jax.jit(lambda *given: guided(*given, None))(x, condition)
    assert _error(got, _numpy(expected)) < FORMULA


def _steps(noise, form, threshold, percentile=0.95, self_conditioned=False):
    scale, *_, parallel = GUIDANCE[form]
    denoise = denoiser(
        guide(_net, scale, parallel=parallel), noise, self_conditioned=self_conditioned
    )
    return dynamic(denoise, percentile) if threshold == "dynamic" else clamp(denoise)


def _images(x):
    return (np.clip(x, -1, 1) + 1) / 2


RUNS = [  # objective, schedule, threshold, guidance, steps, self-conditioned
    ("noise", "cosine", "dynamic", "parallel removed", 32, False),
    ("noise", "linear", "static", "plain", 32, False),
    ("x_start", "cosine", "dynamic", "plain", 32, False),
    ("x_start", "linear", "static", "parallel removed", 8, False),
    ("v", "cosine", "static", "parallel weighed", 32, False),
    ("v", "linear", "dynamic", "none", 32, False),
    ("v", "cosine", "dynamic", "plain", 16, True),
]


@pytest.mark.parametrize(
    ("objective", "schedule", "threshold", "form", "steps", "self_conditioned"), RUNS
)
def test_a_whole_run(monkeypatch, objective, schedule, threshold, form, steps, self_conditioned):
    scale, remove, fraction, _ = GUIDANCE[form]
    theirs, unet = _reference(
        self_cond=self_conditioned,
        timesteps=steps,
        noise_schedules=schedule,
        dynamic_thresholding_percentile=0.9,
    )
    eps = _noises(steps + 1)
    left = _feed(monkeypatch, eps)
    expected = theirs.p_sample_loop(
        unet,
        (ROWS, CHANNELS, SIZE, SIZE),
        noise_scheduler=theirs.noise_schedulers[0],
        text_embeds=torch.from_numpy(TEXT),
        cond_scale=scale,
        cfg_remove_parallel_component=remove,
        cfg_keep_parallel_frac=fraction,
        pred_objective=objective,
        dynamic_threshold=threshold == "dynamic",
        use_tqdm=False,
    )
    assert not left
    noise, draw = Ddpm(schedule, objective), injected(jnp.asarray(eps))
    levels = noise.levels(steps)
    step = ancestral(_steps(noise, form, threshold, 0.9, self_conditioned), noise)
    got = jax.jit(lambda: sample(step, start(noise, levels, draw, SHAPE), levels, draw))()
    assert _error(_images(got), _numpy(expected)) < RUN
    assert np.std(got) > 0.1  # neither side has run into a corner


@pytest.mark.parametrize(
    ("threshold", "form", "self_conditioned", "churn"),
    [
        ("dynamic", "parallel removed", False, 80.0),
        ("static", "plain", False, 0.0),
        ("dynamic", "none", True, 10.0),
    ],
)
def test_a_whole_elucidated_run(monkeypatch, threshold, form, self_conditioned, churn):
    steps, (scale, remove, fraction, _) = 32, GUIDANCE[form]
    theirs, unet = _reference(
        imagen_pytorch.ElucidatedImagen,
        self_cond=self_conditioned,
        num_sample_steps=steps,
        S_churn=churn,
    )
    eps = _noises(steps + 1)
    left = _feed(monkeypatch, eps)
    expected = theirs.one_unet_sample(
        unet,
        (ROWS, CHANNELS, SIZE, SIZE),
        unet_number=1,
        dynamic_threshold=threshold == "dynamic",
        cond_scale=scale,
        use_tqdm=False,
        text_embeds=torch.from_numpy(TEXT),
        remove_parallel_component=remove,
        keep_parallel_frac=fraction,
    )
    assert not left
    noise, draw = Edm(), injected(jnp.asarray(eps))
    levels = noise.levels(steps)
    step = heun(_steps(noise, form, threshold, 0.95, self_conditioned), noise, Churn(churn), steps)
    got = jax.jit(lambda: sample(step, start(noise, levels, draw, SHAPE), levels, draw))()
    assert _error(_images(got), _numpy(expected)) < RUN
    assert np.std(got) > 0.1


def test_completion_as_the_package_does_it(monkeypatch):
    steps, resample = 6, 3
    theirs, unet = _reference(timesteps=steps)
    eps = _noises(1 + 3 * steps * resample)
    # The package draws for the way back up only where there is one.

    def stays(n):
        return n < steps * resample and (n // resample == steps - 1 or n % resample == resample - 1)

    left = _feed(
        monkeypatch, [a for n, a in enumerate(eps) if n == 0 or n % 3 or not stays(n // 3 - 1)]
    )
    keep = np.zeros((ROWS, SIZE, SIZE), bool)
    keep[:, :3] = True
    expected = theirs.p_sample_loop(
        unet,
        (ROWS, CHANNELS, SIZE, SIZE),
        noise_scheduler=theirs.noise_schedulers[0],
        text_embeds=torch.from_numpy(TEXT),
        inpaint_images=_torch(IMAGES),
        inpaint_masks=torch.from_numpy(keep),
        inpaint_resample_times=resample,
        use_tqdm=False,
    )
    assert not left
    noise, draw = Ddpm(), injected(jnp.asarray(eps))
    levels = noise.levels(steps)
    got = repaint(
        ancestral(_steps(noise, "none", "dynamic"), noise),
        noise,
        start(noise, levels, draw, SHAPE),
        levels,
        draw,
        jnp.asarray(2 * IMAGES - 1),
        jnp.asarray(keep),
        resample=resample,
        compat="imagen-pytorch",
    )
    assert _error(_images(got), _numpy(expected)) < RUN


def test_completion_as_the_elucidated_package_does_it(monkeypatch):
    """Its known half is clean but for the noise of the churn."""
    steps, resample = 5, 3
    theirs, unet = _reference(
        imagen_pytorch.ElucidatedImagen, num_sample_steps=steps, sigma_max=5.0
    )
    eps = _noises(1 + 3 * steps * resample)

    def is_drawn(n):
        """The start; the churn of every time; the way back up, where there is one."""
        time, kind = divmod(n - 1, 3)
        up = time // resample < steps - 1 and time % resample < resample - 1
        return n == 0 or kind == 1 or (kind == 2 and up)

    left = _feed(monkeypatch, [a for n, a in enumerate(eps) if is_drawn(n)])
    keep = np.zeros((ROWS, SIZE, SIZE), bool)
    keep[:, :3] = True
    expected = theirs.one_unet_sample(
        unet,
        (ROWS, CHANNELS, SIZE, SIZE),
        unet_number=1,
        text_embeds=torch.from_numpy(TEXT),
        inpaint_images=_torch(IMAGES),
        inpaint_masks=torch.from_numpy(keep),
        inpaint_resample_times=resample,
        use_tqdm=False,
    )
    assert not left
    stage = Stage(Unet(dim=8, dim_mults=(1,)), SIZE, noise=Edm(sigma_max=5.0))
    got = run(
        stage,
        lambda *_: _net,
        StageSampling("heun", steps, Churn(), guided=False, resample=resample, compat=COMPAT),
        SHAPE,
        injected(jnp.asarray(eps)),
        1.0,
        init_BHWC=jnp.asarray(2 * IMAGES - 1),
        keep_BHW=jnp.asarray(keep),
    )
    assert _error(_images(got), _numpy(expected)) < RUN
    assert np.std(np.asarray(got)[~keep]) > 0.1


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
def test_a_mask_is_resized_as_the_package_does_it(mode):
    keep = np.random.default_rng(0).uniform(size=(2, 12, 12)) < 0.2
    for side in (8, 17):
        theirs = package.resize_image_to(torch.from_numpy(keep)[:, None].float(), side, mode=mode)
        ours = known(jnp.asarray(keep), (side, side), mode)
        np.testing.assert_array_equal(ours, theirs.bool()[:, 0].numpy())


def test_image_to_image_as_the_package_does_it(monkeypatch):
    steps, skip = 8, 3
    theirs, unet = _reference(timesteps=steps)
    eps = _noises(1 + steps - skip)
    left = _feed(monkeypatch, eps)
    expected = theirs.p_sample_loop(
        unet,
        (ROWS, CHANNELS, SIZE, SIZE),
        noise_scheduler=theirs.noise_schedulers[0],
        text_embeds=torch.from_numpy(TEXT),
        init_images=_torch(2 * IMAGES - 1),
        skip_steps=skip,
        use_tqdm=False,
    )
    assert not left
    noise, draw = Ddpm(), injected(jnp.asarray(eps))
    x, levels = from_image(
        noise,
        jnp.asarray(2 * IMAGES - 1),
        noise.levels(steps),
        skip,
        jnp.asarray(eps[0]),
        compat="imagen-pytorch",
    )
    got = sample(ancestral(_steps(noise, "none", "dynamic"), noise), x, levels, draw)
    assert _error(_images(got), _numpy(expected)) < RUN


def test_the_small_image_of_a_later_stage():
    theirs, _ = _reference()
    schedule, ours, (eps,) = theirs.lowres_noise_schedule, LowresNoise(), _noises(1)
    times = schedule.get_times(ROWS, 0.2, device="cpu")
    noised, *_ = schedule.q_sample(x_start=_torch(2 * IMAGES - 1), t=times, noise=_torch(eps))
    got, condition_B = ours.for_sampling(jnp.asarray(2 * IMAGES - 1), jnp.asarray(eps))
    assert _error(got, _numpy(noised)) < FORMULA
    assert _error(condition_B, schedule.get_condition(times).numpy()) < FORMULA
