"""Messages while work goes on: a terminal that is gone, a full disk or a closed pipe costs the
lines, not the work.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def say(sentence: str) -> None:
    """Prints a line on stderr, where that can be done; above a progress line where one is shown."""
    bars = sys.modules.get("tqdm")  # not every command shows one
    write = print if bars is None else bars.tqdm.write
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            write(sentence, file=sys.stderr)
            sys.stderr.flush()


def forgive() -> None:
    r"""Lets the process go on when stdout or stderr are closed, full or read by nobody any more.

    Text that is printed then is lost; a character that the encoding of a stream lacks is printed as
    its number, \u732b. A descriptor that was closed from the start is opened on nothing, so that no
    file of a run gets its number, into which libraries write their messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        if not isinstance(stream, _Forgiving):
            setattr(sys, name, _Forgiving(stream, number))


class _Forgiving:
    """A text stream; after the first error it writes to nowhere."""

    def __init__(self, stream: Any, number: int):
        self._stream, self._number = stream, number

    def write(self, text: str) -> int:
        self._attempt(self._put, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _put(self, text):
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # an error of the text, not of the terminal
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _attempt(self, do, *arguments):
        try:
            do(*arguments)
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                # what is still buffered goes there too, at the end of the process
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._number)
                os.close(nowhere)
