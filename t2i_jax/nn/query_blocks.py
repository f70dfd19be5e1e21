"""Attention in blocks of queries, where the matrix of scores would be large."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.types import Array

MAX_SCORES = 2**23  # per image: 32 MB of float32


def by_queries(
    attend: Callable[[Array, Array | int], Array],
    q_BQHD: Array,
    keys: int,
    max_scores: int = MAX_SCORES,
) -> Array:
    """attend(q_BQHD, 0), or the same for one block of queries after the other: the whole matrix
    never exists.

    Args:
      attend: function of queries and the position of the first; recomputed in the backward pass of
        a block.
      keys: number of keys that each query sees. max_scores: scores per image (H * Q * keys) above
        which blocks are used.
    """
    _, Q, H, _ = q_BQHD.shape
    if Q * H * keys <= max_scores:
        return attend(q_BQHD, 0)
    blocks = -(-Q // max(max_scores // (H * keys), 1))
    size = -(-Q // blocks)
    padded = jnp.pad(q_BQHD, ((0, 0), (0, blocks * size - Q), (0, 0), (0, 0)))
    block = jax.checkpoint(attend, prevent_cse=False)
    inputs = rearrange(padded, "b (n q) h d -> n b q h d", n=blocks), size * jnp.arange(blocks)
    out = jax.lax.map(lambda one: block(*one), inputs)
    return rearrange(out, "n b q h d -> b (n q) h d")[:, :Q]
