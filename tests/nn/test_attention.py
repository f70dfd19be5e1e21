"""Attention against plain formulas, and its cached step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn import embed
from t2i_jax.nn.attention import MultiHeadAttention, MultiQueryAttention
from t2i_jax.nn.row_sums import add_to_all
from t2i_jax.on_host import initialise


def _normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _made(module, *args):
    return initialise(lambda key: module.init(key, *args), jax.random.key(1))


def test_multi_head_is_the_formula():
    x = _normal(2, 5, 12)
    module = MultiHeadAttention(dim=12, heads=3, dim_head=4)
    variables = _made(module, x)
    mask = np.ones((2, 5), bool)
    mask[0, 3:] = False
    got = jax.jit(module.apply)(variables, x, mask=mask[:, None, None])
    p = {name: np.asarray(leaf["kernel"]) for name, leaf in variables["params"].items()}

    def heads(name):
        return (np.asarray(x) @ p[name]).reshape(2, 5, 3, 4)

    scores = np.einsum("bqhd,bkhd->bhqk", heads("q"), heads("k")) / 2
    weights = np.exp(scores) * mask[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, heads("v")).reshape(2, 5, 12) @ p["out"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_causal_position_has_no_gradient_from_the_future():
    x = _normal(1, 4, 8)
    module = MultiHeadAttention(dim=8, heads=2, dim_head=4)
    variables = _made(module, x)
    seen = jax.jit(jax.jacobian(lambda x: module.apply(variables, x, causal=True)[0].sum(-1)))(x)[
        :, 0
    ]
    depends = np.abs(seen).max(-1) > 0
    assert np.array_equal(depends, np.tril(np.ones((4, 4), bool)))


def test_multi_query_without_visible_keys_gives_the_null_vector():
    x, context = _normal(2, 3, 8), _normal(2, 4, 6)
    module = MultiQueryAttention(dim=8, heads=2, dim_head=4)
    variables = _made(module, x, context)
    got = jax.jit(module.apply)(variables, x, context, np.zeros((2, 1, 4), bool))
    params = variables["params"]
    expected = np.tile(params["null_kv"], 2) @ np.asarray(params["to_out"]["kernel"])
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-6)


def test_multi_query_step_is_the_last_position():
    x = _normal(2, 5, 8)
    module = MultiQueryAttention(dim=8, heads=2, dim_head=4, null_scale=1.0, out_norm=True)
    variables = _made(module, x)
    bias_QHK = _normal(5, 2, 5)
    mask = np.tril(np.ones((1, 5, 5), bool))
    whole = np.asarray(jax.jit(module.apply)(variables, x, mask=mask, bias_QHK=bias_QHK))
    keys = jax.jit(lambda x: module.apply(variables, x, normalised=True, method="keys"))(x)
    step = jax.jit(functools.partial(module.apply, method="step"))
    for t in (0, 2, 4):
        got = step(variables, x[:, t], keys, np.arange(5)[None] <= t, bias_QHK[t])
        np.testing.assert_allclose(got, whole[:, t], atol=1e-5)


def test_dropout_needs_no_rng_when_deterministic_and_changes_the_output_otherwise(key):
    x = _normal(1, 3, 8)
    module = MultiQueryAttention(dim=8, heads=2, dim_head=4, dropout=0.5)
    variables = _made(module, x)
    quiet = jax.jit(module.apply)(variables, x)
    dropping = functools.partial(module.apply, deterministic=False)
    loud = jax.jit(dropping)(variables, x, rngs={"dropout": key})
    assert not np.allclose(quiet, loud)


@pytest.mark.parametrize("side", [2, 3])
def test_relative_bias_reads_the_table_by_offset(side):
    table = _normal((2 * side - 1) ** 2, 2)
    bias = np.asarray(jax.jit(embed.relative_bias, static_argnums=1)(table, side))
    row_of = jax.jit(embed.relative_bias_row, static_argnums=1)
    for q in range(side**2):
        for k in range(side**2):
            row, column = q // side - k // side + side - 1, q % side - k % side + side - 1
            np.testing.assert_array_equal(bias[q, :, k], table[row * (2 * side - 1) + column])
        np.testing.assert_array_equal(row_of(table, side, q), bias[q])


def test_a_bias_for_the_whole_batch_gets_the_sum_of_its_rows_gradients():
    x, bias, weight = _normal(3, 4, 5), _normal(4, 5), _normal(2, 3, 4, 5)[1]

    def loss(add):
        return lambda x, bias: jnp.sum(weight * add(x, bias) ** 2)

    ours, theirs = (jax.jit(jax.grad(loss(add), (0, 1)))(x, bias) for add in (add_to_all, jnp.add))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)
