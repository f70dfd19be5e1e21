"""The trainer: one loop for every task, which resumes by itself, saves before it stops, and tells what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t2i_jax import sharding
from t2i_jax.config import differences, one_of
from t2i_jax.errors import UserError
from t2i_jax.train import optim
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.log import Log, peak_flops
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.step import init_state, train_step
from t2i_jax.train.stream import Stream
from t2i_jax.types import Task, TrainState

# What a run may change when it is started again; every other difference to its checkpoint is refused.
_FREE = ("steps", "log_every", "eval_every", "save_every", "keep", "mesh", "rules", "wandb_project")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and on what a task is trained.

    Attributes:
      steps: updates in all. batch_size: over all devices and processes. seed: of parameters, data order and noise.
      optim: of every group that `optim_by_group` does not name.
      ema_decay: of the moving average of parameters; 0: none is kept.
      accumulate: the batch is worked off in so many parts.
      mesh: size per mesh axis ("data", "fsdp", "tensor"); None: all devices on "data". rules: "dp", "fsdp", "fsdp_tp".
      log_every, eval_every, save_every: in steps; eval_every=0: no previews. keep: checkpoints that stay.
      max_skipped_in_a_row: the run stops when so many updates in a row were not finite.
      wandb_project: log to Weights & Biases too; None: don't.
    """

    steps: int = 1000
    batch_size: int = 64
    seed: int = 0
    optim: OptimConfig = OptimConfig()
    optim_by_group: Mapping[str, OptimConfig] = dataclasses.field(default_factory=dict)
    ema_decay: float = 0.999
    accumulate: int = 1
    mesh: Mapping[str, int] | None = None
    rules: str = "dp"
    log_every: int = 20
    eval_every: int = 0
    save_every: int = 500
    keep: int = 2
    max_skipped_in_a_row: int = 20
    wandb_project: str | None = None

    def __post_init__(self):
        one_of("train.rules", self.rules, sharding.RULES)
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} is below 1; give 1 or more.")
        if self.eval_every < 0:
            raise UserError(f"train.eval_every={self.eval_every} is below 0; use 0 for no previews.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay={self.ema_decay} is outside [0, 1); try 0.999, or 0 for none.")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size={self.batch_size} is not a multiple of train.accumulate={self.accumulate}; try "
                f"batch_size={max(self.batch_size // self.accumulate, 1) * self.accumulate}."
            )


@dataclasses.dataclass(frozen=True)
class Hook:
    """Runs `run(state, step, log)` after every `every`-th step and after the last one."""

    every: int
    run: Callable[[TrainState, int, Log], None]


class Preempted(Exception):
    """SIGTERM or SIGINT arrived; the state was saved, and the same command carries on."""


def fit(
    task: Task,
    batches: Any,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    frozen: Any = None,
    hooks: Sequence[Hook] = (),
    extra_config: Mapping[str, Any] | None = None,
    free: Sequence[str] = (),
) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint of `workdir` where there is one.

    Args:
      batches: iterator of dicts of NumPy arrays (this process's share) with `get_state()` and `set_state(state)`.
      frozen: parameters that the step reads and never changes.
      extra_config: JSON values stored in every checkpoint and compared with those of the checkpoint resumed from.
      free: fields of `extra_config` (with everything below them) that may differ.

    Raises:
      UserError: the checkpoint was made with another configuration; a batch does not fit; the disk is full; too many
        updates in a row were not finite.
      Preempted: after SIGTERM or SIGINT, with everything saved.
    """
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    _check_batch_divides(config, mesh)
    checkpoints = Checkpoints(workdir, config.keep)
    stored = dict(extra_config or {})
    _refuse_other_config(checkpoints.config(), stored, [*free, *(f"train.{name}" for name in _FREE)], workdir)
    optimisers = {group: optim.make(_of_group(config, group), config.steps) for group in _groups(task)}
    start = functools.partial(init_state, task=task, optimisers=optimisers, ema_decay=config.ema_decay)
    abstract = _abstract(start, task, mesh, config.rules)
    restored = checkpoints.restore(abstract)
    if restored is None:
        at = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state, position = jax.jit(start, out_shardings=at)(jax.random.key(config.seed)), None
    else:
        state, position = restored
        batches.set_state(position)
    first = int(state.step)
    if first >= config.steps:
        checkpoints.close()
        return state
    log = Log(workdir, first, config.steps, config.wandb_project)
    if first:
        log.say(f"carrying on from step {first} of {config.steps}")
    frozen = jax.device_put(frozen if frozen is not None else {}, sharding.replicated(mesh))
    stream = Stream(batches, task.batch_spec(config.batch_size // jax.process_count()), mesh)
    step = jax.jit(
        functools.partial(
            train_step, task=task, optimisers=optimisers, ema_decay=config.ema_decay, accumulate=config.accumulate
        ),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), None),
    )
    try:
        return _loop(step, state, frozen, stream, config, task, checkpoints, log, hooks, stored)
    finally:
        stream.close()
        log.close()
        checkpoints.close()


def _loop(step, state, frozen, stream, config, task, checkpoints, log, hooks, stored):
    pace = _Pace(task, config, stream)
    with _Signals() as stop:
        for number in range(int(state.step) + 1, config.steps + 1):
            batch, position = next(stream)
            state, metrics = step(state, frozen, batch)
            last = number == config.steps
            if number % config.log_every == 0 or last or pace.is_first:
                metrics = {name: float(value) for name, value in metrics.items()}
                speed, shown = pace.measure(number)
                log.scalars(number, {**metrics, **speed})
                log.progress(number, {**_headline(metrics), **shown})
                _refuse_non_finite(state, config, number)
            for hook in hooks:
                if number % hook.every == 0 or last:
                    with pace.pause():
                        hook.run(state, number, log)
            if number % config.save_every == 0 or last or stop.is_set():
                with pace.pause():
                    checkpoints.save(number, state, position, stored)
            if stop.is_set() and not last:
                checkpoints.wait()
                raise Preempted(f"stopped at step {number}, everything is saved; start the same command again.")
    return state


class _Pace:
    """Step time, pictures per second, MFU and input wait since the last measurement, hooks and saves left out."""

    def __init__(self, task, config, stream):
        self._config, self._stream, self._peak = config, stream, peak_flops()
        self._flops = task.flops(config.batch_size)
        self.is_first = True
        self._restart(0)

    def _restart(self, number):
        self._number, self._waited = number, self._stream.waited
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def pause(self):
        """What happens inside is not counted as step time."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def measure(self, number):
        """(metrics, what the progress line shows); the first step's time is compiling."""
        seconds, waited = time.perf_counter() - self._start, self._stream.waited - self._waited
        if self.is_first:
            self.is_first = False
            self._restart(number)
            return {"seconds_first_step": seconds}, {"first step": f"{seconds:.1f}s"}
        each = seconds / max(number - self._number, 1)
        rate, mfu = self._config.batch_size / each, self._flops / each / self._peak
        self._restart(number)
        metrics = {"seconds_per_step": each, "images_per_second": rate, "mfu": mfu, "input_wait": waited / seconds}
        shown = {"step": f"{1e3 * each:.0f}ms", "img/s": f"{rate:.0f}", "MFU": f"{100 * mfu:.0f}%"}
        return metrics, shown | {"wait": f"{100 * waited / seconds:.0f}%"}


class _Signals:
    """An event that SIGTERM and SIGINT set while it is entered; only the main thread can listen."""

    def __enter__(self):
        self._event, self._old = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, lambda *_: self._event.set())
        return self._event

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _abstract(start, task, mesh, rules):
    """The state's shapes with the sharding of each leaf: parameters by their logical axes, what mirrors them alike."""
    shapes = jax.eval_shape(start, jax.random.key(0))
    boxed, _ = jax.eval_shape(task.init, jax.random.key(0))
    by_path = {}
    for (path, to), leaf in zip(
        jax.tree_util.tree_leaves_with_path(sharding.shardings(dict(boxed), mesh, rules)),
        jax.tree.leaves(sharding.unbox(dict(boxed))),
        strict=True,
    ):
        by_path[_names(path), leaf.shape] = to
    whole = sharding.replicated(mesh)

    def of(path, leaf):
        names = _names(path)
        for i in range(len(names)):
            if (names[i:], leaf.shape) in by_path:
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=by_path[names[i:], leaf.shape])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    return jax.tree_util.tree_map_with_path(of, shapes)


def _names(path):
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _groups(task):
    return sorted(jax.eval_shape(task.init, jax.random.key(0))[0])


def _of_group(config, group):
    return config.optim_by_group.get(group, config.optim)


def _headline(metrics):
    return {"loss": f"{metrics['loss']:.3f}"} if "loss" in metrics else {}


def _check_batch_divides(config, mesh):
    ways = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    if config.batch_size % (ways * config.accumulate):
        raise UserError(
            f"train.batch_size={config.batch_size} does not divide over {ways} devices in {config.accumulate} part(s); "
            f"try batch_size={-(-config.batch_size // (ways * config.accumulate)) * ways * config.accumulate}."
        )


def _refuse_other_config(old, new, free, workdir):
    if old is None:
        return
    changed = [line for line in differences(old, new) if not _is_free(line.split(":")[0], free)]
    if changed:
        raise UserError(
            f"workdir={str(workdir)!r} holds a run of another configuration ({'; '.join(changed[:8])}); change it back, "
            "or name a new --workdir."
        )


def _is_free(path, free):
    return any(path == name or path.startswith(name + ".") for name in free)


def _refuse_non_finite(state, config, number):
    total, in_a_row = (int(n) for n in state.skipped)
    if in_a_row >= config.max_skipped_in_a_row:
        raise UserError(
            f"the loss or its gradient was not finite {in_a_row} times in a row up to step {number} ({total} in all), "
            f"train.max_skipped_in_a_row={config.max_skipped_in_a_row}; lower optim.learning_rate or look at the data. "
            "The last good checkpoint stays."
        )
