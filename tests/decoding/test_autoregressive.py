"""The loop over tokens, with a network that is a table: what follows which token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.decoding.autoregressive import Sampling, generate
from t2i_jax.errors import UserError

_V, _N = 9, 6
_TABLE = jax.random.normal(jax.random.key(4), (_N, _V, _V))


def _decode(ids_B, position, cache):
    """Logits that depend on position, on the token before and, through the cache, on all earlier
    ones.
    """
    seen = cache["sum"] + jnp.where(position == 0, 0, ids_B)
    return _TABLE[position, seen % _V] + cache["text"][:, None], {**cache, "sum": seen}


def _cache(rows):
    return {"sum": jnp.zeros(rows, jnp.int32), "text": jnp.zeros(rows)}


def _keys(rows, first=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(
        jnp.arange(first, first + rows)
    )


def test_greedy_is_the_argmax_chain():
    got = generate(
        _decode, _cache(1), _keys(1), _N, sampling=Sampling(guided=False), temperature=0.0
    )
    total, expected = 0, []
    for t in range(_N):
        expected.append(int(jnp.argmax(_TABLE[t, total % _V])))
        total += expected[-1]
    assert got.tolist() == [expected]


def test_rows_do_not_depend_on_the_batch():
    sampling = Sampling(guided=False, top_k=5)

    def draw(rows, first):
        return generate(_decode, _cache(rows), _keys(rows, first), _N, sampling=sampling)

    whole = draw(4, 0)
    assert np.array_equal(whole[2:3], draw(1, 2))
    assert len({tuple(row) for row in whole.tolist()}) > 1


def test_known_tokens_are_kept_and_shape_what_follows():
    given = jnp.full((2, _N), 3)
    known = jnp.arange(_N)[None] < jnp.array([[2], [_N]])
    options = {"sampling": Sampling(guided=False), "temperature": 0.0}
    got = generate(_decode, _cache(2), _keys(2), _N, given_BN=given, known_BN=known, **options)
    assert got[0, :2].tolist() == [3, 3] and got[1].tolist() == [3] * _N
    assert int(got[0, 2]) == int(jnp.argmax(_TABLE[2, 6]))


def test_guidance_works_on_both_halves_with_one_token():
    def decode(ids_B, position, cache):
        logits = jnp.where(cache["null"][:, None], jnp.arange(3.0) * 2, jnp.array([0.0, 3.0, 2.9]))
        return logits, {**cache, "ids": ids_B}

    cache = {"null": jnp.array([False, True]), "ids": jnp.zeros(2, jnp.int32)}
    options = {"sampling": Sampling(), "temperature": 0.0}

    def got(scale):
        return int(generate(decode, cache, _keys(1), 1, guidance=scale, **options)[0, 0])

    assert got(1.0) == 1 and got(0.0) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_k": "2"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": "x"},
        {"top_p": (0.5,)},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(UserError, match="try"):
        Sampling(**options)


def test_a_fraction_of_the_vocabulary_and_a_nucleus_restrict_the_draw():
    for sampling in (Sampling(guided=False, top_k=1 / _V), Sampling(guided=False, top_p=1e-6)):
        got = generate(_decode, _cache(2), _keys(2), _N, sampling=sampling, temperature=5.0)
        greedy = generate(
            _decode, _cache(2), _keys(2), _N, sampling=Sampling(guided=False), temperature=0.0
        )
        assert np.array_equal(got, greedy)
