"""Quantiles by halving are those of sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion.quantile import quantile


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("count", [1, 2, 192, 3072])
def test_it_is_that_of_sorted_numbers(share, count, key):
    sizes_BN = jnp.abs(jax.random.normal(key, (3, count))).at[0, : count // 2].set(0.25)
    found_B = jax.jit(lambda sizes_BN: quantile(sizes_BN, share))(sizes_BN)
    np.testing.assert_allclose(found_B, jnp.quantile(sizes_BN, share, axis=-1), rtol=1e-6)


def test_the_ends_of_what_a_float_holds(key):
    sizes_BN = jnp.asarray([[0.0, 1e-45, 3e38, jnp.inf], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(quantile(sizes_BN, 1.0), [jnp.inf, 0.0])
    np.testing.assert_array_equal(quantile(sizes_BN, 0.0), [0.0, 0.0])


def test_no_number_counts_as_the_largest(key):
    sizes_BN = jnp.asarray([[jnp.nan, 1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(quantile(sizes_BN, 0.25), [2.0])
    assert np.isnan(quantile(sizes_BN, 1.0))
