"""The members of a tar file, of several archives in it that lie one behind another too.

Python's tarfile ends in silence at a header that it can't read, at the end of a file that was cut
between two members, and at the first end mark; here each of these is told.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

DAMAGED = "truncated archive"
"""The file ends within a member, or something else than a header stands where one should."""
UNMARKED = "archive without its end mark (two empty blocks), which may have been cut"
"""The file ends behind a whole member."""
BEHIND = "bytes behind the end mark of an archive, which are not read"
"""What stands there is no further archive."""
_MOST_AT_ONCE = 2**26  # most bytes that reading the members' names may ask for
_MOST_EMPTY = 2**26  # most empty bytes behind an end mark that are searched for another archive
_PIECE = 2**16


def members(file: BinaryIO) -> tuple[list[tarfile.TarInfo], str]:
    """The members of a tar file in their order, and what ends them: "" for an end mark, else
    `DAMAGED`, `UNMARKED` or `BEHIND`.

    Raises:
      tarfile.TarError, OSError, EOFError, ValueError: the file begins as no tar archive, or can't
        be read.
    """
    found: list[tarfile.TarInfo] = []
    archive: tarfile.TarFile | None = _archive(file, 0)
    ended = ""
    try:
        while archive is not None:
            for member in _in_order(archive, found):
                found.append(member)
            archive, ended = _next(file, archive.offset)
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError):
        ended = DAMAGED
    return found, ended


def _archive(file, start):
    file.seek(start)
    return tarfile.TarFile(fileobj=_Bounded(file))  # type: ignore[arg-type]


def _in_order(archive, before) -> Iterator[tarfile.TarInfo]:
    """The members of an archive; ValueError where one does not lie behind the one before it."""
    end = before[-1].offset_data if before else -1
    for member in archive:
        if member.size < 0 or member.offset < end:
            raise ValueError("a member lies where it can't")
        end = member.offset_data
        yield member


def _next(file, end) -> tuple[tarfile.TarFile | None, str]:
    """The archive behind one whose members end at `end`, None without one, and what is there."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return None, UNMARKED
    if any(block):
        return None, DAMAGED
    start = _first_byte(file, end)
    if start is None:
        return None, ""
    start -= start % tarfile.BLOCKSIZE  # where its block begins: archives are whole blocks
    file.seek(start)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None, BEHIND
    return _archive(file, start), ""


def _first_byte(file, start) -> int | None:
    """Where the first byte from `start` on lies that is not empty; None where all are."""
    file.seek(start)
    for place in range(start, start + _MOST_EMPTY, _PIECE):
        piece = file.read(_PIECE)
        if any(piece):
            return place + len(piece) - len(piece.lstrip(b"\0"))
        if len(piece) < _PIECE:
            return None
    return None


class _Bounded:
    """A file of which little is read at once, whatever an archive says of its members."""

    def __init__(self, file):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Reads `size` bytes; ValueError for a size that is no number of bytes or a large one."""
        if not 0 <= size <= _MOST_AT_ONCE:
            raise ValueError("a header says that it is larger than it can be")
        return self._file.read(size)
