"""The validation loss of a run: a few held-out batches, always the same ones with the same keys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.cluster import processes
from t2i_jax.compiler import Program
from t2i_jax.data.pipeline import batches, division_of, source_of
from t2i_jax.data.source import EMBEDDED
from t2i_jax.errors import UserError
from t2i_jax.runs.ledger import image_channels
from t2i_jax.runs.samples import Samples
from t2i_jax.terminal import say
from t2i_jax.train.step import micro_batches
from t2i_jax.train.stream import check_batch, placed
from t2i_jax.train.validation import Validation

_BATCHES, _ROWS = 4, 512  # the most batches of a validation, and roughly the most rows
_ALONE = 64  # rows on one device at once


class HeldOutBatches:
    """The batches of a validation, read when they are first asked for.

    Args:
      rows: of a batch, for every process those that it reads; None: this process reads them all.
    """

    def __init__(
        self,
        samples: Samples,
        task: Any,
        batch_size: int,
        tokenize: Callable[[list[str]], Any] | None,
        rows: Sequence[Sequence[int]] | None = None,
    ):
        self._samples, self._task, self.batch_size = samples, task, batch_size
        self._tokenize, self._rows = tokenize, rows
        self._read: list[Mapping[str, np.ndarray]] | None = None
        self.told, self.records = "", 0  # the size of the part, once it is read

    def __iter__(self):
        if self._read is None:
            self._read = self._all()
        return iter(self._read)

    def _all(self):
        count, encoder = self._number(), self._task.text_encoder
        spec = self._task.batch_spec(self.batch_size)
        process = jax.process_index() if self._rows else 0
        stream = batches(
            self._samples.data,
            self.batch_size,
            0,
            tokenize=self._tokenize,
            wants=tuple(spec),
            text_length=None if encoder is None else encoder.max_length,
            rows=self._rows,
            process=process,
            part=self._samples.part,
            most=count * self.batch_size,
            channels=image_channels(spec),
        )
        mine = len(self._rows[process]) if self._rows else self.batch_size
        return [check_batch(next(stream), self._task.batch_spec(mine)) for _ in range(count)]

    def _number(self):
        """The number of batches: enough for the held-out records, up to a few."""
        data = self._samples.data
        source = source_of(data)
        division = division_of(data, source)
        self.told = "" if division is None else division.line()
        records = len(source) if division is None else division.count
        self.records = records
        most = min(_BATCHES, max(_ROWS // self.batch_size, 1))
        return max(1, min(most, -(-records // self.batch_size)))


def validation_of(recipe: Any, samples: Samples, mesh: Any, tokenize: Any) -> Validation | None:
    """The validation that `train.validate_every` asks for, on the mesh of the training; None: no
    validation.
    """
    every, is_own = recipe.train.validate_every, recipe.data.source not in EMBEDDED
    if every is None:
        every = recipe.train.save_every if is_own else 0
    if not samples.is_held_out:
        remedy = "; data.heldout=0.05 holds out a twentieth of the captions"
        _tell(
            f"{samples.none}, so there is no validation loss and no best checkpoint"
            f"{'' if recipe.data.heldout else remedy}."
        )
        return None
    if not every:
        return None
    size, task = recipe.train.batch_size, recipe.task
    rows = sharding.rows_of_processes(mesh, size)
    held = HeldOutBatches(samples, task, size, tokenize, rows)
    count, failed = 0, None
    try:
        count = len(list(held))  # before anything trains
    except UserError as error:
        failed = str(error)
    # one process without it would wait for the others elsewhere than they for it
    if failed := processes.first_told(failed):
        _tell(f"there is no validation loss: {failed}")
        return None
    if is_own:
        used = min(count * size, held.records)
        _tell(f"held out: {held.told}; validation every {every} steps, on {used} of them")
    program = Program(
        _program(task, _micro_batches(recipe)), out_shardings=sharding.replicated(mesh)
    )

    def measure(state, frozen):
        put = functools.partial(
            placed,
            rows=rows[jax.process_index()],
            batch_size=size,
            sharding=sharding.batch_sharding(mesh),
        )
        weights = {**state.params, **state.ema}
        weights = {g: own for g, own in weights.items() if g not in task.idle_groups}
        with jax.set_mesh(mesh):
            return _mean(
                program(weights, state.stats, frozen, put(batch), np.int32(number), state.step)
                for number, batch in enumerate(held)
            )

    return Validation(every, measure, task.validated_by)


def validate(
    recipe: Any, samples: Samples, params: Any, stats: Any, frozen: Any, step: int, tokenize: Any
) -> Mapping[str, float]:
    """The validation metrics of trained weights, on one device: "validation/NAME", of the same rows
    with the same keys as during training.

    Where training has had more than 64 rows at once, these are other batches, of 64 rows, and their
    metrics are called "validation_64/NAME".
    """
    task, size, accumulate = recipe.task, recipe.train.batch_size, _micro_batches(recipe)
    named = "validation"
    if size // accumulate > _ALONE:
        named, size, accumulate = f"validation_{_ALONE}", _ALONE, 1
    program = Program(_program(task, accumulate))
    held = HeldOutBatches(samples, task, size, tokenize)
    found = _mean(
        program(params, stats, frozen, dict(batch), np.int32(number), np.int32(step))
        for number, batch in enumerate(held)
    )
    return {f"{named}/{name}": value for name, value in found.items()}


def _tell(sentence):
    if processes.is_first():
        say(sentence)


def _micro_batches(recipe):
    """The number of micro-batches of a validation batch: as many as training has, which need no
    more memory than there; one where a loss compares rows, as among fewer rows it is another loss.
    """
    return 1 if recipe.task.compares_rows else recipe.train.accumulate


def _program(task, accumulate):
    """The program of `task.validate` with the key of a batch's number, the same in every process;
    the mean over `accumulate` micro-batches.
    """

    def program(params, stats, frozen, batch, number, step):
        def measured(inputs):
            return task.validate(params, stats, frozen, *inputs, step)

        key = jax.random.fold_in(jax.random.key(0), number)
        if accumulate == 1:
            return measured((batch, key))
        inputs = (micro_batches(batch, accumulate), jax.random.split(key, accumulate))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(measured, inputs))

    return program


def _mean(found):
    """The means of metrics over batches."""
    found = [{name: float(value) for name, value in metrics.items()} for metrics in found]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
