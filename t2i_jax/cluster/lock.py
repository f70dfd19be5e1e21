"""A run's folder belongs to one training at a time, and a folder that is being written to one
command: a file in it, or beside it, says to which.

The file names host, process and the process's start, so that what a killed process left is known as
such. Where several processes train together, process 0 holds it for all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import pathlib
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from t2i_jax import files, paths
from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.terminal import say

FILE = "lock"
_BEAT = 5.0  # seconds after which a holder counts on
_SILENCE = 30.0  # seconds without that after which a holder of another machine is taken for dead
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a file system that has none
_held: set[tuple[int, int, str]] = set()  # process, thread, folder


class InUse(UserError):
    """Another process holds the folder, or the file."""


@contextlib.contextmanager
def held(workdir: pathlib.Path, field: str = "workdir") -> Iterator[None]:
    """Holds a run's folder, which is made where it is not there; within itself it does nothing.

    A lock that a dead process left is taken over. Whether one of another machine lives is seen from
    its counting, which takes half a minute.

    Args:
      field: what the folder was given as, for the sentence.

    Raises:
      InUse: the folder is in use; the sentence names the process.
      UserError: nothing can be written there.
    """
    key = (os.getpid(), threading.get_ident(), os.path.realpath(workdir))
    if key in _held:
        yield
        return
    locks: list[_Lock] = []
    with contextlib.ExitStack() as made:

        def take():
            made.enter_context(_making(workdir))
            paths.make(field, workdir)
            locks.append(_Lock(field, workdir, workdir / FILE))

        processes.once(take)
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            for lock in locks:
                lock.release()


@contextlib.contextmanager
def writing(field: str, out: pathlib.Path) -> Iterator[None]:
    """Holds a file or a folder that appears when all of it is written.

    The lock lies beside it under a temporary name, and dead ones are taken over as in `held`.

    Raises:
      InUse: another command writes it; the sentence names `field`.
      UserError: nothing can be written beside it.
    """
    with _making(out.parent):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{field}={paths.shown(out)} can't be made ({error.strerror}); name another folder."
            ) from None
        lock = _Lock(field, out, out.with_name(files.partial(f"{out.name}.{FILE}")))
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def _making(folder):
    """A context that makes a folder and those above it; those that stay empty are removed at its
    end.
    """
    above = (folder, *folder.parents)
    new = list(itertools.takewhile(lambda one: not os.path.lexists(one), above))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that holds something ends it
            for one in new:
                one.rmdir()


class _Lock:
    def __init__(self, field, folder, path):
        self._field, self._folder, self._path = field, folder, path
        self._token, self._over = secrets.token_hex(8), threading.Event()
        try:
            self._take()
        except BaseException:  # interrupted when it was there already
            self.release()
            raise

    def _take(self):
        while (handle := self._created()) is None:
            holder = _settled(self._path)
            if holder is not None and _lives(holder, self._path, self._folder):
                raise InUse(
                    f"{self._field}={paths.shown(self._folder)} is in use by {_named(holder)}; "
                    "wait for its end or stop it, or name another folder."
                )
            self._clear(holder)
        self._handle = handle
        threading.Thread(target=self._count, daemon=True, name="lock").start()

    def release(self):
        """Gives the folder free, unless another process has taken it."""
        self._over.set()
        with contextlib.suppress(OSError):
            if (_read(self._path) or {}).get("token") == self._token:
                self._path.unlink()

    def _created(self):
        """The open file, with this process in it; None where there is one already."""
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return None
        except OSError as error:
            raise self._refusal(error) from None
        try:
            self._say(handle, 0)
        except OSError as error:
            os.close(handle)
            self._path.unlink(missing_ok=True)
            raise self._refusal(error) from None
        return handle

    def _refusal(self, error):
        return UserError(
            f"{self._field}={paths.shown(self._folder)}: nothing can be written there "
            f"({error.strerror}); free space, or name another folder."
        )

    def _say(self, handle, beat):
        """Writes this process and its beat; other machines see a file of a bucket that is open
        only as of its last fsync.
        """
        me = {**_me(), "token": self._token, "beat": f"{beat:012}"}
        os.pwrite(handle, json.dumps(me, indent=1).encode() + b"\n", 0)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FSYNC:
                raise

    def _count(self):
        beat = 0
        while not self._over.wait(_BEAT):
            beat += 1
            with contextlib.suppress(OSError):
                self._say(self._handle, beat)
        os.close(self._handle)

    def _clear(self, holder):
        """Removes the lock of a dead holder; of two that see it dead, one removes it."""
        with one_at_a_time(self._path.parent):
            there = _read(self._path)
            if (there or {}).get("token") == (holder or {}).get("token"):
                _remove(self._path)


def _remove(path):
    if path.is_dir() and not path.is_symlink():  # none of ours
        free = files.set_aside(path)
        say(f"{str(path)!r} was a folder, and is now {free.name!r}.")
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(folder):
    """Lets one process of this machine in, where the file system can do that."""
    handle = None
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _me() -> Mapping[str, Any]:
    """The identity of this process, which no other one has, on this machine or another."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
        "command": shlex.join(sys.argv)[:200],
    }


def _machine():
    """The running system, and the process numbers that are seen in it; "" where that is not
    known.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid):
    """The time at which a process started, in ticks of its machine's clock; None where it is no
    more, 0 where that is not known.
    """
    try:
        said = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        try:
            os.kill(pid, 0)
        except OverflowError:
            return None
        except OSError as error:
            return 0 if isinstance(error, PermissionError) else None
        return 0
    return None if said[0] in (b"Z", b"X") else int(said[19])


def _read(path):
    found = files.read_object(path) or {}
    pid, host = found.get("pid"), found.get("host")
    return found if isinstance(pid, int) and pid > 0 and isinstance(host, str) else None


def _settled(path):
    """The contents of a lock file; None where it is still empty after a second, because its process
    died.
    """
    end = time.monotonic() + 1
    while (found := _read(path)) is None and os.path.lexists(path) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _lives(holder, path, folder):
    machine = _machine()
    is_here = (
        holder.get("machine") == machine if machine else holder["host"] == socket.gethostname()
    )
    if is_here:
        started = _started(holder["pid"])
        return started is not None and holder.get("started") == started
    say(
        f"{str(folder)!r} was in use by {_named(holder)}; waiting up to {_SILENCE:.0f} s to "
        "see whether it still is."
    )
    end = time.monotonic() + _SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, _SILENCE / 10))
        found = _read(path)
        if found is None or found.get("token") != holder.get("token"):
            return False  # it has ended, and another may have begun
        if found.get("beat") != holder.get("beat"):
            return True
    return False


def _named(holder):
    command = holder.get("command")
    said = f": {command}" if isinstance(command, str) and command.isprintable() else ""
    return f"process {holder['pid']} on {holder['host']}{said}"
