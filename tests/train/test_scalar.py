"""Scalars of a step: the same number, computed once in the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.train import optim
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.scalar import computed_once


@pytest.mark.parametrize("value", [0.1, -3.0, 0.0, float("nan"), float("inf"), True, False])
def test_it_is_the_scalar_itself(value):
    found = jax.jit(computed_once)(jnp.asarray(value))
    assert found.dtype == jnp.asarray(value).dtype
    np.testing.assert_array_equal(found, jnp.asarray(value))


def test_bfloat16_stays_bfloat16_beside_it():
    """A step's decay or learning rate is a number without a type of its own, and remains one."""
    half = jnp.ones(2, jnp.bfloat16)
    moved = jax.jit(lambda step: half * computed_once(step / 10.0))(jnp.int32(3))
    assert moved.dtype == jnp.bfloat16


def test_the_schedule_stands_in_a_compiled_program_once():
    """Without it, in the kernel of every parameter."""
    rate = optim.learning_rate(OptimConfig(schedule="cosine", warmup_steps=3), 10)

    def move(step, params):
        return jax.tree.map(lambda leaf: leaf - rate(step) * jnp.sin(leaf), params)

    params = {str(size): jnp.ones(size) for size in range(2, 12)}
    program = jax.jit(move).lower(jnp.int32(1), params).compile().as_text()
    assert program.count(" cosine(") == 1
