"""The exponential moving average (EMA) of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.train.scalar import computed_once
from t2i_jax.types import Array


def update(average: Any, params: Any, made: Array, decay: float, held: Any = None) -> Any:
    """The next average: `d * average + (1 - d) * params`, where d = min(decay, (1 + made) / (10 +
    made)).

    In the first updates d is small, so that the average follows the parameters fast, whenever they
    begin to move.

    Args:
      made: updates of these parameters before this one.
      held: True for parameters that never change, whose average stays bit for bit; None: all do.
    """
    d = computed_once(jnp.minimum(decay, (1.0 + made) / (10.0 + made)))
    rest = 1 - d
    moved = jax.tree.map(lambda a, p: a * d + p * rest, average, params)
    if held is None:
        return moved
    return jax.tree.map(lambda stays, a, new: a if stays else new, held, average, moved)
