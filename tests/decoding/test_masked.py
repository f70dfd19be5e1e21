"""Sampling of masked tokens on a network that is a table: schedule, order, what is kept, rows on
their own.
"""

import dataclasses
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


@pytest.mark.parametrize(
    "changed",
    [{}, {"guided": True}, {"remask": True}, {"remask": True, "score_drawn": True}],
    ids=lambda changed: "-".join(changed) or "plain",
)
def test_logits_in_blocks_and_of_masked_tokens_alone(changed, monkeypatch):
    """As if all were made at once; a block of 5 does not divide the 16 tokens."""
    sampling = dataclasses.replace(_PLAIN, **changed)
    weights = np.random.default_rng(1).normal(size=(5, _CODES)).astype(np.float32)
    vectors = np.random.default_rng(2).normal(size=(_TOKENS, 5)).astype(np.float32)
    known = np.zeros((2, _TOKENS), bool)
    known[1, :7] = True  # rows with other numbers of tokens to draw

    def tokens(plausibility=None):
        made = []

        def logits(vectors_BMC):
            made.append(vectors_BMC.shape)
            return vectors_BMC @ weights

        def predict(ids_BN, memory):
            masked_BN = (ids_BN == _CODES)[..., None]
            halves = jnp.arange(len(ids_BN))[:, None, None] // 2  # the null rows differ
            return vectors + 0.1 * masked_BN + 0.3 * halves, memory

        return masked.generate(
            predict, _keys(0, 1), _TOKENS, _CODES, sampling=sampling, logits=logits, guidance=2.0,
            plausibility=plausibility, known_BN=known, given_BN=np.full((2, _TOKENS), 3),
        )[0], made  # fmt: skip

    whole, shapes = tokens()
    assert shapes[-1] == (2, _TOKENS, 5)
    monkeypatch.setattr(masked, "_LOGITS", 2 * 5 * _CODES)
    blocks, shapes = tokens()
    assert shapes[-1] == (2, 5, 5)
    np.testing.assert_array_equal(whole, blocks)
    assert (np.asarray(blocks)[1, :7] == 3).all() and len(np.unique(blocks)) > 3
    if sampling.guided:  # a limit that leaves out nothing: both logits instead of their vectors
        np.testing.assert_array_equal(blocks, tokens(plausibility=0.0)[0])


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


def test_strength_is_the_share_that_changes():
    """On 16 tokens the table's likeliest stand where something was masked, the others stay."""
    given = jnp.full((3, _TOKENS), 7, jnp.int32)
    best = _TABLE.argmax(-1)

    def changed(strength, **more):
        ids, _ = _generate(
            _keys(0, 1, 2), _PLAIN, temperature=0.0, given_BN=given, strength=strength, **more
        )
        assert (np.asarray(ids == 7) | np.asarray(ids == best)).all()
        return np.asarray(ids != 7) | (best == 7)[None] & np.asarray(ids == best)

    few, half = changed(0.25), changed(0.5)
    assert (few.sum(1) <= 4 + (best == 7).sum()).all() and few.sum() < half.sum()
    assert len({tuple(row) for row in few}) == 3  # another part for each row
    np.testing.assert_array_equal(changed(1.0).all(1), True)
    known = jnp.broadcast_to(jnp.arange(_TOKENS) < 8, given.shape)
    ids, trace = _generate(
        _keys(0, 1, 2), _PLAIN, temperature=0.0, given_BN=given, known_BN=known, strength=0.25
    )
    assert (np.asarray(trace)[:, :, :8] == 7).all()
    assert (np.asarray(ids[:, 8:] != 7).sum(1) <= 2).all()  # a quarter of those that may change


@functools.partial(jax.jit, static_argnames=("steps", "sampling"))
def _edit(keys, given, steps, sampling=_PLAIN, **options):
    size = (keys, _TOKENS, _CODES)
    return masked.edit(_predict, *size, given, steps=steps, sampling=sampling, **options)


def test_editing_changes_a_few_tokens_at_a_time():
    given = jnp.full((20, _TOKENS), 7, jnp.int32)
    keys = _keys(*range(20))
    ids, trace = _edit(keys, given, 5, share=0.125, temperature=0.0)
    steps = np.concatenate([given[None], np.asarray(trace)])
    changed = (np.diff(steps, axis=0) != 0).sum(-1)
    assert trace.shape == (5, 20, _TOKENS) and changed.max() == 2 and changed.sum() > 0
    np.testing.assert_array_equal(ids, trace[-1])
    alone, _ = _edit(keys[3:4], given[:1], 5, share=0.125, temperature=0.0)
    np.testing.assert_array_equal(ids[3:4], alone)
    known = jnp.broadcast_to(jnp.arange(_TOKENS) < 8, given.shape)
    ids, _ = _edit(keys, given, 5, share=1.0, known_BN=known, temperature=0.0)
    assert (np.asarray(ids[:, :8]) == 7).all()
    np.testing.assert_array_equal(ids[:, 8:], np.broadcast_to(_TABLE.argmax(-1)[8:], (20, 8)))


def test_growing_guidance_ends_at_its_value_and_a_scale_of_1_is_none():
    """With one step growing guidance has its whole value; with several less at first."""
    null = np.random.default_rng(1).normal(size=_TABLE.shape).astype(np.float32) * 2

    def predict(ids_BN, memory):
        rows = len(ids_BN) // 2
        shape = (rows, *_TABLE.shape)
        return jnp.concatenate(
            [jnp.broadcast_to(_TABLE, shape), jnp.broadcast_to(null, shape)]
        ), memory

    @functools.partial(jax.jit, static_argnames=("steps", "growing"))
    def sample(scale, steps, growing):
        sampling = Sampling(steps=steps, guided=True, growing=growing, order="halton")
        return masked.generate(
            predict, _keys(0, 1), _TOKENS, _CODES, sampling=sampling, guidance=scale,
            temperature=0.0,
        )[0]  # fmt: skip

    guided = (null + 3.0 * (_TABLE - null)).argmax(-1)
    np.testing.assert_array_equal(sample(3.0, 1, True), np.broadcast_to(guided, (2, _TOKENS)))
    np.testing.assert_array_equal(sample(3.0, 1, False), sample(3.0, 1, True))
    np.testing.assert_array_equal(sample(1.0, 4, True)[0], _TABLE.argmax(-1))
    assert not np.array_equal(sample(9.0, 4, True), sample(9.0, 4, False))


def test_a_critic_masks_again_what_it_finds_wrong():
    """It finds the first tokens wrong, which therefore change to the end, and the others never."""

    def critic(ids_BN):
        return jnp.broadcast_to(-jnp.arange(_TOKENS, dtype=jnp.float32), ids_BN.shape)

    @jax.jit
    def sample(noise):
        return masked.generate(
            _predict, _keys(*range(8)), _TOKENS, _CODES, sampling=Sampling(steps=6, guided=False),
            critic=critic, critic_noise=noise, temperature=3.0,
        )[1]  # fmt: skip

    changed = (np.diff(np.asarray(sample(0.0)), axis=0) != 0).sum((0, 1))
    assert changed[0] > 10 and (changed[-1] == 0).all() and changed[15] == 0
    assert (np.diff(np.asarray(sample(100.0)), axis=0) != 0).sum((0, 1))[15] > 0


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
