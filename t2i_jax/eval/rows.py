"""Features of many images, of which a part at a time is in memory."""

from __future__ import annotations

import math
import pathlib
import struct
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np

from t2i_jax.eval.moments import Moments, check_widths, checked, merged

BLOCK = 2048
"""The number of rows that are in memory at a time."""
_PART = 2**24  # bytes that are written at a time
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LOCAL_HEADER = 30  # bytes of a zip file before a member's name; its last two numbers are lengths


class Rows(Protocol):
    """(N, D) numbers, as a NumPy array has them, or `StoredRows`; `np.asarray` reads all."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (N, D)."""
        ...

    def __len__(self) -> int:
        """The number of rows N."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """The rows of a slice, or of numbers (K,): (rows, D)."""
        ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        """All rows as an array (N, D)."""
        ...


class StoredRows:
    """The rows of an array that npz files hold one part after the other, read when asked for. A
    part without rows may have any width.

    Args:
      files: of `numpy.savez`, not compressed. name: of the array in each.

    Raises:
      OSError, zipfile.BadZipFile: a file can't be read.
      LookupError, ValueError: the array is not in it, or does not lie there row by row.
    """

    def __init__(self, files: Sequence[pathlib.Path], name: str):
        self._parts = [_Part(path, name) for path in files]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        first = next((part for part in self._parts if len(part)), self._parts[0])
        self.shape = (int(self._starts[-1]), *first.shape[1:])
        self.ndim, self.dtype = len(self.shape), first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        parts = np.searchsorted(self._starts, numbers, "right") - 1
        for part in np.unique(parts):
            mine = np.flatnonzero(parts == part)
            found[mine] = self._parts[part].read()[numbers[mine] - self._starts[part]]
        return found

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        del copy  # it is always one
        return self[:] if dtype is None else self[:].astype(dtype)


def in_blocks(rows: Rows, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """All rows in blocks of `size`: the place of each block, and its rows (size, D) in float64.

    Args:
      size: of a block, the last may be smaller; None: `BLOCK`.
    """
    size = size or BLOCK
    for start in range(0, len(rows), size):
        place = slice(start, min(start + size, len(rows)))
        yield place, np.asarray(rows[place], np.float64)


def write_rows(file: IO[bytes], rows: Rows, dtype: Any) -> None:
    """Writes rows into an open file as `numpy.save` writes the array of them, a part at a time.

    Args:
      rows: (N, ...), of more axes than two too. dtype: that they are stored as.
    """
    dtype, shape = np.dtype(dtype), tuple(rows.shape)
    told = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, told)
    size = max(1, _PART // max(1, math.prod(shape[1:]) * dtype.itemsize))
    for start in range(0, len(rows), size):
        file.write(np.asarray(rows[start : start + size], dtype).tobytes())


def same_rows(place: slice, other: slice) -> tuple[np.ndarray, np.ndarray]:
    """The places in a block of pairs of one set, rows `place` by rows `other`, at which a row meets
    itself: the indices on both axes.
    """
    same = np.arange(max(place.start, other.start), min(place.stop, other.stop))
    return same - place.start, same - other.start


def moments_of(rows: Rows, chosen: np.ndarray | None = None) -> Moments:
    """The moments of all rows, or of those with the numbers (K,), block by block.

    Raises:
      UserError: as `Moments.of`.
    """
    if chosen is None:
        starts = range(0, len(rows), BLOCK)
        return merged(Moments.of(rows[start : start + BLOCK], start) for start in starts)
    parts = (chosen[start : start + BLOCK] for start in range(0, len(chosen), BLOCK))
    return merged(Moments.of(rows[part]) for part in parts)


def check(rows: Rows, name: str) -> None:
    """Refuses what `moments.checked` refuses, block by block.

    Args:
      name: what the sentence calls them.

    Raises:
      UserError: no rows, another number of axes, or a value that is not finite.
    """
    if len(rows.shape) != 2 or 0 in rows.shape:
        checked(np.empty(rows.shape), name)
    for place, block in in_blocks(rows):
        checked(block, name, place.start)


def check_pair(generated: Rows, reference: Rows) -> None:
    """Refuses what `check` refuses of two sets, and features of two widths.

    Raises:
      UserError: as `check`, or of two widths.
    """
    check(generated, "generated features")
    check(reference, "reference features")
    check_widths(generated.shape[1], reference.shape[1])


class _Part:
    """An array in an npz file: its form, and where its numbers begin."""

    def __init__(self, path: pathlib.Path, name: str):
        self._path = path
        with zipfile.ZipFile(path) as file, path.open("rb") as bytes_of:
            told = file.getinfo(f"{name}.npy")
            if told.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")
            bytes_of.seek(told.header_offset)
            lengths = struct.unpack("<2H", bytes_of.read(_LOCAL_HEADER)[-4:])
            bytes_of.seek(sum(lengths), 1)
            version = np.lib.format.read_magic(bytes_of)
            read = _HEADERS[version]
            self.shape, by_columns, self.dtype = read(bytes_of)
            if by_columns or self.dtype.hasobject or not self.shape:
                raise ValueError(f"{name} does not lie row by row")
            self._offset = bytes_of.tell()

    def __len__(self) -> int:
        return self.shape[0]

    def read(self) -> np.ndarray:
        """The array, of which the system reads what is looked at."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self._path, self.dtype, "r", self._offset, self.shape)
