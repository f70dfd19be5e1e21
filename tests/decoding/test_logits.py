"""Filters and draws against sorting and counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.decoding.logits import guide, largest, plausible, sample, top_k, top_p


def _logits(key, rows=4, vocabulary=50):
    return 3 * jax.random.normal(key, (rows, vocabulary)) * jnp.array([[1.0], [1e-3], [1e4], [1.0]])


@pytest.mark.parametrize("k", [1, 7, 49, 50, 80])
def test_top_k_keeps_the_k_largest(key, k):
    logits = _logits(key)
    kept = np.isfinite(top_k(logits, k))
    rank = np.argsort(np.argsort(-np.asarray(logits), axis=-1), axis=-1)
    assert np.array_equal(kept, rank < k)
    np.testing.assert_array_equal(np.where(kept, top_k(logits, k), 0), np.where(kept, logits, 0))


def test_top_k_keeps_ties_and_survives_minus_infinity():
    logits = jnp.array([[1.0, 2.0, 2.0, -jnp.inf, 0.0]])
    assert np.isfinite(top_k(logits, 1)).tolist() == [[False, True, True, False, False]]
    assert np.isfinite(top_k(logits, 5)).sum() == 4


@pytest.mark.parametrize("p", [1e-46, 1e-6, 0.3, 0.9])
def test_top_p_keeps_the_smallest_nucleus(key, p):
    logits = _logits(key)[jnp.array([0, 1, 3])]
    kept = np.isfinite(top_p(logits, p))
    probability = np.asarray(jax.nn.softmax(logits))
    for row, of_row in zip(kept, probability, strict=True):
        order = np.argsort(-of_row)
        needed = int(np.searchsorted(np.cumsum(of_row[order]), p - 1e-6)) + 1
        assert set(np.flatnonzero(row)) == set(order[: min(needed, len(order))])


def test_top_p_of_one_drops_nothing(key):
    np.testing.assert_array_equal(top_p(_logits(key), 1.0), _logits(key))


def test_guidance_of_one_is_the_conditional_and_of_zero_the_null(key):
    a, b = jax.random.normal(key, (2, 3, 5))
    np.testing.assert_allclose(guide(a, b, 1.0), a, atol=1e-6)
    np.testing.assert_array_equal(guide(a, b, 0.0), b)


def test_draws_follow_the_softmax(key):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2, 1e-30]))
    keys = jax.random.split(key, 20_000)
    for temperature, expected in ((1.0, [0.5, 0.3, 0.2, 0]), (0.5, np.array([25, 9, 4, 0]) / 38)):
        ids = sample(keys, jnp.broadcast_to(logits, (20_000, 4)), temperature)
        np.testing.assert_allclose(np.bincount(ids, minlength=4) / 20_000, expected, atol=0.015)


def test_temperature_zero_is_the_likeliest_and_dropped_tokens_are_never_drawn(key):
    logits = _logits(key)
    keys = jax.random.split(key, 4)
    assert np.array_equal(sample(keys, logits, 0.0), jnp.argmax(logits, -1))
    assert np.array_equal(sample(keys, top_k(logits, 1), 100.0), jnp.argmax(logits, -1))


def test_the_largest_is_the_first_of_equal_ones(key):
    x = np.array(jax.random.normal(key, (6, 9)).round(1))
    x[0], x[1, 3], x[2, [4, 7]], x[3, 8] = -np.inf, -np.inf, 5.0, 5.0
    x[4, [1, 5]] = np.inf
    found = jax.jit(largest)(x)
    assert found.dtype == jnp.int32 and np.array_equal(found, np.argmax(x, -1))


def test_what_the_conditional_model_finds_implausible_is_out_whatever_guidance_says(key):
    conditional, null = 3 * jax.random.normal(key, (2, 4, 50))
    guided = guide(conditional, null, 6.0)
    np.testing.assert_array_equal(plausible(guided, conditional, 0.0), guided)
    probability = np.asarray(jax.nn.softmax(conditional))
    for share in (0.01, 0.1, 1.0):
        found = plausible(guided, conditional, share)
        kept = probability >= share * probability.max(-1, keepdims=True)
        assert np.array_equal(np.isfinite(found), kept) and kept.any(-1).all()
        np.testing.assert_array_equal(np.where(kept, found, 0), np.where(kept, guided, 0))
    assert np.array_equal(plausible(guided, conditional, 1.0).argmax(-1), conditional.argmax(-1))
