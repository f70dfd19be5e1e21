"""`t2i evaluate tokenizer`: how well a tokenizer gives images back."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax import paths, sharding
from t2i_jax.cluster import lock, processes
from t2i_jax.config import one_of
from t2i_jax.data.crop import crop as cut
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.reconstruction import (
    code_counts,
    psnr,
    ssim,
    ssim_skimage,
    usage_of_counts,
)
from t2i_jax.eval.resize import adm_crop
from t2i_jax.eval.statistics_file import write_npz
from t2i_jax.runs import folder as folders
from t2i_jax.runs.scoring import features, plan, score, sources
from t2i_jax.runs.scoring.metrics import (
    INCEPTION_LAYERS,
    Entry,
    Subject,
    mean_interval,
    reconstruction_distance,
)
from t2i_jax.runs.scoring.reference import ImagesReference
from t2i_jax.runs.scoring.score import Images
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.sources import SourceImages
from t2i_jax.runs.scoring.split import Share
from t2i_jax.systems.base import System
from t2i_jax.train.stored import last_step

CROPS = ("adm", "center")
_AT_ONCE = 64  # pairs that are measured at a time
_LEAST_OF_SSIM = 11  # pixels per side
_MOST_DB = 100.0  # for which an exact reconstruction counts, whose PSNR is infinite
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The type of a distance: two sets of images, uint8 NHWC -> the distance of each pair."""


class CroppedImages(SourceImages):
    """The images of a source, square and as large as a tokenizer takes them.

    Args:
      size: side in pixels. crop: "adm", as in ADM's reference batches, or "center", the middle
        square made smaller, as training does it.
    """

    def __init__(self, spec: str, size: int, crop: str, shard_size: int, split: str = "heldout"):
        one_of("crop", crop, CROPS)
        super().__init__(spec, "images", size, split, shard_size)
        self._size, self._crop = size, crop

    def read(self, index: int) -> np.ndarray:
        """The cropped image with this number, uint8 (size, size, 3).

        Raises:
          UserError: it can't be read; of pairs none is left out.
        """
        try:
            image = super().read(index)
        except BadSample as bad:
            raise UserError(
                f"images={paths.shown(self.spec)} has {bad.name}, which can't be used "
                f"({bad.reason}); remove it."
            ) from None
        return (
            adm_crop(image, self._size) if self._crop == "adm" else cut(image, self._size, "center")
        )

    def key(self, shard: int) -> str:
        """The key of the files, with size and crop."""
        return f"{super().key(shard)} {self._size} {self._crop}"

    def about(self) -> dict[str, Any]:
        """The path of the images, and how they were cropped."""
        return {**super().about(), "size": self._size, "crop": self._crop}


@dataclasses.dataclass(frozen=True)
class Measures:
    """The metrics of reconstructions, beside PSNR, SSIM and the codebook.

    Attributes:
      extractors: of Inception, for rFID, one for each mode; (): no rFID.
      lpips: by trunk ("alex") the distance; {}: none.
    """

    extractors: Sequence[Extractor] = ()
    lpips: Mapping[str, Distance] = dataclasses.field(default_factory=dict)


def evaluate(
    run: pathlib.Path,
    system: System,
    images: CroppedImages,
    measures: Measures,
    out: pathlib.Path,
    share: Share,
    batch_size: int = 32,
    progress: Callable[[Any], Any] = iter,
    step: int | str | None = None,
) -> dict[str, Any]:
    """Reconstructs images and measures them; every process calls it.

    Args:
      system: an image tokenizer. out: folder of the results, with the reconstructions as PNG.
      batch_size: images that are reconstructed at a time, on each device.
      step: of the checkpoint that the system is of; None: the newest.

    Returns:
      The results, as of `score.score`; {} in a process that is not the first.

    Raises:
      UserError: another kind of system, or OUT was begun with another plan, or lies among the
        images.
    """
    about = {
        "run": {
            "step": last_step(run) if step is None else step,
            "weights": folders.fingerprint(system.weights),
        },
        "prompts": None,
        "sampling": None,
    }
    sources.check_apart(out, "images", images.about())
    with lock.held(out, "out"):
        counted = {**images.about(), "count": images.split.count, "shard_size": images.split.size}
        software = plan.software()
        plan.settle(
            out, {**about, "images": counted, "batch_size": batch_size, "software": software}
        )
        shards, system = ImageShards(out / "images", images.split), _on_devices(system)
        for shard in progress(list(share.mine(images.split.shards))):
            codes, key = _codes(out, shard), images.key(shard)
            if not (shards.is_whole(shard) and _are_of(codes, key)):
                _reconstruct(system, images, shards, shard, codes, key, batch_size)
        processes.gather(None)
        reference, found = ImagesReference(images), {}
        for extractor in measures.extractors:
            compute = _computing(out, share, progress)
            reference.prepare(extractor, INCEPTION_LAYERS, compute("reference"))
            found[extractor.name] = compute("generated")(shards, extractor, INCEPTION_LAYERS)
        processes.gather(None)
        if share.process:
            return {}
        return _written(out, about, system, images, shards, measures, reference, found)


def _written(out, about, system, images, shards, measures, reference, found):
    count = images.split.count
    keys = [(f"{row:06d}", 0) for row in range(count)]
    subject = Subject(
        found, {one.name: one for one in measures.extractors}, reference, None,
        [key for key, _ in keys], shards.read, _no_judge,
    )  # fmt: skip
    marks: list[str] = []
    pairs = _pairs(images, shards, measures, subject.groups, marks)
    entries = [*pairs, *_usage(out, system, images)]
    for extractor in measures.extractors:
        entries += reconstruction_distance("rfid", subject, extractor.name)
    told = {**shards.about(), "of": {**images.about(), **images.passed_over()}}
    subjects = Images(
        shards, lambda: {**about, "images": told}, None, keys, [""] * count, marks=marks
    )
    of_lpips = {
        f"lpips-{trunk}": getattr(one, "about", {}).get("features", {})
        for trunk, one in measures.lpips.items()
    }
    results, values = score.assembled(subjects, subject, entries, None, of_lpips)
    score.write(out, subjects, results, values)
    return results


def _on_devices(system):
    """The system with its weights on every device of this process."""
    mesh = sharding.make_mesh(devices=jax.local_devices())
    places = jax.tree.map(lambda _: sharding.replicated(mesh), system.weights)
    return dataclasses.replace(system, weights=sharding.put(system.weights, places))


def _are_of(codes, key):
    """Whether the codes of a shard are there, and of images with this key."""
    try:
        with np.load(codes, allow_pickle=False) as found:
            return str(found["key"]) == key
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return False


def _reconstruct(system, images, shards, shard, codes, key, batch_size):
    rows, mesh = images.split.rows(shard), sharding.make_mesh(devices=jax.local_devices())
    size = batch_size * mesh.size
    made, ids = [], []
    for start in range(rows.start, rows.stop, size):
        mine = [images.read(row) for row in range(start, min(start + size, rows.stop))]
        filled = np.stack(mine + mine[-1:] * (size - len(mine)))
        ids_BN = system.encode(jax.device_put(filled, sharding.batch_sharding(mesh)))
        ids.append(np.asarray(ids_BN)[: len(mine)])
        made.append(np.asarray(system.decode(ids_BN))[: len(mine)])
    shards.write(shard, np.concatenate(made), [{"image": row} for row in rows])
    codes.parent.mkdir(parents=True, exist_ok=True)
    write_npz(codes, {"codes": np.concatenate(ids), "key": np.array(key)})


def _pairs(images, shards, measures, groups, marks) -> Iterator[Entry]:
    """The means over the pairs; `marks` gets a digest of each original, cropped as it is
    reconstructed.
    """
    distances: dict[str, Distance] = {"psnr": psnr}
    if images.read(0).shape[0] >= _LEAST_OF_SSIM:
        distances |= {"ssim": ssim, "ssim_skimage": ssim_skimage}
    distances |= {f"lpips_{trunk}": one for trunk, one in measures.lpips.items()}
    values: dict[str, list[np.ndarray]] = {name: [] for name in distances}
    for start in range(0, images.split.count, _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, images.split.count))
        real, again = (np.stack([one.read(row) for row in rows]) for one in (images, shards))
        marks += [score.digest(one.tobytes()) for one in real]
        for name, distance in distances.items():
            values[name].append(np.asarray(distance(real, again), np.float64))
    told = {
        "psnr": {"unit": "dB", "mean": "over images", "peak": 255, "most": _MOST_DB},
        "ssim": {"window": "Gaussian 11, 1.5", "channels": "mean"},
        "ssim_skimage": {"window": "even 7", "channels": "mean", "as": "scikit-image by default"},
    }
    for name, parts in values.items():
        values_N = np.concatenate(parts)
        if name == "psnr":
            values_N = np.minimum(values_N, _MOST_DB)
        about = told.get(name) or _json(getattr(distances[name], "about", {}))
        yield Entry(
            f"{name}_per_image" if name == "psnr" else name, float(values_N.mean()), "", about,
            functools.partial(mean_interval, values_N, groups), against=False, values_N=values_N,
        )  # fmt: skip


def _usage(out, system, images) -> Iterator[Entry]:
    size = system.task.model.codebook_size
    counts = np.zeros(size, np.int64)
    for shard in range(images.split.shards):
        with np.load(_codes(out, shard), allow_pickle=False) as found:
            counts += code_counts(found["codes"], size)
    for name, value in usage_of_counts(counts).items():
        yield Entry(name, float(value), "", {"codebook_size": size}, against=False)


def _computing(out, share, progress):
    def of(kind):
        def compute(some, extractor, layers):
            home = features.folder_of(out / "features" / kind, extractor, layers, {})
            return features.compute(
                some, extractor, layers, home, lambda image: image, share, progress=progress
            )

        return compute

    return of


def _codes(out, shard):
    return out / "codes" / f"{shard:05d}.npz"


def _no_judge(name):
    raise UserError(f"judge={name!r} judges captions, and a tokenizer has none; leave it out.")


def _json(value):
    return {
        name: one if isinstance(one, (str, int, float)) else str(one) for name, one in value.items()
    }
