"""The training step as a compiled program, made at its first call."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from t2i_jax import heap
from t2i_jax.compiler import options_for
from t2i_jax.train import state as states
from t2i_jax.train.background import compile_in_background
from t2i_jax.train.executables import Executables, fresh
from t2i_jax.train.preemption import Stop


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
