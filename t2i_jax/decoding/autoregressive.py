"""Autoregressive sampling in one compiled loop, with a KV cache that the network defines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.decoding import logits as filters
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key
from t2i_jax.values import shown

# (ids_B, position, cache) -> (logits_BV, cache)
Decode = Callable[[Array, Array, Any], tuple[Array, Any]]
_SHORT = 256  # tokens up to which one loop is used


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The part of the sampling options that shapes the compiled program.

    Attributes:
      guided: whether rows come in two halves, with the text and without it (or with a negative
        text).
      top_k: sample among the k likeliest tokens; a float in (0, 1) is a fraction of the vocabulary.
        None: all.
      top_p: sample among the likeliest tokens that together hold this probability. None: all.
    """

    guided: bool = True
    top_k: int | float | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.top_k is not None and not _counts(self.top_k):
            raise UserError(
                f"top_k={shown(self.top_k)} is neither a count from 1 nor a fraction in (0, 1); "
                "try 100 or 0.1."
            )
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p={shown(self.top_p)} is outside (0, 1]; try 0.95.")


def cache_lengths(num_tokens: int) -> Sequence[int]:
    """Lengths of the KV cache in tokens, one per loop: the part of a cache that is still empty is
    read all the same.
    """
    loops = 1 if num_tokens <= _SHORT else 2  # each adds to the compile time
    return [-(-num_tokens * (i + 1) // loops) for i in range(loops)]


def generate(
    decode: Decode,
    cache: Any,
    keys_B: Key,
    num_tokens: int,
    *,
    sampling: Sampling,
    grow: Callable[[Any, int], Any] | None = None,
    guidance: float | Array = 1.0,
    temperature: float | Array = 1.0,
    plausibility: float | Array = 0.0,
    given_BN: Array | None = None,
    known_BN: Array | None = None,
) -> Array:
    """Tokens (B, num_tokens), int32.

    Args:
      decode: one step of the network. With `sampling.guided` it works on 2B rows: the text's, then
        the null's.
      cache: the network's KV cache for these rows, `cache_lengths(num_tokens)[0]` tokens long.
      grow: `(cache, length) -> cache`, the same cache with another length; None: it has the length
        num_tokens.
      keys_B: one key per row, so that a row's tokens do not depend on what else is in the batch.
      guidance: strength l in null + l * (text - null). temperature: 0 takes the likeliest token.
      plausibility: with guidance, tokens are out whose probability given the text is below this
        share of the likeliest one's, see `logits.plausible`; 0: none are.
      given_BN, known_BN: tokens, and True where they are to be kept (inpainting); None: none.

    Top-k and top-p look at the guided logits, top-p at those divided by the temperature.
    """
    batch = keys_B.shape[0]

    def step(position, carry):
        ids_B, tokens_BN, cache = carry
        rows = jnp.concatenate([ids_B, ids_B]) if sampling.guided else ids_B
        logits, cache = decode(rows, position, cache)
        if sampling.guided:
            guided = filters.guide(logits[:batch], logits[batch:], guidance)
            logits = filters.plausible(guided, logits[:batch], plausibility)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys_B)
        k, vocabulary = sampling.top_k, logits.shape[-1]
        k = max(int(k * vocabulary), 1) if isinstance(k, float) else k
        inside = filters.filtered(logits, k, sampling.top_p, temperature)
        ids_B = filters.sample(keys, inside, temperature)
        if known_BN is not None:
            ids_B = jnp.where(known_BN[:, position], given_BN[:, position].astype(jnp.int32), ids_B)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(tokens_BN, ids_B[:, None], position, axis=1)
        return ids_B, tokens_BN, cache

    carry, done = (
        (jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, num_tokens), jnp.int32), cache),
        0,
    )
    for length in cache_lengths(num_tokens) if grow else (num_tokens,):
        if grow is not None and done:
            carry = (*carry[:2], grow(carry[2], length))
        carry, done = jax.lax.fori_loop(done, length, step, carry), length
    return carry[1]


def _counts(k):
    return _is_number(k) and (0 < k < 1 if isinstance(k, float) else k > 0)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
