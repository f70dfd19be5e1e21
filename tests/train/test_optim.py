"""Optimisers: schedules by their corner values, decay and clipping by one update, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.train import optim
from t2i_jax.train.optim import OptimConfig


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (dict(), 100, {0: 1.0, 100: 1.0}),
        (dict(warmup_steps=10), 100, {0: 0.0, 5: 0.5, 10: 1.0, 100: 1.0}),
        (dict(schedule="linear", warmup_steps=10, end_ratio=0.2), 110, {10: 1.0, 60: 0.6, 110: 0.2, 200: 0.2}),
        (dict(schedule="cosine", end_ratio=0.0), 100, {0: 1.0, 50: 0.5, 100: 0.0}),
        # Parti: 5,000 steps of warm-up, exponential decay from step 85,000 to a ratio of 0.025 at 450,000.
        (
            dict(schedule="exponential", warmup_steps=5_000, decay_from=85_000, end_ratio=0.025),
            450_000,
            {5_000: 1.0, 85_000: 1.0, 267_500: 0.025**0.5, 450_000: 0.025, 500_000: 0.025},
        ),
    ],
)
def test_the_learning_rate_takes_its_values_at_the_corners(settings, steps, expected):
    rate = optim.learning_rate(OptimConfig(learning_rate=2.0, **settings), steps)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(2 * value, rel=1e-5, abs=1e-7)


def _update(settings, gradient, params):
    rule = optim.make(OptimConfig(learning_rate=0.1, **settings), 10)
    return rule.update(gradient, rule.init(params), params)[0]


def test_adamw_is_optax_s_on_matrices_and_does_not_decay_vectors():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    gradient = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    ours = _update(dict(weight_decay=0.5, clip_norm=0.0), gradient, params)
    rule = optax.adamw(0.1, 0.9, 0.99, 1e-8, weight_decay=0.5)
    theirs = rule.update(gradient, rule.init(params), params)[0]
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-6)
    np.testing.assert_allclose(ours["bias"], theirs["bias"] + 0.1 * 0.5 * 3.0, rtol=1e-5)


def test_gradients_are_clipped_together_before_the_rule_sees_them():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 2))}
    gradient = {"a": jnp.full((2, 2), 3.0), "b": jnp.full((2, 2), 4.0)}
    rule = optim.make(OptimConfig(clip_norm=1.0), 10)
    seen = rule.update(gradient, rule.init(params), params)[1]
    first_moment = next(s for s in jax.tree.leaves(seen, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    assert float(optax.global_norm(first_moment)) == pytest.approx(0.1 * 1.0, rel=1e-5)  # (1 - b1) of the clipped norm


def test_adafactor_stores_rows_and_columns_and_descends():
    params = {"kernel": jnp.ones((128, 256))}
    rule = optim.make(OptimConfig(name="adafactor", learning_rate=0.01, b2=0.96, weight_decay=0.045), 10)
    state = rule.init(params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes[-1] == 128 * 256 and sizes[-2] == 256  # one full-sized array: the momentum
    loss = lambda p: jnp.sum(p["kernel"] ** 2)
    for _ in range(3):
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert float(loss(params)) < 128 * 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="adamx"), "did you mean 'adamw'"),
        (dict(schedule="cosin"), "did you mean 'cosine'"),
        (dict(learning_rate=0.0), r"optim.learning_rate=0.0 is not a positive"),
        (dict(learning_rate=float("nan")), "is not a positive"),
        (dict(warmup_steps=-1), r"optim.warmup_steps=-1 is below 0"),
        (dict(b1=1.0), r"optim.b1=1.0 is outside"),
        (dict(schedule="exponential", end_ratio=0.0), "end_ratio=0"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**settings)


def test_it_survives_json():
    given = OptimConfig(name="adafactor", clip_norm=4.0)
    assert config.from_dict(config.to_dict(given), {"OptimConfig": OptimConfig}) == given
