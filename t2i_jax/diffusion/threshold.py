"""Thresholding: any denoiser with its estimate of the clean image kept within [-1, 1]."""

from __future__ import annotations

import jax.numpy as jnp

from t2i_jax.diffusion.denoiser import Denoise
from t2i_jax.diffusion.noise import per_row
from t2i_jax.diffusion.quantile import quantile
from t2i_jax.errors import UserError
from t2i_jax.pixels import SIGNED
from t2i_jax.types import Array


def clamp(denoise: Denoise) -> Denoise:
    """Static thresholding: estimates clipped to [-1, 1]."""
    return lambda *args: jnp.clip(denoise(*args), *SIGNED)


def dynamic(denoise: Denoise, percentile: float = 0.95) -> Denoise:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3), row by row.

    Args:
      percentile: fraction of an image's absolute values below the threshold; 0.995 in the paper,
        0.95 in imagen-pytorch.
    """
    if not 0 < percentile <= 1:
        raise UserError(f"percentile={percentile} is outside (0, 1]; try 0.95.")
    return lambda *args: _rescaled(denoise(*args), percentile)


def _rescaled(x0_BHWC: Array, percentile: float) -> Array:
    """Clipped at s and divided by s, the percentile of |x0| or 1, whichever is larger."""
    sizes_BN = jnp.abs(x0_BHWC).reshape(x0_BHWC.shape[0], -1)
    bound = per_row(jnp.maximum(quantile(sizes_BN, percentile), 1.0), x0_BHWC)
    return jnp.clip(x0_BHWC, -bound, bound) / bound
