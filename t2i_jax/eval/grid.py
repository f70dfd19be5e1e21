"""Images side by side in one PNG."""

from __future__ import annotations

import numpy as np

_GAP = 2  # pixels between images


def grid(images: np.ndarray, columns: int, side: int | None = None) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: NHWC uint8, one or three channels.
      columns: images in a row.
      side: each image is enlarged by a whole factor until it is at least this high, so that small
        ones can be seen; None: as they are.

    Returns:
      HWC uint8 with three channels.
    """
    images = np.asarray(images, np.uint8)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    factor = max(1, -(-(side or 0) // images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        sheet[y : y + height, x : x + width] = image
    return sheet
