"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, on which a file or a folder is written.

    It gets its name when that succeeded.

    The temporary path has the ending of `path`, in the same folder. What a crash left there is
    removed first, and after an error nothing is left. A file takes the place of a file, a folder
    that of an empty folder. For one writer at a time.

    >>> with replacing(path) as temporary:                # doctest: +SKIP
    ...     temporary.write_text("all of it")

    Raises:
      OSError: the temporary path can't be cleared, or `path` is a folder that is not empty.
    """
    path = pathlib.Path(os.path.abspath(path))
    temporary = path.with_name(f"partial-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        _remove(temporary)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
