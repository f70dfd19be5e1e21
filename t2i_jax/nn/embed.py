"""Positions on a grid of image tokens: learnt axial embeddings and a learnt bias per relative
position.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t2i_jax.types import Array


def axial(rows_RC: Array, columns_RC: Array) -> Array:
    """One position per cell, row by row: (rows * columns, C), the sum of a row's and a column's
    vector.
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
