"""The exponential moving average (EMA) of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.types import Array


def update(average: Any, params: Any, step: Array, decay: float) -> Any:
    """The next average: `d * average + (1 - d) * params`, where d = min(decay, (1 + step) / (10 +
    step)).

    In the first steps d is small, so that the average follows the parameters fast. What equals its
    parameter stays it bit for bit, so that held parameters are those that they began as.
    """
    d = jax.lax.optimization_barrier(jnp.minimum(decay, (1.0 + step) / (10.0 + step)))
    return jax.tree.map(lambda a, p: a + (p - a) * (1 - d), average, params)
