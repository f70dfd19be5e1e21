"""Sampling of masked tokens on a network that is a table: schedule, order, what is kept, rows on
their own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.decoding import masked
from t2i_jax.decoding.masked import Sampling
from t2i_jax.errors import UserError

_TOKENS, _CODES = 16, 8
_TABLE = np.random.default_rng(0).normal(size=(_TOKENS, _CODES)).astype(np.float32) * 2


def _predict(ids_BN, memory):
    """Logits that depend on the place, and on how many tokens are masked."""
    masked_B = jnp.sum(ids_BN == _CODES, axis=-1)
    logits = jnp.broadcast_to(_TABLE, (*ids_BN.shape, _CODES))
    return logits + 0.01 * masked_B[:, None, None], memory


@functools.partial(jax.jit, static_argnames="sampling")
def _generate(keys, sampling, **options):
    return masked.generate(_predict, keys, _TOKENS, _CODES, sampling=sampling, **options)


def _keys(*seeds):
    return jnp.stack([jax.random.key(seed) for seed in seeds])


_PLAIN = Sampling(steps=6, guided=False)


def test_every_token_is_drawn_and_a_cold_one_is_the_likeliest():
    ids, trace = _generate(_keys(0, 1), _PLAIN, temperature=0.0)
    np.testing.assert_array_equal(ids, np.broadcast_to(_TABLE.argmax(-1), ids.shape))
    assert trace.shape == (6, 2, _TOKENS) and (np.asarray(trace) < _CODES).all()


def test_a_row_does_not_depend_on_the_others():
    both, _ = _generate(_keys(3, 4), _PLAIN, temperature=3.0)
    alone, _ = _generate(_keys(4, 3), _PLAIN, temperature=3.0)
    np.testing.assert_array_equal(both[1], alone[0])
    assert not np.array_equal(both[0], both[1])


def test_fewer_tokens_change_from_step_to_step():
    _, trace = _generate(_keys(*range(40)), _PLAIN, temperature=3.0)
    changed = (np.diff(np.asarray(trace), axis=0) != 0).sum((1, 2))
    shares = masked.cosine_schedule(6)
    assert shares[0] == 1 and shares[-1] < 1e-6 and (np.diff(shares) < 0).all()
    most = np.maximum(np.int32(shares[1:] * _TOKENS), 1) * 40
    assert (changed <= most).all() and changed[0] > changed[-1]


def test_known_tokens_are_kept_and_the_others_drawn():
    given = jnp.zeros((2, _TOKENS), jnp.int32)
    known = jnp.broadcast_to(jnp.arange(_TOKENS) % 3 == 0, given.shape)
    ids, trace = _generate(_keys(0, 1), _PLAIN, temperature=0.0, given_BN=given, known_BN=known)
    assert (np.asarray(trace)[:, known] == 0).all()
    np.testing.assert_array_equal(ids[0][~known[0]], _TABLE.argmax(-1)[~known[0]])
    everything = jnp.ones_like(known)
    ids, _ = _generate(_keys(0, 1), _PLAIN, given_BN=given, known_BN=everything)
    assert (np.asarray(ids) == 0).all()


def test_halton_spreads_the_first_tokens_over_the_image():
    order = masked._order("halton", 64)
    assert sorted(-order) == list(range(64))
    first = np.flatnonzero(order > -8)  # the eight that are kept first
    assert {(p // 8 // 4, p % 8 // 4) for p in first} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    ids, _ = _generate(_keys(0), Sampling(steps=4, guided=False, order="halton"), temperature=0.0)
    np.testing.assert_array_equal(ids[0], _TABLE.argmax(-1))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(steps=0), "steps=0 is not a count from 1; try 24"),
        (dict(steps=True), "steps=True is not a count"),
        (dict(order="sure"), "order='sure' is not known"),
    ],
)
def test_refusals(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Sampling(**fields)
