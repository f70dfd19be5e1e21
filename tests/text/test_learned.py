"""The trained text encoder and stored embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.on_host import initialise
from t2i_jax.systems import prompting
from t2i_jax.systems.clip import joint_space
from t2i_jax.text.learned import LearnedText
from t2i_jax.text.stored import StoredText

TEXT = LearnedText(dim=8, depth=2, heads=2, mlp_dim=16, vocab_size=11, max_length=6, dropout=0.5)
IDS = np.array([[5, 3, 1, 0, 0], [7, 7, 2, 9, 1]], np.int32)
EMBED = jax.jit(TEXT.embed)
SEEN = np.array([[1, 1, 0], [1, 0, 0]], bool)


def test_padding_is_not_seen(key):
    params = initialise(TEXT.init, key)
    before = EMBED(params, IDS, IDS > 0)
    assert before.shape == (2, 5, 8) and before.dtype == jnp.float32
    changed = IDS.copy()
    changed[0, 3:] = 4
    after = EMBED(params, changed, IDS > 0)
    np.testing.assert_allclose(after[0, :3], before[0, :3], atol=1e-6)
    assert np.abs(after[0, 3:] - before[0, 3:]).max() > 1e-3


def test_a_causal_encoder_sees_only_what_came_before(key):
    text = dataclasses.replace(TEXT, causal=True)
    params = initialise(text.init, key)
    embed = jax.jit(text.embed)
    before, changed = embed(params, IDS, IDS > 0), IDS.copy()
    changed[1, 3] = 4
    after = embed(params, changed, IDS > 0)
    np.testing.assert_allclose(after[1, :3], before[1, :3], atol=1e-6)
    assert np.abs(after[1, 3:] - before[1, 3:]).max(-1).min() > 1e-3
    both_ways = np.asarray(EMBED(params, changed, IDS > 0) - EMBED(params, IDS, IDS > 0))
    assert np.abs(both_ways[1, :3]).max(-1).min() > 1e-3


def test_order_matters_and_the_output_is_normalised(key):
    params = initialise(TEXT.init, key)
    embeds = np.asarray(EMBED(params, IDS, IDS > 0))
    assert np.abs(embeds[1, 0] - embeds[1, 1]).max() > 1e-3  # the same token at two positions
    np.testing.assert_allclose(embeds.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(embeds.std(-1), 1, atol=2e-2)


def test_dropout_only_with_a_key(key):
    params = initialise(TEXT.init, key)
    plain, again, dropped = (EMBED(params, IDS, IDS > 0, k) for k in (None, None, key))
    np.testing.assert_array_equal(plain, again)
    assert np.abs(dropped - plain).max() > 1e-2


def test_parameters_carry_axis_names(key):
    boxed = jax.eval_shape(TEXT.init, key)
    names = {leaf.names for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))}
    assert ("vocab", "embed") in names and ("layers", "embed", "mlp") in names


def test_configuration_round_trips_and_refuses_nonsense():
    assert config.from_dict(config.to_dict(TEXT), {"LearnedText": LearnedText}) == TEXT
    with pytest.raises(UserError, match="dim=9 is not a multiple of heads=2; try dim=10"):
        LearnedText(dim=9, depth=1, heads=2, mlp_dim=4, vocab_size=4)
    with pytest.raises(UserError, match="dropout=1.0"):
        LearnedText(dim=8, depth=1, heads=2, mlp_dim=4, vocab_size=4, dropout=1.0)
    with pytest.raises(UserError, match="more than max_length=6"):
        TEXT.embed({}, np.zeros((1, 7), np.int32), np.ones((1, 7), bool))


def test_stored_embeddings_pass_through(key):
    text = StoredText(dim=4, max_length=3)
    embeds = np.ones((2, 3, 4), np.float16)
    assert text.init(key) == {} and not text.trainable
    assert text.embed({}, embeds, np.ones((2, 3), bool)).dtype == jnp.float32
    with pytest.raises(UserError, match="5 wide, not text.dim=4"):
        text.embed({}, np.ones((2, 3, 5)), np.ones((2, 3), bool))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.where(SEEN, 0, -1e9), "has -1e.09 in it, where 1 is seen and 0 is not"),
        (np.where(SEEN, 0, -np.inf), "has -inf in it"),
        (np.where(SEEN, 1, np.nan), "has nan in it"),
        (7 * SEEN, "has 7 in it"),
        (SEEN.astype(str), "type <U"),
        (SEEN.astype(complex), "type complex128, no real numbers"),
        ([[True], [True, False]], "and no array"),
        (None, "no real numbers"),
        (SEEN[:, :2], r"and mask \(2, 2\)"),
    ],
)
def test_a_mask_of_stored_embeddings_says_what_is_seen(mask, sentence):
    """One that is added to scores would be turned round by its truth."""
    with pytest.raises(UserError, match=f"prompts.*{sentence}"):
        StoredText(4, 3).encode(None, (np.ones((2, 3, 4)), mask), "prompts")


@pytest.mark.parametrize(
    "make",
    [
        lambda array: array,
        lambda array: array.tolist(),
        lambda array: list(map(torch.tensor, array)),
        jnp.asarray,
        lambda array: torch.tensor(array).bfloat16(),
        lambda array: torch.tensor(array, dtype=torch.float32, requires_grad=True),
        lambda array: torch.nn.Parameter(torch.tensor(array, dtype=torch.float32)) + 0,
    ],
)
def test_stored_embeddings_are_arrays_lists_and_live_tensors(make):
    """Their mask has numbers of the same kind; a row that sees nothing is a prompt without text."""
    embeds, mask = np.arange(24.0).reshape(2, 3, 4), 1.0 * SEEN * [[1], [0]]
    pair = prompting.repeated((make(embeds), make(mask)), 2)
    found = StoredText(4, 4).encode(None, pair, "prompts")
    assert (found["text_embeds"][::2, :3] == embeds).all()
    assert (found["text_mask"][:, :3] == np.repeat(mask > 0, 2, axis=0)).all()
    assert (joint_space.numbers("image_embeds", make(embeds), "(P, L, 4)") == embeds).all()


@pytest.mark.parametrize("embeds", [np.ones((2, 3, 4), complex), "text", [["x"]], object()])
def test_embeddings_that_are_no_numbers_are_one_sentence(embeds):
    for each in (1, 2):
        pair = prompting.repeated((embeds, SEEN), each)
        with pytest.raises(UserError, match="prompts"):
            StoredText(4, 3).encode(None, pair, "prompts")
