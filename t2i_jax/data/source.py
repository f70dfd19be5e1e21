"""Sources of images and captions: random access to records, and the treatment of those that cannot
be read.
"""

from __future__ import annotations

import abc
import copy
import functools
import importlib
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.config import one_of
from t2i_jax.data.ledger import Ledger, printable
from t2i_jax.errors import UserError

Record = dict[str, Any]
"""The entries of a sample: "image" uint8 HWC RGB (None where a source has none) and "caption"
(str); optional are "tokens", "superres_tokens" and "cond_tokens" (int32, row-major), "text_embeds"
(tokens, width) float and "text_mask" (tokens,) bool."""

KINDS = {  # the other sources: what follows the colon, and where it is read
    "folder": ("PATH", "t2i_jax.data.folder", "FolderSource"),
    "webdataset": ("GLOB", "t2i_jax.data.webdataset", "WebDatasetSource"),
    "arrayrecord": ("DIR", "t2i_jax.data.arrayrecord", "PackedSource"),
    "tfds": ("NAME", "t2i_jax.data.external", "TfdsSource"),
    "hf": ("NAME", "t2i_jax.data.external", "HuggingFaceSource"),
}
EMBEDDED = {  # the sets that come with the package, and where they are drawn or read
    "shapes": ("t2i_jax.data.shapes", "Shapes"),
    "digits": ("t2i_jax.data.digits", "Digits"),
    "compositions": ("t2i_jax.data.compositions", "Compositions"),
}
_PLACES = ("folder", "arrayrecord")  # kinds with a path; the others may have a pattern or a name
_WITH_SPLITS = ("tfds", "hf")


class Source(abc.ABC):
    """Random access to records; picklable, and safe to read from several threads.

    A source defines `__len__` and `__getitem__`; all else has a default, and no caller asks what a
    source has.

    Attributes:
      channels: of the images of its records: 1 (gray), 3 (RGB) or 4 (RGB and alpha).
      has_cond_images: whether it has images to condition on.
    """

    channels: int = 3
    has_cond_images: bool = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The record, or `BadSample`."""

    def without_image(self, index: int) -> Record:
        """The record with "image" None; the image is not read where that can be helped."""
        return {**self[index], "image": None}

    def without_caption(self, index: int) -> Record:
        """The record with "caption" None; where captions are read by themselves, it may have none
        or a bad one.
        """
        return {**self[index], "caption": None}

    def caption(self, index: int) -> str | None:
        """The caption of a record by itself; None where the set has none, or `BadSample`."""
        return self.without_image(index)["caption"]

    def image_name(self, index: int) -> str | None:
        """The name of a record's image, the same wherever the set lies; None where it has none. Its
        file is not read where that can be helped.
        """
        try:
            file = self.file(index)
        except BadSample as bad:
            return bad.name
        return None if file is None else file[1]

    def image_of(self, index: int) -> Hashable:
        """A key of the record's image: records with several captions of one image have the same. By
        default each record has its own.
        """
        return index

    def file(self, index: int) -> tuple[bytes, str] | None:
        """The image file of a record as it is stored, and its name; None where images are no files.

        Raises:
          BadSample: it can't be read.
        """
        del index
        return None

    @property
    def image_files(self) -> Iterable[pathlib.Path]:
        """The files that its images are read from, in an order that stays; () where they are drawn,
        or lie where that can't be told.
        """
        return ()

    @property
    def version(self) -> str:
        """The version or the fingerprint of a set, which tells its images from those of another
        time where the files and the number of records do not; "" where there is no such thing.
        """
        return ""

    def takes(self, path: pathlib.Path) -> bool:
        """Whether an image that is written to this path, or into a folder there, would be a record
        when the source is opened again.
        """
        del path
        return False

    def cond_image(self, index: int, channels: int = 3) -> np.ndarray:
        """The image that an image is conditioned on, uint8 (height, width, channels) of any size;
        or `BadSample`.
        """
        del channels
        raise BadSample("no image to condition on", f"record {index}")

    @property
    def stored(self) -> Mapping[str, Mapping[str, Any]]:
        """The description of each column that was computed beside the data, by its name: "text",
        "tokens".
        """
        return {}

    @property
    def passed_over(self) -> Ledger:
        """The ledger of what lies with the data and is no record: files that are not read, rows and
        members that can't be used.
        """
        return Ledger()

    @functools.cached_property
    def read_in_part(self) -> Ledger:
        """Of which of the records that were read something was left: captions but the first."""
        return Ledger()

    def counted_anew(self) -> Source:
        """The same source with a `read_in_part` of its own, which has counted nothing yet."""
        other = copy.copy(self)
        other.read_in_part = Ledger()
        return other

    def in_channels(self, channels: int) -> Source:
        """The same source, whose image files are read with this number of channels."""
        other = copy.copy(self)
        other.channels = channels
        return other


class BadSample(Exception):
    """A sample that cannot be used: it is counted, left out, and reported.

    Attributes:
      reason: few words, the same for all samples that are bad in one way: "no caption", "not an
        image".
      name: which one: a file's path, a member of an archive, a record's number.
    """

    def __init__(self, reason: str, name: str):
        name = printable(name)
        super().__init__(reason, name)  # both, so that it can be pickled
        self.reason, self.name = reason, name

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


_LARGEST = 2048  # longest side in pixels of the images of a built-in dataset


def check_split(spec: str, split: str, field: str = "split") -> None:
    """Refuses a split of a source that has none, all of which would be read.

    Args:
      spec: as of `open_source`. field: the argument that gave the split, for the message.

    Raises:
      UserError: it has none.
    """
    kind = spec.partition(":")[0]
    if split != "train" and kind in KINDS and kind not in _WITH_SPLITS:
        raise UserError(
            f"{field}={split!r} is given for {spec!r}, which has no splits; leave it out."
        )


def has_splits(spec: str) -> bool:
    """Whether a source, as `open_source` takes it, has several splits."""
    return spec.partition(":")[0] in (*EMBEDDED, *_WITH_SPLITS)


def open_source(
    spec: str, *, image_size: int, split: str = "train", seed: int = 0, channels: int = 3
) -> Source:
    """The source that `spec` names.

    Args:
      spec: "shapes", "digits", "compositions", "folder:PATH", "webdataset:GLOB",
        "arrayrecord:DIR", "tfds:NAME" or "hf:NAME".
      image_size: side of the images of the built-in datasets; other sources give images as they
        are stored.
      split: "train" or "heldout" of a built-in dataset, a split's name for tfds and hf; other
        sources have none.
      seed: of the images of `shapes` and `compositions`, and of the words of `digits`.
      channels: of the images: 1 (gray), 3 (RGB) or 4 (RGB and alpha).

    Raises:
      UserError: an unknown kind, or nothing after the colon.
    """
    kind, _, place = spec.partition(":")
    if kind not in (*EMBEDDED, *KINDS) and os.path.isdir(os.path.expanduser(spec)):
        raise UserError(
            f"data.source={paths.shown(spec)} does not say what it is; write folder:{spec} for a "
            f"folder of images, or arrayrecord:{spec} for one that `t2i data pack` wrote."
        )
    one_of("data.source", kind, (*EMBEDDED, *KINDS))
    if kind in EMBEDDED:
        if place:
            raise UserError(
                f"data.source={spec!r} has something after the colon; write data.source={kind}."
            )
        if image_size > _LARGEST:
            raise UserError(
                f"image_size={image_size} is larger than {kind} is drawn; give at most {_LARGEST}."
            )
        return _embedded(kind, image_size, split, seed)
    what, module, name = KINDS[kind]
    if not place:
        raise UserError(
            f"data.source={spec!r} does not say which; write data.source={kind}:{what}."
        )
    place = paths.local("data.source", place)
    if kind in _PLACES:
        paths.given("data.source", place)
    opener = getattr(importlib.import_module(module), name)
    source = opener(place, split) if kind in _WITH_SPLITS else opener(place)
    return source if channels == source.channels else source.in_channels(channels)


@functools.lru_cache(maxsize=4)  # the stages of a run share the images that are drawn
def _embedded(kind, image_size, split, seed):
    module, name = EMBEDDED[kind]
    return getattr(importlib.import_module(module), name)(image_size, split, seed)
