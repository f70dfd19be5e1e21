"""One step: groups in order, accumulation, skipped updates, averages.

Each as a single CPU compiles it, and as other devices do. One compiled program per variant.
"""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2i_jax import sharding
from t2i_jax.train import ema, optim
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.state import init_state
from t2i_jax.train.step import train_step

from .toy import ToyBatches, ToyTask

_TASK = ToyTask()
_OPTIMISERS = {
    group: optim.make(OptimConfig(learning_rate=0.01, clip_norm=0.0), 100)
    for group in ("first", "second")
}


@pytest.fixture(params=["a single CPU", "other devices"], autouse=True)
def _devices(request):
    single = request.param == "a single CPU"
    with jax.set_mesh(sharding.make_mesh()) if single else contextlib.nullcontext():
        assert sharding.on_one_cpu() == single
        yield request.param


@functools.cache
def _step(accumulate=1, task=_TASK):
    of = functools.partial(
        train_step, task=task, optimisers=_OPTIMISERS, ema_decay=0.9, accumulate=accumulate
    )
    return jax.jit(of)


def _state():
    return init_state(jax.random.key(0), task=_TASK, optimisers=_OPTIMISERS, ema_decay=0.9)


def _batch(poison=()):
    batch = next(ToyBatches(poison=poison))
    return {"x": batch["x"], "y": batch["y"]}


def test_a_step_is_the_objectives_updates_in_order():
    state, batch = _state(), _batch()
    after, metrics = _step()(state, {}, batch)

    keys = jax.random.split(jax.random.fold_in(state.key, 0), 3)
    params = dict(state.params)
    for objective, key in zip(_TASK.objectives, keys[1:], strict=True):
        group = objective.group

        def loss(moved, objective=objective, group=group, key=key):
            return objective.loss({**params, group: moved}, state.stats, {}, batch, key, 0)[0]

        gradient = jax.grad(loss)(params[group])
        update, _ = _OPTIMISERS[group].update(
            gradient, _OPTIMISERS[group].init(params[group]), params[group]
        )
        params[group] = optax.apply_updates(params[group], update)
        assert float(metrics[f"grad_norm/{group}"]) == pytest.approx(
            float(optax.global_norm(gradient)), rel=1e-5
        )

    assert after.step == 1 and list(after.skipped) == [0, 0] and after.stats["seen"] == 16
    # Compiled as a whole and op by op, sums are rounded differently.
    chex.assert_trees_all_close(dict(after.params), params, rtol=1e-4, atol=1e-6)
    assert jax.random.key_data(after.key).tolist() == jax.random.key_data(state.key).tolist()


def test_a_single_cpu_has_subprograms_and_a_branch(_devices):
    lowered = _step().lower(_state(), {}, _batch())
    single = _devices == "a single CPU"
    assert lowered.as_text().count("inlineable") == 2 * single  # gradients of its two objectives
    assert lowered.compile().as_text().count(" conditional(") == single


def test_accumulated_parts_give_the_update_of_the_whole_batch():
    state, batch = _state(), _batch()
    quiet = ToyTask(noise=0.0)  # parts draw noise of their own
    whole, metrics = _step(1, quiet)(state, {}, batch)
    parts, same = _step(4, quiet)(state, {}, batch)
    chex.assert_trees_all_close(whole.params, parts.params, rtol=1e-4, atol=1e-5)
    assert parts.stats["seen"] == 16  # stats pass through all parts
    for name, value in metrics.items():
        assert float(same[name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(accumulate):
    before, _ = _step()(_state(), {}, _batch())
    after, metrics = _step(accumulate)(before, {}, _batch(poison=(0,)))
    assert not np.isfinite(float(metrics["loss"]))
    for field in ("params", "opt_state", "ema", "stats"):
        chex.assert_trees_all_equal(getattr(after, field), getattr(before, field))
    assert after.step == 2 and list(after.skipped) == [1, 1]
    again, _ = _step()(after, {}, _batch())
    assert list(again.skipped) == [1, 0]
    assert not np.array_equal(again.params["first"]["wide"], after.params["first"]["wide"])


def test_the_average_follows_fast_at_first_and_then_by_its_decay():
    ones, zeros = {"x": jnp.ones(())}, {"x": jnp.zeros(())}
    # (1 + 0) / (10 + 0) is kept
    assert float(ema.update(zeros, ones, jnp.int32(0), 0.9)["x"]) == pytest.approx(0.9)
    assert float(ema.update(zeros, ones, jnp.int32(10_000), 0.9)["x"]) == pytest.approx(0.1)
    state = _state()
    after, _ = _step()(state, {}, _batch())
    assert set(after.ema) == {"first"}
    mean = jax.tree.map(
        lambda old, new: 0.1 * old + 0.9 * new, state.params["first"], after.params["first"]
    )
    chex.assert_trees_all_close(after.ema["first"], mean, rtol=1e-4)


def test_each_step_has_noise_of_its_own():
    state, batch = _state(), _batch()
    first = _step()(state, {}, batch)[1]["second"]
    second = _step()(state.replace(step=jnp.int32(1)), {}, batch)[1]["second"]
    assert float(first) != float(second)


def test_the_average_of_a_group_that_is_trained_later_leaves_its_random_start_as_fast():
    late = _state().replace(step=jnp.int32(10_000))  # of other groups; its own first update
    after, _ = _step()(late, {}, _batch())
    mean = jax.tree.map(
        lambda old, new: 0.1 * old + 0.9 * new, late.params["first"], after.params["first"]
    )
    chex.assert_trees_all_close(after.ema["first"], mean, rtol=1e-4)
