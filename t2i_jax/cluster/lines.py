"""Lines of JSON between processes, read so that a stranger at the port can do no harm."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

HELLO = 4096  # bytes of a first line, before it is known who has written it
_LONGEST = 2**28  # bytes of a line of a process that is known
_PATIENCE = 10.0  # seconds for a first line
_STRANGERS = 64  # connections that have not yet said who they are


class Lines:
    """The lines that come over a connection."""

    def __init__(self, connection: socket.socket):
        self._connection, self._rest = connection, b""

    def first(self) -> dict[str, Any]:
        """The JSON object of the first line.

        Raises:
          OSError: it does not come in time, or the connection is closed.
          ValueError: it is too long, or no object.
        """
        end = time.monotonic() + _PATIENCE
        while b"\n" not in self._rest:
            if len(self._rest) > HELLO:
                raise ValueError("the first line is too long")
            self._connection.settimeout(max(end - time.monotonic(), 0.001))
            self._receive(HELLO)
        self._connection.settimeout(None)
        found = self._next()
        if not isinstance(found, dict):
            raise ValueError("the first line is no object")
        return found

    def __iter__(self) -> Iterator[Any]:
        """The JSON values of further lines, until the connection is closed.

        Raises:
          OSError: the other machine answers no more.
          ValueError: a line is too long, or no JSON.
        """
        while True:
            while b"\n" not in self._rest:
                if len(self._rest) > _LONGEST:
                    raise ValueError("a line is too long")
                try:
                    self._receive(2**16)
                except EOFError:
                    return
            yield self._next()

    def _receive(self, most):
        got = self._connection.recv(most)
        if not got:
            raise EOFError
        self._rest += got

    def _next(self):
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(line)
        except RecursionError:
            raise ValueError("a line is nested too deeply") from None


def listen(server: socket.socket, serve: Callable[[socket.socket, Callable[[], None]], None]):
    """Serves each connection in a thread of its own, for ever.

    Only the newest of the connections that have not said who they are stay open, up to a limit.

    Args:
      serve: is given the connection, which is closed when it returns, and a function to call once
        it is known who that is.
    """
    strangers: dict[int, socket.socket] = {}
    lock = threading.Lock()

    def run(connection):
        def known():
            with lock:
                strangers.pop(id(connection), None)

        try:
            # whatever a stranger sends
            with contextlib.suppress(OSError, ValueError, EOFError, KeyError, TypeError):
                serve(connection, known)
        finally:
            known()
            connection.close()

    def accept():
        while server.fileno() >= 0:
            try:
                connection, _ = server.accept()
            except OSError:  # no descriptor is free, or that one has gone again
                time.sleep(0.1)
                continue
            with lock:
                if len(strangers) >= _STRANGERS:
                    oldest = strangers.pop(next(iter(strangers)))
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)
                strangers[id(connection)] = connection
            try:
                threading.Thread(target=run, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread can be started
                with lock:
                    strangers.pop(id(connection), None)
                connection.close()
                time.sleep(0.1)

    threading.Thread(target=accept, daemon=True, name="listen").start()


def server(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens at the address of this machine that `host` names.

    At all addresses where it names none of them alone.

    Raises:
      OSError: the port is in use.
    """
    address = bound(host)
    if address is not None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=backlog)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=backlog)


def bound(host: str) -> str | None:
    """The one address of this machine that `host` names.

    None for the name of another machine or of several addresses, and for a name that is loopback
    here: elsewhere it is another one.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return None
    address = str(next(iter(found)))
    is_loopback = address.startswith("127.") or address == "::1"
    if len(found) > 1 or (is_loopback and address != host):
        return None
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:  # of another machine, or of a gateway that hands on to this one
        return None
    return address
