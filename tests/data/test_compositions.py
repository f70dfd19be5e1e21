"""The drawn compositions: what they show, what is kept back of each task, and that nothing of it
changes, nor of the smaller set of shapes.
"""

import collections
import hashlib
import pickle

import numpy as np
import pytest

from t2i_jax.data import compositions
from t2i_jax.data.compositions import (
    COLOURS,
    FORMS,
    SIZES,
    TASKS,
    Composition,
    Compositions,
    Thing,
    composition,
    draw,
    held_out,
)
from t2i_jax.data.shapes import Shapes
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError

TRAIN = [composition(i) for i in range(3000)]
HELD_OUT = [composition(i, "heldout") for i in range(900)]


def of_task(sets, name):
    return [one for one in sets if one.task == name]


def test_an_image_that_can_be_checked_by_hand():
    thing = Thing("cyan", "square", "large", 0.5, 0.5)
    image = draw([Composition("", (), (thing,), "")], 50)[0].astype(int)
    reach = 0.88 * 0.22 * 50  # 9.68 pixels each way from 25
    assert image[25, 25].tolist() == list(COLOURS["cyan"]) and image[0, 0].tolist() == [255] * 3
    assert (image[25, :, 0] < 255).sum() == 2 * np.ceil(reach)
    edge = (255 - image[25, 15, 0]) / (255 - COLOURS["cyan"][0])  # of the pixel from 15 to 16
    assert edge == pytest.approx(reach - 9, abs=0.05)


def test_no_image_of_either_set_changes():
    """Recipes and published numbers rely on every bit."""

    def digest(source):
        found = hashlib.sha256()
        for i in range(0, 300, 3):
            found.update(source[i]["image"].tobytes() + source[i]["caption"].encode())
        return found.hexdigest()[:16]

    assert digest(Shapes(32, length=300)) == SHAPES[0]
    assert digest(Shapes(32, "heldout", length=300)) == SHAPES[1]
    assert digest(Compositions(32, length=300)) == COMPOSITIONS[0]
    assert digest(Compositions(32, "heldout", length=300)) == COMPOSITIONS[1]


SHAPES = ("25cbae2106f01f39", "b20f9f4a7261e4b9")
COMPOSITIONS = ("5e67eac032a92e55", "1cebb17c9bad7154")


def test_every_task_and_every_word_occurs_in_training():
    counts = collections.Counter(one.task for one in TRAIN)
    assert set(counts) == set(TASKS) and min(counts.values()) > 100
    held = collections.Counter(one.task for one in HELD_OUT)
    assert set(held.values()) == {100} and set(held) == set(TASKS)
    words = {word for one in TRAIN for word in one.caption.split()}
    assert {word for one in HELD_OUT for word in one.caption.split()} <= words
    looks = {(t.colour, t.form, t.size) for one in TRAIN for t in one.things}
    assert len(looks) == len(COLOURS) * len(FORMS) * len(SIZES)
    for task in TASKS:  # several wordings of each
        mine = of_task(TRAIN, task)
        assert (
            len({" ".join(w for w in one.caption.split() if w not in NAMES) for one in mine}) >= 4
        )


NAMES = {*COLOURS, *FORMS, *SIZES, *(f"{form}s" for form in FORMS), "crosses", "a", "an"}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_kept_back_is_never_in_training(task):
    train, kept = of_task(TRAIN, task), of_task(HELD_OUT, task)
    assert not any(held_out(task, one.combination) for one in train)
    assert all(held_out(task, one.combination) for one in kept)
    assert not {one.caption for one in train} & {one.caption for one in kept}
    # what is kept back is a part of everything, not one corner
    assert all(any(form in one.caption for one in kept) for form in FORMS)


def test_saying_it_the_other_way_round_is_the_same_fact():
    a, b, c = ("red", "ring"), ("blue", "cross"), ("cyan", "circle")
    for first, second in ((a, b), (b, c), (c, a)):
        assert held_out("position", ("above", *first, *second)) == held_out(
            "position", ("below", *second, *first)
        )
        assert held_out("position", ("near", *first, *second)) == held_out(
            "position", ("near", *second, *first)
        )
        assert held_out("color_attr", (*first, *second)) == held_out(
            "color_attr", (*second, *first)
        )
    assert held_out("position", ("between", *a, *b, *c)) == held_out(
        "position", ("between", *a, *c, *b)
    )


def test_things_neither_touch_nor_leave_the_image():
    for one in (*TRAIN, *HELD_OUT):
        for i, a in enumerate(one.things):
            reach = 1.1 * SIZES[a.size]
            assert reach <= a.x <= 1 - reach and reach <= a.y <= 1 - reach
            for b in one.things[:i]:
                gap = max(abs(a.x - b.x), abs(a.y - b.y)) - SIZES[a.size] - SIZES[b.size]
                assert gap > 0.02, one


def test_counts():
    for one in of_task(TRAIN, "counting"):
        number, colour, form = one.combination
        assert len(one.things) == compositions.NUMBERS.index(number) + 1
        assert {thing.form for thing in one.things} == {form}
        assert not colour or {thing.colour for thing in one.things} == {colour}


def test_the_same_arguments_give_the_same_image():
    first, again, other = (Compositions(32, length=300, seed=seed) for seed in (0, 0, 1))
    for i in (0, 255, 256, 299):
        np.testing.assert_array_equal(first[i]["image"], again[i]["image"])
        assert first[i]["caption"] == again.without_image(i)["caption"]
    assert [first[i]["caption"] for i in range(9)] != [other[i]["caption"] for i in range(9)]
    copy = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(copy[2]["image"], first[2]["image"])
    assert len(open_source("compositions", image_size=32, split="heldout")) == 3600


def test_images_that_are_not_kept_are_the_same(monkeypatch):
    kept = Compositions(32, length=9)
    monkeypatch.setattr(compositions, "_CACHE_BYTES", 0)
    for i in range(9):
        np.testing.assert_array_equal(Compositions(32, length=9)[i]["image"], kept[i]["image"])


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="image_size=8"):
        Compositions(8)
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        Compositions(split="held-out")
    with pytest.raises(IndexError):
        Compositions(32, length=3)[3]
