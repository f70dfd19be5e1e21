"""Stopping a run from outside: SIGTERM, SIGHUP and SIGINT, to any of its processes, end it after
the step that is under way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from t2i_jax.cluster import processes, signals


class Stop:
    """Listens for SIGTERM, SIGHUP and SIGINT while it is entered; a second SIGINT interrupts at
    once.
    """

    def __enter__(self) -> Stop:
        self._asked, self._handlers = threading.Event(), signals.handled(self._hear)
        self._handlers.__enter__()
        return self

    def __exit__(self, *_):
        self._handlers.__exit__(None, None, None)

    def asked(self) -> bool:
        """Whether a stop was asked for; several processes may hear of it at different times."""
        return self._asked.is_set() or processes.asked_to_stop()

    def agreed(self) -> bool:
        """Whether a stop was asked for, with one answer for every process; all must ask after the
        same step.
        """
        return any(processes.gather(self.asked()))

    def _hear(self, number, frame):
        if self._asked.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._asked.set()
        if number != signal.SIGINT:
            signals.stop()
        with contextlib.suppress(OSError):  # nobody reads it
            told = f"\n{signals.name(number)}: saving after this step, then stopping\n"
            os.write(2, told.encode())
        processes.ask_to_stop()
