"""Optimisers and learning-rate schedules as one small value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from t2i_jax import sharding
from t2i_jax.config import check_types, one_of
from t2i_jax.errors import UserError
from t2i_jax.train.muon import muon
from t2i_jax.train.scalar import computed_once
from t2i_jax.types import Array
from t2i_jax.values import Decay, Positive

_OPTIMISERS = ("adamw", "adafactor", "muon")
MATRIX, KERNEL = (
    contrib.MuonDimensionNumbers(-2, -1),
    contrib.MuonDimensionNumbers((-4, -3, -2), -1),
)
_SCHEDULES = ("constant", "cosine", "linear", "exponential")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimiser: clipping, then AdamW, Adafactor or Muon, with a warm-up and a decay of the
    learning rate.

    Attributes:
      name: "adamw", "adafactor" (factored second moments, no relative step size), or "muon" (Jordan
        2024: matrices between two widths, kernels of convolutions among them, move by their
        orthogonalised momentum, the rest by Adam with Nesterov's momentum; a small transformer
        learns in fewer steps). Adam is "adamw" without decay.
      learning_rate: peak value, reached after `warmup_steps` (linear from 0).
      warmup_steps: steps until then; 0: none.
      end_ratio: the part of the peak that a decay ends with.
      schedule: "constant"; "cosine" or "linear" down to `end_ratio` of the peak at the last step;
        "exponential" from `decay_from` on, reaching `end_ratio` at the last step (Parti: from step
        85,000 to 0.025 at 450,000).
      matrix_rate: of Muon, the peak for its matrices, with the same schedule; `learning_rate` is
        for the rest.
      decay_from: first step of the exponential decay.
      b1, b2, eps: of Adam. Of Adafactor b1 is the momentum and b2 the limit that the decay rate 1 -
        t^-0.8 grows to.
      weight_decay: decoupled, times the learning rate; biases and gains, stacked over layers or
        not, are not decayed, and with "muon" nothing but its matrices is.
      clip_norm: global norm that gradients are clipped to; 0: no clipping.
    """

    name: str = "adamw"
    learning_rate: Positive = 3e-4
    warmup_steps: int = 0
    matrix_rate: Positive = 0.02
    schedule: str = "constant"
    end_ratio: float = 0.1
    decay_from: int = 0
    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        check_types(self, "optim")
        one_of("optim.name", self.name, _OPTIMISERS)
        one_of("optim.schedule", self.schedule, _SCHEDULES)
        for name, usual in (("learning_rate", 3e-4), ("matrix_rate", 0.02)):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(
                    f"optim.{name}={getattr(self, name)} is not a positive number; try {usual:g}."
                )
        for name in ("warmup_steps", "decay_from", "weight_decay", "clip_norm", "end_ratio"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"optim.{name}={getattr(self, name)} is below 0; use 0 to leave it out."
                )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name}={getattr(self, name)} is outside [0, 1); try 0.9.")
        if self.schedule == "exponential" and self.end_ratio == 0:
            raise UserError(
                "optim.end_ratio=0 can't be reached by an exponential decay; try 0.025."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found, schedule, name = {}, f"schedule={self.schedule!r}", f"name={self.name!r}"
        if self.schedule == "constant":
            found["end_ratio"] = schedule
        if self.schedule != "exponential":
            found["decay_from"] = schedule
        if self.name != "muon":
            found["matrix_rate"] = name
        if self.name != "adamw":
            found["eps"] = name
        return found


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate by step, for a run of `steps` steps."""
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.end_ratio),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_ratio, rest),
        "exponential": lambda: optax.exponential_decay(
            peak,
            max(steps - max(config.decay_from, warmup), 1),
            config.end_ratio,
            transition_begin=max(config.decay_from - warmup, 0),
            end_value=peak * config.end_ratio,
        ),
    }[config.schedule]()
    rate = (
        optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
        if warmup
        else after
    )
    return lambda step: computed_once(jnp.asarray(rate(step)))


def make(
    config: OptimConfig, steps: int, decayed: Any = None, matrices: Any = None
) -> optax.GradientTransformation:
    """The optax transformation that a configuration describes.

    Args:
      steps: of the run, for the schedule.
      decayed: a bool per parameter, those that weight decay pulls to 0; None: arrays with more than
        one axis.
      matrices: per parameter `MATRIX` or `KERNEL`, by whose axes Muon orthogonalises it, or None,
        which leaves it to Adam; None for all: arrays with two axes are matrices.
    """
    clip = [_clip(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        return optax.chain(*clip, _muon(config, steps, matrices))
    mask = (
        decayed
        if decayed is not None
        else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    )
    decay = (
        [optax.add_decayed_weights(config.weight_decay, mask=mask)] if config.weight_decay else []
    )
    if config.name == "adamw":
        rule = [optax.scale_by_adam(config.b1, config.b2, config.eps)]
    else:

        def decay_rate(i, exponent):
            # Shazeer & Stern 2018, sec. 7.2
            return jnp.minimum(config.b2, 1 - (i + 1.0) ** -exponent)

        rule = [
            optax.scale_by_factored_rms(decay_rate=0.8, decay_rate_fn=decay_rate),
            optax.clip_by_block_rms(1.0),
        ]
        rule += [optax.ema(config.b1, debias=False)] if config.b1 else []
    return optax.chain(
        *clip, *rule, *decay, optax.scale_by_learning_rate(learning_rate(config, steps))
    )


_SMALL = 2**16  # numbers of an array that is summed in one row with others


def global_norm(grads: Any) -> Array:
    """The root of the sum of all squares.

    On a single CPU small float32 arrays are put into one row before: two kernels in place of two
    for each of them, which are an eighth of all in the step of `configs/imagen/shapes.py`.
    """
    if not sharding.on_one_cpu():
        return optax.global_norm(grads)
    leaves = jax.tree.leaves(grads)
    small = [leaf for leaf in leaves if leaf.size <= _SMALL and leaf.dtype == jnp.float32]
    rest = [leaf for leaf in leaves if leaf.size > _SMALL or leaf.dtype != jnp.float32]
    row = [jnp.concatenate([leaf.reshape(-1) for leaf in small])] if small else []
    return optax.global_norm(row + rest)


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """A transformation that clips gradients to a global norm of at most `limit`; who knows their
    norm gives it as `norm`.
    """

    def update(updates, state, params=None, norm=None, **extra):
        norm = global_norm(updates) if norm is None else norm
        factor = computed_once(jnp.where(norm < limit, 1.0, limit / norm))
        return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def holding(
    rule: optax.GradientTransformation, params: Any, names: Sequence[str]
) -> optax.GradientTransformation:
    """The rule, but parameters of these names stay as they are, whatever decay would do to them.

    Args:
      params: of the group, or their shapes. names: keys of `params`, or paths below them
        ("encoder/norm"), each with all that is inside; none: the rule itself.
    """
    held = held_of(params, names)
    if held is None:
        return rule
    return optax.chain(rule, optax.masked(optax.set_to_zero(), held))


def held_of(params: Any, names: Sequence[str]) -> Any:
    """A tree that says of each parameter whether `names`, as of `holding`, name it; None where
    there are no names.
    """
    if not names:
        return None
    wanted = {tuple(name.split("/")) for name in names}

    def is_held(path, _):
        keys = tuple(key.key for key in path)
        return any(keys[:end] in wanted for end in range(1, len(keys) + 1))

    return jax.tree_util.tree_map_with_path(is_held, sharding.unbox(params))


def updates_made(opt_state: Any, otherwise: Any) -> Any:
    """The number of updates that an optimiser has made, by its own count; `otherwise` where it
    keeps none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    counts = (leaf for path, leaf in leaves if path and getattr(path[-1], "name", "") == "count")
    return next(counts, otherwise)


def _muon(config, steps, matrices):
    def axes(params):
        return jax.tree.map(lambda leaf: MATRIX if leaf.ndim == 2 else None, params)

    return muon(
        learning_rate(dataclasses.replace(config, learning_rate=config.matrix_rate), steps),
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        matrices=axes if matrices is None else matrices,
    )
