"""Scalars that every parameter's update uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t2i_jax.types import Array


def computed_once(x: Array) -> Array:
    """The scalar itself, a number or a bool, which the compiler does not compute anew in every
    kernel that uses it.

    XLA copies a chain of scalar operations, such as a learning rate's schedule, into the kernel of
    every parameter, which makes programs of training half as long again to compile. On a CPU it
    drops `optimization_barrier` before that; the result of a reduction it does not copy.
    """
    lowest = False if x.dtype == jnp.bool_ else -jnp.inf
    # not `jnp.max`, beside whose float32 a bfloat16 parameter would become float32 too
    reduced = jax.lax.reduce(
        jnp.where(jnp.arange(2) == 0, x, lowest), lowest, jax.lax.max, dimensions=(0,)
    )
    return jax.lax.optimization_barrier(reduced)
