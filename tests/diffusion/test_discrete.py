"""Diffusion in whole timesteps: what goes out comes back, its ends, samplers, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.config import from_dict, to_dict
from t2i_jax.diffusion import samplers
from t2i_jax.diffusion.discrete import BETAS, DiscreteDdpm
from t2i_jax.diffusion.draws import gaussian
from t2i_jax.diffusion.noise import OBJECTIVES
from t2i_jax.errors import UserError


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", BETAS)
def test_the_right_answer_gives_the_clean_vector_and_no_loss(schedule, objective, key):
    noise = DiscreteDdpm(100, schedule, objective, p2_gamma=0.5)
    x0, eps = jax.random.normal(key, (2, 5, 8))
    level_B = jnp.array([1.0, 20.0, 50.0, 70.0, 90.0])
    assert np.isfinite(noise.denoised(eps, eps, jnp.full(5, 100.0))).all()
    x, target = noise.add(x0, eps, level_B), noise.target(x0, eps, level_B)
    alpha = np.asarray(noise.marginal(level_B)[0])[:, None]
    np.testing.assert_allclose((noise.denoised(target, x, level_B) - x0) * alpha, 0, atol=3e-6)
    np.testing.assert_array_equal(noise.losses(target, x0, eps, level_B), 0)


def test_levels_conditions_and_signal_to_noise_ratios_agree():
    noise = DiscreteDdpm(100)
    level = jnp.arange(1, 101, dtype=jnp.float32)
    alpha, sigma = noise.marginal(level)
    np.testing.assert_allclose(2 * jnp.log(alpha / sigma), noise.log_snr(level), 1e-4, 1e-4)
    np.testing.assert_array_equal(noise.level_at(sigma / alpha), level)
    np.testing.assert_array_equal(noise.condition(level), np.arange(100))
    assert noise.marginal(jnp.float32(0)) == (1, 0)
    drawn = noise.train_levels(jax.random.key(0), 4000)
    assert (drawn.min(), drawn.max()) == (1, 100)
    np.testing.assert_array_equal(noise.levels(4), [100, 75, 50, 25, 0])
    np.testing.assert_array_equal(noise.levels(100), np.arange(100, -1, -1))
    assert from_dict(to_dict(noise), {"DiscreteDdpm": DiscreteDdpm}) == noise


@pytest.mark.parametrize(
    "solver", [samplers.ancestral, samplers.ddim, samplers.dpm_solver, samplers.heun]
)
def test_samplers_reach_the_vectors_that_a_perfect_network_knows(solver, key):
    """From noise in which nothing is left of them."""
    noise = DiscreteDdpm(50, "jsd", objective="x_start")
    known = jax.random.normal(key, (3, 8))
    keys = jax.random.split(key, 3)
    levels = noise.levels(10)

    def denoise(x, level_B, keep_B=None, last=None):
        return known

    x = samplers.start(noise, levels, gaussian(keys), known.shape)
    got = samplers.sample(solver(denoise, noise), x, levels, gaussian(keys))
    np.testing.assert_allclose(got, known, atol=1e-5)


def test_a_whole_run_keeps_unit_variance(key):
    """Of data that is normal itself the best estimate of x0 is alpha * x."""
    noise, keys = DiscreteDdpm(200), jax.random.split(key, 4000)

    def denoise(x, level_B, keep_B=None, last=None):
        return noise.marginal(level_B)[0][:, None] * x

    levels = noise.levels(200)
    x = samplers.start(noise, levels, gaussian(keys), (4000, 2))
    got = samplers.sample(samplers.ddim(denoise, noise), x, levels, gaussian(keys))
    np.testing.assert_allclose(np.std(got), 1.0, atol=0.05)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"timesteps": 0}, "noise.timesteps=0"),
        ({"timesteps": 10, "schedule": "linear"}, "noise.timesteps=10 makes betas"),
        ({"schedule": "cosin"}, "noise.schedule='cosin'"),
        ({"objective": "x"}, "noise.objective='x'"),
        ({"distance": "l3"}, "noise.distance='l3'"),
        ({"p2_gamma": -1.0}, "noise.p2_gamma=-1.0"),
        ({"p2_k": 0.0}, "noise.p2_k=0.0"),
    ],
)
def test_bad_values_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        DiscreteDdpm(**fields)
    with pytest.raises(UserError, match="steps=101 are more than the 100 timesteps"):
        DiscreteDdpm(100).levels(101)
