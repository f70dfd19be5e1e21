"""Seeds: below 2^32 JAX's own keys, above them other ones, all else refused."""

import jax
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.seeds import key_of, keys_of
from t2i_jax.systems import batching


def _bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_small_seeds_are_those_of_jax_and_every_bit_counts():
    small = (0, 1, 2**31, 2**32 - 1)
    assert [_bits(key_of("seed", s)) for s in small] == [_bits(jax.random.key(s)) for s in small]
    seeds = [0, *(2**bit for bit in range(63)), 2**63 - 1]
    assert len({_bits(key_of("seed", seed)) for seed in seeds}) == len(seeds)
    with jax.enable_x64(True):
        assert _bits(jax.random.key(2**40 + 3)) == _bits(key_of("seed", 2**40 + 3))


def test_many_keys_at_once_are_those_of_their_seeds():
    seeds = [0, 7, 2**32 - 1, 2**32 + 7, 2**63 - 1]
    for impl in ("threefry2x32", "rbg"):
        with jax.default_prng_impl(impl):
            assert [_bits(key) for key in keys_of("seed", seeds)] == [
                _bits(key_of("seed", seed)) for seed in seeds
            ]
    with pytest.raises(UserError, match="seed=-1"):
        keys_of("seed", [3, -1])


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_too(impl):
    with jax.default_prng_impl(impl):
        assert _bits(key_of("seed", 7)) == _bits(jax.random.key(7))
        assert _bits(key_of("seed", 2**32 + 7)) != _bits(key_of("seed", 7))


def test_anything_else_is_one_sentence():
    for seed in (-1, 2**63, 2**64, 10**6000, 0.0, "1", None, True, np.float32(1)):
        with pytest.raises(UserError, match="train.seed=.* is not a whole number from 0 to") as e:
            key_of("train.seed", seed)
        assert len(str(e.value)) < 200


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 12])
def test_a_list_of_seeds_has_one_for_each_prompt_or_for_each_image(count):
    """Three prompts, two images of each, and of each image two candidates."""
    arguments = ({"text": np.arange(3)}, 12, 4, list(range(count)), 5)
    if count not in (3, 6):
        with pytest.raises(UserError, match=f"seed has {count} numbers? for 6 images of 3 prompts"):
            batching.batches(*arguments, candidates=2)
        return
    rows = list(batching.batches(*arguments, candidates=2))
    keys = np.concatenate([jax.random.key_data(one.keys_B)[: one.count] for one in rows])
    each = 12 // count
    wanted = [
        jax.random.key_data(jax.random.fold_in(key_of("seed", i // each), i % each))
        for i in range(12)
    ]
    np.testing.assert_array_equal(keys, wanted)
