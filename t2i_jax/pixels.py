"""Pixels between their forms: uint8 and float arrays, PIL images, PNG files."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import reduce
from PIL import Image

from t2i_jax.files import replacing
from t2i_jax.types import Array

SIGNED = (-1.0, 1.0)  # the range of float images inside the systems


def to_float(image_uint8: Array, pixel_range: tuple[float, float]) -> Array:
    """The float32 values in `pixel_range` of uint8 pixels."""
    low, high = pixel_range
    return image_uint8.astype(jnp.float32) * ((high - low) / 255.0) + low


def to_uint8(image: Array, pixel_range: tuple[float, float]) -> Array:
    """The uint8 values of float pixels in `pixel_range`, clipped and rounded."""
    low, high = pixel_range
    return jnp.round(
        jnp.clip((image.astype(jnp.float32) - low) / (high - low), 0, 1) * 255.0
    ).astype(jnp.uint8)


def shrink(image_BHWC: Array | np.ndarray, scale: int) -> Array:
    """uint8 images at 1 / scale of their size: means of squares, rounded."""
    means = reduce(
        image_BHWC.astype(jnp.float32), "b (h p) (w q) c -> b h w c", "mean", p=scale, q=scale
    )
    return jnp.round(means).astype(jnp.uint8)


def as_pil(images: Sequence[Any] | np.ndarray) -> list[Any]:
    """A PIL image for each uint8 array (H, W, C); one channel is grey."""
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]


def save_png(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Writes one HWC uint8 image, making its folder; the file appears whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(image))


def png_bytes(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of one HWC uint8 image."""
    buffer = io.BytesIO()
    image = np.asarray(image, np.uint8)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()
