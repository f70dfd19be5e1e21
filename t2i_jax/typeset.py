"""Captions as lines of text below an image, in a font that has their letters."""

from __future__ import annotations

import bisect
import functools
import importlib.util
import os
import pathlib
import unicodedata
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_MOST_FONTS = 400  # of the machine that are looked through for letters that ours lacks
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # categories of what has no shape of its own


def text_block(
    text: str, width: int, *, size: int = 12, lines: int = 4, colour: str = "black"
) -> Image.Image | None:
    """A text in lines of `width` pixels, black on white; None where it says nothing.

    Words that are too long for a line are broken, and what is beyond the last line is left out,
    which "…" shows. Any string can be drawn: control characters and halves of letters are left out,
    and letters that no font of this machine has become boxes.

    Args:
      size: of the letters, in pixels. lines: the most of them. colour: of the letters.
    """
    # a letter is a pixel wide at least, so that what is beyond these can't be seen
    text = _drawable(text)[: (lines + 1) * width + 1]
    if not text:
        return None
    font = _font(frozenset(text), size)
    found = _wrapped(text, font, width, lines)
    height = _line_height(font)
    block = Image.new("RGB", (width, height * len(found)), "white")
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(found):
        draw.text((0, number * height), line, fill=colour, font=font)
    return block


def _drawable(text):
    """The text with single spaces, without what has no shape."""
    shown = (" " if letter.isspace() else letter for letter in text)
    kept = (
        letter for letter in shown if letter == " " or unicodedata.category(letter) not in _UNSEEN
    )
    return " ".join("".join(kept).split())


def _wrapped(text, font, width, most):
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width:
            fits = max(1, _letters_within(word, font, width))
            if len(word) == 1:
                break
            lines.append(word[:fits])
            word = word[fits:]
            if len(lines) > most + 1:
                break
        lines.append(word)
        if len(lines) > most + 1:
            break
    lines = [line for line in lines if line]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}…"]


def _letters_within(word, font, width):
    """The number of letters of a word that fit in a line; about log2 of their number are
    measured.
    """
    return bisect.bisect_right(
        range(1, len(word) + 1), width, key=lambda n: font.getlength(word[:n])
    )


def _line_height(font):
    if isinstance(font, ImageFont.FreeTypeFont):
        return sum(font.getmetrics()) + 1
    return 12


@functools.lru_cache(maxsize=256)
def _font(letters: frozenset[str], size: int) -> Any:
    """The font DejaVu Sans, or a font of the machine where that lacks letters and the other has
    more.
    """
    ours = _file_of_ours()
    if ours is None:
        return ImageFont.load_default(size=size)
    lacking = {ord(letter) for letter in letters} - _letters_of(ours)
    best = ours
    for path in _fonts_of_machine() if lacking else ():
        rest = {ord(letter) for letter in letters} - _letters_of(path)
        if len(rest) < len(lacking):
            best, lacking = path, rest
        if not lacking:
            break
    try:
        return ImageFont.truetype(best, size)
    except OSError:
        return ImageFont.truetype(ours, size)


def _file_of_ours():
    """The file of DejaVu Sans, which comes with matplotlib; that package is not imported for it."""
    found = importlib.util.find_spec("matplotlib")
    for home in (found.submodule_search_locations or ()) if found else ():
        path = pathlib.Path(home) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return str(path)
    return None


@functools.cache
def _fonts_of_machine():
    homes = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts",
             "/Library/Fonts", "C:/Windows/Fonts", os.path.expanduser("~/.fonts"),
             os.path.expanduser("~/.local/share/fonts"))  # fmt: skip
    found = []
    for home in homes:
        for parent, _, names in os.walk(home):
            found += [
                os.path.join(parent, name)
                for name in names
                if name.lower().endswith((".ttf", ".otf", ".ttc"))
            ]
    # plain cuts before bold and slanted ones
    found.sort(key=lambda path: (not path.lower().rpartition(".")[0].endswith("regular"), path))
    return found[:_MOST_FONTS]


@functools.cache
def _letters_of(path):
    """The code points that a font file has shapes for; none where it can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
