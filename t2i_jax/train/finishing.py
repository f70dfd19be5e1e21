"""A thread that finishes a save after the step that made it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Finishing:
    """Work that has begun in a thread of its own.

    Args:
      finish: the work; None: there is none.
    """

    def __init__(self, finish: Callable[[], None] | None = None):
        self._finish, self._error = finish, None
        self._thread = None if finish is None else threading.Thread(target=self._run, name="finish")
        if self._thread is not None:
            self._thread.start()

    def wait(self) -> None:
        """Waits until the work is done; raises the error that it met."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self):
        try:
            self._finish()
        except BaseException as error:  # raised again where it is waited for
            self._error = error
