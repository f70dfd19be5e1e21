"""Batches ahead of time, each with the position of the data after it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.sharding import batch_sharding

_AHEAD = 2  # batches


class Stream:
    """Pulls batches in a thread of its own and lays them on the devices.

    A checkpoint must hold the position after the last batch that was trained on, not after the last that was read
    ahead: every batch comes with its own.

    Attributes:
      waited: seconds that `next` has waited for data in all.
    """

    def __init__(self, batches: Any, spec: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh):
        self._batches, self._spec, self._sharding = iter(batches), spec, batch_sharding(mesh)
        self._queue: queue.Queue = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self.waited = 0.0
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Mapping[str, jax.Array], Any]]:
        return self

    def __next__(self) -> tuple[Mapping[str, jax.Array], Any]:
        """(batch on the devices, position of the data after it)."""
        start = time.perf_counter()
        batch, position = self._queue.get()
        self.waited += time.perf_counter() - start
        if isinstance(batch, Exception):
            raise batch
        return {name: self._place(array) for name, array in batch.items()}, position

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                pass

    def _pull(self):
        while not self._stop.is_set():
            try:
                item = check_batch(next(self._batches), self._spec), self._batches.get_state()
            except StopIteration:
                item = UserError("the data has ended before train.steps; give it more pictures or let it repeat."), None
            except Exception as error:  # raised again where the batch is used
                item = error, None
            self._queue.put(item)
            if isinstance(item[0], Exception):
                return

    def _place(self, array):
        return jax.make_array_from_process_local_data(self._sharding, array)


def check_batch(batch: Mapping[str, Any], spec: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, np.ndarray]:
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
                f"batch[{name!r}] is {array.dtype} {array.shape}; the task wants {want.dtype} {want.shape}: change the "
                "data's or the network's sizes."
            )
        wanted[name] = array
    return wanted
