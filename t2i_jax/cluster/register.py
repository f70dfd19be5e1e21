"""The list of the processes that take part, before JAX joins them: a number is given once, and a
process that dies is detected at once.

Process 0 listens at a port that follows from the coordinator's. Every process says its number there
and keeps the connection. Where that port can't be had or reached, the processes join without.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from t2i_jax.cluster.lines import Lines, listen, server
from t2i_jax.errors import Preempted, UserError
from t2i_jax.terminal import say

_TRY = 2.0  # seconds for a connection to be made
_APART = 20_011
_RETRY = 0.2  # seconds until the next attempt
_joined = threading.Event()


def joined() -> None:
    """Notes that the connection of `peers` detects lost processes from now on."""
    _joined.set()


def enter(host: str, port: int, process: int, count: int) -> None:
    """Enters this process's number; waits until process 0 is there.

    Args:
      host, port: the coordinator's, of process 0.

    Raises:
      UserError: another process has this number, or was told of another count.
    """
    _joined.clear()
    me = {"process": process, "count": count, "host": socket.gethostname(), "pid": os.getpid()}
    me["job"] = port
    if process:
        _say_number(host, port, me)
        return
    with contextlib.suppress(OSError):  # the port is taken
        Register(host, port_of(port), me, _lost)


def port_of(port: int) -> int:
    """The register's port for that of the coordinator, far from those of other jobs."""
    return port + _APART if port + _APART < 2**16 else port - _APART


class Register:
    """Process 0's list of numbers.

    Args:
      me: {"process", "count", "host", "pid", "job"} of this process.
      lost: is called with the name of a process that dies before all have joined.

    Raises:
      OSError: the port is in use.
    """

    def __init__(self, host: str, port: int, me: dict[str, Any], lost: Callable[[str], None]):
        self._count, self._job = me["count"], me["job"]
        self._lost, self._lock = lost, threading.Lock()
        self._names: dict[int, str] = {0: _name(me)}
        self._connections: dict[int, socket.socket] = {}
        self._server = server(host, port, me["count"])
        self.port = self._server.getsockname()[1]
        listen(self._server, self._serve)

    def _serve(self, connection, known):
        lines = Lines(connection)
        who = lines.first()
        process, name = who["process"], _name(who)
        if who["job"] != self._job:
            return
        refused = self._enter(process, who["count"], name, connection)
        _send(connection, {"refused": refused})
        if refused:
            return
        known()
        try:
            for _ in lines:
                pass
        except (OSError, ValueError):
            pass
        with self._lock:
            del self._names[process], self._connections[process]
            others = list(self._connections.values())
        if not _joined.is_set():
            for other in others:
                _send(other, {"lost": name})
            self._lost(name)

    def _enter(self, process, count, name, connection):
        """The sentence that refuses a process, or None."""
        if count != self._count:
            return (
                f"JAX_NUM_PROCESSES={count!r} of {name} is not that of process 0, {self._count}; "
                "give all the same"
            )
        if type(process) is not int or not 0 < process < count:
            raise ValueError("no number of a process")
        with self._lock:
            if process in self._names:
                return (
                    f"JAX_PROCESS_ID={process} is taken by {self._names[process]}; give every "
                    f"process a number of its own, from 0 to {count - 1}"
                )
            self._names[process], self._connections[process] = name, connection
        return None


def _say_number(host, port, me):
    """Says this process's number to process 0, and listens for those that are lost."""
    while True:
        try:
            connection = socket.create_connection((host, port_of(port)), _TRY)
            break
        except OSError:
            if _is_open(host, port):  # process 0 is there, and has no register
                return
            time.sleep(_RETRY)
    _send(connection, me)
    lines = Lines(connection)
    try:
        refused = lines.first()["refused"]
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        connection.close()  # something else listens there
        return
    if refused:
        raise UserError(f"{refused}.")
    threading.Thread(target=_hear, args=(lines,), daemon=True, name="register").start()


def _hear(lines):
    name = "process 0"
    try:
        for message in lines:
            name = message.get("lost", name)
            break
    except (OSError, ValueError, AttributeError):
        pass
    if not _joined.is_set():
        _lost(name)


def _lost(name):
    say(
        f"t2i: {name} was lost before all had joined, killed or with its machine; start the same "
        "command again on all."
    )
    os._exit(Preempted.status)  # the main thread waits for it inside JAX


def _is_open(host, port):
    try:
        socket.create_connection((host, port), _TRY).close()
    except OSError:
        return False
    return True


def _name(who):
    return f"process {who['process']} ({str(who['host'])[:100]}, pid {who['pid']})"


def _send(connection, message):
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")
