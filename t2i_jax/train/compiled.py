"""The training step as a compiled program, made at its first call."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import jax

from t2i_jax.train.executables import Executables, fresh

# On a CPU operations run in an order that keeps little alive: as fast, and a third less memory for
# a transformer.
_OPTIONS = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}


class CompiledStep:
    """`step(state, *rest) -> (state, metrics)`, compiled for the shapes of its first call.

    The state is donated.

    Args:
      shardings: of the state that comes out; None: as the compiler likes. mesh: over which
        activations are split too.
      kept: where the program is looked for and kept; None: nowhere.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        shardings: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        kept: Executables | None = None,
    ):
        out: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
        self._jitted: Any = jax.jit(step, donate_argnums=0, **out)
        self._mesh, self._kept = mesh, kept
        self._program: Any = None

    def prepare(self, state: Any, *rest: Any) -> None:
        """Compiles for the shapes of these arguments, or finds the program, unless that was done
        before.
        """
        if self._program is None:
            arguments, options = (state, *rest), _OPTIONS.get(jax.default_backend())
            self._program = self._kept.load(arguments, options) if self._kept else None
            self._program = self._program or self._compile(arguments, options)
            self._jitted = None  # with what was traced
            _give_back()

    def __call__(self, state: Any, *rest: Any) -> Any:
        """The state after the step, and its metrics."""
        self.prepare(state, *rest)
        return self._program(state, *rest)

    def _compile(self, arguments, options):
        with fresh() as is_fresh, jax.set_mesh(self._mesh):
            program = self._jitted.lower(*arguments).compile(compiler_options=options)
        if self._kept:
            self._kept.save(program, arguments, options, bool(is_fresh))
        return program


def _give_back():
    """Returns what tracing and compiling left, hundreds of megabytes, to the system.

    The C library would keep it.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
