"""Pixels that are kept: an image laid over what was made of it, with a soft seam."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def blended(
    made_BHWC: np.ndarray, init_BHWC: np.ndarray, keep_BHW: np.ndarray, feather: float
) -> np.ndarray:
    """uint8 images that are `init_BHWC` where `keep_BHW` is True and `made_BHWC` elsewhere.

    Args:
      feather: width of the seam in pixels, inside of the kept part; 0: a sharp one.
    """
    return np.stack([_one(*each, feather) for each in zip(made_BHWC, init_BHWC, keep_BHW)])


def _one(made, init, keep, feather):
    weight = keep.astype(np.float32)
    if feather and not keep.all():
        # grown by half of the seam and blurred over it, so that what is made shows unmixed where
        # nothing is kept
        soft = Image.fromarray(~keep).convert("L")
        for _ in range(min(round(feather / 2), max(keep.shape))):
            soft = soft.filter(ImageFilter.MaxFilter(3))
        soft = np.asarray(soft.filter(ImageFilter.BoxBlur(feather / 2)), np.float32) / 255
        weight = np.where(keep, 1 - soft, 0)
    mixed = weight[..., None] * init + (1 - weight[..., None]) * made
    return np.rint(mixed).astype(np.uint8)
