"""A prefetch queue of batches on the devices, each with the position of the data after it."""

from __future__ import annotations

import bisect
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax.cluster.processes import gather
from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.sharding import batch_sharding, rows_of_processes

_AHEAD = 2  # batches


class Stream:
    """Reads this process's rows of batches ahead, in a thread of its own, and puts them on its
    devices.

    A checkpoint must hold the position after the last batch that was trained on, not after the last
    that was read ahead: every batch comes with its own.

    Args:
      spec: from a number of rows to the arrays that they must hold, `Task.batch_spec`.
      batch_size: rows of a batch, those of all processes.

    Attributes:
      start: position of the data before the first batch.
    """

    def __init__(
        self, batches: Any, spec: Callable[[int], Any], batch_size: int, mesh: jax.sharding.Mesh
    ):
        self._batches, self._batch_size = iter(batches), batch_size
        self._sharding = batch_sharding(mesh)
        self._shares = rows_of_processes(mesh, batch_size)
        self._rows = self._shares[jax.process_index()]
        self._spec = spec(len(self._rows))
        self.start = self._batches.get_state()
        self._queue: queue.Queue = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def is_ready(self) -> bool:
        """Whether `next` would not wait."""
        return not self._queue.empty()

    def next(self, give_up: Callable[[], bool]) -> tuple[Mapping[str, jax.Array], Any] | None:
        """The next batch: (batch on the devices, position of the data after it).

        None when `give_up` says so while it waits.

        Raises:
          UserError: the data ended, or a batch is not what the task wants.
        """
        while not give_up():
            try:
                batch, position = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(batch, Exception):
                raise batch
            whole = placed(batch, self._rows, self._batch_size, self._sharding)
            # what waits for an array runs in a thread of JAX's, see `t2i_jax.heap`
            return jax.block_until_ready(whole), position
        return None

    def positions(self, mine: Any) -> list[Any]:
        """The position of the data in every process, from that of this one after the same batch.

        Raises:
          UserError: processes that hold the same rows of a batch have come to different positions,
            so they do not train on the same samples.
        """
        found = gather(mine)
        by_rows: dict[tuple[int, ...], int] = {}
        for process, rows in enumerate(self._shares):
            first = by_rows.setdefault(rows, process)
            if found[process] != found[first]:
                raise UserError(
                    f"processes {first} and {process} hold the same rows of every batch and have "
                    "read different samples for them, as where a file is damaged on one machine "
                    "alone (the lines `left out` name it); give all the same data, and start the "
                    "same command again: it goes on from the last checkpoint."
                )
        return found

    def close(self) -> None:
        """Stops reading; a source that hangs is left to itself after five seconds."""
        self._stop.set()
        end = time.perf_counter() + 5
        while self._thread.is_alive() and time.perf_counter() < end:
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)

    def _pull(self):
        while not self._stop.is_set():
            try:
                item = check_batch(next(self._batches), self._spec), self._batches.get_state()
            except StopIteration:
                item = (
                    UserError(
                        "the data has ended before train.steps; give it more images or let it "
                        "repeat."
                    ),
                    None,
                )
            except Exception as error:  # raised again where the batch is used
                item = error, None
            self._queue.put(item)
            if isinstance(item[0], Exception):
                return


def placed(
    batch: Mapping[str, np.ndarray],
    rows: Sequence[int],
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> Mapping[str, jax.Array]:
    """A batch of `batch_size` rows on the devices, of which this process holds `rows`."""

    def place(array):
        def held(index):
            start, stop, _ = index[0].indices(batch_size)
            # the rows of one device follow each other
            first = bisect.bisect_left(rows, start)
            return array[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, held)

    return {name: place(array) for name, array in batch.items()}


def check_batch(
    batch: Mapping[str, Any], spec: Mapping[str, jax.ShapeDtypeStruct]
) -> Mapping[str, np.ndarray]:
    """The entries that a task wants, as NumPy arrays.

    Raises:
      UserError: one is missing, or has another shape or dtype.
    """
    wanted = {}
    for name, want in spec.items():
        if name not in batch:
            raise UserError(f"batch[{name!r}] is missing; {did_you_mean(name, batch)}")
        array = np.asarray(batch[name])
        if array.shape != want.shape or array.dtype != want.dtype:
            raise UserError(
                f"batch[{name!r}] is {array.dtype} {array.shape}; the task wants {want.dtype} "
                f"{want.shape}: change the data's or the network's sizes."
            )
        wanted[name] = array
    return wanted
