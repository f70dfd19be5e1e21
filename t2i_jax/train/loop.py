"""The trainer: one loop for every task, which resumes by itself, saves before it stops, and tells what it does."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t2i_jax import sharding
from t2i_jax.cluster import processes
from t2i_jax.config import to_dict
from t2i_jax.errors import Preempted, UserError
from t2i_jax.train import state as states
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.config import TrainConfig, refuse_other_run
from t2i_jax.train.executables import Executables
from t2i_jax.train.goodput import FILE, Goodput
from t2i_jax.train.log import Log
from t2i_jax.train.pace import Pace
from t2i_jax.train.preemption import Stop
from t2i_jax.train.profile import Profile, Trace
from t2i_jax.train.stall import Stalls
from t2i_jax.train.step import train_step
from t2i_jax.train.stream import Stream
from t2i_jax.types import Task, TrainState

__all__ = ["Hook", "Preempted", "TrainConfig", "fit"]


@dataclasses.dataclass(frozen=True)
class Hook:
    """Runs `run(state, step, log)` after every `every`-th step and after the last one."""

    every: int
    run: Callable[[TrainState, int, Log], None]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    config: TrainConfig
    stored: Mapping[str, Any]
    frozen: Any
    step: CompiledStep
    stream: Stream
    checkpoints: Checkpoints
    log: Log
    hooks: Sequence[Hook]
    clock: Goodput
    trace: Trace
    stalls: Stalls


def fit(
    task: Task,
    batches: Any,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    frozen: Any = None,
    hooks: Sequence[Hook] = (),
    extra_config: Mapping[str, Any] | None = None,
    allowed: Sequence[str] = (),
    clock: Goodput | None = None,
    profile: Profile | None = None,
) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint of `workdir` where there is one.

    Args:
      batches: iterator of dicts of NumPy arrays, this process's rows of a batch (`sharding.rows_of_processes`), with
        `get_state()` (JSON values) and `set_state(states)`, which is given the states of all processes that saved.
      frozen: parameters that the step reads and never changes.
      extra_config: JSON values stored in every checkpoint and compared with those of the checkpoint resumed from;
        None: the task and `config`.
      allowed: fields of `extra_config` (with everything below them) that may differ from the checkpoint's.
      clock: counts the time of this start, and has begun with it; None: it begins here.
      profile: steps of which a trace is written.

    Raises:
      UserError: the checkpoint was made with another configuration; processes were given different ones; a batch does
        not fit; the disk is full; too many updates in a row were not finite.
      Preempted: after SIGTERM or SIGINT, with everything saved.
    """
    workdir = pathlib.Path(workdir)
    clock = clock or Goodput.of(workdir)
    if profile is not None:
        profile.check(config.steps)
    mesh = sharding.make_mesh(config.mesh)
    config.check_batch(mesh)
    stored = dict(extra_config or {"task": to_dict(task), "train": to_dict(config)})
    processes.check_same(stored, "another configuration", "give every process the same command")
    optimisers = states.optimisers_of(task, config)
    start = states.start_of(task, optimisers, config.ema_decay)
    abstract = states.abstract(start, task, mesh, config.preset)
    states.check_mesh(abstract, task, mesh, config.preset)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with Checkpoints(workdir, config.keep) as checkpoints:
        restored = checkpoints.restore(abstract, lambda old: refuse_other_run(old, stored, allowed, workdir))
        if restored is None:
            state = jax.jit(start, out_shardings=shardings)(jax.random.key(config.seed))
        else:
            state = restored[0]
            batches.set_state(restored[1])
        done = int(state.step)
        if profile is not None and profile.last <= done:
            print(f"profile={profile} is not traced: {str(workdir)!r} is at step {done} already", file=sys.stderr)
        if done >= config.steps:
            return state
        clock.carry_on(done)
        step = functools.partial(
            train_step, task=task, optimisers=optimisers, ema_decay=config.ema_decay, accumulate=config.accumulate
        )
        log = Log(workdir, done, config.steps, config.wandb_project)
        run = _Run(
            config, stored, sharding.place_frozen(frozen, mesh, config.preset),
            CompiledStep(step, shardings, mesh, Executables.of(task, config.of_step(), mesh.devices.flat)),
            Stream(batches, task.batch_spec, config.batch_size, mesh), checkpoints,
            log, hooks, clock, Trace(profile, log), Stalls(log),
        )  # fmt: skip
        try:
            return _train(run, state, Pace(done, config.batch_size, task.flops(config.batch_size), clock))
        finally:
            run.stream.close()
            log.store(FILE, clock.stored())
            log.figures(clock.metrics())
            log.close()


def _train(run, state, pace):
    done, steps, position = int(state.step), run.config.steps, run.stream.start
    if done:
        run.log.say(f"carrying on from step {done} of {steps}")
    queued = None
    with Stop() as stop, run.trace:
        while done < steps:
            item = _next(run, done, queued, stop)
            if stop.agreed():
                _stop_here(run, done, state, position)
            batch, position = item
            if pace.is_first:
                with run.clock.spent_on("compile"):
                    run.step.prepare(state, run.frozen, batch)
                run.clock.start_training()
            run.trace.before(done + 1, queued)
            with run.clock.spent_on("step"):
                with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                    state, metrics = run.step(state, run.frozen, batch)
                jax.block_until_ready(queued)  # the next step is queued while one runs, and no more than that
            done, queued = done + 1, metrics
            run.trace.after(done, queued)
            if done % run.config.log_every == 0 or done == steps or pace.is_first:
                _tell(run, pace, done, state, metrics)
            due = [hook for hook in run.hooks if done % hook.every == 0 or done == steps]
            if due and stop.agreed():  # before what may take long
                _stop_here(run, done, state, position)
            _hook_and_save(run, done, state, position)
        with run.clock.spent_on("checkpoint"):
            run.checkpoints.wait()
    return state


def _next(run, done, queued, stop):
    """What `Stream.next` gives. As long as the devices are busy, a batch that is not there costs nothing."""
    is_first = queued is None
    if not run.stream.is_ready():
        with run.clock.spent_on("step"):
            jax.block_until_ready(queued)
    with run.clock.spent_on("restart" if is_first else "input"):
        return run.stream.next(run.stalls.watch(done, is_first, stop.asked))


def _hook_and_save(run, done, state, position):
    is_last = done == run.config.steps
    hooks = [hook for hook in run.hooks if done % hook.every == 0 or is_last]
    saves = done % run.config.save_every == 0 or is_last
    if hooks or saves:
        with run.clock.spent_on("step"):
            jax.block_until_ready(state.step)
    with run.checkpoints.full_disk_refused():
        with run.clock.spent_on("hooks"):
            for hook in hooks:
                hook.run(state, done, run.log)
        if saves:
            _save(run, done, state, position)


def _save(run, done, state, position):
    run.clock.save(done)
    with run.clock.spent_on("checkpoint"):
        run.checkpoints.save(done, state, processes.gather(position), run.stored)
    run.log.store(FILE, run.clock.stored())


def _stop_here(run, done, state, position):
    with run.clock.spent_on("step"):
        jax.block_until_ready(state.step)
    _save(run, done, state, position)
    with run.clock.spent_on("checkpoint"):
        run.checkpoints.wait()
    raise Preempted(f"stopped after step {done}, everything is saved; start the same command again to carry on.")


def _tell(run, pace, done, state, metrics):
    with run.clock.spent_on("step"):
        metrics = {name: float(value) for name, value in metrics.items()}
    speed, shown = pace.measure(done)
    headline = {"loss": f"{metrics['loss']:.4g}"} if "loss" in metrics else {}
    run.log.scalars(done, {**metrics, **speed, **run.clock.metrics()})
    run.log.progress(done, {**headline, **shown})
    run.stalls.judge(done, speed.get("input_wait", 0.0))
    run.log.store(FILE, run.clock.stored())
    total, in_a_row = (int(n) for n in state.skipped)
    limit = run.config.max_skipped_in_a_row
    if in_a_row >= limit:
        raise UserError(
            f"the loss or its gradient was not finite {in_a_row} times in a row up to step {done} ({total} in all) and "
            f"train.max_skipped_in_a_row={limit}; lower optim.learning_rate or look at the data, the last checkpoint "
            "stays."
        )
