"""The judge of digits: right on scans that it never saw, at chance on others."""

import numpy as np
import pytest

from t2i_jax.data.digits import WORDS, Digits
from t2i_jax.errors import UserError
from t2i_jax.eval.judge_digits import JudgeDigits, parse

JUDGE = JudgeDigits()


def held_out(size):
    data = Digits(size, "heldout")
    return np.stack([data[i]["image"] for i in range(len(data))]), [
        data[i]["caption"] for i in range(len(data))
    ]


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_unseen_scans_are_right(size):
    assert JUDGE.judge(*held_out(size)).mean() >= 0.97


def test_shuffled_captions_are_right_only_by_chance():
    images, captions = held_out(16)
    order = np.random.default_rng(0).permutation(len(captions))
    assert JUDGE.judge(images, [captions[i] for i in order]).mean() == pytest.approx(0.1, abs=0.05)


def test_blank_paper_shows_no_digit():
    blank = np.full((10, 16, 16, 3), 255, np.uint8)
    assert not JUDGE.judge(blank, [f"the digit {i}" for i in range(10)]).any()


def test_captions():
    assert [parse(f"a handwritten {word}") for word in WORDS] == list(range(10))
    assert parse("The digit 7") == 7 and parse("seven, or 7") == 7
    for bad in ("a handwritten dog", "one or two", "the number 12"):
        with pytest.raises(UserError, match="does not name one digit"):
            parse(bad)


def test_mistakes_are_refused():
    images, captions = held_out(16)
    with pytest.raises(UserError, match="360 images and 3 captions"):
        JUDGE.judge(images, captions[:3])
    with pytest.raises(UserError, match="float64"):
        JUDGE.judge(images / 255, captions)
    assert JUDGE.judge(images[:0], []).shape == (0,)
