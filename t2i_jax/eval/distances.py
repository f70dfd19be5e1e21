"""Squared distances between all pairs of two sets of features, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from t2i_jax.eval.rows import Rows, in_blocks


def blocks(
    x_ND: Rows, y_MD: Rows, made: Callable[[np.ndarray], np.ndarray] | None = None
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The squared distances of all rows of x to all rows of y: for one block of rows of x after the
    other, and within it one block of rows of y after the other, the places of both and (B, C)
    float64, none below 0. One block of each is in memory.

    Both sets are moved by the mean of y first, which changes no distance and saves digits. A
    distance below the rounding of a sum of D products is 0, so that copies are no distance apart.

    Args:
      made: what is made of rows before, float64 (B, D) -> the same shape; None: they stay.
    """
    made, rounding = made or _as_they_are, x_ND.shape[1] * np.finfo(np.float64).eps
    centre_D = sum(made(y_CD).sum(axis=0) for _, y_CD in in_blocks(y_MD)) / len(y_MD)
    for place, x_BD in in_blocks(x_ND):
        x_BD = made(x_BD) - centre_D
        squares_B1 = np.square(x_BD).sum(axis=1, keepdims=True)
        for other, y_CD in in_blocks(y_MD):
            y_CD = made(y_CD) - centre_D
            sums_BC = squares_B1 + np.square(y_CD).sum(axis=1)
            squared_BC = sums_BC - 2 * (x_BD @ y_CD.T)
            near_BC = squared_BC <= rounding * sums_BC.max()
            if near_BC.any():  # seldom, and the rest costs as much as the sums
                squared_BC[near_BC & (squared_BC <= rounding * sums_BC)] = 0
            yield place, other, squared_BC


def nearest(x_ND: Rows, y_MD: Rows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest `count` rows of y of each row of x: (N, count) their numbers, the nearest first,
    and (N, count) their distances (not squared); equal distances in the order of the numbers.
    """
    shape = len(x_ND), min(count, len(y_MD))
    numbers_NK, squared_NK = np.zeros(shape, int), np.full(shape, np.inf)
    for place, other, squared_BC in blocks(x_ND, y_MD):
        rows_BC = np.broadcast_to(np.arange(other.start, other.stop), squared_BC.shape)
        numbers_BE = np.concatenate([numbers_NK[place], rows_BC], axis=1)
        squared_BE = np.concatenate([squared_NK[place], squared_BC], axis=1)
        order_BK = np.argsort(squared_BE, axis=1, kind="stable")[:, : shape[1]]
        numbers_NK[place] = np.take_along_axis(numbers_BE, order_BK, axis=1)
        squared_NK[place] = np.take_along_axis(squared_BE, order_BK, axis=1)
    return numbers_NK, np.sqrt(squared_NK)


def _as_they_are(rows_BD: np.ndarray) -> np.ndarray:
    return rows_BD
