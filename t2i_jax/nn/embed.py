"""Positions on a grid of image tokens: learnt axial embeddings and a learnt bias per relative
position.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.types import Array

# The biases of `conv_like`: at a head's own offset, and the lowest. The lowest keeps a share of the
# softmax, so that a head can learn to look further.
_PEAK, _LOWEST = 4.0, -8.0


def axial(rows_RC: Array, columns_RC: Array) -> Array:
    """The positions of all cells, row by row: (rows * columns, C), each the sum of its row's and
    its column's vector.
    """
    return (rows_RC[:, None] + columns_RC[None]).reshape(-1, rows_RC.shape[-1])


def relative_bias(table_RH: Array, side: int) -> Array:
    """Attention bias (cells, H, cells) between the cells of a square grid, as [query, head, key].

    Args:
      table_RH: one row per offset, ((2 side - 1)^2, H), the row's offset (query - key + side - 1)
        slowest.

    Two products with one-hot matrices: exact, and their gradient is a product too, not a scatter.
    """
    wide = 2 * side - 1
    offset = jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1
    hot_QKW = jax.nn.one_hot(offset, wide, dtype=table_RH.dtype)
    table_RCH = table_RH.reshape(wide, wide, -1)
    by_row = jnp.einsum("abR,RCH->abCH", hot_QKW, table_RCH, precision="highest")
    bias = jnp.einsum("abCH,cdC->acHbd", by_row, hot_QKW, precision="highest")
    return bias.reshape(side * side, -1, side * side)


def relative_bias_row(table_RH: Array, side: int, cell: Array) -> Array:
    """The row `cell` of `relative_bias`: (H, cells)."""
    cells = jnp.arange(side * side)
    row, column = cell // side - cells // side + side - 1, cell % side - cells % side + side - 1
    return table_RH[row * (2 * side - 1) + column].T


def head_offsets(heads: int, side: int) -> list[tuple[int, int]]:
    """The offset (rows, columns) of each head from a query's cell back to the cell that `conv_like`
    centres the head on: the nearest cells that come no later, row by row, are handed out first, the
    cell itself before all others; more heads than cells begin again.
    """
    back = [
        (row, column)
        for row in range(side)
        for column in range(1 - side, side)
        if row > 0 or column >= 0
    ]
    back.sort(key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, *offset))
    return [back[head % len(back)] for head in range(heads)]


def conv_like(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """The initializer of a table for `relative_bias` with which causal self-attention begins like a
    convolution: each head has the largest bias at an offset of its own (`head_offsets`), from where
    it falls with the squared distance in cells.

    That is the positional attention of d'Ascoli et al. 2021 (arXiv 2103.10697, equation 6, locality
    strength 1) for a neighbourhood of cells that come no later. It draws nothing from the key.

    Args:
      shape: ((2 side - 1)^2, heads).
    """
    offsets, heads = shape[-2:]
    side = (int(np.sqrt(offsets)) + 1) // 2
    rows, columns = (axis - side + 1 for axis in np.divmod(np.arange(offsets), 2 * side - 1))
    own_H2 = np.array(head_offsets(heads, side))
    distance_RH = (rows[:, None] - own_H2[:, 0]) ** 2 + (columns[:, None] - own_H2[:, 1]) ** 2
    return jnp.asarray(np.broadcast_to(np.maximum(_PEAK - distance_RH, _LOWEST), shape), dtype)
