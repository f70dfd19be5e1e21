"""Noise sources of a sampling run: a key per row, or arrays that are given."""

from __future__ import annotations

from collections.abc import Callable

import jax

from t2i_jax.types import Array, Key

# A noise source: (count, x_BHWC) -> unit normal noise of that shape, the sample `count` of a run.
NoiseSource = Callable[[Array | int, Array], Array]


def gaussian(keys_B: Key) -> NoiseSource:
    """A noise source with one key per row, so that a row's image does not depend on what else is in
    the batch.
    """

    def draw(count, x_BHWC):
        def row(key):
            return jax.random.normal(jax.random.fold_in(key, count), x_BHWC.shape[1:])

        return jax.vmap(row)(keys_B)

    return draw


def injected(eps_NBHWC: Array) -> NoiseSource:
    """A noise source that gives stored noise in the order of the count."""
    return lambda count, x_BHWC: jax.lax.dynamic_index_in_dim(eps_NBHWC, count, keepdims=False)
