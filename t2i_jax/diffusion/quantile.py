"""Quantiles of rows of numbers without sorting them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.types import Array

_BITS = 31  # of a float32 that is not negative


def quantile(sizes_BN: Array, share: float) -> Array:
    """The quantile (B,) of each row, between two of its numbers by linear interpolation, as
    `jnp.quantile` has it.

    Numbers from 0 are in the order of their bits. So the one at a place is found by halving the
    interval of all numbers 31 times, each time counting those up to its middle: for 12,288 numbers
    a row that takes a thirtieth of the time of sorting them on a CPU.

    Args:
      sizes_BN: numbers from 0; one that is not a number counts as larger than all.
      share: of the numbers that are below it, in [0, 1].
    """
    sizes_BN = sizes_BN.astype(jnp.float32)
    bits_BN = jax.lax.bitcast_convert_type(sizes_BN, jnp.int32)
    place = float(np.float32(share) * np.float32(sizes_BN.shape[-1] - 1))
    wanted, beyond = math.floor(place) + 1, place - math.floor(place)

    def count(bits_B):
        return jnp.sum(bits_BN <= bits_B[:, None], axis=-1)

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        is_below_B = count(middle_B) >= wanted
        return jnp.where(is_below_B, low_B, middle_B + 1), jnp.where(is_below_B, middle_B, high_B)

    first_B = jnp.zeros_like(bits_BN[:, 0])
    found_B, _ = jax.lax.fori_loop(0, _BITS, halve, (first_B, first_B + jnp.int32(2**_BITS - 1)))
    value_B = jax.lax.bitcast_convert_type(found_B, jnp.float32)
    if beyond == 0:
        return value_B
    larger_BN = jnp.where(bits_BN > found_B[:, None], sizes_BN, jnp.inf)
    next_B = jnp.where(count(found_B) > wanted, value_B, jnp.min(larger_BN, axis=-1))
    return value_B * (1 - beyond) + next_B * beyond
