"""Images that are there already: a folder or another source of data, as generated or as reference
images.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
import threading
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.data.caption import clean_caption
from t2i_jax.data.folder import NO_IMAGES, in_place_of
from t2i_jax.data.image_file import LEAST_SIDE
from t2i_jax.data.ledger import printable
from t2i_jax.data.source import (
    EMBEDDED,
    KINDS,
    BadSample,
    Source,
    check_split,
    has_splits,
    open_source,
)
from t2i_jax.errors import UserError
from t2i_jax.eval import layout, sample_folder
from t2i_jax.eval.protocol import Protocol
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.scoring.split import SHARD_SIZE, Split
from t2i_jax.systems.notices import tell

_BUILT_IN_SIZE = 32  # pixels, where nothing says another size
_SHEET = f"{sample_folder.SHEET} of t2i sample"
_GRIDS = 8  # files that are kept decoded, as many as threads read
_FURTHER = "further row of an image"


class SourceImages:
    """The images of a source, by their numbers.

    An image that several rows of a table name is one image, and the sheet of a folder that
    `t2i sample` wrote is none.

    Args:
      spec: "folder:DIR", "arrayrecord:DIR" and so on, as `data.source` of a recipe.
      field: what the user calls it, for messages. size: of images of a built-in dataset. split: of
        a source with splits. shard_size: images of a shard.
      each_row: whether an image counts once for each of its rows, to be compared with each caption.

    Raises:
      UserError: the source can't be opened, or holds fewer than 2 images.
    """

    def __init__(
        self,
        spec: str,
        field: str,
        size: int | None = None,
        split: str = "heldout",
        shard_size: int = SHARD_SIZE,
        each_row: bool = False,
    ):
        self.spec = spec
        self.source: Source = open_source(spec, image_size=size or _BUILT_IN_SIZE, split=split)
        self._sampled = _sampled(spec, self.source, field)
        self._records, self._beside = _records(self.source, self._sampled, each_row)
        if len(self._records) < 2:
            raise UserError(
                f"{field}={paths.shown(spec)} holds 1 image, which has no covariance; give 2 or "
                "more."
            )
        self.split = Split(len(self._records), shard_size)
        self._part = {"split": split} if has_splits(spec) else {}
        self._stamp, self._chosen = stamp(self.source), ""
        if spec in EMBEDDED and size not in (None, _BUILT_IN_SIZE):
            self._chosen = f" {size}"
        if len(self._records) < len(self.source):
            told = np.array(self._records).tobytes()
            self._chosen = f" {hashlib.sha256(told).hexdigest()}"

    def read(self, index: int) -> np.ndarray:
        """The image with this number, uint8 (H, W, 3) of any size; or `BadSample`."""
        record = self._records[index]
        image = self.source.without_caption(record)["image"]
        if image is None:
            raise BadSample("no image", f"record {record}")
        return image

    def name(self, index: int) -> str | None:
        """The name of an image; None where it has none."""
        return self.source.image_name(self._records[index])

    @property
    def further_rows(self) -> int:
        """The number of records whose image an earlier record has too, where each record counts."""
        return len(self._records) - len({self.source.image_of(one) for one in self._records})

    def captions(self) -> list[str]:
        """The captions of all images.

        Raises:
          UserError: one is missing.
        """
        found = []
        for index in range(self.split.count):
            try:
                caption = self._caption(self._records[index])
            except BadSample as bad:
                raise UserError(
                    f"images={paths.shown(self.spec)} has no caption for {bad.name} "
                    f"({self._why(bad) or bad.reason}); give --captions FILE with one for each "
                    "image."
                ) from None
            if caption is None:
                raise UserError(
                    f"images={paths.shown(self.spec)} has no captions; give --captions FILE."
                )
            found.append(caption)
        return found

    def _caption(self, record):
        """The caption of a record in its source, or the one of its number where `t2i sample` wrote
        the image.
        """
        try:
            return self.source.caption(record)
        except BadSample:
            name = self.source.image_name(record) or ""
            captions = self._sampled.get(os.path.dirname(name))
            numbers = sample_folder.numbers_of(name)
            if not captions or numbers is None:
                raise
            return clean_caption(captions[numbers[0]], name)

    def _why(self, bad):
        """Why a record of a folder of `t2i sample` has no caption; "" of another one."""
        kind, _, place = self.spec.partition(":")
        if kind != "folder":
            return ""
        return sample_folder.why_without(paths.given("images", place), bad.name)

    def key(self, shard: int) -> str:
        """A key that tells the images from what they were at another time, by the sizes and times
        of their files and the version of their set, and from those of another split.
        """
        told = os.fsencode(f"{self.spec} {self._part} {self._stamp} {shard}{self._chosen}")
        return hashlib.sha256(told).hexdigest()

    def about(self) -> dict[str, Any]:
        """The entry about the images in the results, without their digest."""
        kind, _, path = self.spec.partition(":")
        return {"kind": kind, "path": path, **self._part}

    def passed_over(self) -> dict[str, dict[str, int]]:
        """The counts of passed-over files: {"passed_over": by reason how much lies with the images,
        may hold images too, and is not measured}; {} where nothing does.
        """
        found = {**self.source.passed_over.different, **self._beside}
        told = {why: count for why, count in found.items() if not why.startswith(NO_IMAGES)}
        return {"passed_over": dict(sorted(told.items()))} if told else {}


def _sampled(spec, source, field):
    """The captions of each folder of `t2i sample` in a folder, by its path below that; a line tells
    of what may be the sheet of such a folder that is none any more.
    """
    kind, _, place = spec.partition(":")
    if kind != "folder":
        return {}
    names = [source.image_name(record) for record in range(len(source))]
    found = sample_folder.below(paths.given("folder", place), names)
    if sheets := sample_folder.likely_sheets(names, found):
        tell(
            f"{field}={paths.shown(spec)} has {printable(sheets[0])} among its images, as no "
            f"{sample_folder.CAPTIONS} beside it has a line for each number of theirs, or other "
            "images are there; remove it where it is the sheet of t2i sample"
        )
    return found


def _records(source, sampled, each_row):
    """The numbers of the records that are measured, and by reason how many are not."""
    found: list[int] = []
    beside, known = collections.Counter[str](), set[Hashable]()
    for record in range(len(source)):
        image = source.image_of(record)
        if sampled and _is_sheet(source.image_name(record), sampled):
            beside[_SHEET] += 1
        elif image in known and not each_row:
            beside[_FURTHER] += 1
        else:
            known.add(image)
            found.append(record)
    return found, beside


def _is_sheet(name, sampled):
    folder, name = os.path.split(name)
    return name == sample_folder.SHEET and folder in sampled


@dataclasses.dataclass
class _Decoded:
    """A file of `GridImages` that was decoded, for one thread at a time."""

    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    place: int | None = None
    grid_HWC: Any = None


class GridImages:
    """The images of files that hold several each, in a grid of two rows as DPG-Bench has them.

    Args:
      files: the grids. each: images of a grid, 4.
    """

    def __init__(self, files: SourceImages, each: int):
        self._files, self._each = files, each
        self.split = Split(files.split.count * each, files.split.size)
        self._decoded = [_Decoded() for _ in range(_GRIDS)]

    def read(self, index: int) -> np.ndarray:
        """The image with this number, uint8 (H, W, 3) of any size; or `BadSample`."""
        place, number = divmod(index, self._each)
        grid_HWC = self._grid(place)
        sides, name = grid_HWC.shape[:2], self._files.name(place) or f"record {place}"
        if any(side % 2 for side in sides):
            raise BadSample("grid of odd sides", name)
        if min(sides) < 2 * LEAST_SIDE:
            raise BadSample("too small", name)
        return layout.cells_of(grid_HWC, self._each)[number]

    def _grid(self, place):
        """The pixels of a file, decoded once for its images that are read next to each other."""
        kept = self._decoded[place % len(self._decoded)]
        with kept.lock:
            if kept.place != place:
                kept.grid_HWC, kept.place = self._files.read(place), place
            return kept.grid_HWC

    def name(self, index: int) -> str | None:
        """The name of the file of an image; None where it has none."""
        return self._files.name(index // self._each)

    @property
    def further_rows(self) -> int:
        """The number of records whose image an earlier record has too."""
        return self._files.further_rows * self._each

    def captions(self) -> list[str]:
        """The captions of all images, each that of its file.

        Raises:
          UserError: one is missing.
        """
        return [caption for caption in self._files.captions() for _ in range(self._each)]

    def key(self, shard: int) -> str:
        """The key of the files, with the number of images in each."""
        return f"{self._files.key(shard)} grid {self._each}"

    def about(self) -> dict[str, Any]:
        """The entry about the files in the results."""
        return self._files.about()

    def passed_over(self) -> dict[str, dict[str, int]]:
        """The files that are passed over, as `SourceImages` counts them."""
        return self._files.passed_over()


def in_grids(files: SourceImages, grid: int | None) -> SourceImages | GridImages:
    """The images of files that hold `grid` of them each; None: one.

    Raises:
      UserError: no grid that is known.
    """
    if grid is not None and grid not in layout.GRIDS:
        raise UserError(f"grid={grid} is no grid that is known; give 4 for two rows of two, or 1.")
    return files if grid in (None, 1) else GridImages(files, grid)


class ArrayImages:
    """Images of an array, as ADM's reference batches hold them.

    Args:
      images_NHWC: uint8. key: tells the array from others.
    """

    def __init__(self, images_NHWC: np.ndarray, key: str, shard_size: int = SHARD_SIZE):
        self._images, self._key = images_NHWC, key
        self.split = Split(len(images_NHWC), shard_size)

    def read(self, index: int) -> np.ndarray:
        """The image with this number, uint8 (H, W, 3)."""
        return self._images[index]

    def key(self, shard: int) -> str:
        """The key of the array, with the shard's number."""
        return f"{self._key} {shard}"


def source_spec(field: str, text: str) -> str:
    """The specification of a source that the user wrote; a plain path is a folder.

    Raises:
      UserError: a path at which there is no folder.
    """
    kind, colon, _ = text.partition(":")
    if text in EMBEDDED and os.path.isdir(text):
        tell(
            f"{field}={text} is the built-in dataset, not the folder of that name; the folder is "
            f"./{text}"
        )
    if text in EMBEDDED or (colon and kind in KINDS):
        return text
    place = paths.given(field, text)
    if not place.is_dir():
        remedy = "give a folder of images, or a source such as arrayrecord:DIR"
        remedy = in_place_of(place) or remedy
        raise UserError(f"{field}={paths.shown(text)} is no folder; {remedy}.")
    return f"folder:{text}"


def check_apart(out: pathlib.Path, field: str, about: Mapping[str, Any]) -> None:
    """Refuses a folder of results whose images would be found among those of a folder.

    Args:
      field: what the images are given as. about: what is known of them, see `SourceImages.about`.

    Raises:
      UserError: it lies in that folder.
    """
    if about["kind"] != "folder":
        return
    home = os.path.realpath(os.path.expanduser(about["path"]))
    if pathlib.Path(os.path.realpath(out)).is_relative_to(home):
        raise UserError(
            f"out={paths.shown(out)} lies in {field}={paths.shown(about['path'])}, among whose "
            "images its own would count; name a folder outside it."
        )


def split_of(spec: str, split: str | None, field: str) -> str:
    """The split of a source that is asked for: "heldout" where none is.

    Raises:
      UserError: one is, of a source without splits.
    """
    if split is not None:
        check_split(spec, split, field)
    return split or "heldout"


def drawn_size(spec: str, size: int | None, protocol: Protocol | None) -> int | None:
    """The side in pixels at which a built-in dataset is drawn for statistics; None: the images of
    another source are as large as they are.

    Args:
      size: that the user gives; None: none. protocol: that brings images to a size; None: none.

    Raises:
      UserError: no size, or one for images that are not drawn or beside a protocol, which has its
        own.
    """
    if size is not None and spec not in EMBEDDED:
        raise UserError(
            f"size={size} is for a dataset that is drawn ({', '.join(EMBEDDED)}), and images="
            f"{paths.shown(spec)} are as large as they are; leave it out."
        )
    if size is not None and protocol is not None:
        raise UserError(
            f"size={size} is given beside protocol={protocol.name!r}, which has its own; leave out "
            "one of them."
        )
    if spec not in EMBEDDED:
        return None
    if size is None and protocol is None:
        raise UserError(
            f"images={spec} is drawn at any size; give --size 64, that of the images it will be "
            "compared with, or --protocol NAME."
        )
    return size if protocol is None else protocol.size


def size_of_run(recipe: Recipe, made_by: Any) -> int | None:
    """The side in pixels of the images of a run, for a reference that is drawn; None: nothing
    tells.

    Args:
      made_by: its system, or its task with the networks of its parts; see `made_size` of both.
    """
    trained_at = None if recipe.data is None else recipe.data.image_size
    return made_by.made_size(recipe.evaluation.options, trained_at)


def stamp(source: Source) -> str:
    """A digest of the names, sizes and times of the files that hold a source's images, of its
    version and of its length: another one where its images may have changed.
    """
    digest = hashlib.sha256(f"{source.version} {len(source)}\n".encode())
    for path in source.image_files:
        try:
            told = path.stat()
            seen = f"{told.st_size} {told.st_mtime_ns}"
        except OSError:  # its image is left out, and counted
            seen = "missing"
        digest.update(os.fsencode(path) + f"\0{seen}\n".encode())
    return digest.hexdigest()
