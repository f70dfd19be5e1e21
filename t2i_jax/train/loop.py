"""The trainer: one loop for every task.

It resumes by itself, saves before it stops, and logs what it does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t2i_jax import heap, paths, sharding
from t2i_jax.cluster import lock, main_script, processes
from t2i_jax.config import differences, to_dict
from t2i_jax.errors import Preempted, ReaderKilled, UserError
from t2i_jax.terminal import say
from t2i_jax.train import best as bests
from t2i_jax.train import moved
from t2i_jax.train import state as states
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.config import TrainConfig, refuse_other_run
from t2i_jax.train.executables import Executables, fresh
from t2i_jax.train.goodput import FILE, Goodput
from t2i_jax.train.log import Log
from t2i_jax.train.measuring import Measuring
from t2i_jax.train.monitor import Monitor
from t2i_jax.train.pace import Pace
from t2i_jax.train.preemption import Stop
from t2i_jax.train.profile import Profile, Trace
from t2i_jax.train.rates import Rates, shown
from t2i_jax.train.stall import Stalls
from t2i_jax.train.step import train_step
from t2i_jax.train.stream import Stream
from t2i_jax.train.validation import Validation
from t2i_jax.types import Task, TrainState

__all__ = ["Hook", "Preempted", "TrainConfig", "fit"]


@dataclasses.dataclass(frozen=True)
class Hook:
    """Runs `run(state, step, log)` after every `every`-th step and after the last one."""

    every: int
    run: Callable[[TrainState, int, Log], None]


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
    upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    begin: Callable[[TrainState], TrainState] | None = None,
    validation: Validation | None = None,
    monitor: Monitor | None = None,
) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint of `workdir` where there is one.

    Args:
      batches: iterator of dicts of NumPy arrays, this process's rows of a batch
        (`sharding.rows_of_processes`), with `get_state()` (JSON values) and `set_state(states)`,
        which is given the states of all processes that saved.
      frozen: parameters that the step reads and never changes.
      extra_config: JSON values stored in every checkpoint and compared with those of the checkpoint
        resumed from; None: the task and `config`.
      allowed: fields of `extra_config` (with everything below them) that may differ from the
        checkpoint's.
      clock: measures the time of this start, which began before; None: it begins here.
      profile: steps of which a trace is written.
      upgrade: brings a configuration stored by an earlier release to today's form, before it is
        compared; None: they are compared as stored.
      begin: makes the state before the first step of a fresh one, as with the weights of another
        run; None: it is the fresh one. Not called where a checkpoint is resumed from.
      validation: what is measured on held-out batches; a step that is the best by it so far is
        saved, and stays. None: nothing.
      monitor: what is measured of generated images; where it has a `by`, the best step is told by
        that. None: nothing.

    Raises:
      UserError: the checkpoint was made with another configuration; processes were given different
        ones; a batch does not fit; the disk is full; the folder is gone; too many updates in a
        row were not finite.
      Preempted: after SIGTERM or SIGINT, with everything saved.
    """
    main_script.check(0)
    workdir = paths.folder("workdir", workdir)
    clock = clock or Goodput.of(workdir)
    if profile is not None:
        profile.check(config.steps)
    mesh = sharding.make_mesh(config.mesh)
    config.check_batch(mesh)
    stored = dict(extra_config or {"task": to_dict(task), "train": to_dict(config)})
    processes.check_same(stored, "another configuration", "give every process the same command")
    optimisers, abstract = states.laid(task, config, mesh)
    start = states.start_of(task, optimisers, config.ema_decay)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def check(old):
        refuse_other_run(upgrade(old) if upgrade else old, stored, allowed, workdir)

    trained = [objective.group for objective in task.objectives]
    by = (monitor and monitor.by) or bests.validation_of(trained, abstract.params)
    is_of = None if monitor and monitor.by else functools.partial(_is_of_task, stored, upgrade)
    with (
        lock.held(workdir),
        moved.refused(workdir),
        Checkpoints(workdir, config.keep, by, is_of) as checkpoints,
    ):
        restored = checkpoints.restore(abstract, check)
        if restored is None:
            state = states.first(start, abstract, config.seed)
            state = begin(state) if begin is not None else state
        else:
            state = restored[0]
            batches.set_state(restored[1])
        done = int(state.step)
        if profile is not None and profile.last <= done and processes.is_first():
            say(f"profile={profile} is not traced: {str(workdir)!r} is at step {done} already")
        measures = functools.partial(Measuring, validation, monitor, checkpoints)
        if done >= config.steps:
            is_scored = validation is None or checkpoints.has_score(done)
            if monitor is not None or not is_scored:
                frozen = sharding.place_frozen(frozen, mesh, config.preset)
                _measure_last(done, state, measures(frozen, Log(workdir, done, done), clock))
            return state
        frozen = sharding.place_frozen(frozen, mesh, config.preset)
        clock.resume(done)
        step = functools.partial(
            train_step,
            task=task,
            optimisers=optimisers,
            ema_decay=config.ema_decay,
            accumulate=config.accumulate,
        )
        executables = Executables.of(task, config.of_step(), list(mesh.devices.flat))
        log = Log(workdir, done, config.steps, config.wandb_project)
        flops = functools.partial(task.flops, config.batch_size)
        pace = Pace(done, config.steps, config.batch_size, flops, clock)
        loop = _Loop(
            config=config,
            stored=stored,
            hooks=hooks,
            frozen=frozen,
            step=CompiledStep(step, shardings, mesh, executables, task.idle_groups),
            stream=Stream(batches, task.batch_spec, config.batch_size, mesh),
            checkpoints=checkpoints,
            log=log,
            clock=clock,
            rates=Rates(config.optim_of(abstract.params), trained, config.steps),
            measuring=measures(frozen, log, clock),
        )
        try:
            return loop.run(state, Trace(profile, log), pace)
        finally:
            loop.close()
            log.store(FILE, clock.stored())
            log.summary(clock.metrics())
            log.close()


def _is_of_task(stored, upgrade, old):
    """Whether a stored configuration trains the same task, and the same groups of it."""
    with contextlib.suppress(UserError, LookupError):
        old = upgrade(old) if upgrade else old
        return not differences(old["task"], stored["task"])
    return False


def _measure_last(done, state, measuring):
    """Measures a run that was stopped with all of its steps made, and the last not measured."""
    measuring.late(done, state, True)
    measuring.close()
    measuring.log.close()


class _Loop:
    """The loop of training, step after step: the next batch, the step, a line of the log, hooks, a
    checkpoint.
    """

    def __init__(
        self, *, config, stored, hooks, frozen, step, stream, checkpoints, log, clock, rates,
        measuring,
    ):  # fmt: skip
        self.config, self.stored, self.hooks, self.frozen = config, stored, hooks, frozen
        self.step, self.stream, self.checkpoints = step, stream, checkpoints
        self.log, self.clock, self.stalls = log, clock, Stalls(log)
        self.rates, self.measuring = rates, measuring

    def run(self, state: TrainState, trace: Trace, pace: Pace) -> TrainState:
        """The state after the last step.

        Raises:
          Preempted: a stop was asked for; everything is saved.
        """
        steps, done, position = self.config.steps, int(state.step), self.stream.start
        if done:
            self.log.say(f"resuming from step {done} of {steps}")
            self.measuring.late(done, state, False)
        queued = None  # metrics of the newest step, which the devices may still be computing
        with Stop() as stop, trace, contextlib.ExitStack() as trained:
            while done < steps:
                try:
                    item = self._next_batch(done, queued, stop)
                except ReaderKilled:
                    self._save_alone(done, state, position)
                    raise
                if stop.agreed():
                    self._save_and_stop(done, state, position)
                batch, position = item
                if pace.is_first:
                    self._compile(done, state, batch, stop)
                    trained.enter_context(processes.something_to_save())
                trace.before(done + 1, queued)
                with self.clock.spent_on("step"):
                    with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                        state, metrics = self.step(state, self.frozen, batch)
                    # one step is queued while another runs, and no more
                    jax.block_until_ready(queued)
                done, queued = done + 1, metrics
                trace.after(done, queued)
                is_last = done == steps
                is_first = pace.is_first
                if done % self.config.log_every == 0 or is_last or is_first:
                    self._write_metrics(done, state, metrics, pace)
                if is_first:
                    with self.clock.spent_on("compile"):
                        self.step.settle()
                hooks = [hook for hook in self.hooks if done % hook.every == 0 or is_last]
                saves = done % self.config.save_every == 0 or is_last
                validates = self.measuring.validates(done, is_last)
                monitors = self.measuring.monitors(done, is_last)
                # before hooks, which may take long
                if (hooks or validates or monitors) and stop.agreed():
                    self._save_and_stop(done, state, position)
                if hooks or saves or validates or monitors:
                    self._wait_for(state)
                with self.checkpoints.full_disk_refused():
                    if hooks or validates or monitors:
                        self._measure(done, state, hooks, validates, monitors, is_last)
                    if saves or self.checkpoints.is_best(self.measuring.score(done)):
                        self._save(done, state, position)
            with self.clock.spent_on("checkpoint"):
                self.checkpoints.wait()
        return state

    def close(self) -> None:
        """Gives up what goes on beside the steps."""
        self.stream.close()
        self.measuring.close()

    def _compile(self, done, state, batch, stop):
        """Makes the step's program ready; a stop does not wait for the compiler.

        Raises:
          Preempted: a stop was asked for; nothing has changed since the start.
        """
        with self.clock.spent_on("compile"), self.log.compiling(self.step.usual_seconds):
            ready = self.step.prepare(state, self.frozen, batch, stop=stop)
        if not ready:
            since = f"step {done} is saved" if done else "no step was made"
            raise Preempted(
                f"stopped while compiling, {since}; start the same command again to resume."
            )
        self.clock.start_training()

    def _next_batch(self, done, queued, stop):
        """The result of `Stream.next`; a batch that is not there yet counts as waiting for input
        only once the devices are idle.
        """
        is_first = queued is None
        if not self.stream.is_ready():
            with self.clock.spent_on("step"):
                jax.block_until_ready(queued)
        with self.clock.spent_on("restart" if is_first else "input"):
            return self.stream.next(self.stalls.watch(done, is_first, stop.asked))

    def _write_metrics(self, done, state, metrics, pace):
        """Writes one line of the log; refuses to go on after too many updates in a row that were
        not finite.
        """
        self.measuring.monitoring.finish()
        with self.clock.spent_on("step"):
            metrics = {name: float(value) for name, value in metrics.items()}
        metrics |= self.rates.of(state.opt_state)
        speed, pace_shown = pace.measure(done)
        headline = {"loss": f"{metrics['loss']:.4g}"} if "loss" in metrics else {}
        self.log.scalars(done, {**metrics, **speed, **self.clock.metrics()})
        self.log.progress(
            done, {**headline, **self.measuring.noted, **shown(metrics), **pace_shown}
        )
        self.stalls.check(done, speed.get("input_wait", 0.0))
        self.log.store(FILE, self.clock.stored())
        total, in_a_row = (int(n) for n in state.skipped)
        limit = self.config.max_skipped_in_a_row
        if in_a_row >= limit:
            raise UserError(
                f"the loss or its gradient was not finite {in_a_row} times in a row up to step "
                f"{done} ({total} in all) and train.max_skipped_in_a_row={limit}; lower "
                "optim.learning_rate or look at the data, the last checkpoint stays."
            )

    def _measure(self, done, state, hooks, validates, monitors, is_last):
        """Runs the hooks and measurements that are due after a step; then the heap is cleared of
        what compiling for them has left.
        """
        with fresh() as compiled:
            # hooks and validations log too
            self.measuring.monitoring.finish_before(done)
            with self.clock.spent_on("hooks"):
                if validates:
                    self.measuring.validate(done, state)
                for hook in hooks:
                    hook.run(state, done, self.log)
            if monitors:
                self.measuring.monitor(done, state, is_last)
        if compiled:
            heap.clear()

    def _wait_for(self, state):
        with self.clock.spent_on("step"):
            jax.block_until_ready(state.step)

    def _save(self, done, state, position):
        moved.check()
        self.measuring.monitoring.finish_before(done)
        self.clock.save(done)
        with self.clock.spent_on("checkpoint"):
            positions = self.stream.positions(position)
            self.checkpoints.save(done, state, positions, self.stored, self.measuring.score(done))
        self.measuring.tell_best()
        self.log.store(FILE, self.clock.stored())

    def _save_alone(self, done, state, position):
        """Saves what was trained where the data of this process have ended, unless others, which
        would have to save too, still train.
        """
        if done and jax.process_count() == 1:
            self._save_all(done, state, position)

    def _save_all(self, done, state, position):
        self._wait_for(state)
        self.measuring.monitoring.finish()
        self._save(done, state, position)
        with self.clock.spent_on("checkpoint"):
            self.checkpoints.wait()

    def _save_and_stop(self, done, state, position):
        self._save_all(done, state, position)
        raise Preempted(
            f"stopped after step {done}, everything is saved; start the same command again to "
            "resume."
        )
