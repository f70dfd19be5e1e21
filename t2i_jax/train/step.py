"""One training step: every objective in turn, gradient accumulation, a guard against non-finite
numbers, EMA.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t2i_jax import sharding
from t2i_jax.train import ema as moving_average
from t2i_jax.train import optim
from t2i_jax.train.scalar import computed_once
from t2i_jax.train.subprogram import subprogram
from t2i_jax.types import Array, Batch, Metrics, Objective, Task, TrainState


def train_step(
    state: TrainState,
    frozen: Any,
    batch: Batch,
    *,
    task: Task,
    optimisers: Mapping[str, optax.GradientTransformation],
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """The state after one step, and its metrics.

    Objectives run in order, each with gradients for its own group and with the updates of those
    before it. Groups without one stay as they are, their EMA too. A non-finite loss or gradient of
    any of them leaves parameters, optimiser, EMA and stats as they were.

    Args:
      batch: arrays whose first axis is a multiple of `accumulate`.
      ema_decay: decay of the EMA; 0: none is kept.
      accumulate: micro-batches, which run one after the other; gradients and metrics are means over
        them.
    """
    params, stats, objectives = dict(state.params), state.stats, task.objectives
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(objectives) + 1)
    metrics: dict[str, Array] = {}
    gradients: dict[str, Any] = {}
    finite = jnp.bool_(True)
    # traced once, although a group may be moved for the objectives after it and again in the end
    moves = {group: jax.jit(functools.partial(_move, rule)) for group, rule in optimisers.items()}
    for objective, key in zip(objectives, keys[1:], strict=True):
        group = objective.group
        loss, new, stats, grads = subprogram(
            functools.partial(_gradients, objective, accumulate),
            *(params, stats, frozen, batch, key, state.step),
        )
        norm = optim.global_norm(grads)
        finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
        gradients[group] = grads, norm
        if objective is not objectives[-1]:  # those after it see its update
            params[group], _ = moves[group](params[group], state.opt_state[group], grads, norm)
        metrics |= {**new, f"grad_norm/{group}": norm}

    def update(old, gradients, stats):
        params, opt_state, averages = map(dict, old[:3])
        for group, (grads, norm) in gradients.items():
            params[group], opt_state[group] = moves[group](
                params[group], opt_state[group], grads, norm
            )
        params, stats = task.after_update(params, stats, batch, keys[0], state.step)
        ema = {
            group: average if group not in gradients else moving_average.update(
                average, params[group], optim.updates_made(old[1][group], state.step), ema_decay,
                optim.held_of(params[group], task.held.get(group, ())),
            )
            for group, average in averages.items()
        }  # fmt: skip
        return dict(params), opt_state, ema, stats

    old = dict(state.params), dict(state.opt_state), dict(state.ema), state.stats
    kept = _where_finite(computed_once(finite), update, old, gradients, stats)
    total, in_a_row = state.skipped
    skipped = jnp.where(finite, jnp.stack([total, 0 * total]), jnp.stack([total + 1, in_a_row + 1]))
    metrics["skipped"] = skipped[0]
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        params=kept[0],
        opt_state=kept[1],
        ema=kept[2],
        stats=kept[3],
        skipped=skipped,
    )
    return after, metrics


def micro_batches(batch: Batch, accumulate: int) -> Batch:
    """The micro-batches of a batch, along a first axis of that length.

    They are interleaved, not consecutive, so that each device keeps its own rows.
    """
    return jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)


def _move(rule: optax.GradientTransformation, params, opt_state, grads, norm):
    """The parameters and the state of their optimiser after an update."""
    rule = optax.with_extra_args_support(rule)
    updates, opt_state = rule.update(grads, opt_state, params, norm=norm)
    return optax.apply_updates(params, updates), opt_state


def _where_finite(finite: Array, update, old, *rest):
    """The result of `update(old, *rest)`, or `old` where a number is not finite.

    On a single CPU a branch takes less to compile than a choice for every array; other devices
    would wait for a branch.
    """
    if sharding.on_one_cpu():
        return jax.lax.cond(finite, update, lambda old, *_: old, old, *rest)
    return jax.tree.map(lambda new, old: jax.lax.select(finite, new, old), update(old, *rest), old)


def _gradients(objective: Objective, accumulate, params, stats, frozen, batch, key, step):
    """The (loss, metrics, stats, gradients for the group), means over the micro-batches."""

    def loss_of(moved, stats, micro_batch, key):
        return objective.loss(
            {**params, objective.group: moved}, stats, frozen, micro_batch, key, step
        )

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    moved = params[objective.group]
    if accumulate == 1:
        (loss, (metrics, stats)), grads = value_and_grad(moved, stats, batch, key)
        return loss, metrics, stats, grads

    def add_micro_batch(carry, inputs):
        stats, sums = carry
        (loss, (metrics, stats)), grads = value_and_grad(moved, stats, *inputs)
        return (stats, jax.tree.map(jnp.add, sums, (loss, metrics, grads))), None

    inputs = (micro_batches(batch, accumulate), jax.random.split(key, accumulate))
    first = jax.tree.map(lambda x: x[0], inputs)
    shapes = jax.eval_shape(lambda: value_and_grad(moved, stats, *first))
    (loss, (metrics, _)), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (stats, sums), _ = jax.lax.scan(add_micro_batch, (stats, (loss, metrics, grads)), inputs)
    loss, metrics, grads = jax.tree.map(lambda x: x / accumulate, sums)
    return loss, metrics, stats, grads
