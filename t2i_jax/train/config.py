"""The settings of a training run, and those that may change when it is started again."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from jax.sharding import Mesh

from t2i_jax import sharding
from t2i_jax.config import check_types, did_you_mean, differences, one_of, to_dict
from t2i_jax.errors import UserError
from t2i_jax.train.optim import OptimConfig
from t2i_jax.values import Count, Decay, Range, Seed

# Fields that may differ from those of the checkpoint that a run resumes from.
HARMLESS = (
    "steps",
    "log_every",
    "eval_every",
    "validate_every",
    "save_every",
    "keep",
    "mesh",
    "rules",
    "max_skipped_in_a_row",
    "wandb_project",
)

# a step
_AROUND = (
    "log_every", "eval_every", "validate_every", "save_every", "keep", "max_skipped_in_a_row",
    "wandb_project",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run: steps, batch, optimisers, EMA, devices, logs and checkpoints.

    Attributes:
      steps: updates in all. batch_size: samples of an update, over all devices and processes. seed:
        of parameters, data order and noise.
      optim: the optimiser of every group that `optim_by_group` does not name.
      optim_by_group: optimisers of single groups, as {"discriminator": OptimConfig(...)}.
      ema_decay: decay of the exponential moving average (EMA) of the parameters; 0: none is kept.
      accumulate: gradient accumulation: the micro-batches that a batch is split into, one after the
        other; one update is made, with the mean of their gradients. A loss that compares the rows
        of a batch with each other (CLIP's) compares those of a micro-batch, and statistics without
        a gradient (an EMA codebook's) move with each of them.
      mesh: size per mesh axis ("slice", "data", "fsdp", "sequence", "tensor"), one may be -1: what
        remains; None: all devices on "data". rules: how parameters are split, "dp", "fsdp" or
        "fsdp_tp"; None: over all that the mesh has.
      log_every: steps from one line of metrics to the next. eval_every: steps from one preview, a
        grid of images, to the next; 0: none. save_every: steps from one checkpoint to the next.
        keep: checkpoints that stay, and beside them the one with the best validation metric.
      validate_every: steps from one validation to the next, on a few held-out batches that are
        always the same; 0: none. None: with every checkpoint where `data.heldout` holds data out,
        else none.
      max_skipped_in_a_row: the number of updates in a row that were not finite at which the run
        stops.
      wandb_project: the project of Weights & Biases to which metrics go too; None: they do not.
    """

    steps: Count = 1000
    batch_size: Count = 64
    seed: Seed = 0
    optim: OptimConfig = OptimConfig()
    optim_by_group: Mapping[str, OptimConfig] = dataclasses.field(default_factory=dict)
    ema_decay: Decay = 0.999
    accumulate: Count = 1
    mesh: Mapping[str, Annotated[int, Range(-1, 2**31 - 1)]] | None = None
    rules: str | None = None
    log_every: Count = 20
    eval_every: int = 0
    save_every: Count = 500
    keep: Count = 2
    max_skipped_in_a_row: Count = 20
    wandb_project: str | None = None
    validate_every: Annotated[int, Range(0, 2**31 - 1)] | None = None

    def __post_init__(self):
        check_types(self, "train")
        if self.rules is not None:
            one_of("train.rules", self.rules, sharding.RULES)
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "save_every",
            "keep",
            "max_skipped_in_a_row",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} is below 1; give 1 or more.")
        if self.eval_every < 0:
            raise UserError(
                f"train.eval_every={self.eval_every} is below 0; use 0 for no previews."
            )
        if self.validate_every is not None and self.validate_every < 0:
            raise UserError(
                f"train.validate_every={self.validate_every} is below 0; use 0 for no validation."
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(
                f"train.ema_decay={self.ema_decay} is outside [0, 1); try 0.999, or 0 for none."
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size={self.batch_size} is not a multiple of "
                f"train.accumulate={self.accumulate}; try "
                f"batch_size={max(self.batch_size // self.accumulate, 1) * self.accumulate}."
            )

    def optim_of(self, groups: Iterable[str]) -> Mapping[str, OptimConfig]:
        """The optimiser of each of a task's groups.

        Raises:
          UserError: `optim_by_group` names a group that the task has not.
        """
        groups = list(groups)
        for group in self.optim_by_group:
            if group not in groups:
                raise UserError(
                    f"train.optim_by_group names {group!r}, no group of the task; "
                    f"{did_you_mean(group, groups)}"
                )
        return {group: self.optim_by_group.get(group, self.optim) for group in groups}

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = {}
        if self.rules not in (None, "dp") and sharding.rules_of(self.mesh) == "dp":
            found["rules"] = "a mesh that has neither fsdp nor tensor"
        groups = {f"optim_by_group.{group}": one for group, one in self.optim_by_group.items()}
        for place, optim in {"optim": self.optim, **groups}.items():
            begin = optim.warmup_steps
            if optim.schedule == "exponential":
                begin = max(begin, optim.decay_from)
            if optim.schedule != "constant" and begin >= self.steps:
                found[f"{place}.schedule"] = (
                    f"steps={self.steps}, as the decay begins after step {begin}"
                )
        return found

    @property
    def preset(self) -> str:
        """The rules by which parameters are split."""
        return self.rules or sharding.rules_of(self.mesh)

    def of_step(self) -> Mapping[str, Any]:
        """The fields that one step may depend on, as JSON values: all but how often things happen
        around it.
        """
        return {name: value for name, value in to_dict(self).items() if name not in _AROUND}

    def check_batch(self, mesh: Mesh) -> None:
        """Refuses a batch that the mesh does not divide."""
        ways = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
        unit = ways * self.accumulate
        if self.batch_size % unit:
            raise UserError(
                f"train.batch_size={self.batch_size} does not divide over {ways} devices and "
                f"{self.accumulate} micro-batch(es); try "
                f"batch_size={-(-self.batch_size // unit) * unit}."
            )


def refuse_other_run(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    allowed: Sequence[str],
    workdir: str | pathlib.Path,
) -> None:
    """Refuses to resume from a checkpoint of another configuration.

    Args:
      old, new: stored configurations, `TrainConfig` under "train".
      allowed: fields (with everything below them) that may differ, beside the `HARMLESS` ones of
        "train".

    Raises:
      UserError: they differ in anything else; the sentence lists what.
    """
    allowed = [*allowed, *(f"train.{name}" for name in HARMLESS)]
    changed = [
        line for line in differences(old, new) if not _is_below(line.split(": ")[0], allowed)
    ]
    if changed:
        listed = "; ".join(changed[:8]) + (
            "" if len(changed) <= 8 else f"; and {len(changed) - 8} more"
        )
        raise UserError(
            f"workdir={str(workdir)!r} holds a run of another configuration ({listed}); change it "
            "back, or name a new workdir, where init= with this one begins with its weights."
        )


def _is_below(path, names):
    return any(path == name or path.startswith(f"{name}.") for name in names)
