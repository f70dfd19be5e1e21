"""A look at a source: how many records, what sizes and captions, what can't be used, and a contact
sheet.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from t2i_jax.data.crop import resized
from t2i_jax.data.image_file import in_channels
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import BadSample, Record, Source
from t2i_jax.errors import UserError
from t2i_jax.typeset import text_block

# side of an image on the sheet and gap between two, in pixels; lines of a caption
_SIDE, _GAP, _LINES = 160, 8, 3
_LINE = 14  # height of a line in pixels


@dataclasses.dataclass(frozen=True)
class Overview:
    """The findings of a look at a source.

    Attributes:
      records: number of records. looked_at: how many of them were read, evenly spread.
      sizes: (width, height) of each image.
      captions: each caption.
      images_bad, captions_bad: what could not be used; a record may count in both.
      read_in_part: of which of the records that were looked at something is left.
      passed_over: what lies with the data and is no record.
      shown: some records that have an image, for the sheet; their caption may be None.
    """

    records: int
    looked_at: int
    sizes: list[tuple[int, int]]
    captions: list[str]
    images_bad: Ledger
    captions_bad: Ledger
    read_in_part: Ledger
    passed_over: Ledger
    shown: list[Record]

    def lines(self) -> list[str]:
        """The overview in words, one line for each thing."""
        part = (
            "all of them"
            if self.looked_at == self.records
            else f"{self.looked_at} of them, evenly spread"
        )
        found = [f"records: {self.records}, looked at {part}"]
        if self.sizes:
            width, height = (_range(side) for side in zip(*self.sizes))
            found.append(f"images: {len(self.sizes)}, width {width}, height {height} pixels")
        found += self.images_bad.lines("images that can't be used")
        if self.captions:
            words = _range([len(caption.split()) for caption in self.captions])
            found.append(
                f"captions: {len(self.captions)}, {len(set(self.captions))} different, {words} "
                "words"
            )
            often = collections.Counter(self.captions).most_common(3)
            found += [f"  {count} x {_cut(caption, 100)!r}" for caption, count in often]
        found += self.captions_bad.lines("captions that can't be used")
        found += self.read_in_part.lines("read in part")
        return found + self.passed_over.lines("passed over")


def look(
    source: Source,
    samples: int = 1000,
    show: int = 24,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    wants: Sequence[str] = ("image", "caption"),
    seconds: float = math.inf,
) -> Overview:
    """Reads up to `samples` records and keeps `show` of them.

    Args:
      progress: wraps the indices, such as tqdm.
      wants: the entries that are read of each.
      seconds: after which no more is read; the records are then looked at in an order by chance.

    Raises:
      UserError: `samples` or `show` below 1.
    """
    if samples < 1 or show < 1:
        raise UserError(f"samples={samples} and show={show} must be at least 1.")
    count = len(source)
    indices = (
        sorted({int(i) for i in np.linspace(0, count - 1, min(samples, count)).round()})
        if count
        else []
    )
    turns = set(np.linspace(0, len(indices) - 1, show).round().astype(int).tolist())
    # images that the sheet should have by now; where one can't be used, the next one steps in
    due = 0
    source = source.counted_anew()
    in_part, passed_over = source.read_in_part, source.passed_over
    found = Overview(count, len(indices), [], [], Ledger(), Ledger(), in_part, passed_over, [])
    if seconds < math.inf:
        np.random.default_rng(0).shuffle(indices)
    end = time.monotonic() + seconds
    for turn, index in enumerate(progress(indices)):
        if time.monotonic() > end:
            return dataclasses.replace(found, looked_at=turn)
        due += turn in turns
        image = caption = None
        if "image" in wants:
            image = _read(source.without_caption, index, "image", found.images_bad)
        if "caption" in wants:
            caption = _read(source.without_image, index, "caption", found.captions_bad)
        if image is not None:
            found.sizes.append((image.shape[1], image.shape[0]))
        if caption is not None:
            found.captions.append(caption)
        if image is not None and len(found.shown) < due:
            found.shown.append({"image": _thumbnail(image), "caption": caption})
    return found


def contact_sheet(records: list[Record], columns: int = 6) -> np.ndarray:
    """Images in rows with their captions below, HWC uint8.

    Large ones are made smaller, small ones enlarged.
    """
    columns = max(1, min(columns, len(records)))
    cell = _SIDE + _GAP, _SIDE + _GAP + _LINES * _LINE
    sheet = Image.new(
        "RGB", (columns * cell[0] + _GAP, -(-len(records) // columns) * cell[1] + _GAP), "white"
    )
    for i, record in enumerate(records):
        x, y = _GAP + i % columns * cell[0], _GAP + i // columns * cell[1]
        thumbnail = Image.fromarray(_thumbnail(record["image"]))
        sheet.paste(thumbnail, (x + (_SIDE - thumbnail.width) // 2, y + _SIDE - thumbnail.height))
        caption = text_block(record["caption"] or "", _SIDE, size=10, lines=_LINES)
        if caption is not None:
            sheet.paste(caption, (x, y + _SIDE))
    return np.asarray(sheet)


def _read(alone, index, entry, bad):
    """An entry of a record by itself; None where it can't be used."""
    try:
        value = alone(index)[entry]
        if value is None:
            raise BadSample(f"no {entry}", f"record {index}")
        return value
    except BadSample as sample:
        bad.add(sample)
        return None


def note_cut(
    ledger: Ledger,
    captions: Sequence[str],
    lengths: Callable[[Sequence[str]], np.ndarray],
    max_length: int,
) -> Ledger:
    """The ledger, with those captions that a text encoder cuts.

    Args:
      lengths: tokens of captions, the end included. max_length: tokens that the encoder reads.
    """
    for caption, tokens in zip(captions, lengths(captions) if captions else ()):
        if tokens > max_length:
            name = f"{tokens} tokens: {_cut(caption, 60)!r}"
            ledger.note(f"caption of more than {max_length} tokens", name)
    return ledger


def note_unknown(ledger: Ledger, captions: Sequence[str], letters: Sequence[str]) -> Ledger:
    """The ledger, with those captions of which a vocabulary lacks letters.

    Args:
      letters: which ones, of each caption; "" where it has all.
    """
    for caption, lacking in zip(captions, letters, strict=True):
        if lacking:
            name = f"{_cut(lacking, 20)} in {_cut(caption, 60)!r}"
            ledger.note("caption with letters that the vocabulary lacks", name)
    return ledger


def _range(values):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low}" if low == high else f"{low} to {high} (median {middle:g})"


def _thumbnail(image_HWC):
    image_HWC = in_channels(image_HWC, 3)
    height, width = image_HWC.shape[:2]
    scale = _SIDE / max(height, width)
    if scale > 1:
        factor = max(1, int(scale))  # whole, so that pixels stay sharp
        return image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return resized(image_HWC, size, Image.Resampling.LANCZOS)


def _cut(text, length):
    return text if len(text) <= length else text[: length - 1] + "…"
