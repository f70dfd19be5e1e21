"""Group norm is Flax's, with its gradients, whatever the form in which the platform computes it."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.nn.group_norm import group_norm


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (3, 6), (6, 6)])
def test_it_is_that_of_flax_with_its_gradients(key, groups, channels):
    x_BHWC = jax.random.normal(key, (2, 4, 5, channels)) * 3 + 2
    params = {
        "scale": jnp.linspace(0.5, 2.0, channels),
        "bias": jnp.linspace(-1.0, 1.0, channels),
    }
    theirs = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)

    def run(norm):
        y, back = jax.vjp(lambda params, x: norm.apply({"params": params}, x), params, x_BHWC)
        return y, *back(jnp.sin(x_BHWC))

    wanted, found = run(theirs), run(group_norm(groups, "norm"))
    chex.assert_trees_all_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_its_parameters_and_types(key):
    norm = group_norm(2, "norm", "bfloat16")
    x_BHWC = jax.random.normal(key, (2, 3, 3, 4), jnp.bfloat16)
    params = sharding.unbox(norm.init(key, x_BHWC))["params"]
    assert {name: value.dtype for name, value in params.items()} == {
        "scale": jnp.float32, "bias": jnp.float32,
    }  # fmt: skip
    assert norm.apply({"params": params}, x_BHWC).dtype == jnp.bfloat16


def test_a_constant_map_is_the_shift():
    norm, x_BHWC = group_norm(2, "norm"), jnp.full((1, 2, 2, 4), 7.0)
    params = {"scale": jnp.ones(4), "bias": jnp.arange(4.0)}
    found = norm.apply({"params": params}, x_BHWC)
    np.testing.assert_allclose(found, np.broadcast_to(np.arange(4.0), (1, 2, 2, 4)), atol=1e-6)
