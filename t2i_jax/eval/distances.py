"""Squared distances between all pairs of two sets of features, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 2048
"""Rows of a block."""


def blocks(x_ND: np.ndarray, y_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The squared distances of all rows of x to all rows of y: for one block of rows of x after the
    other its place and (block, M) float64, none below 0.

    Both sets are moved by the mean of y first, which changes no distance and saves digits.

    Args:
      x_ND, y_MD: float64.
    """
    centre_D = y_MD.mean(axis=0)
    x_ND, y_MD = x_ND - centre_D, y_MD - centre_D
    y_squares_M = np.square(y_MD).sum(axis=1)
    for start in range(0, len(x_ND), BLOCK):
        place = slice(start, min(start + BLOCK, len(x_ND)))
        x_BD = x_ND[place]
        squares_B1 = np.square(x_BD).sum(axis=1, keepdims=True)
        yield place, np.maximum(squares_B1 + y_squares_M - 2 * (x_BD @ y_MD.T), 0)


def nearest(x_ND: np.ndarray, y_MD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest `count` rows of y of each row of x: (N, count) their numbers, the nearest first,
    and (N, count) their distances (not squared); equal distances in the order of the numbers.
    """
    numbers, distances = [], []
    for _, squared_BM in blocks(x_ND, y_MD):
        order_BK = np.argsort(squared_BM, axis=1, kind="stable")[:, :count]
        numbers.append(order_BK)
        distances.append(np.sqrt(np.take_along_axis(squared_BM, order_BK, axis=1)))
    return np.concatenate(numbers), np.concatenate(distances)
