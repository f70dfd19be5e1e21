"""A trained super-resolution network: images to larger images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.pixels import shrink
from t2i_jax.systems import calls, given
from t2i_jax.systems.image_to_image import ImageToImage
from t2i_jax.systems.super_resolution.resizing import upscale
from t2i_jax.types import Array

if TYPE_CHECKING:
    from t2i_jax.systems.super_resolution.task import SuperResolutionTask


@dataclasses.dataclass(frozen=True)
class SuperResolutionSystem(ImageToImage):
    """A trained super-resolution network.

    Attributes:
      task: the task that trained it. weights: {"super_resolution": params}.
    """

    task: SuperResolutionTask
    weights: Mapping[str, Any]

    def upscale(
        self,
        images: Any,
        prompts: Any = None,
        options: Any = None,
        *,
        batch_size: int | None = None,
        **_: Any,
    ) -> np.ndarray:
        """uint8 (B, scale * H, scale * W, C) from images of one size, any, in any form, see
        `given.images`.

        Args:
          batch_size: images that are enlarged at a time; None: all. The network reads nothing else.
        """
        calls.check_count("batch_size", batch_size)
        read = given.images("images", images, None, self.task.model.image_channels)
        if sizes := sorted({image.shape for image in read})[1:]:
            (height, width), (rows, columns) = read[0].shape[:2], sizes[0][:2]
            raise UserError(
                f"images have several sizes, {width}x{height} and {columns}x{rows} pixels among "
                "them; enlarge those of one size at a time."
            )
        size, made = min(batch_size or len(read), len(read)), []
        for start in range(0, len(read), size):
            rows = np.minimum(np.arange(start, start + size), len(read) - 1)
            larger = upscale(
                self.weights["super_resolution"],
                np.stack([read[i] for i in rows]),
                model=self.task.model,
            )
            made.append(np.asarray(larger)[: len(read) - start])
        return np.concatenate(made)

    def shrink(self, images: Array | np.ndarray) -> np.ndarray:
        """uint8 images at 1 / scale of their size, as training makes them."""
        images, scale = np.asarray(images), self.task.model.scale
        if (
            images.ndim != 4
            or images.shape[1] % scale
            or images.shape[2] % scale
            or images.dtype != np.uint8
        ):
            raise UserError(
                f"images are {images.dtype} {images.shape}; give uint8 with sides that {scale} "
                "divides."
            )
        return np.asarray(shrink(jnp.asarray(images), scale))

    def reproduce(self, images: np.ndarray) -> np.ndarray:
        """uint8 images shrunk as in training, and made larger again."""
        return self.upscale(self.shrink(images))
