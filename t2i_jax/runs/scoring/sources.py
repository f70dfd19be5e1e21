"""Images that are there already: a folder or another source of data, as generated or as reference
images.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.data.folder import in_place_of
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
from t2i_jax.runs.scoring.split import SHARD_SIZE, Split

_BUILT_IN_SIZE = 32  # pixels, where nothing says another size


class SourceImages:
    """The images of a source, by their numbers.

    Args:
      spec: "folder:DIR", "arrayrecord:DIR" and so on, as `data.source` of a recipe.
      field: what the user calls it, for messages. size: of images of a built-in dataset. split: of
        a source with splits. shard_size: images of a shard.

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
    ):
        self.spec = spec
        self.source: Source = open_source(spec, image_size=size or _BUILT_IN_SIZE, split=split)
        if len(self.source) < 2:
            raise UserError(
                f"{field}={paths.shown(spec)} holds 1 image, which has no covariance; give 2 or "
                "more."
            )
        self.split = Split(len(self.source), shard_size)
        self._part = {"split": split} if has_splits(spec) else {}
        self._stamp = stamp(self.source)

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3) of any size; or `BadSample`."""
        image = self.source.without_caption(index)["image"]
        if image is None:
            raise BadSample("no image", f"record {index}")
        return image

    def captions(self) -> list[str]:
        """All captions.

        Raises:
          UserError: one is missing.
        """
        found = []
        for index in range(self.split.count):
            try:
                caption = self.source.caption(index)
            except BadSample as bad:
                raise UserError(
                    f"images={paths.shown(self.spec)} has no caption for {bad.name} ({bad.reason});"
                    " give --captions FILE with one for each image."
                ) from None
            if caption is None:
                raise UserError(
                    f"images={paths.shown(self.spec)} has no captions; give --captions FILE."
                )
            found.append(caption)
        return found

    def key(self, shard: int) -> str:
        """Tells the images from what they were at another time, by the sizes and times of their
        files and the version of their set, and from those of another split.
        """
        told = os.fsencode(f"{self.spec} {self._part} {self._stamp} {shard}")
        return hashlib.sha256(told).hexdigest()

    def about(self) -> dict[str, Any]:
        """What results say of the images, their digest apart."""
        kind, _, path = self.spec.partition(":")
        return {"kind": kind, "path": path, **self._part}


class ArrayImages:
    """Images of an array, as ADM's reference batches hold them.

    Args:
      images_NHWC: uint8. key: tells the array from others.
    """

    def __init__(self, images_NHWC: np.ndarray, key: str, shard_size: int = SHARD_SIZE):
        self._images, self._key = images_NHWC, key
        self.split = Split(len(images_NHWC), shard_size)

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self._images[index]

    def key(self, shard: int) -> str:
        """That of the array, with the shard's number."""
        return f"{self._key} {shard}"


def source_spec(field: str, text: str) -> str:
    """What the user wrote as a source: a plain path is a folder.

    Raises:
      UserError: a path at which there is no folder.
    """
    kind, colon, _ = text.partition(":")
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
