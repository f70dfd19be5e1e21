"""Stopping a run from outside: SIGTERM and SIGINT, to any of its processes, end it after the step
that is under way.
"""

from __future__ import annotations

import os
import signal
import threading

from t2i_jax.cluster import processes


class Stop:
    """Listens for SIGTERM and SIGINT while it is entered; a second SIGINT interrupts at once."""

    def __enter__(self) -> Stop:
        self._asked, self._old = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a stop was asked for; several processes may hear of it at different times."""
        return self._asked.is_set() or processes.asked_to_stop()

    def agreed(self) -> bool:
        """The same, with one answer for every process; all must ask after the same step."""
        return any(processes.gather(self.asked()))

    def _hear(self, number, frame):
        if number == signal.SIGINT and self._asked.is_set():
            raise KeyboardInterrupt
        os.write(
            2, f"\n{signal.Signals(number).name}: saving after this step, then stopping\n".encode()
        )
        self._asked.set()
        processes.ask_to_stop()
