"""The judge of compositions: right on true images of each task, right on shuffled captions exactly
as often as they happen to be true, and each claim by itself.
"""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from t2i_jax.data.compositions import (
    COLOURS,
    FORMS,
    NUMBERS,
    SIZES,
    Composition,
    Thing,
    composition,
    draw,
)
from t2i_jax.errors import UserError
from t2i_jax.eval import judge_compositions
from t2i_jax.eval.composition_claims import Claim, Item, parse
from t2i_jax.eval.judge_compositions import OUTLINES, PALETTE, TASKS, JudgeCompositions

JUDGE = JudgeCompositions()
SETS = {split: [composition(i, split) for i in range(900)] for split in ("train", "heldout")}


def captions_of(sets):
    return [one.caption for one in sets]


def by_task(sets, verdicts):
    return {
        task: np.mean([v for one, v in zip(sets, verdicts) if one.task == task]) for task in TASKS
    }


def image_of(*things):
    return draw([Composition("", (), things, "")], 32)


def judged(image, *captions):
    return JUDGE.judge(np.repeat(image, len(captions), 0), captions).tolist()


@pytest.mark.parametrize("split,size", [("train", 32), ("heldout", 32), ("heldout", 64)])
def test_true_images_are_right_in_each_task(split, size):
    sets = SETS[split][: {("heldout", 32): 900, ("train", 32): 450}.get((split, size), 180)]
    found = by_task(sets, JUDGE.judge(draw(sets, size), captions_of(sets)))
    assert min(found.values()) >= 0.99, found


def is_true(of: Composition, things: tuple[Thing, ...]) -> bool:
    """Whether things that are known exactly show what another composition's caption says: written
    from what its combination means, not from its caption.
    """
    said, count = of.combination, len(things)
    names: dict[tuple[str, ...], Thing] = {(t.colour, t.form): t for t in things}
    if of.task == "single_object":
        return count == 1 and things[0].form == said[0]
    if of.task == "colors":
        return count == 1 and (things[0].colour, things[0].form) == said
    if of.task == "size":
        return count == 1 and (things[0].size, things[0].form) == said
    if of.task == "counting":
        alike = all(t.form == said[2] and said[1] in ("", t.colour) for t in things)
        return count == NUMBERS.index(said[0]) + 1 and alike
    if of.task == "two_object":
        return sorted(t.form for t in things) == sorted(said)
    if of.task in ("color_attr", "size_attr"):
        of_both = [(t.colour if of.task == "color_attr" else t.size, t.form) for t in things]
        return sorted(of_both) == sorted((said[:2], said[2:]))
    if of.task == "negation":
        if said[1] == "shapes":
            return count == 2 and all(t.colour != said[0] for t in things)
        if "shape" in of.caption:
            return count == 1 and things[0].colour == said[0] and things[0].form != said[1]
        return count == 1 and things[0].colour != said[0] and things[0].form == said[1]
    relation, wanted = said[0], [said[1:3], said[3:5], said[5:7]][: 3 if len(said) > 5 else 2]
    if count != len(wanted) or not all(name in names for name in wanted):
        return False
    first, second, *third = (names[name] for name in wanted)
    if relation == "between":
        ends = second, third[0]
        return any(
            min(getattr(t, a) for t in ends) < getattr(first, a) < max(getattr(t, a) for t in ends)
            for a in "xy"
        )
    dx, dy = first.x - second.x, first.y - second.y
    if relation == "near":
        return max(abs(dx), abs(dy)) < 0.3
    dx, dy = (dx, dy) if abs(dx) > abs(dy) else (0, dy)
    dy = dy if dx == 0 else 0
    return {"above": dy < 0, "below": dy > 0, "left": dx < 0, "right": dx > 0}[relation]


def test_shuffled_captions_are_right_by_chance_alone_in_each_task():
    sets, images = SETS["heldout"], draw(SETS["heldout"], 32)
    rng = np.random.default_rng(0)
    order = np.arange(900)
    for start in range(9):  # captions of the same task, in another order
        order[start::9] = rng.permutation(order[start::9])
    shuffled = [sets[i] for i in order]
    verdicts = JUDGE.judge(images, captions_of(shuffled))
    truths = np.array([is_true(of, one.things) for of, one in zip(shuffled, sets)])
    assert all(is_true(one, one.things) for one in sets)
    found, chance = by_task(sets, verdicts == truths), by_task(sets, truths)
    assert min(found.values()) >= 0.99, found
    # chance is what the numbers of forms, colours and sizes make it
    assert max(chance.values()) < 0.45, chance  # three pairs of forms are kept back: 1 / 3
    assert chance["color_attr"] < 0.05 and chance["position"] < 0.05, chance


def test_captions_are_of_the_tasks_that_they_were_drawn_for():
    for sets in SETS.values():
        assert JUDGE.tasks(captions_of(sets)) == [one.task for one in sets]


def test_softness_and_noise_are_forgiven():
    sets = SETS["heldout"][:450]
    soft = ndimage.gaussian_filter(draw(sets, 32).astype(float), (0, 0.5, 0.5, 0))
    noisy = np.clip(np.rint(soft + np.random.default_rng(0).normal(0, 6, soft.shape)), 0, 255)
    assert JUDGE.judge(noisy.astype(np.uint8), captions_of(sets)).mean() >= 0.95


def test_colour_and_form_of_each_look():
    looks = [(colour, form) for colour in COLOURS for form in FORMS]
    for size in SIZES:
        things = [(Thing(*look, size, 0.5, 0.5),) for look in looks]
        seen = [judge_compositions.read(image_of(*one)[0]) for one in things]
        assert [(s.colour, s.form, s.size) for (s,) in seen] == [(*look, size) for look in looks]


def test_attributes_are_bound():
    red = Thing("red", "circle", "medium", 0.25, 0.5)
    image = image_of(red, Thing("blue", "ring", "medium", 0.75, 0.5))
    assert judged(image, "a red circle and a blue ring", "a blue ring with a red circle") == [1, 1]
    assert judged(image, "a blue circle and a red ring", "a red circle and a red ring") == [0, 0]
    parts = JUDGE.parts(image, ["a blue circle and a red ring"])
    # each property is right by itself, and they are not bound
    assert all(parts[name][0] for name in ("count", "colour", "form", "size", "relation"))


def test_numbers():
    places = [(0.125, 0.125), (0.625, 0.125), (0.375, 0.375), (0.875, 0.375), (0.125, 0.625)]
    for number in range(1, 6):
        image = image_of(*(Thing("red", "cross", "small", *place) for place in places[:number]))
        nouns = ["cross"] + ["crosses"] * 4
        claims = [f"{word} {noun}" for word, noun in zip(NUMBERS, nouns)]
        claims += [f"{n + 1} red {noun}" for n, noun in enumerate(nouns)]
        wanted = [n == number for n in range(1, 6)] * 2
        assert judged(image, *claims) == wanted
    assert judged(image, "five blue crosses", "five rings") == [False, False]


def test_relations():
    a, b = Thing("red", "ring", "small", 0.25, 0.375), Thing("cyan", "cross", "small", 0.75, 0.5)
    image = image_of(a, b)
    assert judged(
        image, "a red ring left of a cyan cross", "a cyan cross is to the right of a red ring",
        "a cyan cross to the left of a red ring", "a red ring above a cyan cross",
        "a red ring next to a cyan cross",
    ) == [True, True, False, False, False]  # fmt: skip
    near = image_of(a, Thing("cyan", "cross", "small", 0.25, 0.625))
    assert judged(near, "a cyan cross beside a red ring", "a cyan cross under a red ring") == [1, 1]
    three = image_of(a, b, Thing("black", "circle", "small", 0.5, 0.5))
    assert judged(
        three, "a black circle between a red ring and a cyan cross",
        "a cyan cross and a red ring with a black circle between them",
        "a red ring between a black circle and a cyan cross",
    ) == [True, True, False]  # fmt: skip


def test_negation():
    image = image_of(Thing("red", "ring", "medium", 0.5, 0.5))
    assert judged(
        image, "a ring that is not blue", "a ring but not a green one",
        "a red shape but not a circle", "a ring that is not red",
        "a red shape that is not a ring", "a circle that is not blue",
    ) == [True, True, True, False, False, False]  # fmt: skip
    two = image_of(
        Thing("red", "ring", "medium", 0.25, 0.5), Thing("blue", "ring", "medium", 0.75, 0.5)
    )
    assert judged(
        two, "two shapes, none of them green", "two shapes that are not cyan",
        "two shapes, none of them blue", "two shapes that are not red",
    ) == [True, True, False, False]  # fmt: skip


def test_images_of_nothing_are_wrong():
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    captions = ["a circle", "two rings", "a circle that is not red", "two shapes that are not red"]
    for caption in captions:
        assert not JUDGE.judge(np.concatenate([noise, blank]), [caption] * 6).any()


def test_large_images_are_reduced_first():
    sets = SETS["heldout"][:27]
    large = [Image.fromarray(image).resize((256, 256)) for image in draw(sets, 64)]
    assert JUDGE.judge(np.stack(large), captions_of(sets)).mean() >= 26 / 27


def test_claims():
    assert parse("an orange circle") == Claim((Item(1, False, None, "orange", "circle"),))
    assert parse("there are 3 crosses").items == (Item(3, True, None, None, "cross"),)
    assert set(OUTLINES) == set(FORMS) and PALETTE == COLOURS
    for wrong in ("a purple dog", "six circles", "a red circle above", "a ring, a ring and a ring"):
        with pytest.raises(UserError, match="is not about one to five objects"):
            parse(wrong)


def test_mistakes_are_refused():
    image = image_of(Thing("red", "ring", "medium", 0.5, 0.5))
    with pytest.raises(UserError, match="1 images and 2 captions"):
        JUDGE.judge(image, ["a ring"] * 2)
    with pytest.raises(UserError, match="float64"):
        JUDGE.judge(image / 255, ["a ring"])
    with pytest.raises(UserError, match="32 pixels or more"):
        JUDGE.judge(image[:, :16, :16], ["a ring"])
