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
from t2i_jax.systems import calls
from t2i_jax.systems.image_to_image import ImageToImage
from t2i_jax.types import Array
from t2i_jax.values import shown
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
        """Codes (B, N) int32, row by row, of uint8 images (B, coded_size, coded_size, channels); a
        convolutional network takes images of any height and width that its patches divide.

        Raises:
          UserError: images of another form.
        """
        size, channels = self.coded_size, self.task.model.channels
        wanted = f"uint8 of shape (B, {size}, {size}, {channels})"
        _check_array("images", images, wanted)
        is_known = images.ndim == 4 and images.shape[3] == channels and images.dtype == jnp.uint8
        if not is_known or not self._runs_at(*images.shape[1:3]):
            if self._runs_at(2 * size, 2 * size):
                patch = self.task.model.patch_size
                wanted += f", or with height and width that are other multiples of {patch}"
            raise UserError(f"images are {images.dtype} {images.shape}; give {wanted}.")
        return self._tokens(self.weights, images)

    def decode(self, ids: Array, grid: tuple[int, int] | None = None) -> Array:
        """uint8 images from codes (B, N).

        Args:
          grid: rows and columns of the codes, where a convolutional network encoded images of
            another size; None: those of `coded_size`.

        Raises:
          UserError: another number of codes than an image has, ones that the codebook has not, or
            a grid that the network has not.
        """
        rows, columns = self._grid(grid)
        count = rows * columns
        wanted = f"whole numbers of shape (B, {count})"
        _check_array("ids", ids, wanted)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UserError(f"ids are {ids.dtype}; give {wanted}.")
        if ids.ndim != 2 or ids.shape[1] != count:
            raise UserError(f"ids have shape {ids.shape}; give (B, {count}).")
        image_tokenizer.check_ids(self.task.model, ids)
        return self._pixels(self.weights, ids, (rows, columns))

    def reproduce(self, images: np.ndarray) -> np.ndarray:
        """uint8 images through the codes and back."""
        patch = self.task.model.patch_size
        ids = self.encode(images)
        return np.asarray(self.decode(ids, (images.shape[1] // patch, images.shape[2] // patch)))

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
        decode = functools.partial(image_tokenizer.pixels, self.task.model)
        return Program(decode, static_argnums=2)

    def _runs_at(self, height, width):
        """Whether the network takes images of this size."""
        patch = self.task.model.patch_size
        if (height, width) == (self.coded_size, self.coded_size):
            return True
        divides = min(height, width) >= patch and height % patch == width % patch == 0
        return divides and image_tokenizer.runs_at(self.task.model, (height, width))

    def _grid(self, grid):
        """The rows and columns of codes."""
        if grid is None:
            return self.task.model.grid
        patch = self.task.model.patch_size
        is_known = isinstance(grid, tuple) and len(grid) == 2
        for side in grid if is_known else ():
            calls.check_count("grid", side)
        if not is_known or not self._runs_at(*(side * patch for side in grid)):
            raise UserError(
                f"grid={shown(grid)} is no (rows, columns) of this network's codes; give "
                f"{self.task.model.grid}, or leave it out."
            )
        return grid


def _check_array(name, value, wanted):
    if not isinstance(value, (np.ndarray, jax.Array)):
        raise UserError(f"{name} are {named(value)}; give {wanted}.")
    if not value.size:
        raise UserError(f"{name} have shape {value.shape}, which is none; give {wanted}.")
