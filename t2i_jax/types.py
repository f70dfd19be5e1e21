"""The types that every floor speaks: batches, objectives, tasks and the state of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]  # a plain nested dict of arrays, as Flax Linen's `init` returns it
# "image" BHWC uint8, "tokens" BN int32, or of two sizes "superres_tokens" BN and "cond_tokens" BM,
# "text" BL int32, "text_mask" BL bool, "text_embeds" BLD float32
Batch = Mapping[str, Array]
Metrics = Mapping[str, Array]  # flat, scalars only
# arrays that training changes without a gradient: codebook counts, moving averages
Stats = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One loss and the group of parameters that it moves.

    Attributes:
      group: key into the parameters by group, for example "generator" or "discriminator".
      loss: `(params_by_group, stats, frozen, batch, key, step) -> (scalar, (metrics, stats))`. Only
        the gradient for `group` is taken. `step` is an int32 scalar, the number of updates made so
        far; `frozen` are parameters that never change (a tokenizer, T5); `stats` comes back whole,
        changed or not.
    """

    group: str
    loss: Callable[
        [Mapping[str, Params], Stats, Any, Batch, Key, Array], tuple[Array, tuple[Metrics, Stats]]
    ]


class SamplingProgram(NamedTuple):
    """A jittable function that makes images: `function(params of group, frozen, prompt, keys)`.

    Attributes:
      group: the group of parameters that it reads; None: all of them, by group. prompt: shapes of
        what it is given beside them.
    """

    group: str | None
    function: Callable[..., Any]
    prompt: Mapping[str, jax.ShapeDtypeStruct]


class Task(Protocol):
    """A system as the trainer sees it, which knows nothing else about it.

    Attributes:
      objectives: the losses of one step, in the order in which they are applied; a later one sees
        earlier updates.
      ema_groups: the groups of which a moving average is kept, used for evaluation and sampling.
      idle_groups: the groups that a step neither changes nor reads, which lie in the host's memory.
      sequence_length: tokens of the sequence that a mesh may split; None: there is none that can be
        split.
      held: by group the names of parameters, or paths ("encoder/norm"), that training leaves as
        they are; {}: it moves all of them.
    """

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The losses of one step."""
        ...

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The groups that are averaged."""
        ...

    @property
    def idle_groups(self) -> tuple[str, ...]:
        """The groups that a step neither changes nor reads."""
        ...

    @property
    def sequence_length(self) -> int | None:
        """The number of tokens of a sequence that can be split."""
        ...

    @property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """The parameters that training leaves as they are."""
        ...

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """The initial parameters by group and stats; leaves may be boxed in
        `nn.LogicallyPartitioned`.
        """
        ...

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The arrays that a batch must hold; entries of a batch that are not listed are dropped."""
        ...

    def after_update(
        self, params: Mapping[str, Params], stats: Stats, batch: Batch, key: Key, step: Array
    ) -> tuple[Mapping[str, Params], Stats]:
        """Applies changes without a gradient (reviving dead codes); returns `(params, stats)`.

        Runs inside the jitted step.
        """
        ...

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """The programs that sample `batch_size` images, by name; {}: the task generates none."""
        ...

    def flops(self, batch_size: int) -> float:
        """The floating-point operations of one training step, for MFU (multiply-add = 2)."""
        ...


@flax.struct.dataclass
class TrainState:
    """The whole state that a training run carries from step to step and stores in a checkpoint.

    Attributes:
      step: int32 scalar, the number of steps made (skipped ones included).
      params: parameters by group, float32.
      opt_state: optimiser state by group.
      ema: moving average of `params[group]` for the task's `ema_groups`; {} when none is kept.
      stats: the task's stats.
      skipped: int32 pair [in all, in a row] of steps whose update was skipped for a non-finite loss
        or gradient.
      key: the run's PRNG key; a step folds its own number into it.
    """

    step: Array
    params: Any
    opt_state: Any
    ema: Any
    stats: Any
    skipped: Array
    key: Key
