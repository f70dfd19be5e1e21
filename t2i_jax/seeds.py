"""PRNG keys from seeds: all bits of a seed count."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.types import Key
from t2i_jax.values import shown

_LAST = 2**63 - 1


def key_of(field: str, seed: Any) -> Key:
    """The PRNG key of a seed.

    Args:
      field: what the seed was given as, for the sentence.

    Raises:
      UserError: no whole number from 0 to 2^63 - 1.
    """
    number = _number(field, seed)
    key = jax.random.key(number & 0xFFFFFFFF)
    if number >> 32 == 0:
        return key
    # jax.random.key drops the upper half, unless 64-bit numbers are enabled
    words = np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)
    repeated = jnp.asarray(np.tile(words, jax.random.key_data(key).size // 2))
    return jax.random.wrap_key_data(repeated, impl=jax.random.key_impl(key))


def keys_of(field: str, seeds: Sequence[Any]) -> Key:
    """The PRNG keys (B,) of as many seeds, each that of `key_of`, made all at once.

    Raises:
      UserError: as `key_of`.
    """
    numbers_B = np.array([_number(field, seed) for seed in seeds], np.uint64)
    words_B2 = np.stack([numbers_B >> np.uint64(32), numbers_B & np.uint64(0xFFFFFFFF)], axis=-1)
    one = jax.random.key(0)
    repeated = np.tile(words_B2.astype(np.uint32), jax.random.key_data(one).size // 2)
    return jax.random.wrap_key_data(jnp.asarray(repeated), impl=jax.random.key_impl(one))


def _number(field, seed):
    try:
        number = None if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError:
        number = None
    if number is None or not 0 <= number <= _LAST:
        raise UserError(
            f"{field}={shown(seed)} is not a whole number from 0 to {_LAST}; give such a number."
        )
    return number
