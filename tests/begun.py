"""Weights to begin with, which take almost no compiling."""

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.train import on_host


def begun(init, key):
    """What `init(key)` gives without boxes, bit for bit as compiled.

    Called as it is, a network would run once, operation by operation, each compiled for itself.
    """
    try:
        made = on_host.evaluate(init, key)
    except on_host.Unable:
        made = jax.jit(init)(key)
    return jax.tree.map(jnp.asarray, sharding.unbox(made))
