"""Both noises: what goes out comes back, limits, the levels they promise, weights that agree
between objectives.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.config import from_dict, to_dict
from t2i_jax.diffusion.denoiser import denoiser, training_losses
from t2i_jax.diffusion.noise import DISTANCES, OBJECTIVES, SCHEDULES, WEIGHTINGS, Ddpm, Edm, karras
from t2i_jax.errors import UserError

ALL = [Ddpm(schedule, objective) for schedule in SCHEDULES for objective in OBJECTIVES] + [
    Edm(),
    Edm(sigma_data=1.0),
]


@jax.jit
def _images(key):
    shape, of_noise = (6, 4, 4, 3), jax.random.fold_in(key, 1)
    return jax.random.uniform(key, shape, minval=-1.0), jax.random.normal(of_noise, shape)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_the_right_answer_gives_the_clean_image_and_no_loss(noise, key):
    x0, eps = _images(key)

    @jax.jit
    def run(key, x0, eps):
        level_B = noise.train_levels(key, 6)
        target = noise.target(x0, eps, level_B)
        got = noise.denoised(target, noise.add(x0, eps, level_B), level_B)
        return got, noise.marginal(level_B), noise.losses(target, x0, eps, level_B)

    got, (alpha_B, sigma_B), losses = run(key, x0, eps)
    # Dividing by alpha magnifies the rounding of x, which is near 1, or near sigma.
    away = (np.asarray(got) - np.asarray(x0)) * np.asarray(alpha_B)[:, None, None, None]
    np.testing.assert_allclose(away, 0.0, atol=2e-6 * max(1.0, float(sigma_B.max())))
    assert losses.tolist() == [0.0] * 6


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_a_loss_is_the_weighted_error_of_the_clean_image(noise, key):
    """Whatever the network predicts, the loss is weight(SNR) * |x0' - x0|^2 with the same
    weight.
    """

    @jax.jit
    def run(key, x0, eps):
        level_B = noise.level_at(jnp.array([0.1, 0.3, 1.0, 2.0, 5.0, 10.0]))
        output = noise.target(x0, eps, level_B) + 0.3 * jax.random.normal(
            jax.random.fold_in(key, 2), x0.shape
        )
        error = noise.denoised(output, noise.add(x0, eps, level_B), level_B) - x0
        return noise.losses(output, x0, eps, level_B), error, noise.log_snr(level_B)

    losses, error, log_snr = map(np.asarray, run(key, *_images(key)))
    snr = np.exp(log_snr)
    weight = snr + noise.sigma_data**-2 if isinstance(noise, Edm) else np.minimum(snr, 5.0)
    np.testing.assert_allclose(losses, weight * np.mean(error**2, axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(
    "noise", [Ddpm(), Ddpm("linear"), Ddpm(shift=-1.5), Ddpm("linear", shift=1.0), Edm()], ids=str
)
def test_log_snr_marginal_and_level_agree(noise):
    level = noise.levels(20)[1:-1]
    alpha, sigma = noise.marginal(level)
    np.testing.assert_allclose(
        2 * jnp.log(alpha / sigma), noise.log_snr(level), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(noise.level_at(sigma / alpha), level, rtol=1e-4)
    assert (np.diff(noise.log_snr(level)) > 0).all()


def test_a_shift_is_added_to_the_log_snr():
    level = jnp.linspace(0.0, 1.0, 9)
    for schedule in SCHEDULES:
        moved = Ddpm(schedule, shift=-1.5).log_snr(level) - Ddpm(schedule).log_snr(level)
        np.testing.assert_allclose(moved, -1.5, rtol=1e-5)


def test_levels_at_the_ends_are_finite_and_reach_them():
    for schedule in SCHEDULES:
        noise = Ddpm(schedule)
        assert np.isfinite(noise.log_snr(jnp.array([0.0, 1.0]))).all()
        assert noise.level_at(jnp.array([0.0, 1e9])).tolist() == [0.0, 1.0]
        assert noise.levels(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(Edm().levels(5), [80, 17.528, 2.5152, 0.16975, 0.002, 0], rtol=5e-5)
    np.testing.assert_allclose(karras(1, 0.002, 80.0), [80.0, 0.0], rtol=1e-6)


def test_edm_inputs_and_answers_have_unit_variance(key):
    noise = Edm()
    x0 = 0.5 * jax.random.normal(key, (5, 64, 64, 1))
    eps = jax.random.normal(jax.random.fold_in(key, 1), x0.shape)
    level_B = jnp.array([0.002, 0.1, 0.5, 3.0, 80.0])
    for x in (
        noise.net_input(noise.add(x0, eps, level_B), level_B),
        noise.target(x0, eps, level_B),
    ):
        np.testing.assert_allclose(jnp.std(x, axis=(1, 2, 3)), 1.0, atol=0.04)


def test_edm_draws_log_normal_levels(key):
    levels = np.log(Edm(P_mean=-0.5, P_std=0.7).train_levels(key, 20_000))
    np.testing.assert_allclose([levels.mean(), levels.std()], [-0.5, 0.7], atol=0.02)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_of_the_noise_objective(weighting):
    noise = Ddpm(weighting=weighting, p2_gamma=2.0, p2_k=0.5)
    level = jnp.array([0.05, 0.5, 0.9])
    snr = np.exp(noise.log_snr(level))
    weights = {
        "min_snr": np.minimum(5 / snr, 1),
        "p2": (0.5 + snr) ** -2.0,
        "snr": np.ones(3),
        "plain": np.ones(3),
    }
    expected = weights[weighting]
    np.testing.assert_allclose(noise.weight(level), expected, rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plain_weighs_what_is_predicted_by_one(objective):
    noise = Ddpm(objective=objective, weighting="plain")
    np.testing.assert_allclose(noise.weight(jnp.array([0.05, 0.5, 0.9])), 1.0, rtol=1e-5)


def test_distances():
    x0, eps, level = jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 1, 2, 1)), jnp.array([0.5])
    output = jnp.array([0.5, -3.0]).reshape(1, 1, 2, 1)
    got = {
        d: float(Ddpm(weighting="snr", distance=d).losses(output, x0, eps, level)[0])
        for d in DISTANCES
    }
    assert got == pytest.approx({"l2": 4.625, "l1": 1.75, "huber": 1.3125})


def test_a_half_precision_network_gives_float32(key):
    x0, eps = _images(key)

    def net(x, condition_B, keep_B):
        return x.astype(jnp.bfloat16)

    for noise in ALL:

        def run(x0, eps, noise=noise):
            level_B = noise.train_levels(key, 6)
            found = denoiser(net, noise)(x0, level_B)
            return found, training_losses(net, noise, x0, eps, level_B)

        assert all(one.dtype == jnp.float32 for one in jax.eval_shape(run, x0, eps))


def test_a_network_sees_scaled_images_conditions_and_its_last_estimate(key):
    x0, eps = _images(key)
    noise, level_B, keep_B, seen = Edm(), jnp.full((6,), 2.0), jnp.arange(6) > 2, {}

    def net(x, condition_B, keep_B, last):
        seen.update(x=x, condition=condition_B, keep=keep_B, last=last)
        return x

    denoiser(net, noise, self_conditioned=True)(x0, level_B, keep_B)
    np.testing.assert_allclose(seen["x"], x0 / np.sqrt(4.25), rtol=1e-6)
    np.testing.assert_allclose(seen["condition"], np.log(2.0) / 4, rtol=1e-6)
    assert not seen["last"].any() and seen["keep"].tolist() == keep_B.tolist()
    denoiser(net, noise, self_conditioned=True)(x0, level_B, keep_B, eps)
    assert (seen["last"] == eps).all()
    training_losses(net, noise, x0, eps, level_B, keep_B, x0)
    assert (seen["last"] == x0).all()
    np.testing.assert_allclose(seen["x"], (x0 + 2 * eps) / np.sqrt(4.25), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "noise", [Ddpm("linear", "v", "p2", p2_gamma=1.0, distance="l1"), Edm(sigma_max=160.0)]
)
def test_configurations_survive_json(noise):
    known = {"Ddpm": Ddpm, "Edm": Edm}
    assert from_dict(json.loads(json.dumps(to_dict(noise))), known) == noise


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ddpm("cosin"), "did you mean 'cosine'"),
        (lambda: Ddpm(objective="x0"), "known: noise"),
        (lambda: Ddpm(weighting="minsnr"), "did you mean 'min_snr'"),
        (lambda: Ddpm(distance="l3"), "noise.distance='l3'"),
        (lambda: Ddpm(min_snr_gamma=0.0), "min_snr_gamma=0.0 is not above 0; try 5.0"),
        (lambda: Ddpm(p2_gamma=-1.0), "p2_gamma=-1.0"),
        (lambda: Ddpm(shift=float("nan")), "noise.shift=nan is not finite"),
        (lambda: Edm(sigma_min=0.0), "sigma_min=0.0 is not above 0"),
        (lambda: Edm(sigma_max=0.001), "sigma_max=0.001 is not above"),
        (lambda: Edm().levels(0), "steps=0"),
        (lambda: Ddpm().levels(2.5), "steps=2.5"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
