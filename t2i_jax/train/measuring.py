"""Measurements of a run between its steps: validation on held-out batches, metrics of generated
images, and the best step by one of them.
"""

from __future__ import annotations

from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.log import Log
from t2i_jax.train.monitor import Monitor, Monitoring
from t2i_jax.train.validation import Validation
from t2i_jax.types import TrainState


class Measuring:
    """The measurements of one start, and the score of the newest.

    Args:
      validation, monitor: what is measured; None: nothing. checkpoints: which have scores. frozen:
        parameters on the mesh.

    Attributes:
      monitoring: of generated images.
      noted: what the progress line shows beside the metrics of a step.
    """

    def __init__(
        self,
        validation: Validation | None,
        monitor: Monitor | None,
        checkpoints: Checkpoints,
        frozen: Any,
        log: Log,
        clock: Goodput,
    ):
        self._validation, self._frozen, self._checkpoints = validation, frozen, checkpoints
        self.log, self._clock = log, clock
        self.monitoring = Monitoring(monitor, log, clock)
        self._scored: dict[int, float | None] = {}  # the newest
        self.noted: dict[str, str] = {}

    def validates(self, done: int, is_last: bool) -> bool:
        """Whether held-out batches are measured after `done` steps."""
        return self._validation is not None and self._validation.is_due(done, is_last)

    def monitors(self, done: int, is_last: bool) -> bool:
        """Whether generated images are measured after `done` steps."""
        return self.monitoring.is_due(done, is_last)

    def score(self, done: int) -> float | None:
        """The score of the newest step; None where it was not measured, or is another one."""
        return self._scored.get(done)

    def validate(self, done: int, state: TrainState) -> None:
        """Measures held-out batches and logs."""
        assert self._validation is not None
        metrics = self._validation.measure(state, self._frozen)
        self.log.scalars(done, {f"validation/{name}": value for name, value in metrics.items()})
        if "loss" in metrics:
            self.noted["val"] = f"{metrics['loss']:.4g}"
        if not self.monitoring.tells_best:
            self._scored = {done: self._validation.score(metrics)}

    def monitor(self, done: int, state: TrainState, is_last: bool) -> None:
        """Measures generated images and logs, by and by."""
        score = self.monitoring.measure(done, state, is_last)
        if self.monitoring.tells_best:
            self._scored = {done: score}

    def late(self, done: int, state: TrainState, is_last: bool) -> None:
        """Measures a step that a stop saved before it was measured; its score is added to what is
        saved.
        """
        if self.validates(done, is_last) and not self._is_validated(done):
            with self._clock.spent_on("hooks"):
                self.validate(done, state)
        if self.monitors(done, is_last) and not self.monitoring.is_logged(done):
            self.monitor(done, state, is_last)
        score = self.score(done)
        if score is not None and not self._checkpoints.has_score(done):
            self._checkpoints.add_score(done, score)
            self.tell_best()

    def tell_best(self) -> None:
        """Notes the best step and its metric among the metrics of the run."""
        if (best := self._checkpoints.best()) is not None:
            value = self.monitoring.value(best[1])
            self.log.summary({"validation/best_step": best[0], "validation/best": value})

    def close(self) -> None:
        """Gives up what is still being worked on."""
        self.monitoring.close()

    def _is_validated(self, done):
        name = f"validation/{self._validation and self._validation.by}"
        if self.monitoring.tells_best:
            return processes.gather(self.log.holds(done, [name]))[0]
        if self._checkpoints.has_score(done):
            return True
        # what is not finite is no score, and would not be another time
        return processes.gather(self.log.holds_not_finite(done, name))[0]
