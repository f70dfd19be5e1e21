"""The held-out part of data that have none of their own: a share of the captions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from t2i_jax.data.source import BadSample, Source

PARTS = ("train", "heldout")
_LOOKED_AT = 2000  # most records by which it is decided how a source is divided
_LABEL = 20  # captions that come this often, on average, are names of classes
_ALL = 2**64


@dataclasses.dataclass(frozen=True)
class Division:
    """The rule that tells from a caption and a number whether a record of a source is held out.

    All records of a caption are on the same side, whatever the source that holds them: a caption is
    held out when its hash is below a limit. A record without a usable caption goes by its number,
    which is another one in another source, or once records are added or removed.

    Attributes:
      limit: of 2^64. by_record: captions are names of classes, or all the same; every record is
        divided by itself, as a class would be missing else.
      records: of the source. looked_at, found: of them, how many were looked at, evenly spread, and
        how many of those are held out.
      by_row: some of its images have several records, each with a caption of its own, and such an
        image may be held out with one and trained on with another.
      by_number: some of those looked at are divided by their number.
    """

    limit: int
    by_record: bool
    records: int
    looked_at: int
    found: int
    by_row: bool = False
    by_number: bool = False

    @property
    def count(self) -> int:
        """Records that are held out; an estimate where not all of them were looked at."""
        return round(self.found * self.records / max(self.looked_at, 1))

    def is_held_out(self, index: int, caption: str | None) -> bool:
        """Whether a record with this number and caption is held out."""
        return _hash(index, None if self.by_record else caption) < self.limit

    def is_within(self, earlier: Division | None, is_same: bool) -> bool:
        """Whether all that it holds out was held out by an earlier division too.

        Args:
          earlier: None: it isn't known, and was made with the same share or a larger one.
          is_same: whether it was of the same source.
        """
        if earlier is None:
            return is_same or not self.by_number
        if (self.by_number or earlier.by_record) and not (
            is_same and self.records == earlier.records and self.by_record == earlier.by_record
        ):
            return False
        return self.limit <= earlier.limit

    def line(self) -> str:
        """The size of the part, in words."""
        about = "" if self.looked_at == self.records else "about "
        by = "image by image, as captions are few" if self.by_record else "by caption"
        if self.by_row:
            by += " (an image with several captions may be trained on with another of them)"
        return f"{about}{self.count} of {self.records} records, {by}"


def divide(source: Source, share: float) -> Division:
    """The division of a source of which `share` of the captions are to be held out.

    All records of a source of up to 2,000 are looked at: where none would be held out, the one with
    the least hash is; where all would be, the one with the greatest is not; a single record never
    is. In a larger source the share alone decides, and a small share may hold nothing out.

    Args:
      share: above 0, below 1.
    """
    count = len(source)
    seen = range(count) if count <= _LOOKED_AT else np.linspace(0, count - 1, _LOOKED_AT)
    indices = [int(index) for index in seen]
    found = division(indices, [caption_of(source, i) for i in indices], count, share)
    return dataclasses.replace(found, by_row=_have_several(source, indices))


def _have_several(source, indices):
    """Whether several of these records, and of those that follow them, have the same image."""
    beside = {i for index in indices for i in (index, index + 1) if i < len(source)}
    return len({source.image_of(i) for i in beside}) < len(beside)


def division(
    indices: Sequence[int], captions: Sequence[str | None], records: int, share: float
) -> Division:
    """The division of a source by the captions of some of its records; None for a caption that
    can't be used.
    """
    told = [caption for caption in captions if caption is not None]
    different = len(set(told))
    by_record = bool(told) and (different == 1 or len(told) >= _LABEL * different)
    keys = [_hash(i, None if by_record else caption) for i, caption in zip(indices, captions)]
    limit = round(share * _ALL)
    if len(indices) == records:  # something on either side; of one record it is trained on
        limit = min(max(limit, min(keys) + 1), max(keys)) if len(set(keys)) > 1 else 0
    found = sum(key < limit for key in keys)
    by_number = by_record or len(told) < len(captions)
    return Division(limit, by_record, records, len(indices), found, by_number=by_number)


def caption_of(source: Source, index: int) -> str | None:
    """The caption of a record, without its image; None for one that can't be
    used.
    """
    try:
        return source.caption(index)
    except BadSample:
        return None


@functools.lru_cache(maxsize=4096)
def _hash(index: int, caption: str | None) -> int:
    """A number below 2^64, the same on every machine."""
    key = f"#{index}" if caption is None else f"={caption}"
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())


def indices_of(
    division: Division, source: Source, order: Iterable[int], most: int, distinct: bool = False
) -> list[int]:
    """The numbers of up to `most` records that are held out, in the order given.

    Args:
      distinct: of each image the first one alone.
    """
    found: list[int] = []
    known = set[Hashable]()
    for index in order:
        if not division.is_held_out(index, caption_of(source, index)):
            continue
        image = source.image_of(index) if distinct else index
        if image in known:
            continue
        known.add(image)
        found.append(index)
        if len(found) == most:
            break
    return found
