"""Weights to begin with, which take almost no compiling."""

import jax
import jax.numpy as jnp
import numpy as np

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


def drawn(init, *inputs):
    """Arrays of the shapes that `init(key, *inputs)` gives, drawn by NumPy: where weights are only
    moved about, and nothing need compile.
    """
    rng = np.random.default_rng(0)
    shapes = sharding.unbox(jax.eval_shape(init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def moved(weights, scale):
    """The weights with normal noise of this size added by NumPy, so that all of them matter."""

    def of(leaf):
        noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
        return jnp.asarray(leaf + np.asarray(scale * noise, leaf.dtype))

    return jax.tree.map(of, jax.device_get(weights))
