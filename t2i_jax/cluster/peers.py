"""A connection of every process to process 0: it carries values from each to all, and it breaks
when one of them dies.

JAX's own handling of a lost process is no help to a user: the others hang in a collective operation
for minutes, or abort with a stack trace that names nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax.cluster.lines import Lines, listen, server
from t2i_jax.errors import Preempted, UserError
from t2i_jax.terminal import say

_SILENCE = 40  # seconds after which a machine that answers nothing at all is lost
# seconds in which it shows whether an error of this process comes from another one's end
_GRACE = 3.0


class Peers:
    """This process's end of the connection.

    One that is lost or fails ends this process too, with a sentence.

    Attributes:
      process: number of this process. everyone: {"process", "host", "pid"} of each, in order.
      stop: set when any process was asked to stop.
    """

    def __init__(self, process: int, address: Mapping[str, Any], hub: Hub | None = None):
        """Args: address: `Hub.address`. hub: in process 0."""
        self.process, self.stop, self._hub = process, threading.Event(), hub
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._sending, self._ending, self._leaving = threading.RLock(), threading.Lock(), False
        _delay_aborts()
        self._join(address)
        threading.Thread(target=self._listen, daemon=True, name="peers").start()

    def gather(self, value: Any) -> list[Any]:
        """The JSON values that all processes give here, in order; each waits for all others."""
        self._send({"value": value})
        return self._results.get()

    def ask_to_stop(self) -> None:
        """Sets `stop` in every process. May be called by a signal's handler."""
        self._send({"stop": True})

    def leave(self) -> None:
        """Waits until all processes leave; from then on none misses another."""
        self._leaving = True
        self._send({"value": None, "leaves": True})
        self._results.get()

    def fail(self, error: BaseException) -> None:
        """Ends this process because of an error, and the others with a sentence about it.

        Does not return.

        Nothing is closed properly: closing a checkpoint waits for the others, who are ending too.
        """
        expected = isinstance(error, (UserError, Preempted))
        if not expected:
            # a collective operation that breaks off, because another process was lost
            time.sleep(_GRACE)
        status = error.status if expected else 1
        self._send({"failed": self.process, "why": _sentence(error), "status": status})
        self._end(
            status,
            f"t2i: {error}" if expected else "".join(traceback.format_exception(error)).rstrip(),
        )

    def name(self, process: int) -> str:
        """A process as a message names it."""
        who = self.everyone[process]
        return f"process {process} ({who['host']}, pid {who['pid']})"

    def _join(self, address):
        """Connects to the hub. All processes have started, but one may die just now."""
        try:
            self._socket = socket.create_connection(
                (address["host"], address["port"]), timeout=_SILENCE
            )
            _notice_silence(self._socket)
            hello = {"process": self.process, "host": socket.gethostname(), "pid": os.getpid()}
            self._send({**hello, "token": address["token"]})
            self._socket.settimeout(None)
            self._lines = iter(Lines(self._socket))
            told = next(self._lines)
            if "refused" in told:
                self._end(UserError.status, f"t2i: {told['refused']}")
            self.everyone: Sequence[Mapping[str, Any]] = told["everyone"]
        except (OSError, ValueError, KeyError, StopIteration):
            self._end(
                Preempted.status,
                "t2i: a process was lost while all joined; start the same command again.",
            )

    def _send(self, message):
        line = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):  # process 0 is gone, which `_listen` sees
            self._socket.sendall(line)

    def _listen(self):
        try:
            for message in self._lines:
                self._hear(message)
                if self._leaving and "values" in message:
                    return
        except (OSError, ValueError):
            pass
        self._lost(0)

    def _hear(self, message):
        if "values" in message:
            self._results.put(message["values"])
        elif "stop" in message:
            self.stop.set()
        elif "lost" in message:
            self._lost(message["lost"])
        else:
            time.sleep(_GRACE)  # an error that all have alike is reported by each itself
            sentence = f"{self.name(message['failed'])} has ended: {message['why']}"
            self._end(message["status"], f"t2i: {sentence}")

    def _lost(self, process):
        remedy = "start the same command again to resume from the newest checkpoint"
        self._end(
            Preempted.status,
            f"t2i: {self.name(process)} was lost, killed or with its machine; {remedy}.",
        )

    def _end(self, status, said):
        """Ends the process without the clean-up of a normal end, which may wait for processes that
        died.

        The first of two threads counts.
        """
        self._ending.acquire()
        say(f"\n{said}")
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it
            sys.stdout.flush()
        for worker in multiprocessing.active_children():
            worker.kill()
        if self._hub:
            # at its end JAX aborts those who have not yet said why they end
            self._hub.wait_until_alone(2 * _GRACE)
        os._exit(status)


class Hub:
    """Process 0's other end, in threads of its own: hands on to all what one says, and says who has
    gone.

    Attributes:
      address: where it listens, as JSON; a process must know the token in it.
    """

    def __init__(self, host: str, count: int):
        """Args: host: the name of this machine for the others. count: of processes."""
        self._server = server(host, 0, count)
        self.address = {
            "host": host,
            "port": self._server.getsockname()[1],
            "token": secrets.token_hex(16),
        }
        self._lock = threading.Lock()
        self._count, self._over = count, False
        self._everyone: dict[int, Mapping[str, Any]] = {}
        self._connections: dict[int, socket.socket] = {}
        self._values: dict[int, Any] = {}
        listen(self._server, self._serve)

    def wait_until_alone(self, seconds: float) -> None:
        """Waits until no other process is connected, or the time has passed."""
        end = time.monotonic() + seconds
        while len(self._connections) > 1 and time.monotonic() < end:
            time.sleep(0.02)

    def _serve(self, connection, known):
        _notice_silence(connection)
        lines = Lines(connection)
        who = lines.first()
        if not secrets.compare_digest(str(who.pop("token")), self.address["token"]):
            return
        known()
        process, left = who["process"], False
        with self._lock:
            if process in self._everyone:
                there = self._everyone[process]
                told = f"process {process} is there already ({there['host']}, pid {there['pid']})"
                _send(connection, {"refused": f"{told}; give every process a number of its own."})
                return
            self._everyone[process], self._connections[process] = who, connection
            if len(self._everyone) == self._count:
                self._send_all({"everyone": [self._everyone[i] for i in range(self._count)]})
        try:
            for message in lines:
                left |= "leaves" in message
                self._take(process, message)
        except (OSError, ValueError):
            pass
        with self._lock:
            del self._connections[process]
            if not left:
                self._send_last({"lost": process})

    def _take(self, process, message):
        with self._lock:
            if "value" in message:
                self._values[process] = message["value"]
                if len(self._values) == self._count:
                    values, self._values = [self._values[i] for i in range(self._count)], {}
                    self._send_all({"values": values})
            elif "failed" in message:
                self._send_last(message)
            else:
                self._send_all(message)

    def _send_last(self, message):
        """Sends the message that ends the run; only the first of them is sent."""
        if not self._over:
            self._over = True
            self._send_all(message)

    def _send_all(self, message):
        for connection in self._connections.values():
            _send(connection, message)


def _send(connection, message):
    with contextlib.suppress(OSError):  # the thread that reads from it sees it
        connection.sendall(json.dumps(message).encode() + b"\n")


def _notice_silence(connection):
    """Lets the kernel close the connection to a machine that answers nothing.

    Not all systems know each option.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = {
        "TCP_KEEPIDLE": _SILENCE // 4,
        "TCP_KEEPALIVE": _SILENCE // 4,
        "TCP_KEEPINTVL": _SILENCE // 8,
    }
    for name, value in {**seconds, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 1000 * _SILENCE}.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _delay_aborts():
    """Delays the abort of JAX when process 0 is gone: time for another thread to say what happened
    and to end.

    The C function `sleep` is made the handler of the signal. It is called with the signal's number,
    which is 6, and holds up that one thread for six seconds.
    """
    libc = ctypes.CDLL(None)
    libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def _sentence(error):
    if isinstance(error, (UserError, Preempted)):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
