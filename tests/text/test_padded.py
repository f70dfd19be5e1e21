"""Captions that are padded with another id than 0."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.models.clip import CLIP
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.text import bpe
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.text.padded import Padded, without_ends
from t2i_jax.text.tokenizer import train_bpe

_CAPTIONS = ["a red circle", "a blue square", ""]


@pytest.fixture(scope="module")
def words():
    return train_bpe(_CAPTIONS, 40)


def test_ids_are_those_of_the_vocabulary_with_another_padding(words, tmp_path):
    pad_id = int(words(_CAPTIONS, 12)[0][1, 1])
    padded = Padded(words, pad_id)
    for made in (padded, pickle.loads(pickle.dumps(padded))):
        ids, mask = made(_CAPTIONS, 12)
        own, at_words = words(_CAPTIONS, 12)
        np.testing.assert_array_equal(ids, np.where(at_words, own, pad_id))
        np.testing.assert_array_equal(mask, at_words & (own != pad_id))
        assert (mask < at_words).any()  # a word with this id is padding too
        assert (made.vocab_size, made.unknown) == (words.vocab_size, words.unknown)
        assert made.lengths(_CAPTIONS).tolist() == words.lengths(_CAPTIONS).tolist()
    padded.save(tmp_path / "run")
    captions = CaptionIds(40, 12, pad_id=pad_id)
    again = captions.tokenizer(tmp_path / "run")
    assert again is not None
    np.testing.assert_array_equal(again(_CAPTIONS, 12)[0], ids)
    given = captions.encode(again, _CAPTIONS, "captions")
    np.testing.assert_array_equal(given["text_mask"], mask)


def test_ends_are_left_out_within_it(tmp_path):
    pieces = {piece: number for number, piece in enumerate(("a", "a</w>", bpe.START, bpe.END))}
    (tmp_path / bpe.VOCABULARY).write_text(json.dumps(pieces))
    (tmp_path / bpe.MERGES).write_text("#version: 0.2\n")
    text = ClipText(None, CLIP(num_text_tokens=8, text_pad_id=5), str(tmp_path), 4, ends=False)
    words = text.tokenizer()
    assert isinstance(words, Padded) and not hasattr(words, "unknown")
    ids, mask = words(["a a"], 4)
    assert (ids.tolist(), mask.tolist()) == ([[1, 1, 5, 5]], [[True, True, False, False]])
    kept = dataclasses.replace(text, ends=True).tokenizer()
    assert kept is not None and kept(["a a"], 4)[0].tolist() == [[2, 1, 1, 3]]
    assert without_ends(None) is None


@pytest.mark.parametrize(
    ("pad_id", "ids", "made", "mask"),
    [
        (0, [[4, 0, 5], [4, 0, 0]], [[4, 0, 5, 0], [4, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]]),
        (3, [[4, 3, 5], [3, 0, 3]], [[4, 3, 5, 3], [3, 0, 3, 3]], [[1, 0, 1, 0], [0, 1, 0, 0]]),
    ],
)
def test_ids_that_are_given(pad_id, ids, made, mask):
    found = CLIP(text_seq_len=4, text_pad_id=pad_id).captions.encode(
        None, np.array(ids), "captions"
    )
    np.testing.assert_array_equal(found["text"], made)
    np.testing.assert_array_equal(found["text_mask"], np.array(mask, bool))


def test_refusals(tmp_path):
    padded = CLIP(num_text_tokens=40, text_pad_id=7)
    with pytest.raises(
        UserError, match="text_pad_id=7 would be the id of a word in the vocabulary"
    ):
        padded.captions.prepare(tmp_path / "run", lambda: iter(_CAPTIONS))
    with pytest.raises(UserError, match=r"with 7 for padding\."):
        padded.captions.encode(None, ["a"], "captions")
    with pytest.raises(UserError, match="text.pad_id=0 is not the model's text_pad_id=7; give"):
        ClipTask(padded, text=CaptionIds(40, 12, "vocabulary"))
    assert ClipTask(padded, text=CaptionIds(40, 12, "vocabulary", pad_id=7))
    for pad_id in (-1, 40):
        with pytest.raises(UserError, match=f"text_pad_id={pad_id} is none of the ids below num_"):
            CLIP(num_text_tokens=40, text_pad_id=pad_id)
        with pytest.raises(UserError, match=f"^pad_id={pad_id} is none of the ids below vocab_"):
            CaptionIds(40, 12, pad_id=pad_id)
