"""Captions below images: any string can be drawn, and fits."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i_jax.eval.grid import grid
from t2i_jax.typeset import text_block


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(20, 200), st.integers(1, 4))
def test_any_text_is_drawn_within_its_width_and_lines(text, width, lines):
    block = text_block(text, width, lines=lines)
    one = text_block("x", width)
    if block is not None:
        assert block.width == width and block.height <= 3 * lines * one.height
    else:
        assert not any(letter.isalnum() for letter in text)


def test_halves_of_letters_and_control_characters_are_left_out():
    same = text_block("a cat", 100)
    assert text_block("\ud800a\0 \n\x07cat\udfff", 100).tobytes() == same.tobytes()
    assert text_block(" \n\t", 100) is None and text_block("", 100) is None


def test_long_captions_are_wrapped_and_cut():
    short, long = (text_block("word " * n, 100, lines=3) for n in (3, 300))
    assert (
        short.height < long.height and long.height == text_block("word " * 500, 100, lines=3).height
    )
    unbroken = text_block("猫" * 200, 100, lines=3)
    assert unbroken.height // 3 <= 40 and (np.asarray(unbroken) < 128).any()


def test_a_caption_without_an_end_takes_no_longer_than_what_is_seen_of_it():
    for text in ("x", "猫", "x ", "word" * 50 + " ", "e\u0301"):
        seen = text_block(text * 2000, 128)
        begin = time.process_time()
        whole = text_block(text * (131_072 // len(text)), 128)  # the longest caption
        assert time.process_time() - begin < 2
        assert whole.tobytes() == seen.tobytes()


def test_cyrillic_and_greek_have_letters_of_their_own():
    boxes = {text_block(letter, 30).tobytes() for letter in "жщюΩλψéß"}
    assert len(boxes) == 8


def test_captions_stand_below_their_images_and_wrong_ones_are_red():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    plain = grid(images, 2, 32)
    told = grid(images, 2, 32, ["a cat", "", "a dog"], [True, True, False])
    assert plain.shape == (66, 66, 3)  # as it was without captions
    assert told.shape[0] > plain.shape[0] and told.shape[1] >= 2 * 96
    assert (told[:32, :32] == 0).all() and (told[:32, 40:90] == 255).all()
    red = (told[..., 0].astype(int) - told[..., 1]) > 60
    assert red.any() and not red[: told.shape[0] // 2].any()
    assert np.array_equal(grid(images, 2, 32, ["", "", ""]), plain)
    one = grid(np.zeros((1, 8, 8, 1), np.uint8), 4, None, ["x"])
    assert one.shape[2] == 3
