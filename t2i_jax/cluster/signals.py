"""Signals that ask a process to stop: SIGTERM, SIGHUP and SIGINT.

Python runs a handler in the main thread, between two of its instructions. While that thread is
inside a library, compiling for minutes, only another one can answer.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SOON = 2.0  # seconds in which the main thread answers, unless a library holds it
_stopping = threading.Event()  # one was heard, and this process is about to end because of it
_again: list[int] = []  # sent once more by this process itself
# functions that Python calls between two instructions of others; an error raised there is lost
_LOST = frozenset({"_xla_gc_callback", "__del__"})


class Interrupted(KeyboardInterrupt):
    """A signal asked a process to end that has nothing to save first.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def stop() -> None:
    """Notes that this process ends: from now on the same signals change nothing, up to its very
    end.
    """
    if not _stopping.is_set():
        _stopping.set()
        atexit.register(_ignore)  # Python takes its handlers away before the process is gone


@contextlib.contextmanager
def handled(hear: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Calls `hear` for each of the signals; in a thread other than the main one nothing changes.

    SIGHUP stays ignored where it is, as under `nohup`.
    """
    with _handled(_numbers(), hear):
        yield


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """A context in which each of the signals raises `Interrupted`, so that nothing is left half
    written; ignored signals stay ignored.
    """

    def hear(number, frame):
        if number == signal.SIGINT or not _stopping.is_set():
            raise Interrupted(number)

    wanted = [n for n in _numbers() if signal.getsignal(n) is not signal.SIG_IGN]
    with _handled(wanted, hear):
        yield


@contextlib.contextmanager
def _handled(numbers, hear):
    def careful(number, frame):
        if _is_lost(frame):
            _again.append(number)
            late = threading.Timer(0.02, os.kill, (os.getpid(), number))
            late.daemon = True
            late.start()
        else:
            hear(number, frame)

    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            old[number] = signal.signal(number, careful)
    try:
        yield
    finally:
        for number, handler in old.items():
            late = _stopping.is_set() and number != signal.SIGINT and handler is signal.SIG_DFL
            signal.signal(number, _nothing if late else handler)


@contextlib.contextmanager
def watched(
    heard: Callable[[int], None], unanswered: Callable[[int], None], answered: threading.Event
) -> Iterator[None]:
    """Lets a thread hear the signals at once, whatever the main thread is in.

    Args:
      heard: is called with each. unanswered: is called with one for which `answered`, which its
        handler sets, is not set two seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _again.clear()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    old = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def listen():
        waiting = None
        while True:
            try:
                reading.settimeout(_SOON if waiting is not None else None)
                numbers = reading.recv(16)
            except TimeoutError:
                if not answered.is_set():
                    unanswered(waiting)
                waiting = None
                continue
            if not numbers:
                reading.close()
                return
            for number in filter(_numbers().__contains__, numbers):
                if number in _again:
                    _again.remove(number)
                    continue
                heard(number)
                waiting = number

    threading.Thread(target=listen, daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        writing.close()


def name(number: int) -> str:
    """SIGTERM and so on."""
    return signal.Signals(number).name


def _is_lost(frame):
    while frame is not None:
        if frame.f_code.co_name in _LOST:
            return True
        frame = frame.f_back
    return False


def _numbers():
    numbers = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return numbers


def _nothing(number, frame):
    """A handler that does nothing; unlike SIG_IGN, processes that are started do not inherit it."""


def _ignore():
    if threading.current_thread() is threading.main_thread():
        for number in _numbers():
            signal.signal(number, signal.SIG_IGN)
