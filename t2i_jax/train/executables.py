"""Compiled training steps on disk, for the next start: it traces nothing and compiles nothing.

They lie beside the persistent compilation cache, whose own files save compiling alone. A file is
found by the identity of its program; one that is damaged, or that somebody else could have written,
counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import pickle
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils, serialize_executable

from t2i_jax.config import to_dict
from t2i_jax.files import replacing
from t2i_jax.train.identity import identity, is_of_package

_log = logging.getLogger(__name__)
_FOLDER = "steps"
_TIMES = 5  # newest compilations whose time is remembered
_LIMIT = 2**30  # bytes of all files, for each process; those that were not used for longest go


class Executables:
    """The executable of one training step in the folder of them all.

    Several processes keep one file each, and use them only when all were written in the same start.

    Args:
      folder: where they lie; made when something is saved.
      what: JSON values, all that makes a step what it is beside the shapes and places of its
        arguments.
      devices: of the mesh, in its order.
    """

    def __init__(
        self, folder: pathlib.Path, what: Mapping[str, Any], devices: Sequence[jax.Device]
    ):
        self._folder, self._what, self._devices = folder, what, list(devices)

    @classmethod
    def of(
        cls, task: Any, settings: Mapping[str, Any], devices: Sequence[jax.Device]
    ) -> Executables | None:
        """The stored executables of a task's training step, in the folder of the compilation cache.

        None where that is off or no folder of this machine, and for a task of which a part is not
        of this package: its source is not known.

        Args:
          settings: JSON values, what the step depends on beside the task.
        """
        of_jax = jax.config.values
        cache = of_jax["jax_compilation_cache_dir"]
        enabled = of_jax["jax_enable_compilation_cache"]
        if not cache or "://" in cache or not enabled or not is_of_package(task):
            return None
        return cls(pathlib.Path(cache) / _FOLDER, {"task": to_dict(task), **settings}, devices)

    def load(self, arguments: tuple[Any, ...], options: Any) -> jax.stages.Compiled | None:
        """The program for arguments like these, or None.

        Args:
          arguments: arrays as the step is called with. options: of the compiler.
        """
        path = self._path(arguments, options)
        try:
            stamp, program = self._read(path, arguments) if path.exists() else (0, None)
        except Exception:  # a damaged file, or a program that this machine refuses
            _log.debug("no executable of the step could be read", exc_info=True)
            stamp, program = 0, None
        stamps = _of_all_processes(stamp)
        return program if stamp and set(stamps) == {stamp} else None

    def save(
        self, program: jax.stages.Compiled, arguments: tuple[Any, ...], options: Any, is_fresh: bool
    ) -> None:
        """Keeps a program for `load` with such arguments and options.

        A disk that refuses it costs nothing else.

        Args:
          is_fresh: it was compiled in this process. On a CPU, XLA can't write again a program that
            it has read from its cache: it does, but then a function is missing in it.
        """
        stamps = _of_all_processes(1 + secrets.randbelow(2**31 - 1) if is_fresh else 0)
        if not all(stamps):
            return
        try:
            payload, _, out_tree = serialize_executable.serialize(program)
            body = pickle.dumps((stamps[0], out_tree, payload))
            self._write(self._path(arguments, options), hashlib.sha256(body).digest() + body)
        except Exception:  # not every program can be serialised
            _log.debug("the executable of the step could not be kept", exc_info=True)

    def usual_seconds(self) -> float | None:
        """The median time of the newest compilations of such a step on such a machine.

        None where there were none, or they can't be read.
        """
        known = sorted(self._known_seconds())
        return known[len(known) // 2] if known else None

    def note_seconds(self, seconds: float) -> None:
        """Remembers how long tracing and compiling took, for `usual_seconds`."""
        path, newest = self._times(), [*self._known_seconds(), round(seconds, 2)][-_TIMES:]
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(newest))

    def _known_seconds(self):
        try:
            return [float(value) for value in json.loads(self._times().read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def _times(self):
        """The file of the times, one for all states of the source: an edit makes another program,
        about as slow to compile as the one before.
        """
        kind = [self._devices[0].device_kind, len(self._devices), jax.process_index()]
        told = json.dumps([self._what, kind, os.cpu_count()], sort_keys=True)
        name = f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
        return self._folder.with_name("times") / name

    def _read(self, path, arguments):
        with path.open("rb") as file:
            if not all(_is_mine(os.stat(place)) for place in (file.fileno(), self._folder)):
                return 0, None
            content = file.read()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return 0, None
        os.utime(path)
        stamp, out_tree, payload = pickle.loads(content[32:])
        in_tree = jax.tree.structure((arguments, {}))
        load = serialize_executable.deserialize_and_load
        return stamp, load(payload, in_tree, out_tree, self._devices[0].client, self._devices)

    def _write(self, path, content):
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, half_done = tempfile.mkstemp(dir=self._folder)  # for this user alone
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(half_done, path)
        finally:
            pathlib.Path(half_done).unlink(missing_ok=True)
        room = _LIMIT * jax.process_count()
        for entry in sorted(self._folder.iterdir(), key=lambda entry: -entry.stat().st_mtime):
            room -= entry.stat().st_size
            if room < 0 and entry != path:
                entry.unlink(missing_ok=True)

    def _path(self, arguments, options):
        return self._folder / identity(self._what, arguments, options, self._devices)


@contextlib.contextmanager
def fresh() -> Iterator[list[str]]:
    """A list that is not empty, at the end, when something was compiled inside that the cache did
    not have.
    """
    asked: list[str] = []

    def hear(event, **_):
        if event == "/jax/compilation_cache/compile_requests_use_cache":
            asked.append(event)
        elif event == "/jax/compilation_cache/cache_hits":
            del asked[-1:]  # none where it was asked for before

    jax.monitoring.register_event_listener(hear)
    try:
        yield asked
    finally:
        jax.monitoring.unregister_event_listener(hear)


def _is_mine(found):
    """Whether a file is safe to load, since nobody else could have written it: reading a program
    runs what is in it.
    """
    return hasattr(os, "getuid") and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _of_all_processes(number):
    """The numbers of all processes, given that of this one."""
    if jax.process_count() == 1:
        return [number]
    return [int(n) for n in multihost_utils.process_allgather(np.int32(number))]
