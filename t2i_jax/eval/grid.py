"""Images side by side in one PNG, each with its caption below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2i_jax.typeset import text_block

_GAP = 2  # pixels between images
_GAP_OF_CAPTIONS = 8
_NARROWEST = 96  # pixels of a column of captions


def grid(
    images: np.ndarray,
    columns: int,
    side: int | None = None,
    captions: Sequence[str] | None = None,
    right: Sequence[bool] | None = None,
) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: NHWC uint8, one or three channels.
      columns: images in a row.
      side: each image is enlarged by a whole factor until it is at least this high, so that small
        ones can be seen; None: as they are.
      captions: one per image, drawn below it in a few lines; empty ones take no room. Columns of
        captions are at least 96 pixels wide. None: no captions.
      right: one per image, whether a judge agrees with the caption; where it does not, the caption
        is red. None: there is no judge.

    Returns:
      HWC uint8 with three channels.
    """
    images = np.asarray(images, np.uint8)
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    factor = max(1, -(-(side or 0) // images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    texts = list(captions or [""] * count)
    cell, gap = (max(width, _NARROWEST), _GAP_OF_CAPTIONS) if any(texts) else (width, _GAP)
    rows = []
    for start in range(0, count, columns):
        below = [
            _block(texts[i], cell, right is not None and not right[i])
            for i in range(start, min(start + columns, count))
        ]
        deepest = max((len(block) for block in below), default=0)
        row = np.full((height + deepest, columns * (cell + gap) - gap, 3), 255, np.uint8)
        for i, block in enumerate(below):
            x = i * (cell + gap)
            row[:height, x : x + width] = images[start + i]
            row[height : height + len(block), x : x + block.shape[1]] = block
        rows += [row, np.full((gap, row.shape[1], 3), 255, np.uint8)]
    return np.concatenate(rows[:-1])


def _block(text, width, is_wrong):
    """The caption as pixels, (0, width, 3) where there is none."""
    size = min(max(11, width // 14), 18)
    block = text_block(text, width, size=size, colour="#b00020" if is_wrong else "black")
    return np.zeros((0, width, 3), np.uint8) if block is None else np.asarray(block)
