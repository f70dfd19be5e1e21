"""Pictures as PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i_jax.types import Array


def as_pil(images: Sequence[Array]) -> list[Any]:
    """A PIL image for each uint8 array (H, W, C); one channel is grey."""
    from PIL import Image

    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]
