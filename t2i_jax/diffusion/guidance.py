"""Classifier-free guidance (Ho & Salimans 2022): both halves in one call of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.diffusion.noise import per_row
from t2i_jax.types import Array

Scale = float | Array | Callable[[Array], Array]


def guide(
    function: Callable[..., Array], scale: Scale, *, parallel: float = 1.0
) -> Callable[..., Array]:
    """The function with classifier-free guidance: c + (scale - 1) * (c - null), c conditional, null
    unconditional.

    Around a denoiser it works on clean images, around a network on the network's predictions.
    Without `parallel` that is the same; with it, imagen-pytorch 2.1.0 works on the network's
    predictions, and Sadat et al. 2024 on clean images.

    Args:
      function: `(x_BHWC, level_B, keep_B, ...) -> BHWC`; it is called with 2B rows, first those
        with their text.
      scale: 1 is no guidance (and costs none, as a Python number). An array holds one scale, or one
        per row. A function gives them from level_B; where that says 1 for all rows, the half
        without a text is not computed.
      parallel: factor of the component of c - null that is parallel to the conditional prediction c
        (APG, Sadat et al. 2024): 1 is plain guidance, 0 removes it, against colours that saturate
        at high scales.
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return function

    def guided(x_BHWC, level_B, keep_B=None, *rest):
        keep_B = jnp.ones(x_BHWC.shape[:1], bool) if keep_B is None else keep_B
        scale_B = jnp.broadcast_to(
            jnp.asarray(scale(level_B) if callable(scale) else scale), level_B.shape
        )

        def both():
            doubled = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_BHWC, level_B, rest))
            keep_2B = jnp.concatenate([keep_B, jnp.zeros_like(keep_B)])
            prediction, null = jnp.split(function(doubled[0], doubled[1], keep_2B, *doubled[2]), 2)
            update = _reduced(prediction - null, prediction, parallel)
            return prediction + per_row(scale_B - 1, prediction) * update

        if not callable(scale):
            return both()
        return jax.lax.cond(
            jnp.all(scale_B == 1), lambda: function(x_BHWC, level_B, keep_B, *rest), both
        )

    return guided


def within(
    scale: float | Array, low: float | Array, high: float | Array
) -> Callable[[Array], Array]:
    """A scale for the levels from `low` to `high`, and 1 outside (Kynkäänniemi et al. 2024).

    Levels are what the guided function takes: those of the noise for a denoiser, for a network its
    conditions: log-SNRs with `Ddpm`, which fall as levels rise, and ln(sigma) / 4 with `Edm`.
    """
    return lambda level_B: jnp.where((level_B >= low) & (level_B <= high), scale, 1.0)


def for_rows(arrays: Any, rows: int) -> Any:
    """A tree of arrays (B, ...), repeated as a whole to `rows` = B or 2B rows; for what a network
    closes over.
    """
    return jax.tree.map(lambda a: jnp.concatenate([a] * (rows // a.shape[0])), arrays)


def _reduced(update, prediction, parallel):
    """The update with its component parallel to the prediction multiplied by `parallel`, per row,
    over all pixels.
    """
    if parallel == 1:
        return update
    axes = tuple(range(1, prediction.ndim))
    unit = prediction / jnp.maximum(jnp.sqrt(jnp.sum(prediction**2, axes, keepdims=True)), 1e-12)
    return update - (1 - parallel) * jnp.sum(update * unit, axes, keepdims=True) * unit
