"""The folder that `t2i sample` writes: its images, their captions by number, and a sheet of the
first of them.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from t2i_jax import files

CAPTIONS, SHEET = "captions.txt", "grid.png"
_IMAGE = re.compile(r"([0-9]{3,})-([0-9]{2,})\.png")
_LINE = re.compile(r"([0-9]{3,}) (.*)")
_MOST_BYTES = 2**28


def image_name(prompt: int, number: int) -> str:
    """The name of an image: the number of its prompt, and its own among those of the prompt."""
    return f"{prompt:03d}-{number:02d}.png"


def numbers_of(name: str) -> tuple[int, int] | None:
    """The two numbers in the name of an image, whose folders are passed over; None of another
    name.
    """
    found = _IMAGE.fullmatch(os.path.basename(name))
    return None if found is None else (int(found[1]), int(found[2]))


def write_captions(folder: pathlib.Path, captions: Sequence[str]) -> None:
    """Writes the captions, one in each line behind its number."""
    lines = (f"{i:03d} {' '.join(caption.split())}\n" for i, caption in enumerate(captions))
    (folder / CAPTIONS).write_text("".join(lines), encoding="utf-8")


def without_numbers(lines: Sequence[str]) -> list[str] | None:
    """The captions in the lines of `write_captions`; None of other lines."""
    found = [_LINE.fullmatch(line) for line in lines]
    captions = [one[2] for i, one in enumerate(found) if one and one[1] == f"{i:03d}"]
    return captions if len(captions) == len(lines) else None


def below(home: pathlib.Path, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The captions of each folder of `t2i sample` among folders of images, by its path below HOME.

    It is one where all images but the sheet have the names of such, and captions.txt beside them
    has a line for each number in these, or is empty: a file of a user that is called grid.png is
    taken for no sheet.

    Args:
      names: of the images, below HOME.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(os.path.dirname(name), []).append(os.path.basename(name))
    found = {folder: _captions(home / folder, some) for folder, some in by_folder.items()}
    return {folder: captions for folder, captions in found.items() if captions is not None}


def likely_sheets(names: Sequence[str], sampled: Mapping[str, Sequence[str]]) -> list[str]:
    """The images that are called as the sheet and lie beside images with names of `t2i sample`, in
    none of the folders that `below` has found.

    Args:
      names: of the images. sampled: what `below` has found.
    """
    beside = {os.path.dirname(name) for name in names if numbers_of(name) is not None}
    sheets = (name for name in names if os.path.basename(name) == SHEET)
    return [one for one in sheets if os.path.dirname(one) in beside - sampled.keys()]


def why_without(home: pathlib.Path, name: str) -> str:
    """Why an image that `t2i sample` may have written has no caption in the folder HOME, in few
    words; "" of an image of another name.
    """
    if numbers_of(name) is None:
        return ""
    if not (home / os.path.dirname(name) / CAPTIONS).is_file():
        return f"{CAPTIONS} of t2i sample is not beside it"
    return f"{CAPTIONS} beside it has not a line for each number of images, or others are there"


def _captions(folder, names):
    if not (folder / CAPTIONS).is_file():
        return None
    numbers = [numbers_of(name) for name in names if name != SHEET]
    known = [prompt for prompt, _ in filter(None, numbers)]
    if not known or len(known) < len(numbers):
        return None
    try:
        text = files.read_regular(folder / CAPTIONS, _MOST_BYTES).decode()
    except (OSError, ValueError):
        return None
    captions = without_numbers(text.removesuffix("\n").split("\n") if text else [])
    is_whole = captions is not None and (not captions or max(known) < len(captions))
    return captions if is_whole else None
