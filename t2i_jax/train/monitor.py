"""Metrics of generated images while training: measured every `every` steps, the work of the host
beside the steps that follow.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from t2i_jax.cluster import processes
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.log import Log
from t2i_jax.types import TrainState

PREFIX = "eval/"
"""The prefix of the metrics' names in logs."""


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The metrics of generated images that a run measures while it trains.

    Attributes:
      names: of the metrics.
      every: steps between two; after the last step it is measured too.
      start: a state -> what is left to do on the host, which gives the metrics by name. Every
        process calls both; the metrics of the first one count. The same state has the same metrics.
      by: the metric by which a step is the best; None: none of them.
      larger_is_better: of that metric.
    """

    names: Sequence[str]
    every: int
    start: Callable[[TrainState], Callable[[], Mapping[str, float]]]
    by: str | None = None
    larger_is_better: bool = False

    def is_due(self, done: int, is_last: bool) -> bool:
        """Whether the metrics are measured after `done` steps."""
        return done % self.every == 0 or is_last

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """The value by which the step is compared with others, the smaller the better; None: not
        finite, so never best.
        """
        value = metrics.get(self.by or "", math.nan)
        value = -value if self.larger_is_better else value
        return value if math.isfinite(value) else None


class Monitoring:
    """The measurements of one start: one of them at most is being worked on, by a thread.

    It is awaited before anything of a later step is logged or saved, so that lines stay in the
    order of their steps and a run that is killed lacks none of what its checkpoint comes after.
    """

    def __init__(self, monitor: Monitor | None, log: Log, clock: Goodput):
        """Args: monitor: None: nothing is measured."""
        self._monitor, self._log, self._clock = monitor, log, clock
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self._waiting: tuple[int, concurrent.futures.Future] | None = None

    @property
    def tells_best(self) -> bool:
        """Whether the best step is told by one of these metrics."""
        return self._monitor is not None and self._monitor.by is not None

    def is_due(self, done: int, is_last: bool) -> bool:
        """Whether the metrics are measured after `done` steps."""
        return self._monitor is not None and self._monitor.is_due(done, is_last)

    def value(self, score: float) -> float:
        """The metric of a score."""
        is_negative = self._monitor is not None and self._monitor.larger_is_better
        return -score if is_negative else score

    def measure(self, done: int, state: TrainState, is_last: bool) -> float | None:
        """Measures a step; its score, where the best step is told by it.

        The host's part goes on when this returns, unless the score or the last step depends on it.
        """
        assert self._monitor is not None
        self.finish()
        with self._clock.spent_on("evaluate"):
            self._waiting = done, self._pool.submit(self._monitor.start(state))
        if not self.tells_best and not is_last:
            return None
        return self._monitor.score(self.finish())

    def finish(self) -> Mapping[str, float]:
        """Logs what is still being worked on as soon as it is done, and returns it; {} where there
        is nothing.
        """
        if self._waiting is None:
            return {}
        (step, future), self._waiting = self._waiting, None
        with self._clock.spent_on("evaluate"):
            metrics = future.result()
            if self.tells_best:
                metrics = processes.gather(dict(metrics))[0]
        named = {f"{PREFIX}{name}": value for name, value in metrics.items()}
        self._log.scalars(step, named)
        self._log.summary(named, replaces=PREFIX)  # none of an earlier step stays among them
        return metrics

    def finish_before(self, step: int) -> None:
        """Finishes the work, as `finish`, where it belongs to an earlier step."""
        if self._waiting is not None and self._waiting[0] < step:
            self.finish()

    def is_logged(self, step: int) -> bool:
        """Whether an earlier start has logged the metrics of a step."""
        known = () if self._monitor is None else self._monitor.names
        names = [f"{PREFIX}{name}" for name in known]
        return processes.gather(self._log.holds(step, names))[0]

    def close(self) -> None:
        """Gives up what is still being worked on."""
        self._pool.shutdown(wait=False, cancel_futures=True)
