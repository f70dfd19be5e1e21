"""The built-in dataset `compositions`: drawn images for nine tasks of composition, and for each
task combinations that are kept back.

The tasks are those of GenEval (Ghosh et al. 2023) on drawn things: one object, two objects,
counting, colours, position, colours bound to objects; and sizes, sizes bound to objects, negation.
What an image shows and what its caption leaves open is drawn at random; what is kept back of a task
is a rule on what its captions combine, so that every word and every look occurs in training.

`data/shapes.py` is the smaller set, of which the drawing here is a copy with other forms.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable

import numpy as np

from t2i_jax.config import one_of
from t2i_jax.data.source import Source
from t2i_jax.errors import UserError
from t2i_jax.words import with_article as _a

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 205, 30),
    "orange": (245, 130, 20),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 220),
    "black": (20, 20, 20),
}
FORMS = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = {"small": 0.11, "medium": 0.155, "large": 0.22}  # radius, as a fraction of the side
NUMBERS = ("one", "two", "three", "four", "five")
RELATIONS = {  # wordings
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "near": ("next to", "beside"),
    "between": ("between",),
}
SPLITS = ("train", "heldout")
LENGTHS = {"train": 40_000, "heldout": 3_600}
BACKGROUND = 255

_STEP = 1 / 8  # the pitch of the lattice of centres, four pixels at 32
_KEPT_BACK = 8  # one in this many combinations of two objects is kept back
_CACHE_BYTES = 256 * 2**20
_AROUND = ("{}", "a picture of {}", "there is {}", "just {}", "{} on white")
_TWO = ("{} and {}", "a picture of {} and {}", "{} together with {}", "{} with {}")


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: x, y (centre) are fractions of the image's side, y points down."""

    colour: str
    form: str
    size: str
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Composition:
    """The content of an image, and the caption that describes it.

    Attributes:
      task: one of `TASKS`.
      combination: what the caption combines, on which `held_out` decides.
      things: the objects; where the caption names some in an order, in that order.
      caption: true of the image.
    """

    task: str
    combination: tuple[str, ...]
    things: tuple[Thing, ...]
    caption: str


def held_out(task: str, combination: tuple[str, ...]) -> bool:
    """Whether captions of a task never combine this in training.

    Args:
      combination: single_object: (form, number of the wording). colors, negation of a form or a
        colour: (colour, form). counting: (number, colour or "", form). size: (size, form).
        two_object: (form, form). color_attr: (colour, form, colour, form). size_attr: (size, form,
        size, form). position: (relation, colour, form, colour, form), of "between" with a third
        object. negation of both: (colour, "shapes").
    """
    if task == "single_object":  # each form in one of five wordings
        return (FORMS.index(combination[0]) + int(combination[1])) % 5 == 0
    if task == "colors":  # each form in two colours
        return (_colour(combination[0]) + 2 * FORMS.index(combination[1])) % 4 == 0
    if task == "negation":
        form = "circle" if combination[1] == "shapes" else combination[1]
        return (_colour(combination[0]) + 2 * FORMS.index(form)) % 4 == 1
    if task == "counting":  # each form in one number
        return (NUMBERS.index(combination[0]) + FORMS.index(combination[2])) % 5 == 1
    if task == "size":  # each form in one size
        return (list(SIZES).index(combination[0]) + FORMS.index(combination[1])) % 3 == 0
    if task == "two_object":  # three pairs, each form in one
        return sum(map(FORMS.index, combination)) == len(FORMS) - 1
    return zlib.crc32(" ".join(_fact(task, combination)).encode()) % _KEPT_BACK == 0


def _colour(name):
    return list(COLOURS).index(name)


def _fact(task, combination):
    """The form that stands for all combinations that say the same: "a above b" is "b below a"."""
    if task != "position":
        return tuple(itertools.chain(*sorted((combination[:2], combination[2:]))))
    relation, first, *rest = combination[0], combination[1:3], combination[3:5], combination[5:]
    if relation == "between":
        return (relation, *first, *itertools.chain(*sorted(rest)))
    second = rest[0]
    if relation in ("below", "right"):
        relation, first, second = {"below": "above", "right": "left"}[relation], second, first
    elif relation == "near":
        first, second = sorted((first, second))
    return (relation, *first, *second)


def composition(index: int, split: str = "train", seed: int = 0) -> Composition:
    """The image number `index` of a split: a function of its arguments alone.

    Training draws tasks by their share, the held-out split has all nine in turn.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    names = tuple(TASKS)
    if split == "train":
        task = names[int(np.searchsorted(_SHARES, rng.random(), side="right"))]
    else:
        task = names[index % len(names)]
    while True:
        combination, things, caption = TASKS[task](rng)
        if held_out(task, combination) == (split == "heldout"):
            return Composition(task, combination, things, caption)


def draw(compositions: list[Composition], image_size: int) -> np.ndarray:
    """The images, NHWC uint8, on white. Edges are smoothed by coverage at twice the resolution."""
    images = np.full((len(compositions), image_size, image_size, 3), BACKGROUND, np.float32)
    for image, one in zip(images, compositions):
        for thing in one.things:  # things never overlap, so adding is painting
            cover = _cover(thing.form, thing.x, thing.y, SIZES[thing.size], image_size)
            image += cover[..., None] * (np.asarray(COLOURS[thing.colour], np.float32) - BACKGROUND)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


class Compositions(Source):
    """Random access to the set: `compositions[i]` is {"image": HWC uint8, "caption": str}.

    An image is drawn when it is first asked for, and kept where all of them fit in 256 MiB.

    Args:
      image_size: side of the images in pixels, at least 16; the judge reads them from 32.
      split: "train" or "heldout".
      seed: another seed is another set of images; what is held out does not depend on it.
      length: number of images; None: 40,000 for train, 3,600 (400 of each task) for heldout.
    """

    def __init__(
        self, image_size: int = 32, split: str = "train", seed: int = 0, length: int | None = None
    ):
        one_of("split", split, SPLITS)
        if image_size < 16:
            raise UserError(
                f"image_size={image_size} is too small to draw compositions; use 16 or more."
            )
        self.image_size, self.split, self.seed = image_size, split, seed
        self.length = LENGTHS[split] if length is None else length
        self._keeps = self.length * image_size**2 * 3 <= _CACHE_BYTES
        self._kept: dict[int, tuple[np.ndarray, str]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        self._check(index)
        image, caption = self._kept.get(index) or self._drawn(index)
        return {"image": image, "caption": caption}

    def without_image(self, index: int) -> dict:
        """The record with "image" None: nothing is drawn."""
        self._check(index)
        return {"image": None, "caption": composition(index, self.split, self.seed).caption}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}

    def _check(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)

    def _drawn(self, index):
        one = composition(index, self.split, self.seed)
        made = draw([one], self.image_size)[0], one.caption
        if self._keeps:
            self._kept[index] = made
        return made


def _single_object(rng):
    form, wording = _one(rng, FORMS), int(rng.integers(len(_AROUND)))
    thing = Thing(_one(rng, COLOURS), form, _one(rng, SIZES), *_middle(rng))
    return (form, str(wording)), (thing,), _AROUND[wording].format(_a(form))


def _colors(rng):
    colour, form = _one(rng, COLOURS), _one(rng, FORMS)
    around = _one(rng, (*_AROUND, "{form} that is {colour}", "{form} in {colour}"))
    thing = Thing(colour, form, _one(rng, SIZES), *_middle(rng))
    caption = around.format(_a(f"{colour} {form}"), form=_a(form), colour=colour)
    return (colour, form), (thing,), caption


def _size(rng):
    size, form = _one(rng, SIZES), _one(rng, FORMS)
    around = _one(rng, (*_AROUND, "{form} that is {size}"))
    thing = Thing(_one(rng, COLOURS), form, size, *_middle(rng))
    return (size, form), (thing,), around.format(_a(f"{size} {form}"), form=_a(form), size=size)


def _counting(rng):
    """Equal objects, no two next to each other, so that they stay apart."""
    number, form, colour = int(rng.integers(1, 6)), _one(rng, FORMS), _one(rng, COLOURS)
    said = colour if rng.random() < 0.5 else ""
    cells: list[tuple[int, int]] = []
    for cell in rng.permutation(16):
        x, y = divmod(int(cell), 4)
        if len(cells) < number and all(abs(x - a) + abs(y - b) > 1 for a, b in cells):
            cells.append((x, y))
    things = tuple(
        Thing(colour, form, "small", (2 * x + 1) * _STEP, (2 * y + 1) * _STEP) for x, y in cells
    )
    if len(things) < number:  # the free cells all lie beside taken ones
        return _counting(rng)
    word, noun = NUMBERS[number - 1], f"{said} {_plural(form, number)}".strip()
    be = "is" if number == 1 else "are"
    around = _one(
        rng,
        ("{word} {noun}", "a picture of {word} {noun}", "there {be} {word} {noun}",
         "exactly {word} {noun}", "{number} {noun}"),
    )  # fmt: skip
    caption = around.format(word=word, noun=noun, be=be, number=number)
    return (word, said, form), things, caption


def _two_object(rng):
    first, second = (str(one) for one in rng.choice(FORMS, 2, replace=False))
    things = _apart(rng, [(_one(rng, COLOURS), form, "medium") for form in (first, second)])
    return (first, second), things, _one(rng, _TWO).format(_a(first), _a(second))


def _color_attr(rng):
    (a, b), (f, g) = rng.choice(list(COLOURS), 2, replace=False), rng.choice(FORMS, 2, False)
    combination = str(a), str(f), str(b), str(g)
    things = _apart(rng, [(*combination[:2], "medium"), (*combination[2:], "medium")])
    return combination, things, _one(rng, _TWO).format(_a(f"{a} {f}"), _a(f"{b} {g}"))


def _size_attr(rng):
    (a, b), (f, g) = rng.choice(list(SIZES), 2, replace=False), rng.choice(FORMS, 2, False)
    combination = str(a), str(f), str(b), str(g)
    looks = [(_one(rng, COLOURS), form, size) for size, form in ((a, f), (b, g))]
    things = _apart(rng, [tuple(map(str, look)) for look in looks])
    return combination, things, _one(rng, _TWO).format(_a(f"{a} {f}"), _a(f"{b} {g}"))


def _position(rng):
    relation = _one(rng, RELATIONS)
    count = 3 if relation == "between" else 2
    colours = [str(one) for one in rng.choice(list(COLOURS), count, replace=False)]
    looks = [(colour, _one(rng, FORMS)) for colour in colours]
    things = tuple(
        Thing(*look, "small", *(float(c) for c in place))
        for look, place in zip(looks, _places(rng, relation))
    )
    words, names = _one(rng, RELATIONS[relation]), [_a(" ".join(look)) for look in looks]
    if count == 3:
        around = ("{0} between {1} and {2}", "a picture of {0} between {1} and {2}",
                  "{1} and {2} with {0} between them")  # fmt: skip
        caption = _one(rng, around).format(*names)
    else:
        around = _one(rng, ("{} {} {}", "a picture of {} {} {}", "{} is {} {}"))
        caption = around.format(names[0], words, names[1])
    return (relation, *itertools.chain(*looks)), things, caption


def _negation(rng):
    colour, form = _one(rng, COLOURS), _one(rng, FORMS)
    others = [one for one in COLOURS if one != colour]
    kind = rng.integers(3)
    if kind == 0:
        thing = Thing(_one(rng, others), form, "medium", *_middle(rng))
        around = ("{form} that is not {colour}", "{form} but not {a_colour} one")
        caption = _one(rng, around).format(form=_a(form), colour=colour, a_colour=_a(colour))
        return (colour, form), (thing,), caption
    if kind == 1:
        shown = _one(rng, [one for one in FORMS if one != form])
        around = _one(rng, ("{} that is not {}", "{} but not {}"))
        thing = Thing(colour, shown, "medium", *_middle(rng))
        return (colour, form), (thing,), around.format(_a(f"{colour} shape"), _a(form))
    things = _apart(rng, [(_one(rng, others), _one(rng, FORMS), "medium") for _ in range(2)])
    around = _one(rng, ("two shapes, none of them {}", "two shapes that are not {}"))
    return (colour, "shapes"), things, around.format(colour)


TASKS: dict[str, Callable] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "size": _size,
    "size_attr": _size_attr,
    "negation": _negation,
}
# of training, in this order: tasks with more combinations have more images
_SHARES = np.cumsum([0.05, 0.08, 0.16, 0.1, 0.23, 0.16, 0.05, 0.08, 0.09])


def _one(rng, names):
    names = tuple(names)
    return names[int(rng.integers(len(names)))]


def _plural(form, number):
    return form if number == 1 else f"{form}{'es' if form.endswith('s') else 's'}"


def _middle(rng):
    x, y = 0.5 + _STEP * rng.integers(-1, 2, 2)
    return float(x), float(y)


def _apart(rng, looks):
    """Two things of any size in two halves of the image, either first."""
    across = rng.integers(3, 6, 2)
    places = [(2, int(across[0])), (6, int(across[1]))]
    if rng.random() < 0.5:
        places = [(y, x) for x, y in places]
    if rng.random() < 0.5:
        places.reverse()
    return tuple(Thing(*look, x * _STEP, y * _STEP) for look, (x, y) in zip(looks, places))


def _places(rng, relation):
    """Centres of things in a relation, in the order in which a caption names them."""
    if relation == "between":
        line, pitch = rng.integers(2, 7), int(rng.integers(2, 4))
        start = rng.integers(1, 8 - 2 * pitch)
        along = [start + pitch, start, start + 2 * pitch]
        if rng.random() < 0.5:
            along[1:] = along[:0:-1]
        places = [(a, line) for a in along]
        turned = rng.random() < 0.5
    elif relation == "near":
        start, line = rng.integers(1, 6), rng.integers(1, 8)
        places = [(start, line), (start + 2, line)]
        if rng.random() < 0.5:
            places.reverse()
        turned = rng.random() < 0.5
    else:
        across = rng.integers(3, 6, 2)
        places = [(2, across[0]), (6, across[1])]
        if relation in ("right", "below"):
            places.reverse()
        turned = relation in ("above", "below")
    return [(y * _STEP, x * _STEP) if turned else (x * _STEP, y * _STEP) for x, y in places]


@functools.lru_cache(maxsize=2048)  # the lattice leaves few places
def _cover(form, x, y, radius, image_size):
    """The share of each pixel that a thing covers, (H, W) from 0 to 1."""
    fine = 2 * image_size
    grid = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    distance = _distance(form, (grid[None, :] - x) / radius, (grid[:, None] - y) / radius) * radius
    cover = np.clip(0.5 - distance * fine, 0, 1)
    return cover.reshape(image_size, 2, image_size, 2).mean((1, 3), dtype=np.float32)


def _distance(form, x, y):
    """Signed distance from the outline (negative inside), in units of the radius."""
    if form == "circle":
        return np.hypot(x, y) - 1
    if form == "ring":
        return np.abs(np.hypot(x, y) - 0.75) - 0.25
    if form == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if form == "diamond":
        return (np.abs(x) + np.abs(y) - 1) / np.sqrt(2)
    if form == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1, ay - 0.34), np.maximum(ax - 0.34, ay - 1))
    # triangle: the apex up, its centroid at (0, 0)
    return np.maximum(np.sqrt(3) / 2 * np.abs(x) - y / 2, y) - 0.55
