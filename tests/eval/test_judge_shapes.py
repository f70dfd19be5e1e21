"""The judge of shapes: right on true images of every size, wrong on others, and each property by
itself.
"""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from t2i_jax.data.shapes import BACKGROUNDS, COLOURS, SHAPES, Scene, Shapes, Thing, draw
from t2i_jax.errors import UserError
from t2i_jax.eval.judge_shapes import JudgeShapes, parse

JUDGE = JudgeShapes()


def some(size, split, count):
    data = Shapes(size, split, length=count)
    return np.stack([data[i]["image"] for i in range(count)]), [
        data[i]["caption"] for i in range(count)
    ]


def one_thing(colour="red", shape="circle", background="white", x=0.5, y=0.5, radius=0.3):
    return draw([Scene((Thing(colour, shape, x, y, radius),), background, None, None, "")], 32)


def _meaning(caption):
    """The claim of a caption in a form that is equal for captions that say the same ("a above b",
    "b below a").
    """
    claim = parse(caption)
    if claim.relation is None:
        return claim.things, claim.size, claim.background
    axis, sign = claim.relation
    return (claim.things if sign < 0 else claim.things[::-1]), axis, claim.background


@pytest.mark.parametrize("size,count", [(16, 300), (24, 200), (32, 300), (64, 100)])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_true_images_are_right(size, split, count):
    assert JUDGE.judge(*some(size, split, count)).mean() >= 0.99


def test_shuffled_captions_are_right_only_by_chance():
    images, captions = some(32, "train", 400)
    shuffled = captions[7:] + captions[:7]
    same = np.mean([_meaning(a) == _meaning(b) for a, b in zip(captions, shuffled)])
    assert JUDGE.judge(images, shuffled).mean() == pytest.approx(same, abs=0.011)


def test_a_little_noise_and_softness_is_forgiven():
    images, captions = some(32, "heldout", 200)
    soft = ndimage.gaussian_filter(images.astype(float), (0, 0.5, 0.5, 0))
    noisy = soft + np.random.default_rng(0).normal(0, 8, soft.shape)
    assert JUDGE.judge(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), captions).mean() >= 0.97


def test_images_without_objects_are_wrong():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    captions = ["a large red circle on a white background"] * 21
    assert not JUDGE.judge(np.concatenate([noise, blank]), captions).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_colour_and_shape(colour, shape):
    image = one_thing(colour, shape)
    right = {(c, s): JUDGE.judge(image, [f"a {c} {s}"])[0] for c in COLOURS for s in SHAPES}
    assert [pair for pair, ok in right.items() if ok] == [(colour, shape)]


def test_each_property_is_judged_by_itself():
    image = one_thing("red", "circle", "black", radius=0.3)

    def wrong(caption):
        return [name for name, ok in JUDGE.parts(image, [caption]).items() if not ok[0]]

    assert wrong("a large red circle on a black background") == []
    assert wrong("red circle") == []
    assert wrong("a small red circle on black") == ["size"]
    assert wrong("a large red square on black") == ["shape"]
    assert wrong("a large red circle on gray") == ["background"]
    assert wrong("a large blue circle on black") == ["colour", "shape", "size", "relation"]
    assert wrong("a red circle above a blue square") == [
        "count",
        "colour",
        "shape",
        "size",
        "relation",
    ]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_relations(background):
    things = Thing("red", "circle", 0.5, 0.25, 0.18), Thing("blue", "square", 0.5, 0.75, 0.18)
    image = draw([Scene(things, background, None, "above", "")], 32)
    right = (
        "a red circle above a blue square",
        "a red circle over a blue square",
        "a blue square below a red circle",
    )
    wrong = (
        "a blue square above a red circle", "a red circle under a blue square",
        "a red circle to the left of a blue square", "a red circle right of a blue square",
    )  # fmt: skip
    assert JUDGE.judge(np.repeat(image, len(right), 0), right).all()
    assert not JUDGE.judge(np.repeat(image, len(wrong), 0), wrong).any()


def test_large_images_are_reduced_first():
    images, captions = some(32, "train", 20)
    large = np.stack([np.asarray(Image.fromarray(image).resize((256, 256))) for image in images])
    assert JUDGE.judge(large, captions).all()


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="a purple dog"):
        parse("a purple dog")
    with pytest.raises(UserError, match="is not about one object"):
        parse("a red circle and a blue square")
    with pytest.raises(UserError, match="1 images and 2 captions"):
        JUDGE.judge(one_thing(), ["a red circle"] * 2)
    with pytest.raises(UserError, match="float64"):
        JUDGE.judge(one_thing() / 255, ["a red circle"])
