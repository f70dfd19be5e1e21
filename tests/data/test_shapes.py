"""The drawn shapes: what they show, what is kept back, and that images depend on the arguments
alone.
"""

import pickle

import numpy as np
import pytest

from t2i_jax.data import shapes
from t2i_jax.data.shapes import Scene, Shapes, Thing, draw, scene
from t2i_jax.errors import UserError

TRAIN = [scene(i) for i in range(1500)]
HELD_OUT = [scene(i, "heldout") for i in range(600)]


def looks(one):
    return [(thing.colour, thing.shape) for thing in one.things]


def test_an_image_that_can_be_checked_by_hand():
    # a square reaches 0.88 of its radius: here to 1/4 and 3/4
    square = Thing("red", "square", 0.5, 0.5, 0.25 / 0.88)
    image = draw([Scene((square,), "white", "large", None, "")], 16)[0]
    wanted = np.full((16, 16, 3), 255, np.uint8)
    wanted[4:12, 4:12] = shapes.COLOURS["red"]
    np.testing.assert_array_equal(image, wanted)


def test_y_points_down_and_the_first_is_where_the_caption_says():
    one = next(s for s in TRAIN if s.relation == "above")
    assert one.things[0].y < one.things[1].y
    other = next(s for s in TRAIN if s.relation == "right")
    assert other.things[0].x > other.things[1].x
    image = draw(
        [Scene((Thing("blue", "circle", 0.25, 0.75, 0.2),), "black", "small", None, "")], 32
    )[0]
    rows, columns = np.nonzero(image[..., 2] > 100)
    assert rows.mean() == pytest.approx(23.5) and columns.mean() == pytest.approx(7.5)


def test_the_same_arguments_give_the_same_image():
    again, other, kept_back = Shapes(16, length=300), Shapes(16, seed=1), Shapes(16, "heldout")
    for i in (0, 255, 256, 299):
        np.testing.assert_array_equal(Shapes(16)[i]["image"], again[i]["image"])
        assert Shapes(16)[i]["caption"] == again[i]["caption"] == again.without_image(i)["caption"]
    captions = [[s[i]["caption"] for i in range(20)] for s in (again, other, kept_back)]
    assert captions[0] != captions[1] and captions[0] != captions[2]


def test_images_that_are_not_kept_are_the_same(monkeypatch):
    kept = Shapes(16, length=20)
    monkeypatch.setattr(shapes, "_CACHE_BYTES", 0)
    for i in range(20):
        np.testing.assert_array_equal(Shapes(16, length=20)[i]["image"], kept[i]["image"])


def test_what_is_held_out_is_never_in_training_and_always_in_the_heldout_split():
    assert not any(
        shapes.look_held_out(*looks(one)[0], one.size, one.background) for one in TRAIN if one.size
    )
    for one in HELD_OUT:
        if one.relation is None:
            assert shapes.look_held_out(*looks(one)[0], one.size, one.background)
            assert one.size in one.caption and one.background in one.caption
        else:
            assert shapes.relation_held_out(looks(one)[0], one.relation, looks(one)[1])

    def facts(one):  # "a above b" and "b below a" are one fact
        first, second = looks(one)
        turned = {"below": "above", "right": "left"}.get(one.relation)
        return (second, turned, first) if turned else (first, one.relation, second)

    assert not {facts(s) for s in TRAIN if s.relation} & {facts(s) for s in HELD_OUT if s.relation}


def test_every_three_of_colour_shape_size_and_background_meet_in_training():
    seen = {
        (*looks(one)[0], one.size, one.background) for one in map(scene, range(4000)) if one.size
    }
    assert len(seen) == 88  # of 96
    for left_out, number in enumerate((24, 24, 48, 32)):
        assert len({look[:left_out] + look[left_out + 1 :] for look in seen}) == number
    assert {s.relation for s in TRAIN} == {None, *shapes.RELATIONS}


def test_two_things_never_touch():
    for one in TRAIN:
        if one.relation:
            a, b = one.things
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


def test_lengths_and_pickling():
    assert len(Shapes()) == 20_000 and len(Shapes(split="heldout")) == 2_000
    data = Shapes(16, length=3)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy[2]["image"], data[2]["image"])
    with pytest.raises(IndexError):
        data[3]
    with pytest.raises(IndexError):
        data.without_image(3)


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="image_size=4"):
        Shapes(4)
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        Shapes(split="held-out")
