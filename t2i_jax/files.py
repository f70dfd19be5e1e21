"""Files and folders that appear whole or not at all, and files that are read without a risk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from t2i_jax.errors import UserError, is_full

_PART = 2**22  # bytes of a file that are hashed at a time


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, on which a file or a folder is written.

    It gets its name when that succeeded.

    The temporary path has the ending of `path`, in the same folder. Remains of a crash there are
    removed first, and after an error nothing is left. A file takes the place of a file, a folder
    that of an empty folder. For one writer at a time: where two commands may write to one place,
    `cluster.lock` keeps the second one out.

    >>> with replacing(path) as temporary:                # doctest: +SKIP
    ...     temporary.write_text("all of it")

    Raises:
      OSError: the temporary path can't be cleared, or `path` is a folder that is not empty. Errors
        of writing name `path`, not the temporary one.
    """
    path = pathlib.Path(os.path.abspath(path))
    temporary = path.with_name(partial(path.name))
    _remove(temporary)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        _name(error, temporary, path)
        raise
    except Exception as error:
        if isinstance(error, UserError) or not is_full(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        _remove(temporary)


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Gives what is at `path` a free name beside it, `path.0` or a higher number, and returns that.

    Raises:
      OSError: the file system refuses.
    """
    names = (path.with_name(f"{path.name}.{i}") for i in itertools.count())
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """An open file, for reading bytes; a pipe, a device or a link to one is not opened.

    Raises:
      OSError: there is no such file, it can't be read, or it is no regular file (EINVAL); its
        `strerror` can stand in a sentence.
      ValueError: `path` is nothing that a file can be named.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a device may act when it is opened
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    # what took its place meanwhile is not waited for
    wait_for_none = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, os.O_RDONLY | wait_for_none), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return file


def hash_into(digest: Any, path: str | os.PathLike) -> None:
    """Adds the bytes of a regular file to a hash, a part at a time.

    Raises:
      OSError, ValueError: as `open_regular`.
    """
    with open_regular(path) as file:
        while part := file.read(_PART):
            digest.update(part)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a regular file's bytes, hexadecimal; errors as of `hash_into`."""
    digest = hashlib.sha256()
    hash_into(digest, path)
    return digest.hexdigest()


def read_regular(path: str | os.PathLike, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes.

    Raises:
      OSError: as `open_regular`, or the file is larger (EFBIG).
      ValueError: as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
        if size > most or len(data) > most:  # some files do not know their size
            said = f"it has more than {most} bytes"
            raise OSError(errno.EFBIG, said, os.fspath(path))
        return data


def read_object(path: str | os.PathLike, most: int = 2**26) -> dict[str, Any] | None:
    """The JSON object of a file that the package has written itself; None where there is no such
    file, or something else by now: a pipe, damaged text, more than `most` bytes.
    """
    try:
        return object_in(read_regular(path, most))
    except (OSError, ValueError):
        return None


def object_in(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object of a text, None where it holds none; a whole number that no float can hold
    comes as infinity.
    """
    try:
        found = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _whole(digits):
    return int(digits) if len(digits) < 300 else float(digits)


def partial(name: str) -> str:
    """The temporary name of what is to be called so; of a name that would become too long, a
    digest.
    """
    if len(os.fsencode(name)) + len("partial-") <= 255:
        return f"partial-{name}"
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f"partial-{digest}{pathlib.Path(name).suffix[:16]}"


def _name(error, temporary, path):
    """Lets an error name the place that was asked for: of a full disk Python names none."""
    named = error.filename
    if named is None and is_full(error):
        error.filename = str(path)
    elif isinstance(named, str | os.PathLike) and pathlib.Path(named).is_relative_to(temporary):
        error.filename = str(path / pathlib.Path(named).relative_to(temporary))


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
