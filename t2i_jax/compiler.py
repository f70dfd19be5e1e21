"""How programs are compiled: the options of the compiler for a platform."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

# On a CPU operations run in an order that keeps little alive: as fast, and a third less memory for
# a transformer's step. LLVM optimises at its first level, not at its third: programs are as fast,
# and compiling the step of `configs/imagen/shapes.py` takes four fifths of the time. Of the kinds
# of operations that XLA would give to the library YNNPACK, convolutions are left out: they take up
# to four times as long there.
_LEVEL, _LIBRARY = "xla_backend_optimization_level", "xla_cpu_experimental_ynn_fusion_type"
_OPTIONS = {
    "cpu": {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        _LEVEL: 1,
        _LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    }
}


def options_for(platform: str) -> dict[str, Any] | None:
    """The options with which a program is compiled, but for a level or a library that XLA_FLAGS
    give, and the library where this jaxlib has no such option.
    """
    options = _OPTIONS.get(platform)
    if options is None:
        return None
    own = os.environ.get("XLA_FLAGS", "")
    left = {name for name in (_LEVEL, _LIBRARY) if name in own}
    if _LIBRARY not in left and not _is_known(_LIBRARY, options[_LIBRARY]):
        left.add(_LIBRARY)
    return {name: value for name, value in options.items() if name not in left}


class Program:
    """`jax.jit(function, **arguments)`, compiled with the options of the platform.

    The platform is asked at the first call: a decorator runs before a process has joined the
    others. Inside a function that is traced it is a part of that one's program, to which options
    belong as a whole.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any):
        functools.update_wrapper(self, function)
        self._function, self._arguments = function, arguments

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the function returns."""
        if any(isinstance(one, Tracer) for one in jax.tree.leaves((given, named))):
            return self._function(*given, **named)
        return self._jitted(*given, **named)

    def lower(self, *given: Any, **named: Any) -> jax.stages.Lowered:
        """As of `jax.jit`, without options."""
        return jax.jit(self._function, **self._arguments).lower(*given, **named)

    @functools.cached_property
    def _jitted(self):
        options = options_for(jax.default_backend())
        return jax.jit(self._function, compiler_options=options, **self._arguments)


@functools.cache
def _is_known(name, value):
    """Whether the compiler takes an option, which its makers call experimental."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options={name: value})
    except Exception:  # of the compiler; jaxlib says no more of its kind
        return False
    return True
