"""DDIM as dalle2-pytorch 1.15.6 walks it, in its decoder and, otherwise, in its prior."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from t2i_jax.diffusion.denoiser import Denoise
from t2i_jax.diffusion.noise import Noise
from t2i_jax.diffusion.samplers import State, Step
from t2i_jax.errors import UserError
from t2i_jax.types import Array


def decoder_levels(timesteps: int, steps: int) -> Array:
    """The falling levels (steps + 1,) of `Decoder.p_sample_loop_ddim`: from a little below pure
    noise to level 1, a little noise.

    Its timesteps are linspace(0, T, steps + 2) without the last, rounded down; level n is its
    timestep n - 1. They are exact here. Of a few numbers of steps PyTorch's float32 comes out just
    below a whole timestep, where depends on the processor, and takes the one before.
    """
    times = np.arange(steps + 1) * timesteps // (steps + 1)
    return jnp.asarray(times[::-1] + 1, jnp.float32)


def prior_levels(timesteps: int, steps: int) -> Array:
    """The falling levels (steps,) of `DiffusionPrior.p_sample_loop_ddim`, to level 0: one call of
    the network less than there are steps.

    Its timesteps are linspace(-1, T, steps + 1) without the last, rounded towards 0; of rounding
    see `decoder_levels`.

    Raises:
      UserError: one step, of which the package calls no network and returns noise.
    """
    if steps < 2:
        raise UserError(
            f"steps={steps} of dalle2-pytorch's DDIM calls no network and returns noise; give 2 or "
            "more."
        )
    return jnp.asarray((np.arange(steps) * (timesteps + 1) // steps)[::-1], jnp.float32)


def prior_step(denoise: Denoise, noise: Noise) -> Step:
    """A step of `DiffusionPrior.p_sample_loop_ddim`, as noisy as the ancestral one.

    Reference quirk: the noise is told from the estimate at the level of x, and then counted as that
    of the level before it, as whose x is mixed anew.
    """

    def step(state, levels, normal):
        x = state.x_BHWC
        level_B = jnp.full(x.shape[:1], levels.now, jnp.float32)
        x0 = denoise(x, level_B, None, state.x0_BHWC)
        alpha, sigma = noise.marginal(levels.now)
        eps = (x - alpha * x0) / sigma
        (alpha, sigma), (alpha_next, sigma_next) = (
            noise.marginal(jnp.maximum(level - 1, 0)) for level in (levels.now, levels.next)
        )
        ratio = sigma_next / jnp.maximum(sigma, 1e-20)
        added = ratio * jnp.sqrt(jnp.maximum(1 - (alpha / alpha_next) ** 2, 0.0))
        kept = jnp.sqrt(jnp.maximum(sigma_next**2 - added**2, 0.0))
        drawn = jnp.where(levels.next > 1, normal(), 0.0)
        mixed = alpha_next * x0 + added * drawn + kept * eps
        return State(jnp.where(levels.next > 0, mixed, x0), x0)

    return step
