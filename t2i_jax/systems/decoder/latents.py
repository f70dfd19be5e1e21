"""Images to the latents of an image tokenizer and back, for a stage that works on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.pixels import SIGNED
from t2i_jax.systems.cascade import stage as stages
from t2i_jax.types import Array


def encoded(model: Any, weights: Mapping[str, Any], image_BHWC: Array, scale: float) -> Array:
    """The quantised feature map (B, H / patch, W / patch, D) of images in [-1, 1], times `scale`,
    without a gradient.
    """
    image = _mapped(image_BHWC, SIGNED, model.pixel_range)
    variables = {"params": weights["generator"]}
    found = model.apply(variables, image, weights.get("stats", {}), method="encode")
    return jax.lax.stop_gradient(found.fmap.astype(jnp.float32)) * scale


def decoded(model: Any, weights: Mapping[str, Any], latents_BHWC: Array, scale: float) -> Array:
    """Images in [-1, 1] of latents as `encoded` makes them."""
    variables = {"params": weights["generator"]}
    image = model.apply(variables, latents_BHWC / scale, method="decode")
    return jnp.clip(_mapped(image, model.pixel_range, SIGNED), -1.0, 1.0)


def width(model: Any) -> int:
    """Channels of the latents."""
    shapes = nn.meta.unbox(image_tokenizer.abstract(model))
    size = model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, model.channels), jnp.float32)
    return jax.eval_shape(lambda weights, x: encoded(model, weights, x, 1.0), shapes, image).shape[
        -1
    ]


def check(model: Any, name: str, size: int, multiple: int, channels: int) -> None:
    """Refuses a stage whose images the tokenizer does not take, or whose latents the U-Net does
    not.

    Args:
      name: of the stage, for the sentence. size: side of its images. multiple: of the sides of what
        the U-Net takes. channels: of the images.
    """
    if model.channels != channels:
        raise UserError(
            f"channels={channels}, and the tokenizer takes images of {model.channels}; make them "
            "equal."
        )
    step = model.patch_size * multiple
    if size % step:
        raise UserError(
            f"{name}.image_size={size} is not a multiple of {step}, as the U-Net's levels on "
            f"latents need; try {max(size // step, 1) * step}."
        )
    check_size(model, f"{name}.image_size", (size, size))


def check_size(model: Any, name: str, size: tuple[int, int]) -> None:
    """Refuses a size (height, width) of images, multiples of its patches, that the tokenizer does
    not take.

    Args:
      name: of the field, for the sentence.
    """
    own = model.image_size
    if size != (own, own) and not image_tokenizer.runs_at(model, size):
        told = size[0] if size[0] == size[1] else size
        raise UserError(
            f"{name}={told}, and the tokenizer's weights are those of {own} pixels; give {own}, or "
            "train with a convolutional tokenizer."
        )


def kept(keep_BHW: Array, grid: tuple[int, int]) -> Array:
    """bool (B, *grid): the latents all of whose pixels a mask keeps."""
    return ~stages.known(~keep_BHW, grid, "area")


def _mapped(image, range_from, range_to):
    (low, high), (to_low, to_high) = range_from, range_to
    return (image.astype(jnp.float32) - low) / (high - low) * (to_high - to_low) + to_low
