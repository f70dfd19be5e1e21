"""Judges images of drawn things against captions that combine them: numbers, colours, forms, sizes,
places and what is not there.

It measures pixels and knows nothing of how they are drawn. An image is read without its caption:
every object's colour, form, place and half width. A caption is parsed into items and what holds
between them. The image is right when it shows exactly as many objects, and they can be given to the
items so that everything holds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge
from t2i_jax.eval.composition_claims import SIZES, Claim, Item, parse

TASKS = (
    "single_object", "two_object", "counting", "colors", "position", "color_attr", "size",
    "size_attr", "negation",
)  # fmt: skip
PALETTE = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 205, 30),
    "orange": (245, 130, 20),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 220),
    "black": (20, 20, 20),
}
_ROOT = np.sqrt(3)


def _longer(x, y):
    return np.maximum(abs(x), abs(y))


OUTLINES = {  # area and inside test of a form of half width 1, its centroid at (0, 0), y down
    "circle": (np.pi, lambda x, y: x**2 + y**2 <= 1),
    "ring": (0.75 * np.pi, lambda x, y: abs(x**2 + y**2 - 0.625) <= 0.375),
    "square": (4.0, lambda x, y: _longer(x, y) <= 1),
    "diamond": (2.0, lambda x, y: abs(x) + abs(y) <= 1),
    "triangle": (_ROOT, lambda x, y: (y <= 1 / _ROOT) & (_ROOT * abs(x) - y <= 2 / _ROOT)),
    "cross": (
        8 * 0.34 - 4 * 0.34**2,
        lambda x, y: (_longer(x, y) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.34),
    ),
}
_LARGEST_SIDE, _LEAST_SIDE = 64, 32  # pixels: larger images are reduced before they are read
_LEAST_AREA = 0.008  # of the image: less is a speck, not an object
_HALF_WIDTHS = (0.122, 0.174)  # of the side: between small and medium, medium and large
_ROOM = 4  # pixels around a part in which forms are compared with it
_NEAR = 0.375  # of the side: things next to each other have centres this close
_PROPERTIES = ("colour", "form", "size", "relation")


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object as measured.

    Attributes:
      colour: its name. form: its name, or "other". size: "small", "medium" or "large".
      x, y: its centroid, as fractions of the side, y down.
    """

    colour: str
    form: str
    size: str
    x: float
    y: float


class JudgeCompositions(Judge):
    """Judges whether images show what their captions say, and of which task a caption is.

    >>> JudgeCompositions().judge(images_NHWC, ["three red circles"])       # doctest: +SKIP
    array([ True])
    """

    def judge(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The verdict per image (uint8, square, 32 pixels or more), a bool: everything that the
        caption claims is so.

        Raises:
          UserError: a caption that is not understood, or a wrong form of the images.
        """
        return np.array([_is_right(*pair) for pair in _pairs(images_NHWC, captions)], bool)

    def parts(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """The verdicts per image on "count", "colour", "form", "size" and "relation", each by
        itself, as bools: the objects can be given to the items so that this one holds.

        A property that a caption leaves open counts as right. Without the right number of objects
        nothing else is.
        """
        rows = []
        for seen, claim in _pairs(images_NHWC, captions):
            row = {name: _is_right(seen, claim, (name,)) for name in _PROPERTIES}
            rows.append({"count": len(seen) == claim.count, **row})
        return {name: np.array([row[name] for row in rows], bool) for name in
                ("count", *_PROPERTIES)}  # fmt: skip

    def tasks(self, captions: Sequence[str]) -> list[str]:
        """The task of each caption, one of `TASKS`."""
        return [task_of(parse(caption)) for caption in captions]


def task_of(claim: Claim) -> str:
    """The task to which a claim belongs."""
    items, first = claim.items, claim.items[0]
    if claim.absent or any(item.not_colour or item.not_form for item in items):
        return "negation"
    if claim.relation:
        return "position"
    if any(item.size for item in items):
        return "size" if len(items) == 1 else "size_attr"
    if len(items) > 1:
        return "color_attr" if any(item.colour for item in items) else "two_object"
    if first.is_counted:
        return "counting"
    return "colors" if first.colour else "single_object"


def read(image_HWC: np.ndarray) -> list[Seen] | None:
    """The objects of an image, largest first; None where the ground is not white."""
    from scipy import ndimage

    side = min(len(image_HWC), _LARGEST_SIDE)
    if side < len(image_HWC):
        small = Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BOX)
        image_HWC = np.asarray(small)
    pixels = image_HWC.astype(np.float32)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    if ground.min() < 215:
        return None
    covers = _covers(pixels - ground, ground)
    colour = np.argmin(covers[1], axis=0)
    strong = np.take_along_axis(covers[0], colour[None], 0)[0] > 0.5
    labels, count = np.zeros(colour.shape, int), 0
    for i in range(len(PALETTE)):
        mine = strong & (colour == i)
        if not mine.any():
            continue
        own, more = ndimage.label(mine, structure=np.ones((3, 3)))
        labels, count = np.where(own > 0, own + count, labels), count + more
    found = []
    for number in range(1, count + 1):
        core = labels == number
        region = ndimage.binary_dilation(core, structure=np.ones((3, 3))) & (core | (labels == 0))
        i = int(np.bincount(colour[core]).argmax())
        thing = _thing(np.where(region, covers[0][i], 0), tuple(PALETTE)[i])
        found += [] if thing is None else [thing]
    return [seen for _, seen in sorted(found, key=lambda pair: -pair[0])]


def _covers(difference_HWC, ground):
    """The share of each pixel that each colour would cover, and how far that is from the pixel: the
    nearest point on the line from the ground to the colour. Both (colours, H, W).
    """
    covers, errors = [], []
    for rgb in PALETTE.values():
        towards = np.asarray(rgb, np.float32) - ground
        cover = np.clip(difference_HWC @ towards / (towards @ towards), 0, 1)
        covers.append(cover)
        errors.append(np.square(difference_HWC - cover[..., None] * towards).sum(-1))
    return np.stack(covers), np.stack(errors)


def _thing(cover_HW, colour):
    """The area of one connected part, and what is seen of it; None for a speck."""
    area = float(cover_HW.sum())
    if area < _LEAST_AREA * cover_HW.size:
        return None
    side = len(cover_HW)
    y, x = (float((cover_HW * axis).sum() / area) for axis in np.indices(cover_HW.shape))
    form = _form(cover_HW, area, x, y)
    unit = OUTLINES[form][0] if form in OUTLINES else 3.0
    half = np.sqrt(area / unit) / side
    size = SIZES[int(half > _HALF_WIDTHS[0]) + int(half > _HALF_WIDTHS[1])]
    return area, Seen(colour, form, size, (x + 0.5) / side, (y + 0.5) / side)


def _form(part_HW, area, x, y):
    """The form of the same area and centroid that differs least; "other" if none is near."""
    from scipy import ndimage

    (top, left), (bottom, right) = _box(part_HW)
    part_HW, x, y = part_HW[top:bottom, left:right], x - left, y - top
    fine = 4
    rows, columns = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in part_HW.shape)
    best = (0.4, "other")  # the least difference, as a part of the area
    for name, (unit, inside) in OUTLINES.items():
        extent = np.sqrt(area / unit)
        mask = inside((columns[None, :] - x) / extent, (rows[:, None] - y) / extent)
        mask = mask.astype(np.float32).reshape(len(part_HW), fine, -1, fine).mean((1, 3))
        for blur in (0, 0.5, 0.8):  # images from a decoder are a little soft
            form = ndimage.gaussian_filter(mask, blur) if blur else mask
            best = min(best, (float(np.abs(form - part_HW).sum() / area), name))
    return best[1]


def _box(part_HW):
    """The two corners of a part with room for what a form may reach beyond it."""
    places = np.argwhere(part_HW > 0)
    return np.maximum(places.min(0) - _ROOM, 0), places.max(0) + 1 + _ROOM


def _pairs(images_NHWC, captions):
    images_NHWC = np.asarray(images_NHWC)
    if (
        images_NHWC.dtype != np.uint8
        or images_NHWC.ndim != 4
        or images_NHWC.shape[-1] != 3
        or images_NHWC.shape[1] != images_NHWC.shape[2]
        or images_NHWC.shape[1] < _LEAST_SIDE
    ):
        raise UserError(
            f"images are {images_NHWC.dtype}{images_NHWC.shape}; give square uint8 images of "
            f"{_LEAST_SIDE} pixels or more as (N, H, W, 3)."
        )
    if len(images_NHWC) != len(captions):
        raise UserError(
            f"{len(images_NHWC)} images and {len(captions)} captions; give one caption per image."
        )
    return [(read(image) or [], parse(caption)) for image, caption in zip(images_NHWC, captions)]


def _is_right(seen: Sequence[Seen], claim: Claim, looked_at: Sequence[str] = _PROPERTIES) -> bool:
    """Whether the objects can be given to the claim's items so that what is looked at holds."""
    if len(seen) != claim.count:
        return False
    if "colour" in looked_at and any(thing.colour == claim.absent for thing in seen):
        return False
    items = [item for item in claim.items for _ in range(item.count)]
    is_related = _RELATIONS[claim.relation] if "relation" in looked_at and claim.relation else None
    return any(
        all(_fits(thing, item, looked_at) for thing, item in zip(order, items))
        and (is_related is None or is_related(*order))
        for order in itertools.permutations(seen)
    )


def _fits(thing: Seen, item: Item, looked_at):
    """Whether an object is what an item says, as far as is looked at."""
    said = {"colour": item.colour, "form": item.form, "size": item.size}
    if any(said[name] not in (None, getattr(thing, name)) for name in said if name in looked_at):
        return False
    return not (
        ("colour" in looked_at and thing.colour == item.not_colour)
        # to be no ring, it must be something
        or ("form" in looked_at and item.not_form and thing.form in (item.not_form, "other"))
    )


def _towards(axis: int, sign: int) -> Callable[..., bool]:
    def stands(first: Seen, second: Seen) -> bool:
        apart = np.array([first.x - second.x, first.y - second.y])
        return bool(sign * apart[axis] > 0.1 and abs(apart[axis]) > abs(apart[1 - axis]))

    return stands


def _near(first: Seen, second: Seen) -> bool:
    return bool(np.hypot(first.x - second.x, first.y - second.y) < _NEAR)


def _between(middle: Seen, first: Seen, second: Seen) -> bool:
    """Whether the middle object lies on the way from one to the other, and not far beside it."""
    start, end = np.array([first.x, first.y]), np.array([second.x, second.y])
    way, here = end - start, np.array([middle.x, middle.y]) - start
    length = float(np.hypot(*way))
    along, beside = way @ here / length, abs(way[0] * here[1] - way[1] * here[0]) / length
    return bool(0.2 * length < along < 0.8 * length and beside < 0.12)


_RELATIONS: dict[str, Callable[..., bool]] = {
    "above": _towards(1, -1),
    "below": _towards(1, 1),
    "left": _towards(0, -1),
    "right": _towards(0, 1),
    "near": _near,
    "between": _between,
}
