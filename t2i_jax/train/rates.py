"""The learning rates of a run's optimisers, for its logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from t2i_jax.train import optim
from t2i_jax.train.optim import OptimConfig


class Rates:
    """The learning rate of each group that is trained.

    Args:
      configs: the optimiser of each group.
      groups: those that are trained.
      steps: of the run, for the schedules.
    """

    def __init__(self, configs: Mapping[str, OptimConfig], groups: Iterable[str], steps: int):
        self._schedules: dict[str, tuple[str, Any]] = {}
        for group in dict.fromkeys(groups):
            config = configs[group]
            self._schedules[f"learning_rate/{group}"] = group, optim.learning_rate(config, steps)
            if config.name == "muon":
                matrices = dataclasses.replace(config, learning_rate=config.matrix_rate)
                schedule = optim.learning_rate(matrices, steps)
                self._schedules[f"matrix_rate/{group}"] = group, schedule

    def of(self, opt_state: Mapping[str, Any]) -> Mapping[str, float]:
        """The learning rates of the newest update: `learning_rate/GROUP` of each group, and of
        Muon's matrices `matrix_rate/GROUP`; an optimiser's own count of its updates is what its
        schedule goes by.
        """
        made = {
            group: int(optim.updates_made(opt_state[group], 0))
            for group, _ in self._schedules.values()
        }
        return {
            name: float(schedule(max(made[group] - 1, 0)))
            for name, (group, schedule) in self._schedules.items()
        }


def shown(metrics: Mapping[str, float]) -> Mapping[str, str]:
    """The values {"lr", "grad"} for the progress line, of several groups as 1e-3/2e-4, both in the
    order of the learning rates: what comes out of a compiled step is sorted by name.
    """
    prefix = "learning_rate/"
    groups = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    found = {}
    for name, kind in (("lr", prefix), ("grad", "grad_norm/")):
        values = [metrics[kind + group] for group in groups if kind + group in metrics]
        if values:
            found[name] = "/".join(f"{value:.3g}" for value in values)
    return found
