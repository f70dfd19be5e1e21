"""Vocabularies trained on captions, and T5's own files."""

import pickle

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.text import tokenizer
from t2i_jax.text.encoder import told_of_cuts

CAPTIONS = [
    f"{article} {size} {colour} {shape} on a {ground} background"
    for article in ("a", "the")
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle", "cross")
    for ground in ("white", "gray", "black")
]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """The bytes of a sentencepiece model with T5's special ids."""
    import sentencepiece

    prefix = tmp_path_factory.mktemp("spm") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(prefix),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def test_training_twice_gives_the_same_vocabulary():
    first, second = (tokenizer.train_bpe(captions, 128) for captions in (CAPTIONS, iter(CAPTIONS)))
    assert pickle.dumps(first) == pickle.dumps(second)
    assert first.vocab_size <= 128


def test_words_become_few_tokens_and_case_does_not_matter():
    vocabulary = tokenizer.train_bpe(CAPTIONS, 200)
    ids, mask = vocabulary(["A Large RED circle", "a large red circle"], 12)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (2, 12)
    np.testing.assert_array_equal(ids[0], ids[1])
    # a token per word, and the end
    assert list(ids[0, mask[0]][-1:]) == [tokenizer.EOS] and mask[0].sum() == 5
    assert (ids[~mask] == tokenizer.PAD).all()


def test_the_size_is_a_limit_whatever_the_captions_hold():
    many_letters = ["".join(chr(0x4E00 + i) for i in range(n, n + 40)) for n in range(0, 400, 40)]
    vocabulary = tokenizer.train_bpe(CAPTIONS + many_letters, 64)
    # those that are left out are the same in any order, and every time
    again = tokenizer.train_bpe(many_letters[::-1] + CAPTIONS, 64)
    assert pickle.dumps(again) == pickle.dumps(vocabulary)
    ids, _ = vocabulary([*CAPTIONS, *many_letters, "Zürich ☃"], 48)
    assert vocabulary.vocab_size <= 64 and ids.max() < 64
    assert tokenizer.UNKNOWN in ids[-1]


def test_kinds_agree_on_ends(spiece):
    for it in (tokenizer.SentencePiece(spiece), tokenizer.train_bpe(CAPTIONS, 64)):
        ids, mask = it(["", CAPTIONS[0] * 5], 6)
        assert mask[0].tolist() == [True] + [False] * 5 and ids[0, 0] == tokenizer.EOS
        assert (
            mask[1].all()
            and ids[1, -1] == tokenizer.EOS
            and (ids[1, :-1] > tokenizer.UNKNOWN).any()
        )
        assert (
            it.lengths(["", CAPTIONS[0] * 5]).tolist()[0] == 1
            and it.lengths([CAPTIONS[0] * 5])[0] > 6
        )


def test_letters_that_a_vocabulary_lacks_are_told(spiece):
    class Words:  # knows all letters, and so says nothing of unknown ones
        def lengths(self, texts):
            return [len(text.split()) + 1 for text in texts]

    prompts = ["a red circle", "a red кот Zürich", "\u0301\u0301", "", "a cross  ☃☃☃"]
    for it in (tokenizer.SentencePiece(spiece), tokenizer.train_bpe(CAPTIONS, 64)):
        for here in (it, pickle.loads(pickle.dumps(it))):
            letters = tokenizer.unknown_letters(here, prompts)
            assert letters[0] == letters[3] == "" and letters[4] == "☃"
            assert set("кот") < set(letters[1]) <= set("котZzü") and letters[2]
        told = told_of_cuts(it, prompts[:3], 64, "prompt")
        assert told is not None and told.startswith(
            "prompt 1 has letters that the vocabulary lacks"
        )
        assert "к о т" in told and told.endswith("; so has one other")
        assert told_of_cuts(it, prompts[:1], 64, "prompt") is None
    assert tokenizer.unknown_letters(Words(), prompts) == [""] * 5  # type: ignore[arg-type]
    calls, many = [], [f"a ☃ {number}" for number in range(300)]
    counting = lambda texts, length: calls.append(len(texts)) or it(texts, length)  # noqa: E731
    counting.unknown, counting.lengths = it.unknown, it.lengths
    assert tokenizer.unknown_letters(counting, many)[-1].startswith("☃")
    assert calls[0] == 300 and len(calls) == 2 and calls[1] < 15  # letters once, of all rows
    told = told_of_cuts(Words(), prompts, 4, "prompt")  # type: ignore[arg-type]
    assert told == "prompt 1 has 5 tokens, the last one is cut"
    told = told_of_cuts(it, ["a ☃", CAPTIONS[0]], 2, "prompt")
    assert told is not None and ("are cut; so is one other; prompt 0 has letters" in told)


def test_saved_and_loaded_is_the_same(spiece, tmp_path):
    for name, it in (
        ("a", tokenizer.SentencePiece(spiece)),
        ("b", tokenizer.train_bpe(CAPTIONS, 64)),
    ):
        it.save(tmp_path / name / "deep")
        for again in (tokenizer.load(tmp_path / name / "deep"), pickle.loads(pickle.dumps(it))):
            assert again.vocab_size == it.vocab_size and type(again) is type(it)
            np.testing.assert_array_equal(again(CAPTIONS, 16)[0], it(CAPTIONS, 16)[0])


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(UserError, match="neither spiece.model nor tokenizer.json"):
        tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="vocab_size=8"):
        tokenizer.train_bpe(CAPTIONS, 8)
    with pytest.raises(UserError, match="hold no text"):
        tokenizer.train_bpe(["", " "], 64)
    with pytest.raises(UserError, match="max_length=0"):
        tokenizer.train_bpe(CAPTIONS, 64)(["a"], 0)
