"""A part of a program that a single CPU compiles on its own."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.train.subprogram import subprogram


@pytest.mark.parametrize("single", [True, False])
def test_it_is_the_function_in_a_program_of_its_own(single):
    def part(x, scale):
        return {"y": jnp.sin(x) * scale, "where": jnp.where(x > 0, x, scale)}

    def whole(x):
        return subprogram(part, subprogram(part, x, 2.0)["y"], 3.0)

    x = jnp.arange(-3.0, 3.0)
    with jax.set_mesh(sharding.make_mesh()) if single else contextlib.nullcontext():
        program = jax.jit(whole).lower(x).compile()
        made = program(x)
    # each one is a call, and nothing in it (such as `where`) is another
    assert program.as_text().count(" call(") == 2 * single
    expected = part(part(x, 2.0)["y"], 3.0)
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-6)
