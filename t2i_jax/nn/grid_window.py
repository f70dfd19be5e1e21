"""Causal self-attention of a grid of tokens within a window around each of them: the
convolution-shaped sparse attention of DALL-E and Parti.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from t2i_jax.errors import UserError
from t2i_jax.nn.dot_product import attention
from t2i_jax.types import Array


@dataclasses.dataclass(frozen=True)
class GridWindow:
    """The positions that a position of a sequence of image tokens sees, as a masked convolution
    does (Ramesh et al. 2021, arXiv 2102.12092, figure 11; Yu et al. 2022, arXiv 2206.10789, section
    2.2).

    Position 0 is the start token and position p > 0 holds the token of cell p - 1, row by row, from
    which the token of cell p is predicted. Position p sees the start token, and of the tokens
    before cell p those in the `size` x `size` window whose centre is that cell.

    Attributes:
      side: cells per row and per column of the grid.
      size: cells per side of the window, odd; 3 or more.
    """

    side: int
    size: int

    def __post_init__(self):
        if self.size < 3 or self.size % 2 == 0:
            near = max(self.size // 2 * 2 + 1, 3)
            raise UserError(
                f"window={self.size} is no odd number from 3 on, so that a cell could be in the "
                f"middle; try {near}."
            )

    @property
    def reach(self) -> int:
        """Rows above a cell, and columns on either side, that its window holds."""
        return self.size // 2

    def seen(self, position: Array | np.ndarray, key: Array | np.ndarray) -> Array | np.ndarray:
        """True where `position` sees the position `key`; the two are broadcast together."""
        cell = key - 1
        up = position // self.side - cell // self.side
        across = abs(position % self.side - cell % self.side)
        near = (up <= self.reach) & (across <= self.reach)
        return (key == 0) | ((key > 0) & (key <= position) & near)

    def attend(self, q_BNHD: Array, k_BNHD: Array, v_BNHD: Array) -> Array:
        """softmax(q k / sqrt(D)) v over what each position sees, (B, N, H, D), N at most side^2.

        One row of queries at a time meets the rows of keys that its windows reach: side * (reach +
        1) + 1 keys for each query in place of N, in FLOPs and in memory. It is written for XLA; the
        backends' fused kernels have no such mask.
        """
        length, side, reach = q_BNHD.shape[1], self.side, self.reach
        rows = -(-length // side)
        last = rows * side - length

        def keys(t_BNHD):  # (B R, 1 + (reach + 1) side, H, D): the start, and the rows in reach
            cells = jnp.pad(t_BNHD[:, 1:], ((0, 0), (reach * side, last + 1), (0, 0), (0, 0)))
            by_row = rearrange(cells, "b (r c) h d -> b r c h d", c=side)
            near = [by_row[:, i : i + rows] for i in range(reach + 1)]
            start = jnp.broadcast_to(
                t_BNHD[:, None, :1], (*near[0].shape[:2], 1, *t_BNHD.shape[2:])
            )
            return rearrange(jnp.concatenate([start, *near], axis=2), "b r k h d -> (b r) k h d")

        padded = jnp.pad(q_BNHD, ((0, 0), (0, last), (0, 0), (0, 0)))
        mask = jnp.tile(self._mask(rows), (len(q_BNHD), 1, 1))[:, None]
        out = attention(
            rearrange(padded, "b (r c) h d -> (b r) c h d", c=side),
            keys(k_BNHD), keys(v_BNHD), mask,
        )  # fmt: skip
        return rearrange(out, "(b r) c h d -> b (r c) h d", r=rows)[:, :length]

    def past(self, position: Array, *entries_BKX: Array) -> tuple[Array, list[Array]]:
        """The entries of a KV cache that a position sees: (mask (1, K'), the entries (B, K', ...)),
        K' at most side * (reach + 1) + 1.

        Args:
          position: int32 scalar. entries_BKX: per position, the last one that is seen included.
        """
        length = entries_BKX[0].shape[1]
        size = min(self.side * (self.reach + 1), length)
        first = (position // self.side - self.reach) * self.side + 1
        first = jnp.clip(first, 0, length - size)
        key = first + jnp.arange(size)
        mask = (key > 0) & self.seen(position, key)  # the start comes by itself

        def taken(entry):
            near = jax.lax.dynamic_slice_in_dim(entry, first, size, axis=1)
            return jnp.concatenate([entry[:, :1], near], axis=1)

        return jnp.pad(mask, (1, 0), constant_values=True)[None], [taken(e) for e in entries_BKX]

    def _mask(self, rows):
        """bool (R, side, 1 + (reach + 1) side): the keys that the queries of each row see."""
        row, column = np.arange(rows)[:, None, None], np.arange(self.side)[:, None]
        cells = (row - self.reach) * self.side + np.arange((self.reach + 1) * self.side)
        keys = np.where(cells < 0, -1, cells + 1)  # a row above the grid: never seen
        keys = np.concatenate([np.zeros((rows, 1, 1), int), keys], axis=-1)
        return np.asarray(self.seen(row * self.side + column, keys))
