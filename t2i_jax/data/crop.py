"""Cutting and resizing images, the same way wherever an image is brought to a square."""

from __future__ import annotations

import numpy as np
from PIL import Image

from t2i_jax.errors import UserError

CROPS = ("center", "random", "resize")


def crop(
    image_HWC: np.ndarray, size: int, how: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """An image of size x size, uint8, resampled bicubically where it has another size.

    Args:
      image_HWC: uint8 with 1 (gray), 3 (RGB) or 4 channels (RGB and alpha).
      how: "center" or "random": the largest square, from the middle or anywhere; "resize": all of
        it, squeezed. rng: for "random".
    """
    height, width = image_HWC.shape[:2]
    if (height, width) == (size, size):
        return image_HWC
    if how == "resize":
        box = (0, 0, width, height)
    else:
        side = min(height, width)
        room = height - side, width - side
        if how == "random":
            if rng is None:
                raise UserError("crop='random' needs rng; give a NumPy generator.")
            top, left = rng.integers(0, [r + 1 for r in room])
        else:
            top, left = (r // 2 for r in room)
        if side == size:
            return image_HWC[top : top + side, left : left + side]
        box = (left, top, left + side, top + side)
    return resized(image_HWC, (size, size), box=box)


def told(image_HWC: np.ndarray, how: str) -> str:
    """The end of a message about what `crop` does to an image that is not square: "is 48x16 pixels;
    the 16x16 in its middle are used". "" for a square one.
    """
    height, width = image_HWC.shape[:2]
    if height == width:
        return ""
    side = min(height, width)
    done = {
        "center": f"the {side}x{side} in its middle are used",
        "random": f"{side}x{side} somewhere in it are used",
        "resize": "it is squeezed into a square",
    }[how]
    return f"is {width}x{height} pixels; {done}"


def resized(
    image_HWC: np.ndarray,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """An image of (width, height) pixels, uint8 HWC, of any of 1, 3 and 4 channels.

    The colour of transparent pixels does not bleed into others.

    Args:
      box: (left, top, right, bottom) of the part that is used; None: all of it.
    """
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
    pixels = np.asarray(image.resize(size, resample, box=box))
    return pixels[..., None] if pixels.ndim == 2 else pixels
