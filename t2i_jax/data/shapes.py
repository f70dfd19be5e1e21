"""The built-in dataset `shapes`: drawn images whose captions are true by construction, and
combinations kept back.

An image holds one object ("a large red circle on a white background") or two in a relation ("a red
circle above a blue square on black"). Some combinations never occur in `split="train"` and are all
that `split="heldout"` shows: for one object a colour with a shape and a background, shown large or
beside another object and never small and alone; for two objects an ordered pair in a relation, each
of whose objects is seen in training. Large looks are all trained on: a large object stands alone,
so the patches of one kept back would occur nowhere, and a model of tokens can't write them.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib

import numpy as np

from t2i_jax.config import one_of
from t2i_jax.data.source import Source
from t2i_jax.errors import UserError

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 205, 30),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (128, 128, 128), "black": (0, 0, 0)}
SHAPES = ("circle", "square", "triangle", "cross")
# the radius, as a fraction of the image's side; each of two things is small
SIZES = {"small": 0.18, "large": 0.3}
_ONE_SHARE = 1 / 3  # share of the images that hold one object
# centres lie on a lattice of this pitch, four pixels at 32: few distinct patches, so little to
# learn
_STEP = 1 / 8
RELATIONS = {  # wordings, and the unit vector from the second object to the first (y points down)
    "above": (("above", "over"), (0, -1)),
    "below": (("below", "under"), (0, 1)),
    "left": (("to the left of", "left of"), (-1, 0)),
    "right": (("to the right of", "right of"), (1, 0)),
}
SPLITS = ("train", "heldout")
LENGTHS = {"train": 20_000, "heldout": 2_000}

_ONE = (
    "a {size} {thing} on a {background} background",
    "{size} {thing} on {background}",
    "a {size} {thing}",
)
_TWO = (
    "a {first} {relation} a {second} on a {background} background",
    "{first} {relation} {second} on {background}",
    "a {first} {relation} a {second}",
)
_GROUNDS, _RELATIONS = tuple(BACKGROUNDS), tuple(RELATIONS)
_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_LOOKS = tuple((*pair, size) for pair in _PAIRS for size in SIZES)
_CACHE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: x, y (centre) and radius are fractions of the image's side, y points down."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of an image and the caption that describes it.

    `size` is None for two objects, `relation` for one.
    """

    things: tuple[Thing, ...]
    background: str
    size: str | None
    relation: str | None
    caption: str


def look_held_out(colour: str, shape: str, size: str, background: str) -> bool:
    """Whether an object of this look never comes in training: each shape, small, in two colours on
    one background each.
    """
    form, ground = SHAPES.index(shape), list(BACKGROUNDS).index(background)
    turn = (list(COLOURS).index(colour) - form) % 4
    return size == "small" and (turn, ground) in ((0, form % 3), (2, (form + 1) % 3))


@functools.cache
def relation_held_out(first: tuple[str, str], relation: str, second: tuple[str, str]) -> bool:
    """Whether two (colour, shape) objects never come in this relation in training.

    "a above b" and "b below a" are one thing.
    """
    if relation in ("below", "right"):
        first, second, relation = second, first, {"below": "above", "right": "left"}[relation]
    return zlib.crc32(" ".join((*first, relation, *second)).encode()) % 8 == 0


def scene(index: int, split: str = "train", seed: int = 0) -> Scene:
    """The scene number `index` of a split: a function of its arguments alone."""
    plan = _planned(index, split, seed)
    return Scene(plan.things(), plan.background, plan.size, plan.relation, plan.caption)


def draw(scenes: list[Scene], image_size: int) -> np.ndarray:
    """The images of scenes, NHWC uint8.

    Edges are smoothed by coverage measured at twice the resolution.
    """
    images = np.empty((len(scenes), image_size, image_size, 3), np.float32)
    for image, one in zip(images, scenes):
        ground = np.asarray(BACKGROUNDS[one.background], np.float32)
        image[:] = ground
        for thing in one.things:  # things never overlap, so adding is painting
            cover = _cover(thing.shape, float(thing.x), float(thing.y), thing.radius, image_size)
            image += cover[..., None] * (np.asarray(COLOURS[thing.colour], np.float32) - ground)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1024)  # the lattice leaves few places: a set has 120 covers
def _cover(shape, x, y, radius, image_size):
    """The share of each pixel that a thing covers, (H, W) from 0 to 1."""
    fine = 2 * image_size
    grid = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    distance = _distance(shape, (grid[None, :] - x) / radius, (grid[:, None] - y) / radius) * radius
    cover = np.clip(0.5 - distance * fine, 0, 1)
    return cover.reshape(image_size, 2, image_size, 2).mean((1, 3), dtype=np.float32)


class Shapes(Source):
    """Random access to the set: `shapes[i]` is {"image": HWC uint8, "caption": str}.

    An image is drawn when it is first asked for, and kept where all of them fit in 256 MiB.

    Args:
      image_size: side of the images in pixels, at least 8.
      split: "train" or "heldout".
      seed: another seed is another set of images; what is held out does not depend on it.
      length: number of images; None: 20,000 for train, 2,000 for heldout.
    """

    def __init__(
        self, image_size: int = 32, split: str = "train", seed: int = 0, length: int | None = None
    ):
        one_of("split", split, SPLITS)
        if image_size < 8:
            raise UserError(f"image_size={image_size} is too small to draw shapes; use 8 or more.")
        self.image_size, self.split, self.seed = image_size, split, seed
        self.length = LENGTHS[split] if length is None else length
        self._keeps = self.length * image_size**2 * 3 <= _CACHE_BYTES
        self._kept: dict[int, tuple[np.ndarray, str]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        image, caption = self._kept.get(index) or self._drawn(index)
        return {"image": image, "caption": caption}

    def without_image(self, index: int) -> dict:
        """The record with "image" None: nothing is drawn."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return {"image": None, "caption": _caption(index, self.split, self.seed)}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}

    def _drawn(self, index):
        one = scene(index, self.split, self.seed)
        made = draw([one], self.image_size)[0], one.caption
        if self._keeps:
            self._kept[index] = made
        return made


@dataclasses.dataclass
class _Plan:
    """The random choices of a scene; its things are placed when they are asked for."""

    looks: tuple[tuple[str, str], ...]
    background: str
    size: str | None
    relation: str | None
    cells: np.ndarray
    caption: str

    def things(self) -> tuple[Thing, ...]:
        """The things, where they stand."""
        if self.relation is None:
            [look], (x, y) = self.looks, 0.5 + _STEP * self.cells
            return (Thing(*look, x, y, SIZES[str(self.size)]),)
        dx, dy = RELATIONS[self.relation][1]
        half, across = 2 * _STEP, _STEP * self.cells  # how far each one stands beside the axis
        things = []
        for look, sign, off in zip(self.looks, (1, -1), across):
            x, y = 0.5 + sign * half * dx + off * abs(dy), 0.5 + sign * half * dy + off * abs(dx)
            things.append(Thing(*look, x, y, SIZES["small"]))
        return tuple(things)


def _planned(index, split, seed):
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    background = _GROUNDS[rng.integers(len(_GROUNDS))]
    plan = _one_thing if rng.random() < _ONE_SHARE else _two_things
    return plan(rng, split, background)


@functools.lru_cache(maxsize=2**17)
def _caption(index, split, seed):
    """The caption of a scene, cached: every stage of a system learns its vocabulary of the same
    captions.
    """
    return _planned(index, split, seed).caption


def _one_thing(rng, split, background):
    wordings = _ONE if split == "train" else _ONE[:2]  # those that name all of what is held out
    wording = wordings[rng.integers(len(wordings))]
    looks = _looks(split, background)
    colour, shape, size = looks[rng.integers(len(looks))]
    cells = rng.integers(-1, 2, 2)
    caption = wording.format(size=size, thing=f"{colour} {shape}", background=background)
    return _Plan(((colour, shape),), background, size, None, cells, caption)


@functools.cache
def _looks(split, background):
    return [look for look in _LOOKS if look_held_out(*look, background) == (split == "heldout")]


def _two_things(rng, split, background):
    wording = _TWO[rng.integers(len(_TWO))]
    while True:  # a combination that belongs to this split, with two different colours
        first, second = (_PAIRS[rng.integers(len(_PAIRS))] for _ in range(2))
        relation = _RELATIONS[rng.integers(len(_RELATIONS))]
        if first[0] != second[0] and relation_held_out(first, relation, second) == (
            split == "heldout"
        ):
            break
    cells, words = rng.integers(-1, 2, 2), RELATIONS[relation][0]
    caption = wording.format(
        first=" ".join(first),
        second=" ".join(second),
        relation=words[rng.integers(len(words))],
        background=background,
    )
    return _Plan((first, second), background, None, relation, cells, caption)


def _distance(shape, x, y):
    """Signed distance from the outline (negative inside), in units of the radius."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1, ay - 0.34), np.maximum(ax - 0.34, ay - 1))
    # triangle: the apex up, its centroid at (0, 0)
    return np.maximum(np.sqrt(3) / 2 * np.abs(x) - y / 2, y) - 0.6
