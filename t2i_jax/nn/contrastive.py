"""Contrastive losses between the images and the captions of a whole batch.

Row i of one modality belongs to row i of the other. Scores are made in blocks of rows, so that no
batch holds its matrix of scores; the backward pass makes each block again. On a mesh every device
has a part of each block, and the other modality whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.sharding import BATCH_AXES, constrain
from t2i_jax.types import Array

_AT_ONCE = 2**24  # most scores of a block on a device, 64 MiB of float32
_MASKED = -1e30
_TINY = math.log(1e-20)  # log of what x-clip adds to every sum of exponentials

Scores = Callable[[Any, Any], Array]  # (some rows of one modality, all rows of the other) -> (R, B)


class Matches(NamedTuple):
    """The loss and the hits of each row of a contrastive loss.

    Attributes:
      nats_B: the loss. hit_B: whether the own partner has the highest score.
    """

    nats_B: Array
    hit_B: Array


def cosine(query_RD: Array, key_BD: Array) -> Array:
    """(R, B) float32 products of l2-normalised latents."""
    return jnp.einsum("RD,BD->RB", query_RD, key_BD, preferred_element_type=jnp.float32)


def text_by_tokens(text: tuple[Array, Array], image_BID: Array) -> Array:
    """(R, B) scores of texts (latents (R, T, D), mask (R, T)) with images (B, I, D): the mean over
    a text's tokens of the best patch for each (Yao et al. 2021, equation 4).
    """
    text_RTD, mask_RT = text
    best_RBT = jnp.max(_tokens("RTD,BID->RBTI", text_RTD, image_BID), axis=-1)
    count_R1 = jnp.maximum(jnp.sum(mask_RT, axis=-1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask_RT[:, None], best_RBT, 0), axis=-1) / count_R1


def image_by_patches(image_RID: Array, text: tuple[Array, Array]) -> Array:
    """(R, B) scores of images (R, I, D) with texts: the mean over patches of the best token for
    each (equation 5).
    """
    text_BTD, mask_BT = text
    scores_RBIT = _tokens("RID,BTD->RBIT", image_RID, text_BTD)
    return jnp.mean(jnp.max(jnp.where(mask_BT[None, :, None], scores_RBIT, _MASKED), -1), -1)


def _tokens(equation, one, other):
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)


def cross_entropy(
    scores: Scores,
    query: Any,
    key: Any,
    scale: Array,
    *,
    decoupled: bool = False,
    rows: int | None = None,
) -> Matches:
    """-log softmax(scale * scores) at each query's own key, in nats (van den Oord et al. 2018).

    Args:
      query, key: arrays, or tuples of them, whose first axis is the batch.
      decoupled: the own key is left out of the sum (Yeh et al. 2021, DCL): the loss may then be
        below zero.
      rows: queries of a block; None: as many as 64 MiB of scores on each device allow.

    Raises:
      UserError: `rows` does not divide the batch.
    """

    def of(query, key, index_R):
        logits_RB = scale * scores(query, key)
        own_RB = index_R[:, None] == jnp.arange(logits_RB.shape[1])
        own_R = jnp.sum(jnp.where(own_RB, logits_RB, 0), axis=1)
        others_RB = jnp.where(own_RB, _MASKED, logits_RB) if decoupled else logits_RB
        total_R = jax.nn.logsumexp(others_RB, axis=1)
        if decoupled:  # alone in its batch a row has no others
            total_R = jnp.logaddexp(total_R, _TINY)
        return Matches(total_R - own_R, own_R >= jnp.max(logits_RB, axis=1))

    return _by_rows(of, query, key, rows)


def sigmoid(
    scores: Scores, query: Any, key: Any, scale: Array, bias: Array, rows: int | None = None
) -> Matches:
    """-sum over keys of log sigmoid(+-(scale * scores + bias)), + for the own key, per query (Zhai
    et al. 2023, SigLIP, algorithm 1).
    """

    def of(query, key, index_R):
        logits_RB = scale * scores(query, key) + bias
        own_RB = index_R[:, None] == jnp.arange(logits_RB.shape[1])
        nats_R = -jnp.sum(jax.nn.log_sigmoid(jnp.where(own_RB, logits_RB, -logits_RB)), axis=1)
        own_R = jnp.sum(jnp.where(own_RB, logits_RB, 0), axis=1)
        return Matches(nats_R, own_R >= jnp.max(logits_RB, axis=1))

    return _by_rows(of, query, key, rows)


def similarity_regulariser(text_BD: Array, image_BD: Array, rows: int | None = None) -> Array:
    """The mean squared difference between the text-text and the image-image similarities of
    different rows (arXiv 2309.08773); 0 for a batch of one.
    """
    batch = text_BD.shape[0]

    def of(query, key, index_R):
        (text_RD, image_RD), (text_BD, image_BD) = query, key
        difference_RB = cosine(text_RD, text_BD) - cosine(image_RD, image_BD)
        own_RB = index_R[:, None] == jnp.arange(batch)
        return jnp.sum(jnp.where(own_RB, 0, difference_RB**2), axis=1)

    pair = (text_BD, image_BD)
    total_B = _by_rows(of, pair, pair, rows)
    return jnp.sum(total_B) / max(batch * (batch - 1), 1)


def _by_rows(of, query, key, rows):
    """`of(some rows of the query, the keys, the rows' numbers)` for all rows, in blocks."""
    batch = jax.tree.leaves(query)[0].shape[0]
    # every device needs all keys for its rows
    key = jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), key)
    rows = _rows(batch, query, key) if rows is None else rows
    index_B = jnp.arange(batch)
    if rows >= batch:
        return of(query, key, index_B)
    if batch % rows:
        raise UserError(f"rows={rows} does not divide the batch of {batch}; give a divisor of it.")

    def split(x):
        # each block has rows from everywhere, so that every device has a part of it
        x = jnp.swapaxes(x.reshape(rows, batch // rows, *x.shape[1:]), 0, 1)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    blocks = jax.tree.map(split, (query, index_B))
    once = jax.checkpoint(lambda block: of(block[0], key, block[1]))
    found = jax.lax.map(once, blocks)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(batch), found)


def _rows(batch, query, key):
    """The most rows that divide the batch and whose scores fit; a multiple of the devices that
    share the batch where there is one.
    """
    tokens = [_length(one) for one in (query, key)]
    ways = math.prod(sharding.ways(axis) for axis in BATCH_AXES)
    # each block sums gradients of the keys over all devices: few large ones send less
    most = max(1, ways * _AT_ONCE // (batch * math.prod(tokens)))
    fitting = [rows for rows in range(1, batch + 1) if batch % rows == 0 and rows <= most]
    even = [rows for rows in fitting if rows % ways == 0]
    return max(even or fitting)


def _length(one):
    leaf = jax.tree.leaves(one)[0]
    return leaf.shape[1] if leaf.ndim == 3 else 1
