"""Stopping a run from outside: SIGTERM and SIGINT end it after the step that is under way."""

from __future__ import annotations

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """SIGTERM or SIGINT arrived; the state was saved, and the same command carries on."""


class Stop:
    """Listens for SIGTERM and SIGINT while it is entered; a second SIGINT interrupts at once.

    With several processes JAX's own preemption service listens for SIGTERM, and all of them stop after the same step.
    """

    def __enter__(self) -> Stop:
        self._asked, self._old = threading.Event(), {}
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether this process was told to stop; with several processes only `reached` can tell."""
        return self._asked.is_set()

    def reached(self, step: int) -> bool:
        """Whether the run ends after this step; to be asked once per step, by every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()

    def _hear(self, number, frame):
        if number == signal.SIGINT and self._asked.is_set():
            raise KeyboardInterrupt
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step, then stopping\n".encode())
        self._asked.set()
