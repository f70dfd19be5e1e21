"""Image to image: sampling that starts from a noised image instead of from noise (SDEdit, Meng et
al. 2022).
"""

from __future__ import annotations

import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion.noise import Noise
from t2i_jax.errors import UserError
from t2i_jax.types import Array


def from_image(
    noise: Noise,
    image_BHWC: Array,
    levels: Array,
    skip: int,
    eps_BHWC: Array,
    *,
    compat: str | None = None,
) -> tuple[Array, Array]:
    """(x_BHWC, levels): the noised image that sampling starts from, and the levels that remain.

    Args:
      image_BHWC: images in [-1, 1].
      levels: those of a whole run. skip: how many of its steps are left out; the more, the closer
        to the images.
      eps_BHWC: unit noise.
      compat: "imagen-pytorch" adds the images to the noise of a whole run and then leaves out
        steps, as that package does. None: the images are noised to the level at which the run
        starts.
    """
    steps = len(levels) - 1
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip < steps:
        raise UserError(f"skip={skip} does not leave a step of {steps}; try {steps // 2}.")
    if compat is not None:
        one_of("image.compat", compat, ("imagen-pytorch",))
        return noise.start(eps_BHWC, levels[0]) + image_BHWC, levels[skip:]
    level_B = jnp.full(image_BHWC.shape[:1], levels[skip])
    return noise.add(image_BHWC, eps_BHWC, level_B), levels[skip:]


def steps_to_skip(strength: float, steps: int) -> int:
    """The number of steps that a change of this strength leaves out: strength 1 makes all steps,
    near 0 it makes one.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength={strength} is outside (0, 1]; try 0.6.")
    return steps - max(round(strength * steps), 1)
