"""The training step as a compiled program, made at its first call."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from t2i_jax import heap
from t2i_jax.train import state as states
from t2i_jax.train.background import compile_in_background
from t2i_jax.train.executables import Executables, fresh
from t2i_jax.train.preemption import Stop

# On a CPU operations run in an order that keeps little alive: as fast, and a third less memory for
# a transformer. LLVM optimises at its first level, not at its third: steps are as fast, and
# compiling that of `configs/imagen/shapes.py` takes four fifths of the time. Of the kinds of
# operations that XLA would give to the library YNNPACK, convolutions are left out: they take up to
# four times as long there.
_LEVEL, _LIBRARY = "xla_backend_optimization_level", "xla_cpu_experimental_ynn_fusion_type"
_OPTIONS = {
    "cpu": {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        _LEVEL: 1,
        _LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    }
}


def options_for(platform: str) -> dict[str, Any] | None:
    """The options with which a step is compiled, but for a level or a library that XLA_FLAGS give,
    and the library where this jaxlib has no such option.
    """
    options = _OPTIONS.get(platform)
    if options is None:
        return None
    own = os.environ.get("XLA_FLAGS", "")
    left = {name for name in (_LEVEL, _LIBRARY) if name in own}
    if _LIBRARY not in left and not _is_known(_LIBRARY, options[_LIBRARY]):
        left.add(_LIBRARY)
    return {name: value for name, value in options.items() if name not in left}


@functools.cache
def _is_known(name, value):
    """Whether the compiler takes an option, which its makers call experimental."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options={name: value})
    except Exception:  # of the compiler; jaxlib says no more of its kind
        return False
    return True


class CompiledStep:
    """A training step `step(state, *rest) -> (state, metrics)`, compiled for the shapes of its
    first call.

    The state is donated, but for the groups that are idle, which the program is not given.

    Args:
      shardings: of the state that comes out; None: as the compiler likes. mesh: over which
        activations are split too.
      kept: where the program is looked for and kept; None: nowhere.
      idle: groups of the state that come out as they went in.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        shardings: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        kept: Executables | None = None,
        idle: Sequence[str] = (),
    ):
        out: dict[str, Any] = {}
        if shardings is not None:
            out = {"out_shardings": (states.apart(shardings, idle)[0], None)}
        self._jitted: Any = jax.jit(step, donate_argnums=0, **out)
        self._mesh, self._kept, self._idle = mesh, kept, idle
        self._program: Any = None
        self._keep: Callable[[], None] | None = None  # writes the program, where that is to do
        self._is_settled = self._has_run = False

    @property
    def usual_seconds(self) -> float | None:
        """The seconds that compiling usually takes here; None where that was never measured."""
        return self._kept.usual_seconds() if self._kept else None

    def prepare(self, state: Any, *rest: Any, stop: Stop | None = None) -> bool:
        """Compiles for the shapes of these arguments, or finds the program, unless that was done
        before; whether there is one now.

        Args:
          stop: asked meanwhile; where all processes agree to stop, compiling is given up. None:
            nobody is asked.
        """
        if self._program is None:
            moved, _ = states.apart(state, self._idle)
            arguments, options = (moved, *rest), options_for(jax.default_backend())
            self._program = self._kept.load(arguments, options) if self._kept else None
            self._program = self._program or self._compile(arguments, options, stop)
            if self._program is None:
                return False
            self._jitted = None  # with what was traced
        return True

    def settle(self) -> None:
        """Keeps the program for later starts, and frees the memory that compiling has left.

        That is for after the first step, which need not wait for it; the second step begins with it
        where nobody has asked for it.
        """
        if not self._is_settled:
            self._is_settled = True
            if self._keep:
                self._keep()
                self._keep = None
            gc.collect()
            heap.clear()

    def __call__(self, state: Any, *rest: Any) -> Any:
        """The state after the step, and its metrics."""
        self.prepare(state, *rest)
        if self._has_run:
            self.settle()
        moved, idle = states.apart(state, self._idle)
        after, metrics = self._program(moved, *rest)
        self._has_run = True
        return states.together(after, idle), metrics

    def _compile(self, arguments, options, stop):
        begin = time.monotonic()
        with fresh() as is_fresh, jax.set_mesh(self._mesh):
            lowered = self._jitted.lower(*arguments)
            program = (
                compile_in_background(lowered, options, stop.asked)
                if stop
                else compile_in_background(lowered, options)
            )
        # every process comes here once, whether it has a program or has given up
        if stop and stop.agreed():
            return None
        if self._kept:
            if is_fresh:
                self._kept.note_seconds(time.monotonic() - begin)
            self._keep = functools.partial(
                self._kept.save, program, arguments, options, bool(is_fresh)
            )
        return program
