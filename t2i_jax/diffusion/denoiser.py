"""The denoiser that a network and a noise make together: its estimate of the clean image, and its
training losses.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from t2i_jax.diffusion.noise import Noise
from t2i_jax.types import Array

# A network: (x_BHWC, condition_B, keep_B) -> output_BHWC, and as fourth argument last_BHWC where it
# conditions on its own last estimate. `keep_B` is the conditioning mask, False in rows without
# their text; None: all True. The texts themselves are inside the function; guidance calls it with
# two times the rows, see `guidance.for_rows`.
Net = Callable[..., Array]

# (x_BHWC, level_B, keep_B, last_BHWC) -> x0_BHWC, float32. `last_BHWC` is the estimate of the
# previous step, or None. A denoiser with guidance or thresholds around it is a denoiser again.
Denoise = Callable[..., Array]


def denoiser(net: Net, noise: Noise, *, self_conditioned: bool = False) -> Denoise:
    """The function from a noised image and its level to the clean image, as this network sees it.

    Args:
      self_conditioned: whether the network takes its own last estimate (zeros where there is none)
        as fourth argument.
    """

    def denoise(x_BHWC, level_B, keep_B=None, last_BHWC=None):
        x_BHWC = x_BHWC.astype(jnp.float32)
        last_BHWC = jnp.zeros_like(x_BHWC) if last_BHWC is None else last_BHWC
        rest = (last_BHWC,) if self_conditioned else ()
        output_BHWC = net(noise.net_input(x_BHWC, level_B), noise.condition(level_B), keep_B, *rest)
        return noise.denoised(output_BHWC, x_BHWC, level_B)

    return denoise


def training_losses(
    net: Net,
    noise: Noise,
    x0_BHWC: Array,
    eps_BHWC: Array,
    level_B: Array,
    keep_B: Array | None = None,
    last_BHWC: Array | None = None,
) -> Array:
    """Weighted loss (B,) of clean images in [-1, 1] noised by `eps_BHWC` to `level_B`.

    Args:
      last_BHWC: an estimate of the clean image for a network that conditions on it. None: it is not
        given any.
    """
    x_BHWC = noise.add(x0_BHWC, eps_BHWC, level_B)
    rest = () if last_BHWC is None else (last_BHWC,)
    output_BHWC = net(noise.net_input(x_BHWC, level_B), noise.condition(level_B), keep_B, *rest)
    return noise.losses(output_BHWC, x0_BHWC, eps_BHWC, level_B)
