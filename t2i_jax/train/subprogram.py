"""Parts of a step that a CPU's compiler takes one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import xla_metadata

from t2i_jax import sharding


def subprogram(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)`, on a single CPU compiled as a program of its own within
    the one that calls it.

    XLA compares every operation of a program with all those before it to find out which ones may
    run at the same time, when it compiles and again when it loads the program. Two programs of half
    the length need half as many comparisons. Elsewhere the call is inlined, as usual.
    """
    if not sharding.on_one_cpu():
        return function(*arguments)
    return xla_metadata.set_xla_metadata(jax.jit(function)(*arguments), inlineable="false")
