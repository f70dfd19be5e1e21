"""Inpainting with a network that was not trained for it (RePaint, Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion.draws import NoiseSource
from t2i_jax.diffusion.noise import Noise
from t2i_jax.diffusion.samplers import Levels, State, Step
from t2i_jax.errors import UserError
from t2i_jax.types import Array

COMPAT = ("imagen-pytorch", "imagen-pytorch-elucidated")


def repaint(
    step: Step,
    noise: Noise,
    x_BHWC: Array,
    levels: Array,
    draw: NoiseSource,
    known_BHWC: Array,
    keep_BHW: Array,
    *,
    resample: int = 5,
    compat: str | None = None,
    tell: Callable[[], None] | None = None,
) -> Array:
    """Clean images, float32, with the known part in place and the rest sampled to fit it.

    Every step is made `resample` times: the known part is noised to the level and put in, the step
    is made, and but for the last time the result is noised back up, so that both parts grow
    together.

    Args:
      step: a solver of one step (`ancestral`, `ddim`, `heun`; `dpm_solver` takes its first-order
        form).
      x_BHWC: noise at levels[0]. known_BHWC: images in [-1, 1]. keep_BHW: True where the image is
        known.
      draw: noise source; time r of step i takes the samples 1 + 3 * (i * resample + r) and the next
        two: for the known part, for the step, and for noising back up.
      compat: "imagen-pytorch" noises back up with too little noise, as that package does;
        "imagen-pytorch-elucidated" does so too and puts the known part in without noise, so that it
        has only what a solver adds (`samplers.Churn`), as its ElucidatedImagen does. None: as in
        the paper.
      tell: callback, called within the compiled loop for every step, see `progress`.
    """
    if isinstance(resample, bool) or not isinstance(resample, int) or resample < 1:
        raise UserError(f"resample={resample} is not a number of times from 1; try 5.")
    if compat is not None:
        one_of("inpaint.compat", compat, COMPAT)
    keep = keep_BHW[..., None].astype(bool)

    # Reference quirk: none goes back up from the last level, which dalle2-pytorch has above 0.
    lowest = levels[-1] if compat else 0.0

    def rows(level):
        return jnp.full(known_BHWC.shape[:1], level, jnp.float32)

    def body(state, at):
        i, now, after = at
        if tell is not None:
            tell()

        def once(r, state):
            def normal(j):
                return draw(1 + 3 * (i * resample + r) + j, state.x_BHWC)

            known = known_BHWC
            if compat != "imagen-pytorch-elucidated":
                known = noise.add(known_BHWC, normal(0), rows(now))
            x = jnp.where(keep, known, state.x_BHWC)
            state = step(State(x, state.x0_BHWC), Levels(now, now, after), lambda: normal(1))
            again = (r < resample - 1) & (after > lowest)
            return State(
                jnp.where(
                    again,
                    _back_up(noise, state.x_BHWC, after, now, normal(2), compat),
                    state.x_BHWC,
                ),
                state.x0_BHWC,
            )

        return jax.lax.fori_loop(0, resample, once, state), None

    x_BHWC = x_BHWC.astype(jnp.float32)
    along = jnp.arange(len(levels) - 1), levels[:-1], levels[1:]
    state, _ = jax.lax.scan(body, State(x_BHWC, jnp.zeros_like(x_BHWC)), along)
    return jnp.where(keep, known_BHWC, state.x_BHWC)


def _back_up(noise, x_BHWC, low, high, eps_BHWC, compat):
    """The forward process from a lower level to a higher one: x * alpha / alpha_low + noise for
    what is missing.
    """
    (alpha_low, sigma_low), (alpha, sigma) = noise.marginal(low), noise.marginal(high)
    shrunk = alpha / alpha_low
    if compat:  # Reference quirk: the standard deviations are subtracted, not the variances.
        return shrunk * x_BHWC + (sigma - shrunk * sigma_low) * eps_BHWC
    return (
        shrunk * x_BHWC
        + jnp.sqrt(jnp.maximum(sigma**2 - (shrunk * sigma_low) ** 2, 0.0)) * eps_BHWC
    )
