"""Judges images of simple shapes against their captions by measuring pixels.

It knows nothing of how they are drawn.

An image is read without its caption: background, then every object's colour, form, place and size.
A caption is parsed into what it claims. The image is right when it shows exactly the objects
claimed, as claimed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge


def _longer(x, y):
    return np.maximum(abs(x), abs(y))


COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 205, 30),
}
BACKGROUNDS = {"white": 255.0, "gray": 128.0, "black": 0.0}
OUTLINES = {  # area and inside test, for a form of extent 1 with its centroid at (0, 0), y down
    "circle": (np.pi, lambda x, y: x**2 + y**2 <= 1),
    "square": (4.0, lambda x, y: _longer(x, y) <= 1),
    "triangle": (3 * np.sqrt(3) / 4, lambda x, y: (y <= 0.5) & (np.sqrt(3) * abs(x) - y <= 1)),
    "cross": (
        8 * 0.34 - 4 * 0.34**2,
        lambda x, y: (_longer(x, y) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.34),
    ),
}
_RELATION = {  # as `Claim.relation`
    "above": (1, -1),
    "over": (1, -1),
    "below": (1, 1),
    "under": (1, 1),
    "left of": (0, -1),
    "right of": (0, 1),
}
_LARGEST_SIDE = 64  # larger images are reduced to this before they are read
_LEAST_AREA = 0.015  # of the image: less is a speck, not an object
_LARGE_AREA = 0.123  # of the image: more is a large object, less a small one


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object as measured: x, y is its centroid as fractions of the side, area a fraction of the
    image.
    """

    colour: str
    shape: str
    x: float
    y: float
    area: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claims of one caption; a None is left open.

    `relation` is (axis, sign of the first's place minus the second's); axis 0 is x, 1 is y.
    """

    things: tuple[tuple[str, str], ...]
    size: str | None
    relation: tuple[int, int] | None
    background: str | None


class JudgeShapes(Judge):
    """Judges whether images show what their captions say.

    >>> JudgeShapes().judge(images_NHWC, ["a large red circle on a white background"])
    array([ True])
    """

    def judge(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The verdict per image (uint8, square, 16 pixels or more), a bool: everything that the
        caption claims is so.

        Raises:
          UserError: a caption without a known object, or a wrong form of the images.
        """
        return np.all(list(self.parts(images_NHWC, captions).values()), axis=0)

    def parts(self, images_NHWC: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """The verdicts per image on "count", "colour", "shape" (with its colour), "size",
        "relation" and "background", as bools.

        A property that a caption leaves open counts as right.
        """
        images_NHWC = np.asarray(images_NHWC)
        if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3:
            raise UserError(
                f"images are {images_NHWC.dtype}{images_NHWC.shape}; give uint8 images as (N, H, "
                "W, 3)."
            )
        if len(images_NHWC) != len(captions):
            raise UserError(
                f"{len(images_NHWC)} images and {len(captions)} captions; give one caption per "
                "image."
            )
        names = ("count", "colour", "shape", "size", "relation", "background")
        rows = [
            _compare(*read(image), parse(caption)) for image, caption in zip(images_NHWC, captions)
        ]
        return {name: np.array([row[name] for row in rows], bool) for name in names}


def parse(caption: str) -> Claim:
    """The claim of a caption such as "a small blue cross on black"."""
    text = " ".join(caption.lower().split())
    colours, shapes = "|".join(COLOURS), "|".join(OUTLINES)
    things = tuple(re.findall(rf"\b({colours}) ({shapes})\b", text))
    relation = re.search(rf"\b({'|'.join(_RELATION)})\b", text)
    if not 1 <= len(things) <= 2 or (len(things) == 2) != bool(relation):
        raise UserError(
            f"caption={caption!r} is not about one object, or two in a relation; write it like 'a "
            f"red circle above a blue square' (colours {colours}; shapes {shapes})."
        )
    size = re.search(r"\b(small|large)\b", text)
    ground = re.search(rf"\b({'|'.join(BACKGROUNDS)})\b", text)
    return Claim(
        things,
        size and size.group(1),
        relation and _RELATION[relation.group(1)],
        ground and ground.group(1),
    )


def read(image_HWC: np.ndarray) -> tuple[str | None, list[Seen]]:
    """The background (None: neither white, gray nor black) and the objects of an image, the largest
    first.
    """
    if max(image_HWC.shape[:2]) > _LARGEST_SIDE:
        smaller = Image.fromarray(image_HWC).resize(
            (_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX
        )
        image_HWC = np.asarray(smaller)
    pixels = image_HWC.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    name = min(BACKGROUNDS, key=lambda g: np.abs(ground - BACKGROUNDS[g]).max())
    if np.abs(ground - BACKGROUNDS[name]).max() > 45 or np.abs(border - ground).max(-1).mean() > 40:
        return None, []
    cover, colour = _paint(pixels - ground, ground)
    seen = [
        thing
        for i, c in enumerate(COLOURS)
        for thing in _things(np.where(colour == i, cover, 0), c)
    ]
    return name, sorted(seen, key=lambda thing: -thing.area)


def _paint(difference_HWC, ground):
    """The colour that covers a pixel and how much of it: the nearest point on the lines from the
    ground to each colour.
    """
    covers, errors = [], []
    for rgb in COLOURS.values():
        towards = np.asarray(rgb, np.float32) - ground
        cover = np.clip(difference_HWC @ towards / (towards @ towards), 0, 1)
        covers.append(cover)
        errors.append(np.square(difference_HWC - cover[..., None] * towards).sum(-1))
    colour = np.argmin(errors, axis=0)
    cover = np.take_along_axis(np.stack(covers), colour[None], 0)[0]
    return np.where(cover > 0.15, cover, 0), colour


def _things(cover_HW, colour):
    """The connected parts of one colour that are large enough to be objects."""
    from scipy import ndimage

    labels, count = ndimage.label(cover_HW > 0.3, structure=np.ones((3, 3)))
    side = cover_HW.shape[0]
    found = []
    for number in range(1, count + 1):
        inside = ndimage.binary_dilation(labels == number) & ((labels == number) | (labels == 0))
        part = np.where(inside, cover_HW, 0)
        area = part.sum()
        if area < _LEAST_AREA * cover_HW.size:
            continue
        y, x = (float((part * axis).sum() / area) for axis in np.mgrid[:side, : cover_HW.shape[1]])
        place = (x + 0.5) / side, (y + 0.5) / side
        found.append(Seen(colour, _form(part, area, x, y), *place, float(area) / cover_HW.size))
    return found


def _form(part_HW, area, x, y):
    """The form of the same area and centroid that differs least; "other" if none is near."""
    from scipy import ndimage

    fine = 4
    rows, columns = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in part_HW.shape)
    best = (0.4, "other")  # the least difference, as a part of the area
    for name, (unit, inside) in OUTLINES.items():
        extent = np.sqrt(area / unit)
        mask = inside((columns[None, :] - x) / extent, (rows[:, None] - y) / extent).astype(
            np.float32
        )
        mask = mask.reshape(part_HW.shape[0], fine, part_HW.shape[1], fine).mean((1, 3))
        for blur in (0, 0.5, 0.8):  # images from a decoder are a little soft
            form = ndimage.gaussian_filter(mask, blur) if blur else mask
            best = min(best, (float(np.abs(form - part_HW).sum() / area), name))
    return best[1]


def _compare(ground, seen, claim):
    right = dict.fromkeys(("colour", "shape", "size", "relation"), False)
    right |= {
        "count": len(seen) == len(claim.things),
        "background": claim.background in (None, ground),
    }
    right["background"] &= ground is not None
    by_colour = {thing.colour: thing for thing in seen}
    things = [by_colour.get(colour) for colour, _ in claim.things]
    right["colour"] = None not in things
    if right["colour"]:
        right["shape"] = all(
            thing.shape == shape for thing, (_, shape) in zip(things, claim.things)
        )
        large = things[0].area > _LARGE_AREA
        right["size"] = claim.size in (None, "large" if large else "small")
        right["relation"] = claim.relation is None or _stands(*things, *claim.relation)
    return right


def _stands(first, second, axis, sign):
    apart = np.array([first.x - second.x, first.y - second.y])
    return bool(sign * apart[axis] > 0.1 and abs(apart[axis]) > abs(apart[1 - axis]))
