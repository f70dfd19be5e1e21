"""Weights to begin with, which take almost no compiling."""

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding


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
