"""The features of a set of images, computed shard by shard and kept in files."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from t2i_jax.data.pack import side_by_side
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.moments import Moments, merged
from t2i_jax.eval.rows import Rows, StoredRows
from t2i_jax.eval.statistics_file import write_npz
from t2i_jax.runs.scoring.split import Share, Split

BATCH_SIZE = 32
_KEY, _KEPT, _ABOUT = "key", "kept", "about"
_NOTHING = np.zeros((0, 0), np.float32)  # of a shard of which no image can be used


class ImageSet(Protocol):
    """Images by their numbers, in shards."""

    split: Split

    def read(self, index: int) -> np.ndarray:
        """The image with this number, uint8 (H, W, C); or `BadSample`."""
        ...

    def key(self, shard: int) -> str:
        """A key that changes when the images of a shard do."""
        ...


class FeatureSet(Protocol):
    """Features of a set of images, as metrics ask for them."""

    def rows(self, layer: str) -> Rows:
        """The features of all images that could be used, in their order, (N, D) float32."""
        ...

    def moments(self, layer: str) -> Moments:
        """The moments of a layer's features in float64."""
        ...

    @property
    def kept(self) -> np.ndarray:
        """The numbers (N,) of the images that could be used."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """The "count" of the features and what else is known of them, as JSON."""
        ...


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of all shards, read from their files when they are asked for.

    All of them but `about` raise a `UserError` where no image could be used.

    Attributes:
      folder: where the files are. split: images into shards.
    """

    folder: pathlib.Path
    split: Split

    def rows(self, layer: str) -> Rows:
        """The features of all images that could be used, in their order, (N, D) float32; they stay
        in their files until they are looked at.
        """
        self._check()
        paths = [shard_file(self.folder, shard) for shard in range(self.split.shards)]
        try:
            return StoredRows(paths, layer)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            said = f"features in {str(self.folder)!r} are missing or damaged ({error})"
            raise UserError(f"{said}; start the command again.") from None

    def moments(self, layer: str) -> Moments:
        """The moments of a layer's features in float64, merged in the order of the shards; one
        shard at a time is in memory.
        """
        self._check()
        return merged(self._moments(layer))

    def _moments(self, layer):
        first = 0
        for shard in self._shards():
            if len(shard[layer]):
                yield Moments.of(shard[layer], first)
            first += len(shard[layer])

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """The numbers (N,) of the images that could be used."""
        self._check()
        return np.concatenate([shard[_KEPT] for shard in self._shards()])

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """The "count" of the images used, "left_out" by reason, "sizes" with their counts, and
        "sha256" of all pixels, as JSON.
        """
        left_out: collections.Counter[str] = collections.Counter()
        sizes: collections.Counter[str] = collections.Counter()
        digest, count = hashlib.sha256(), 0
        for shard in self._shards():
            told = json.loads(str(shard[_ABOUT]))
            left_out.update(told["left_out"])
            sizes.update(told["sizes"])
            digest.update(told["pixels"].encode())
            count += len(shard[_KEPT])
        return {
            "count": count,
            "left_out": dict(sorted(left_out.items())),
            "sizes": dict(sorted(sizes.items())),
            "sha256": digest.hexdigest(),
        }

    def _check(self):
        if not self.about["count"]:
            left_out = self.about["left_out"].items()
            told = ", ".join(f"{reason} {count}" for reason, count in left_out)
            raise UserError(
                f"none of {self.split.count} images can be used ({told}); repair them, or give "
                "others."
            )

    def _shards(self) -> Iterator[dict[str, np.ndarray]]:
        for shard in range(self.split.shards):
            path = shard_file(self.folder, shard)
            found = _read(path)
            if found is None:
                raise UserError(f"{str(path)!r} is missing or damaged; start the command again.")
            yield found


def folder_of(
    home: pathlib.Path, extractor: Extractor, layers: tuple[str, ...], bring: Mapping[str, Any]
) -> pathlib.Path:
    """The folder in which the features of an extractor are kept: another file of weights, other
    preprocessing or other layers are another folder.

    Args:
      bring: JSON of what is done with images before the extractor gets them.
    """
    told = json.dumps([extractor.about, bring, layers], sort_keys=True, default=str)
    return home / f"{extractor.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def compute(
    images: ImageSet,
    extractor: Extractor,
    layers: tuple[str, ...],
    folder: pathlib.Path,
    bring: Callable[[np.ndarray], np.ndarray],
    share: Share,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[Any], Any] = iter,
) -> Features:
    """Computes the features of the shards that are this process's, unless they are there.

    Args:
      layers: of the extractor. bring: what is done with an image first. batch_size: images that it
        is given at a time, on each device. progress: shows a bar over the shards.

    Returns:
      The features of all shards; they can be read when every process is done.
    """
    for shard in progress(list(share.mine(images.split.shards))):
        compute_shard(images, extractor, layers, folder, bring, shard, batch_size)
    return Features(folder, images.split)


def compute_shard(
    images: ImageSet,
    extractor: Extractor,
    layers: tuple[str, ...],
    folder: pathlib.Path,
    bring: Callable[[np.ndarray], np.ndarray],
    shard: int,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Computes the features of one shard, unless they are there; arguments as of `compute`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = images.key(shard)
    if not has_shard(folder, shard, key):
        made = _computed(images, extractor, layers, shard, bring, batch_size)
        write_npz(shard_file(folder, shard), {**made, _KEY: np.array(key)})


def has_shard(folder: pathlib.Path, shard: int, key: str) -> bool:
    """Whether the features of a shard are there, of images with this key."""
    found = _read(shard_file(folder, shard))
    return found is not None and str(found[_KEY]) == key


def shard_file(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """The file of a shard's features."""
    return folder / f"{shard:05d}.npz"


def _computed(images, extractor, layers, shard, bring, batch_size):
    kept: list[int] = []
    left_out: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    digest = hashlib.sha256()

    def read(index):
        try:
            image = images.read(index)
        except BadSample as bad:
            return bad
        return image.shape, hashlib.sha256(image.tobytes()).digest(), bring(image)

    def usable():
        rows = images.split.rows(shard)
        for index, one in zip(rows, side_by_side(read, rows), strict=True):
            if isinstance(one, BadSample):
                left_out[one.reason] += 1
                continue
            shape, pixels, image = one
            kept.append(index)
            sizes[f"{shape[1]}x{shape[0]}"] += 1
            digest.update(f"{shape} ".encode() + pixels)
            yield image

    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for batch in extractor.batches(usable(), batch_size, layers):
        for layer in layers:
            found[layer].append(batch[layer])
    about = {"left_out": left_out, "sizes": sizes, "pixels": digest.hexdigest()}
    return {
        **{layer: np.concatenate(parts or [_NOTHING]) for layer, parts in found.items()},
        _KEPT: np.array(kept, np.int64),
        _ABOUT: np.array(json.dumps(about, sort_keys=True)),
    }


def _read(path):
    """The arrays of a file; None where it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
