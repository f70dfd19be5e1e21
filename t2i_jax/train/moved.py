"""Runs whose folder is moved or removed while they train: one sentence, in place of what the
libraries that write checkpoints raise and print of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator

from t2i_jax.cluster import lock
from t2i_jax.errors import UserError

_there: dict[str, Callable[..., bool]] = {}  # by folder, of the runs that train in this process
_gone: set[str] = set()  # folders of which more is said when their errors are collected


@contextlib.contextmanager
def refused(workdir: pathlib.Path) -> Iterator[None]:
    """A context of a run's folder that is held by `lock`, within which errors are one UserError
    once the folder is gone.

    Where a link stands in the place of a folder that was moved, the run goes on.
    """
    home = pathlib.Path(os.path.abspath(workdir))
    known = _identity(home)
    if known is None:  # of a process that was given another folder, which is refused within
        yield
        return
    handle = os.open(home, os.O_RDONLY)  # while it is open, no new folder gets its number

    def is_there(strictly=False):
        # TensorStore makes the path anew, without a lock; not every file system keeps its numbers.
        # An error in a folder whose lock is gone comes of its removal, which may still go on.
        is_same = _identity(home) == known and not strictly
        return home.is_dir() and (is_same or os.path.lexists(home / lock.FILE))

    _there[str(workdir)] = is_there
    try:
        yield
    except Exception as error:
        if is_there(strictly=True):
            raise
        _gone.add(os.path.realpath(home))
        raise _refusal(workdir) from error
    finally:
        del _there[str(workdir)]
        os.close(handle)


def check() -> None:
    """Refuses to save where the folder of a run that trains is not there: the libraries would make
    another one.

    Raises:
      UserError: it is gone.
    """
    for workdir, is_there in _there.items():
        if not is_there():
            raise _refusal(workdir)


def hush() -> None:
    """Keeps Orbax and asyncio from printing anything while the folder of a run that trains is not
    there, and afterwards anything of that folder.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)


def _refusal(workdir):
    return UserError(
        f"workdir={str(workdir)!r} is no longer there, so the newest step was not saved; where it "
        "was moved, start the same command again with its new place."
    )


def _is_news(record):
    said = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
    return all(is_there(strictly=True) for is_there in _there.values()) and not any(
        home in said for home in _gone
    )


def _identity(folder):
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino
