"""Checks that every foreign file passes: it is a regular file of a possible size, and an error
about it is one sentence.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator

from t2i_jax import paths
from t2i_jax.errors import UserError, first_line

_LFS = b"version https://git-lfs"
ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"  # the two forms of PyTorch's files
SAFETENSORS = b"{"  # a header of JSON, behind eight bytes that tell its length
_KINDS = {  # what a file of another kind begins with
    _LFS: "is a Git LFS pointer and not the file itself",
    ZIP: "is a zip archive, as PyTorch writes",
    b"\x1f\x8b": "is compressed with gzip",
    PICKLE: "is a pickle, as PyTorch writes",
    b"<": "is a web page or XML",
}


def check(path: str | os.PathLike, field: str, limit: int | None = None) -> pathlib.Path:
    """The path of a regular file with something in it, which is the file itself.

    Args:
      field: what the user calls it, for messages, as in weights='x.pt'.
      limit: the most bytes that it may have; None: any number.

    Raises:
      UserError: nothing is there, or a folder, a pipe, a device; an empty file, a Git LFS pointer,
        or more bytes than the limit.
    """
    path = paths.given(field, path)
    named = f"{field}={str(path)!r}"
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or "its name is no file name"
        raise UserError(f"{named} is not a file ({reason}); check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{named} is not a file; give a regular file.")
    if not status.st_size:
        raise UserError(f"{named} is empty; fetch or write it again.")
    if limit is not None and status.st_size > limit:
        raise UserError(
            f"{named} has {status.st_size} bytes, more than such a file ever has ({limit}); give "
            "the right file."
        )
    if _start(path) == _KINDS[_LFS]:
        raise UserError(f"{named} {_KINDS[_LFS]}; fetch it with `git lfs pull`.")
    return path


@contextlib.contextmanager
def refusing(
    path: str | os.PathLike, field: str, kind: str, remedy: str, starts: tuple[bytes, ...] = ()
) -> Iterator[None]:
    """A context that turns every error about a bad file into one sentence.

    Args:
      kind: what the file should be, "a safetensors file". remedy: what to do, "fetch it again".
      starts: bytes with which a file of this kind may begin.

    Raises:
      UserError: in place of any error but a UserError.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # the panic of a library written in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        other = _start(path, starts)
        why = other or f"cannot be read as {kind} ({first_line(error)})"
        raise UserError(f"{field}={str(path)!r} {why}; {remedy}.") from error


def _start(path, but=()):
    """The kind that the first bytes show of a file that should be of another one; "" if they show
    none.
    """
    try:
        with open(path, "rb") as file:
            start, size = file.read(64), os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return ""
    is_header = start[8:9] == SAFETENSORS and int.from_bytes(start[:8], "little") <= size - 8
    if is_header and SAFETENSORS not in but:
        return "is a safetensors file, which is read under a name that ends in .safetensors"
    start = start.lstrip()
    kinds = {mark: told for mark, told in _KINDS.items() if mark not in but}
    return next((told for mark, told in kinds.items() if start.startswith(mark)), "")
