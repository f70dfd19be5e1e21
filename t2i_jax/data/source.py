"""Where images and captions come from: random access to records, and what happens to those that
cannot be read.
"""

from __future__ import annotations

import collections
import functools
import importlib
import threading
from typing import Any, Protocol

from t2i_jax.config import one_of
from t2i_jax.errors import UserError

Record = dict[str, Any]
"""One sample: "image" uint8 HWC RGB (None where a source has none) and "caption" (str);
optional are "tokens" (int32,
row-major), "text_embeds" (tokens, width) float and "text_mask" (tokens,) bool."""

_KINDS = {  # what follows the colon, and where it is read
    "folder": ("PATH", "t2i_jax.data.folder", "FolderSource"),
    "webdataset": ("GLOB", "t2i_jax.data.webdataset", "WebDatasetSource"),
    "arrayrecord": ("DIR", "t2i_jax.data.arrayrecord", "PackedSource"),
    "tfds": ("NAME", "t2i_jax.data.external", "TfdsSource"),
    "hf": ("NAME", "t2i_jax.data.external", "HuggingFaceSource"),
}
EMBEDDED = {  # the sets that come with the package, and where they are drawn or read
    "shapes": ("t2i_jax.data.shapes", "Shapes"),
    "digits": ("t2i_jax.data.digits", "Digits"),
}
_WITH_SPLITS = ("tfds", "hf")
_ENOUGH = 20  # samples after which the rate of bad ones is looked at


class Source(Protocol):
    """Random access to records; picklable, and safe to read from several threads.

    A source may also have `without_image(index)` and `without_caption(index)`: the record with that
    entry None, for batches that do not want it. Sources of image files have `file(index) -> (bytes,
    name)` and `caption(index)`; those with images to condition on have `cond_image(index)`.
    """

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record, or `BadSample`."""
        ...


class BadSample(Exception):
    """A sample that cannot be used: it is counted, left out, and reported.

    Attributes:
      reason: few words, the same for all samples that are bad in one way: "no caption", "not an
        image".
      name: which one: a file's path, a member of an archive, a record's number.
    """

    def __init__(self, reason: str, name: str):
        # file names need not be text, and this is printed
        name = name.encode("utf-8", "backslashreplace").decode()
        super().__init__(reason, name)  # both, so that it can be pickled
        self.reason, self.name = reason, name

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def clean_caption(text: Any, name: str) -> str:
    """A caption with single spaces between its words.

    Args:
      text: str, or bytes in UTF-8. name: of the sample, for messages.

    Raises:
      BadSample: "no caption", "empty caption" or "caption is not UTF-8".
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadSample("caption is not UTF-8", name) from None
    if not isinstance(text, str):
        raise BadSample("no caption", name)
    # halves of letters, which JSON can spell
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BadSample("caption is not UTF-8", name)
    text = " ".join(text.replace("\0", " ").split())
    if not text:
        raise BadSample("empty caption", name)
    return text


class BadCounter:
    """Counts bad samples by reason and remembers the first five names.

    Safe to use from several threads.

    Attributes:
      by_reason: number of bad samples for each reason.
      names: the first five, as "name: reason".
    """

    def __init__(self):
        self.by_reason: collections.Counter[str] = collections.Counter()
        self.names: list[str] = []
        self._lock = threading.Lock()

    def add(self, bad: BadSample) -> None:
        """Counts one."""
        with self._lock:
            self.by_reason[bad.reason] += 1
            if len(self.names) < 5 and str(bad) not in self.names:
                self.names.append(str(bad))

    @property
    def total(self) -> int:
        """Bad samples in all."""
        with self._lock:
            return sum(self.by_reason.values())

    def check(self, seen: int, max_rate: float, done: bool = False) -> None:
        """Looks at the rate of bad samples among `seen`, from the 20th on, or sooner when all have
        been seen (`done`).

        Raises:
          UserError: the rate is above `max_rate`; it names the first bad ones.
        """
        total = self.total
        if not total or (seen < _ENOUGH and not done) or total <= max_rate * seen:
            return
        raise UserError(
            f"max_bad_rate={max_rate} is exceeded: {total} of {seen} samples cannot be used "
            f"({'; '.join(self.names)}); repair the data or raise data.max_bad_rate."
        )


def open_source(spec: str, *, image_size: int, split: str = "train", seed: int = 0) -> Source:
    """The source that `spec` names.

    Args:
      spec: "shapes", "digits", "folder:PATH", "webdataset:GLOB", "arrayrecord:DIR", "tfds:NAME" or
        "hf:NAME".
      image_size: side of the images of the built-in data sets; other sources give images as they
        are stored.
      split: "train" or "heldout" of an built-in data set, a split's name for tfds and hf; other
        sources have none.
      seed: of the images of `shapes`.

    Raises:
      UserError: an unknown kind, or nothing after the colon.
    """
    kind, _, place = spec.partition(":")
    one_of("data.source", kind, (*EMBEDDED, *_KINDS))
    if kind in EMBEDDED:
        if place:
            raise UserError(
                f"data.source={spec!r} has something after the colon; write data.source={kind}."
            )
        return _embedded(kind, image_size, split, seed)
    what, module, name = _KINDS[kind]
    if not place:
        raise UserError(
            f"data.source={spec!r} does not say which; write data.source={kind}:{what}."
        )
    source = getattr(importlib.import_module(module), name)
    return source(place, split) if kind in _WITH_SPLITS else source(place)


@functools.lru_cache(maxsize=4)  # the stages of a run share the images that are drawn
def _embedded(kind, image_size, split, seed):
    module, name = EMBEDDED[kind]
    return getattr(importlib.import_module(module), name)(image_size, split, seed)
