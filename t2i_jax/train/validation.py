"""Validation while training: metrics of held-out batches, and the best step by one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Validation:
    """The validation of a run: metrics of batches that it is not trained on.

    Attributes:
      every: steps between two; after the last step it is measured too.
      measure: `(state, frozen) -> metrics by name`; the same batches and keys each time.
      by: the metric whose smallest value is the best.
    """

    every: int
    measure: Callable[[TrainState, Any], Mapping[str, float]]
    by: str = "loss"

    def is_due(self, done: int, is_last: bool) -> bool:
        """Whether held-out batches are measured after `done` steps."""
        return done % self.every == 0 or is_last

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """The value by which the step is compared with others; None: not finite, so never best."""
        value = metrics.get(self.by, math.nan)
        return value if math.isfinite(value) else None
