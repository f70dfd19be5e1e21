"""What every image tokenizer offers, and the two functions through which other systems use one.

An image tokenizer is a Linen module with

- fields `image_size`, `codebook_size`, `channels`, `pixel_range` (the range of its float images);
- properties `grid` (rows, columns), `num_tokens`, `last_layer` (path of the kernel that makes pixels);
- methods, called through `apply`: `encode(image_BHWC, codebook, train) -> Encoded`, `lookup(ids_BHW, codebook) ->
  fmap`, `decode(fmap) -> image_BHWC`, which is `pixels(features(fmap))`;
- plain methods `start(key) -> codebook` (statistics that training changes without a gradient; {} when there are none)
  and `revive(params, codebook, dead_K, fresh_KE) -> (params, codebook)`.

Its weights are `{"generator": params, "stats": codebook}`; a training run adds "discriminator" and usage counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.nn.quantize import Quantized
from t2i_jax.pixels import to_float, to_uint8
from t2i_jax.types import Array

Encoded = Quantized  # fmap, ids (B, H, W), loss, latents, codebook


def tokens(model: Any, weights: Mapping[str, Any], image_BHWC: Array) -> Array:
    """Codes (B, N) int32, row by row, of uint8 images."""
    image = to_float(image_BHWC, model.pixel_range)
    encoded = model.apply({"params": weights["generator"]}, image, weights.get("stats", {}), method="encode")
    return encoded.ids.reshape(image.shape[0], model.num_tokens)


def pixels(model: Any, weights: Mapping[str, Any], ids_BN: Array) -> Array:
    """uint8 images (B, image_size, image_size, channels) from codes, rounded and clipped."""
    ids_BHW = ids_BN.reshape(ids_BN.shape[0], *model.grid)
    variables = {"params": weights["generator"]}
    fmap = model.apply(variables, ids_BHW, weights.get("stats", {}), method="lookup")
    return to_uint8(model.apply(variables, fmap, method="decode"), model.pixel_range)


def check_sizes(model: Any) -> None:
    """Refuses an image size that the patches do not divide, and widths below 1."""
    for field in ("dim", "image_size", "patch_size", "channels", "codebook_size"):
        if getattr(model, field) < 1:
            raise UserError(f"{field}={getattr(model, field)} is not positive; give 1 or more.")
    if model.image_size % model.patch_size:
        fits = max(model.image_size // model.patch_size, 1) * model.patch_size
        raise UserError(
            f"image_size={model.image_size} is not a multiple of patch_size={model.patch_size}; try image_size={fits}."
        )
    if not model.pixel_range[0] < model.pixel_range[1]:
        raise UserError(f"pixel_range={model.pixel_range} is empty; give (low, high), for example (-1.0, 1.0).")


def revive_rows(table_KE: Array, dead_K: Array, fresh_KE: Array) -> Array:
    """The codebook with its dead rows replaced."""
    return jnp.where(dead_K[:, None], fresh_KE.astype(table_KE.dtype), table_KE)


def abstract(model: Any) -> dict[str, Any]:
    """Shapes of the weights {"generator", "stats"}, boxed with their logical axes; nothing is computed."""
    return jax.eval_shape(lambda key: init(model, key), jax.random.key(0))


def init(model: Any, key: Any) -> dict[str, Any]:
    """First weights {"generator", "stats"}, boxed with their logical axes."""
    for_params, for_codebook = jax.random.split(key)
    codebook = model.start(for_codebook)
    image = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return {"generator": model.init(for_params, image, codebook)["params"], "stats": codebook}


def abstract_discriminator(discriminator: Any, model: Any) -> dict[str, Any]:
    """Shapes of the parameters of a discriminator for the images of `model`, boxed.

    A tokenizer of images too small for its discriminator has one all the same, as in parti-pytorch: it cannot train.
    """
    side = max(model.image_size, getattr(discriminator, "smallest_image", 0))
    image = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.float32)
    return jax.eval_shape(discriminator.init, jax.random.key(0), image)["params"]
