"""The training step as a compiled program, made at its first call."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import jax

# On a CPU operations run in an order that keeps little alive: as fast, and a third less memory for a transformer.
_OPTIONS = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}


class CompiledStep:
    """`step(state, *rest) -> (state, metrics)`, compiled for the shapes of its first call; the state is donated.

    Args:
      shardings: of the state that comes out; None: as the compiler likes. mesh: over which activations are split too.
    """

    def __init__(self, step: Callable[..., Any], shardings: Any = None, mesh: jax.sharding.Mesh | None = None):
        out = {} if shardings is None else {"out_shardings": (shardings, None)}
        self._jitted: Any = jax.jit(step, donate_argnums=0, **out)
        self._mesh = mesh
        self._program: Callable[..., Any] | None = None

    def __call__(self, state: Any, *rest: Any) -> Any:
        if self._program is None:
            options = _OPTIONS.get(jax.default_backend())
            with jax.set_mesh(self._mesh):
                lowered = self._jitted.lower(state, *rest)
            self._program = lowered.compile(compiler_options=options)
            self._jitted = None  # with what was traced
            _give_back()
        return self._program(state, *rest)


def _give_back():
    """Returns what tracing and compiling left, hundreds of megabytes, to the system; the C library would keep it."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            pass
