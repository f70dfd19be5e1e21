"""Images that are laid on a larger canvas, whose other parts are drawn (outpainting)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """The part of a canvas (height, width) that images take, in pixels."""

    canvas: tuple[int, int]
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the part."""
        return self.bottom - self.top, self.right - self.left

    @property
    def keep_HW(self) -> np.ndarray:
        """bool, True inside."""
        keep = np.zeros(self.canvas, bool)
        keep[self.top : self.bottom, self.left : self.right] = True
        return keep


def box_of(margins: tuple[float, float, float, float], canvas: tuple[int, int]) -> Box:
    """The part that is left by margins (left, top, right, bottom), shares of the canvas (height,
    width); at least a pixel.
    """
    left, top, right, bottom = margins
    (row, below), (column, beyond) = (
        _span(before, after, length)
        for before, after, length in ((top, bottom, canvas[0]), (left, right, canvas[1]))
    )
    return Box(canvas, column, row, beyond, below)


def _span(before, after, length):
    start = min(round(before * length), length - 1)
    return start, max(start + 1, round((1 - after) * length))


def laid(images_PHWC: np.ndarray, box: Box) -> np.ndarray:
    """Images of the size of the box on the canvas; their edges go on to the canvas's end, so that
    the tokens beside an edge are not those of an image that ends there.
    """
    height, width = box.canvas
    rows, columns = (box.top, height - box.bottom), (box.left, width - box.right)
    return np.pad(images_PHWC, ((0, 0), rows, columns, (0, 0)), mode="edge")
