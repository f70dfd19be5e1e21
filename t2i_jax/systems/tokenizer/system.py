"""A trained image tokenizer: images to codes and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.compiler import Program
from t2i_jax.errors import UserError
from t2i_jax.eval.reconstruction import codebook_usage
from t2i_jax.models import image_tokenizer
from t2i_jax.systems.image_to_image import ImageToImage
from t2i_jax.types import Array
from t2i_jax.words import named

if TYPE_CHECKING:
    from t2i_jax.systems.tokenizer.task import TokenizerTask


@dataclasses.dataclass(frozen=True)
class TokenizerSystem(ImageToImage):
    """A trained tokenizer: images to codes and back.

    Attributes:
      task: the task that trained it.
      weights: {"generator", "stats"}.
    """

    task: TokenizerTask
    weights: Mapping[str, Any]

    @property
    def coded_size(self) -> int:
        """The side in pixels of the images that `encode` reads and `decode` makes."""
        return self.task.model.image_size

    def encode(self, images: Array | np.ndarray) -> Array:
        """Codes (B, N) int32, row by row, of uint8 images (B, coded_size, coded_size, channels)."""
        size, channels = self.coded_size, self.task.model.channels
        _check_array("images", images, f"uint8 of shape (B, {size}, {size}, {channels})")
        if (
            images.ndim != 4
            or images.shape[1:] != (size, size, channels)
            or images.dtype != jnp.uint8
        ):
            raise UserError(
                f"images are {images.dtype} {images.shape}; give uint8 of shape (B, {size}, "
                f"{size}, {channels})."
            )
        return self._tokens(self.weights, images)

    def decode(self, ids: Array) -> Array:
        """uint8 images from codes (B, N).

        Raises:
          UserError: another number of codes than an image has, or ones that the codebook has not.
        """
        wanted = f"whole numbers of shape (B, {self.task.model.num_tokens})"
        _check_array("ids", ids, wanted)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UserError(f"ids are {ids.dtype}; give {wanted}.")
        if ids.ndim != 2 or ids.shape[1] != self.task.model.num_tokens:
            raise UserError(f"ids have shape {ids.shape}; give (B, {self.task.model.num_tokens}).")
        codes = self.task.model.codebook_size
        if ids.min() < 0 or ids.max() >= codes:
            raise UserError(
                f"ids go from {ids.min()} to {ids.max()}; the codebook has those from 0 to "
                f"{codes - 1}: give codes of this tokenizer's `encode`."
            )
        return self._pixels(self.weights, ids)

    def reproduce(self, images: np.ndarray) -> np.ndarray:
        """uint8 images through the codes and back."""
        return np.asarray(self.decode(self.encode(images)))

    def measure(self, images: np.ndarray) -> Mapping[str, float]:
        """`reconstruction_psnr` in dB, and `codebook_usage`, the fraction of codes that the images
        use.
        """
        usage = codebook_usage(np.asarray(self.encode(images)), self.task.model.codebook_size)
        return {**super().measure(images), "codebook_usage": float(usage["codebook_usage"])}

    @functools.cached_property
    def _tokens(self):
        return Program(functools.partial(image_tokenizer.tokens, self.task.model))

    @functools.cached_property
    def _pixels(self):
        return Program(functools.partial(image_tokenizer.pixels, self.task.model))


def _check_array(name, value, wanted):
    if not isinstance(value, (np.ndarray, jax.Array)):
        raise UserError(f"{name} are {named(value)}; give {wanted}.")
    if not value.size:
        raise UserError(f"{name} have shape {value.shape}, which is none; give {wanted}.")
