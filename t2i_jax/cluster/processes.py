"""Several processes that train one model: joining them, what they do together, and how they end
together.

Without other processes all of this does nothing. Functions that speak of "every process" wait for
all of them: each must call them, in the same order.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed

from t2i_jax.cluster import environment, register, signals
from t2i_jax.cluster.peers import Hub, Peers
from t2i_jax.config import differences
from t2i_jax.errors import Preempted, UserError
from t2i_jax.terminal import say

_INTERRUPTED = 130  # the status of a process that Ctrl-C has ended
_peers: Peers | None = None
_answered, _has_to_save = threading.Event(), threading.Event()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins this process to the others that the environment names, or leaves it alone where it
    names none.

    If one of several processes is lost, fails, or is asked by a signal to stop, all of them end
    with a sentence that says which; see `t2i_jax.errors` for the statuses.

    >>> with processes.joined():                          # doctest: +SKIP
    ...     system = runs.train(recipe, workdir)

    Raises:
      UserError: the environment holds nonsense.
      Preempted: SIGTERM or SIGINT arrived while nothing was trained that could be saved.
    """
    global _peers
    environment.start()
    with _signals():
        if not jax.distributed.is_initialized() or distributed.global_state.num_processes == 1:
            yield
            return
        peers = _peers = _connect()
        register.joined()
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Preempted) or isinstance(error, _Signalled):
                peers.fail(error)
            peers.leave()  # all have stopped after the same step
            raise
        else:
            peers.leave()
        finally:
            _peers = None


def gather(value: Any) -> list[Any]:
    """The JSON values that every process gives, in the order of the processes."""
    if _peers is not None:
        return _peers.gather(value)
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        raise UserError(
            "several processes run, and nothing joins them; use `with "
            "t2i_jax.cluster.processes.joined():`."
        )
    return [value]


def is_first() -> bool:
    """Whether this is process 0, the one that writes what is written once."""
    return jax.process_index() == 0


def once(write: Callable[[], Any]) -> None:
    """Lets process 0 alone write something; every process waits until it is there."""
    if is_first():
        write()
    gather(None)


def first_told(told: str | None) -> str | None:
    """The message of the first process that has one, the same in all; None: none has."""
    return next(filter(None, gather(told)), None)


def check_same(given: Mapping[str, Any], what: str, remedy: str) -> None:
    """Refuses to go on unless every process gives the same.

    Args:
      given: JSON values. what: what it is if they differ, "another ...". remedy: what to do then.

    Raises:
      UserError: they differ; it names the first process that differs from process 0, and the
        fields.
    """
    given = json.loads(json.dumps(given))
    first, *others = gather(given)
    for process, other in enumerate(others, 1):
        if changed := differences(first, other):
            listed = "; ".join(changed[:8]) + (
                "" if len(changed) <= 8 else f"; and {len(changed) - 8} more"
            )
            who = _peers.name(process) if _peers is not None else f"process {process}"
            raise UserError(f"{who} has {what} than process 0 ({listed}); {remedy}.")


@contextlib.contextmanager
def something_to_save() -> Iterator[None]:
    """A context in which a signal waits for what is computed; outside, it ends the process."""
    _has_to_save.set()
    try:
        yield
    finally:
        _has_to_save.clear()


def asked_to_stop() -> bool:
    """Whether any process was asked to stop; they may hear of it at different times."""
    return _peers is not None and _peers.stop.is_set()


def ask_to_stop() -> None:
    """Lets every process know that this one was asked to stop."""
    _answered.set()
    if _peers is not None:
        _peers.ask_to_stop()


class _Signalled(Preempted):
    """A signal that this process alone has heard."""


@contextlib.contextmanager
def _signals():
    interrupts = 0

    def hear(number, frame):
        if _answered.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        _answered.set()
        signals.stop()
        raise _Signalled(
            f"stopped by {signals.name(number)}; start the same command again to resume."
        )

    def heard(number):
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            _end(_INTERRUPTED, "interrupted again, so nothing more was saved; the newest")

    def unanswered(number):
        name = signals.name(number)
        if _has_to_save.is_set():
            say(f"{name}: answered as soon as what is computed now is done; Ctrl-C ends at once")
        elif _peers is not None:
            _peers.fail(_Signalled(f"stopped by {name}; start the same command again to resume."))
        else:
            _end(Preempted.status, f"stopped by {name}, there was nothing to save; the newest")

    _answered.clear()
    _has_to_save.clear()
    with signals.handled(hear), signals.watched(heard, unanswered, _answered):
        yield


def _end(status, why):
    """Ends this process while its main thread is inside a library."""
    say(f"\nt2i: {why} checkpoint stays, start the same command again to resume.")
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


def _connect():
    """The connection to process 0, whose address goes through JAX's own service, which has no
    public way to it.
    """
    state, key = distributed.global_state, "t2i_jax/peers"
    hub = None
    if state.process_id == 0:
        hub = Hub(state.coordinator_address.rpartition(":")[0].strip("[]"), state.num_processes)
        state.client.key_value_set(key, json.dumps(hub.address), allow_overwrite=True)
    address = json.loads(state.client.blocking_key_value_get(key, 60_000))
    peers = Peers(state.process_id, address, hub)
    if jax.process_index() != state.process_id:
        raise RuntimeError(f"process {state.process_id} is {jax.process_index()} for the devices")
    return peers
