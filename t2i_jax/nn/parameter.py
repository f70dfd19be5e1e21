"""Parameters of modules, without Flax's trace of their initialisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from flax.errors import ScopeParamShapeError

from t2i_jax.types import Array


def parameter(
    module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...], *dtype: Any
) -> Array:
    """The parameter of a module, unboxed, as `module.param(name, init, shape, *dtype)` gives it.

    Where the parameter has a value Flax traces its initialiser each time, to compare the shapes,
    which is a tenth of the time that tracing a network takes. Here `shape` itself is compared.

    Args:
      init: called with a key, `shape` and `dtype` where the parameter has no value yet; it may box
        what it returns with logical axes.
      dtype: of the first value; none: that of the initialiser.

    Raises:
      ScopeParamShapeError: the parameter has a value of another shape.
    """
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, init, shape, *dtype)
    value: Any = nn.meta.unbox(module.get_variable("params", name))
    if np.shape(value) != tuple(shape):
        raise ScopeParamShapeError(name, module.scope.path_text, np.shape(value), tuple(shape))  # type: ignore
    return value
