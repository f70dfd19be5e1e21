"""Images made larger, by the network."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from t2i_jax.compiler import Program
from t2i_jax.models.super_resolution import SuperResolution
from t2i_jax.pixels import to_float, to_uint8
from t2i_jax.types import Array, Params


@functools.partial(Program, static_argnames="model")
def upscale(params: Params, image_BHWC: Array | np.ndarray, *, model: SuperResolution) -> Array:
    """uint8 images, `scale` times as large, rounded and clipped."""
    made: Any = model.apply(
        {"params": params}, to_float(jnp.asarray(image_BHWC), model.pixel_range)
    )
    return to_uint8(made, model.pixel_range)
