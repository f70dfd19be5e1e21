"""Images made smaller, as training does, and larger, by the network."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import reduce

from t2i_jax.compiler import Program
from t2i_jax.models.super_resolution import SuperResolution
from t2i_jax.pixels import to_float, to_uint8
from t2i_jax.types import Array, Params


def shrink(image_BHWC: Array | np.ndarray, scale: int) -> Array:
    """uint8 images at 1 / scale of their size: means of squares, rounded."""
    means = reduce(
        image_BHWC.astype(jnp.float32), "b (h p) (w q) c -> b h w c", "mean", p=scale, q=scale
    )
    return jnp.round(means).astype(jnp.uint8)


@functools.partial(Program, static_argnames="model")
def upscale(params: Params, image_BHWC: Array | np.ndarray, *, model: SuperResolution) -> Array:
    """uint8 images, `scale` times as large, rounded and clipped."""
    made: Any = model.apply(
        {"params": params}, to_float(jnp.asarray(image_BHWC), model.pixel_range)
    )
    return to_uint8(made, model.pixel_range)
