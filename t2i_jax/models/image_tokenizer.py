"""The interface of image tokenizers: the protocol, the base class of the networks, and functions
for those who use one.

A tokenizer turns an image into a grid of codes and back. Its weights are `{"generator": params,
"stats": codebook}`, where the codebook holds the statistics that training changes without a
gradient, {} when there are none; a training run adds "discriminator" and usage counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from t2i_jax.errors import UserError
from t2i_jax.nn.flops import flops_of
from t2i_jax.nn.quantize import Quantized
from t2i_jax.pixels import to_float, to_uint8
from t2i_jax.tracing import traced_once
from t2i_jax.types import Array, Key, Params

Encoded = Quantized  # fmap, ids (B, H, W), loss, latents, codebook
Codebook = Mapping[str, Array]


@runtime_checkable
class ImageTokenizer(Protocol):
    """A Linen module that turns float images into a grid of codes and back.

    `encode`, `lookup`, `decode`, `features` and `pixels` are called through `apply(..., method=)`;
    the others need no weights. A convolutional network runs at several sizes with one set of
    weights: `model.clone(image_size=512)` changes the field, and `grid` and `num_tokens` follow
    from it.

    Attributes:
      image_size: side in pixels of the square images.
      channels: of the images.
      codebook_size: number of codes.
      pixel_range: lowest and highest value of the float images.
    """

    image_size: int
    channels: int
    codebook_size: int
    pixel_range: tuple[float, float]

    @property
    def patch_size(self) -> int:
        """Pixels per side of a token."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        ...

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the kernel that makes the pixels, by whose gradients the adversarial loss is
        weighed.
        """
        ...

    def start(self, key: Key) -> Codebook:
        """The first codebook statistics; {} when there are none."""
        ...

    def revive(
        self, params: Params, codebook: Codebook, dead_K: Array, fresh_KE: Array
    ) -> tuple[Params, Codebook]:
        """(params, codebook) with the codes that are True in `dead_K` replaced by latents of a
        recent batch; the same two objects where the network has no codes to replace.
        """
        ...

    def __call__(
        self, image_BHWC: Array, codebook: Codebook, train: bool = False
    ) -> tuple[Array, Encoded]:
        """The reconstruction and the encoding of float images."""
        ...

    def encode(self, image_BHWC: Array, codebook: Codebook, train: bool = False) -> Encoded:
        """The encoding of float images (B, image_size, image_size, channels) of `pixel_range`."""
        ...

    def lookup(self, ids_BHW: Array, codebook: Codebook) -> Array:
        """Decoder input (B, rows, columns, dim) of codes."""
        ...

    def decode(self, fmap_BHWC: Array) -> Array:
        """Float images from a quantised feature map: `pixels(features(fmap))`; nothing is
        clipped.
        """
        ...

    def features(self, fmap_BHWC: Array) -> Array:
        """The feature map that the last layer turns into pixels."""
        ...

    def pixels(self, features_BHWC: Array) -> Array:
        """Float32 images from `features`."""
        ...

    def init(self, key: Key, *args: Any) -> Mapping[str, Any]:
        """First variables, as of every Linen module."""
        ...

    def apply(
        self, variables: Mapping[str, Any], *args: Any, method: Any = None, **options: Any
    ) -> Any:
        """The result of a method with these variables, as of every Linen module."""
        ...

    def clone(self, **fields: Any) -> Self:
        """The same network with other fields, as of every Linen module."""
        ...


class QuantizedAutoencoder(nn.Module):
    """An encoder, a quantiser and a decoder: the part of `ImageTokenizer` that does not depend on
    the layers.

    A subclass has the fields of the protocol and `patch_size`, makes `self.quantizer` (see
    `nn.quantize`) in `setup` and adds `encoder_fmap(image_BHWC) -> fmap`, `features`, `pixels`,
    `start` and `revive`. The layer that makes the pixels is called "to_pixels".
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return self.grid[0] * self.grid[1]

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Path of the kernel that makes the pixels, by whose gradients the adversarial loss is
        weighed.
        """
        return ("to_pixels", "kernel")

    def __call__(
        self, image_BHWC: Array, codebook: Codebook, train: bool = False
    ) -> tuple[Array, Encoded]:
        """The reconstruction and the encoding of float images."""
        encoded = self.encode(image_BHWC, codebook, train)
        return self.decode(encoded.fmap), encoded

    def encode(self, image_BHWC: Array, codebook: Codebook, train: bool = False) -> Encoded:
        """The encoding of float images (B, image_size, image_size, channels) of `pixel_range`."""
        return self.quantizer(self.encoder_fmap(image_BHWC), codebook, train)

    def lookup(self, ids_BHW: Array, codebook: Codebook) -> Array:
        """Decoder input (B, rows, columns, dim) of codes."""
        return self.quantizer.lookup(ids_BHW, codebook)

    def decode(self, fmap_BHWC: Array) -> Array:
        """Float images from a quantised feature map; nothing is clipped."""
        return self.pixels(self.features(fmap_BHWC))


def tokens(model: ImageTokenizer, weights: Mapping[str, Any], image_BHWC: Array) -> Array:
    """Codes (B, N) int32, row by row, of uint8 images.

    Images may be of another size than the network's where `runs_at` it.
    """
    image = to_float(image_BHWC, model.pixel_range)
    encoded = model.apply(
        {"params": weights["generator"]}, image, weights.get("stats", {}), method="encode"
    )
    return encoded.ids.reshape(image.shape[0], -1)


def check_ids(model: ImageTokenizer, ids: Array | np.ndarray) -> None:
    """Refuses codes that the codebook does not have.

    Raises:
      UserError: the range that they have, and the one that there is.
    """
    codes = model.codebook_size
    if ids.min() < 0 or ids.max() >= codes:
        raise UserError(
            f"ids go from {ids.min()} to {ids.max()}; the codebook has those from 0 to "
            f"{codes - 1}: give codes of this tokenizer."
        )


def pixels(
    model: ImageTokenizer,
    weights: Mapping[str, Any],
    ids_BN: Array,
    grid: tuple[int, int] | None = None,
) -> Array:
    """uint8 images (B, image_size, image_size, channels) from codes, rounded and clipped.

    Args:
      grid: rows and columns of another size, which the network `runs_at`; None: its own.
    """
    return to_uint8(decoded(model, weights, ids_BN, grid), model.pixel_range)


def decoded(
    model: ImageTokenizer,
    weights: Mapping[str, Any],
    ids_BN: Array,
    grid: tuple[int, int] | None = None,
) -> Array:
    """Float images as they leave the network; arguments as of `pixels`."""
    ids_BHW = ids_BN.reshape(ids_BN.shape[0], *(grid or model.grid))
    variables = {"params": weights["generator"]}
    fmap = model.apply(variables, ids_BHW, weights.get("stats", {}), method="lookup")
    return model.apply(variables, fmap, method="decode")


def translated(
    ids_BN: Array,
    model: ImageTokenizer,
    weights: Mapping[str, Any],
    to: ImageTokenizer,
    to_weights: Mapping[str, Any],
    grid: tuple[int, int] | None = None,
) -> Array:
    """The codes (B, N) int32 that another tokenizer has for the images of codes of `model`, of its
    size; in between the images are not rounded. `grid` as of `pixels`.
    """
    (low, high), (to_low, to_high) = model.pixel_range, to.pixel_range
    image = decoded(model, weights, ids_BN, grid)
    image = (image - low) / (high - low) * (to_high - to_low) + to_low
    variables = {"params": to_weights["generator"]}
    encoded = to.apply(variables, image, to_weights.get("stats", {}), method="encode")
    return encoded.ids.reshape(image.shape[0], -1)


@traced_once
def runs_at(model: ImageTokenizer, size: tuple[int, int]) -> bool:
    """Whether the same weights take and make images of another size (height, width), as those of
    convolutions do; nothing is computed.

    Args:
      size: multiples of `patch_size`.
    """
    grid = (size[0] // model.patch_size, size[1] // model.patch_size)
    image = jax.ShapeDtypeStruct((1, *size, model.channels), jnp.uint8)

    def again(weights, image):
        return pixels(model, weights, tokens(model, weights, image), grid)

    try:
        made = jax.eval_shape(again, nn.meta.unbox(abstract(model)), image)
    except (UserError, TypeError, ValueError, FlaxError):
        return False
    return made.shape == image.shape


def at_size(field: str, model: ImageTokenizer, size: int) -> ImageTokenizer:
    """The network for images of another size.

    Args:
      field: that asks for the size, for the sentence.

    Raises:
      UserError: its weights are those of one size.
    """
    if size == model.image_size:
        return model
    try:
        other = model.clone(parent=None, image_size=size)
    except UserError as error:
        raise UserError(f"{field}={size}: {error}") from None
    shapes = [jax.tree.map(jnp.shape, abstract(one)) for one in (model, other)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{field}={size} is another size than the tokenizer's image_size={model.image_size}, "
            "and its weights are those of one size; use a convolutional one, or train one at that "
            "size."
        )
    return other


def check_sizes(model: ImageTokenizer, *widths: str) -> None:
    """Refuses an image size that the patches do not divide, and sizes and `widths` (names of
    fields) below 1.
    """
    for field in (*widths, "image_size", "patch_size", "channels", "codebook_size"):
        if getattr(model, field) < 1:
            raise UserError(f"{field}={getattr(model, field)} is not positive; give 1 or more.")
    if model.image_size % model.patch_size:
        fits = max(model.image_size // model.patch_size, 1) * model.patch_size
        raise UserError(
            f"image_size={model.image_size} is not a multiple of "
            f"patch_size={model.patch_size}; try image_size={fits}."
        )
    if not model.pixel_range[0] < model.pixel_range[1]:
        raise UserError(
            f"pixel_range={model.pixel_range} is empty; give (low, high), for example (-1.0, 1.0)."
        )


def revive_rows(table_KE: Array, dead_K: Array, fresh_KE: Array) -> Array:
    """The codebook with its dead rows replaced."""
    return jnp.where(dead_K[:, None], fresh_KE.astype(table_KE.dtype), table_KE)


def revive_embedding(params: Params, dead_K: Array, fresh_KE: Array) -> dict[str, Any]:
    """The parameters of a network whose quantiser has the parameter "embedding", with the dead rows
    of that replaced.
    """
    quantizer = dict(params["quantizer"])
    quantizer["embedding"] = revive_rows(quantizer["embedding"], dead_K, fresh_KE)
    return {**params, "quantizer": quantizer}


@traced_once
def abstract(model: ImageTokenizer) -> dict[str, Any]:
    """Shapes of the weights {"generator", "stats"}, boxed with their logical axes; nothing is
    computed.
    """
    return jax.eval_shape(lambda key: init(model, key), jax.random.key(0))


def init(model: ImageTokenizer, key: Key) -> dict[str, Any]:
    """First weights {"generator", "stats"}, boxed with their logical axes."""
    for_params, for_codebook = jax.random.split(key)
    codebook = model.start(for_codebook)
    image = jnp.zeros((1, model.image_size, model.image_size, model.channels))
    return {"generator": model.init(for_params, image, codebook)["params"], "stats": codebook}


def flops(model: ImageTokenizer, method: str = "__call__") -> float:
    """FLOPs of one forward pass over one image through `__call__`, or through `encode` alone."""
    weights = nn.meta.unbox(abstract(model))
    image = jax.ShapeDtypeStruct(
        (1, model.image_size, model.image_size, model.channels), jnp.float32
    )

    def forward(params, codebook, image):
        return model.apply({"params": params}, image, codebook, method=method)

    return flops_of(forward, weights["generator"], weights["stats"], image)


@traced_once
def abstract_discriminator(discriminator: Any, model: ImageTokenizer) -> dict[str, Any]:
    """Shapes of the parameters of a discriminator for the images of `model`, boxed.

    A tokenizer of images too small for its discriminator has one all the same, as in parti-pytorch:
    it cannot train.
    """
    side = max(model.image_size, getattr(discriminator, "smallest_image", 0))
    image = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.float32)
    return jax.eval_shape(discriminator.init, jax.random.key(0), image)["params"]
