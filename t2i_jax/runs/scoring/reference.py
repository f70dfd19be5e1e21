"""References that generated images are compared with: real images, or statistics of them in a
file.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from t2i_jax import paths
from t2i_jax.data.source import EMBEDDED
from t2i_jax.errors import UserError
from t2i_jax.eval import protocol as protocols
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.frechet import Gaussian
from t2i_jax.eval.rows import Rows
from t2i_jax.eval.statistics_file import read_statistics
from t2i_jax.runs.scoring import sources
from t2i_jax.runs.scoring.features import Features, ImageSet
from t2i_jax.runs.scoring.sources import ArrayImages, SourceImages, source_spec, split_of
from t2i_jax.runs.scoring.split import SHARD_SIZE

_OWN = ("sha256", "schema", "command")  # of the file beside statistics, about itself

Size = Callable[[], int | None]
"""The type of a function that returns the side in pixels of the images that are measured; None:
nothing tells."""

Compute = Callable[[Any, Extractor, tuple[str, ...]], Features]
"""The type of a function (images, extractor, layers) -> features; every process calls it."""


def no_size() -> None:
    """The `Size` of images whose size nothing tells: None."""


class Reference(Protocol):
    """A reference set, as metrics ask for it."""

    def prepare(
        self,
        extractor: Extractor,
        layers: tuple[str, ...],
        compute: Compute,
        needs_features: bool = True,
    ) -> None:
        """Computes what the other methods give; every process calls it.

        Args:
          needs_features: whether more is asked for than mean and covariance.
        """
        ...

    def gaussian(self, extractor: str, layer: str) -> Gaussian:
        """Mean and covariance of a layer's features."""
        ...

    def features(self, extractor: str, layer: str, metric: str) -> Rows:
        """The features themselves; a `UserError` that names the metric where there are none."""
        ...

    def count(self, extractor: str) -> int | None:
        """The number of images in the reference; None: nobody has said."""
        ...

    def about(self, extractor: str) -> Mapping[str, Any]:
        """The entry about the reference in the results, as JSON."""
        ...

    def sizes(self, extractor: str) -> Mapping[str, int] | None:
        """By size, as "640x480", how many images of the reference have it, in statistics that a
        protocol made the size that it gave them; None: nothing tells.
        """
        ...

    def image(self, extractor: str, row: int) -> np.ndarray | None:
        """The image of a row of the features; None where there are no images."""
        ...


def open_reference(
    text: str,
    mode: str | None,
    size: Size = no_size,
    shard_size: int = SHARD_SIZE,
    split: str | None = None,
) -> Reference:
    """A reference as a user writes it: FILE.npz, or a folder or another source of images.

    Args:
      mode: by which preprocessing the statistics of a file were made; None: its JSON file says so.
      size: at which a built-in dataset is drawn, asked for where it is one.
      split: of a source with splits; None: "heldout".

    Raises:
      UserError: nothing is there, a mode for images, which have none, or a split of what has none.
    """
    if text.endswith(".npz"):
        if split is not None:
            raise UserError(
                f"reference_split={split!r} is for images, and reference={paths.shown(text)} has "
                "statistics; leave it out."
            )
        return StatisticsReference(paths.given("reference", text), mode, shard_size)
    if mode is not None:
        raise UserError(
            f"reference_mode={mode!r} is for statistics in a file, and reference="
            f"{paths.shown(text)} has images, from which every mode is made; leave it out."
        )
    spec = source_spec("reference", text)
    drawn = size() if spec in EMBEDDED else None
    part = split_of(spec, split, "reference_split")
    images = SourceImages(spec, "reference", drawn, part, shard_size)
    return ImagesReference(images)


class RealImages(ImageSet, Protocol):
    """Real images by their numbers, in shards."""

    def about(self) -> Mapping[str, Any]:
        """The entry about the images in the results, without their digest."""
        ...

    def passed_over(self) -> Mapping[str, Any]:
        """The entry about files that lie with the images and are not measured; {} without any."""
        ...


class ImagesReference:
    """A set of real images."""

    def __init__(self, images: RealImages):
        self._images, self._found = images, dict[str, Features]()

    @property
    def total(self) -> int:
        """The number of images, whether they can be used or not."""
        return self._images.split.count

    def check_apart(self, out: pathlib.Path) -> None:
        """Refuses a folder whose images would be found among these.

        Raises:
          UserError: it lies where these are looked for.
        """
        sources.check_apart(out, "reference", self._images.about())

    def prepare(
        self,
        extractor: Extractor,
        layers: tuple[str, ...],
        compute: Compute,
        needs_features: bool = True,
    ) -> None:
        """Computes the features of the images."""
        del needs_features
        self._found[extractor.name] = compute(self._images, extractor, layers)

    def gaussian(self, extractor: str, layer: str) -> Gaussian:
        """The mean and covariance of the features of all images that could be used."""
        return Gaussian.of(self._found[extractor].moments(layer))

    def features(self, extractor: str, layer: str, metric: str) -> Rows:
        """The features of a layer, (N, D) float32."""
        del metric
        return self._found[extractor].rows(layer)

    def count(self, extractor: str) -> int:
        """The number of images that could be used."""
        return self._found[extractor].about["count"]

    def about(self, extractor: str) -> dict[str, Any]:
        """The path of the images, how many of which sizes, what was passed over and left out, and a
        hash of all pixels.
        """
        told = {**self._images.about(), **self._images.passed_over()}
        return {**told, **self._found[extractor].about}

    def sizes(self, extractor: str) -> Mapping[str, int]:
        """By size how many of the images that could be used have it."""
        return self._found[extractor].about["sizes"]

    def image(self, extractor: str, row: int) -> np.ndarray:
        """The image of a row, uint8 (H, W, 3)."""
        return self._images.read(int(self._found[extractor].kept[row]))


class StatisticsReference:
    """Statistics in an npz, and those of further modes in files beside it, see
    `t2i_jax.eval.statistics_file`; ADM's also have images, from which features are computed where a
    metric needs them.
    """

    def __init__(self, path: pathlib.Path, mode: str | None, shard_size: int):
        self._path, self._mode, self._shard_size = path, mode, shard_size
        self._read, self._found = {}, dict[str, Features]()

    def prepare(
        self,
        extractor: Extractor,
        layers: tuple[str, ...],
        compute: Compute,
        needs_features: bool = True,
    ) -> None:
        """Reads the file, for this extractor; computes features of its images where mean and
        covariance are not enough or not there.
        """
        found = self._statistics(extractor)
        if found.images_NHWC is not None and (needs_features or found.gaussian is None):
            images = ArrayImages(found.images_NHWC, found.sha256, self._shard_size)
            self._found[extractor.name] = compute(images, extractor, layers)

    def _statistics(self, extractor):
        """The contents of the file for an extractor, read once."""
        if extractor.name not in self._read:
            self._read[extractor.name] = read_statistics(self._path, extractor.name, self._mode)
        return self._read[extractor.name]

    def gaussian(self, extractor: str, layer: str) -> Gaussian:
        """The file's own, or that of its images where it has images alone."""
        known = self._read[extractor].gaussian
        return known or Gaussian.of(self._found[extractor].moments(layer))

    def features(self, extractor: str, layer: str, metric: str) -> Rows:
        """The file's own, or those of its images."""
        kept = self._read[extractor].features_ND
        if kept is None and extractor in self._found:
            return self._found[extractor].rows(layer)
        if kept is None:
            raise _without_features(self._read[extractor].path, metric)
        return kept

    def check(
        self,
        extractor: Extractor,
        layer: str,
        metric: str,
        needs_features: bool,
        protocol: protocols.Protocol | None = None,
        size: Size = no_size,
    ) -> int | None:
        """Refuses a file that a metric can't be compared with, before anything is computed.

        Args:
          extractor: whose features they are compared with. layer: which of them.
          needs_features: whether the metric needs more than a Gaussian.
          protocol: by which images are compared with it; None: none.
          size: of these images, asked for where the file is of images that were drawn.

        Returns:
          Of how many images it has features, or what they are computed of; None: of none.

        Raises:
          UserError: statistics of another extractor, layer or protocol, without features, with a
            matrix that is no covariance, or of images that were drawn at another size.
        """
        found = self._statistics(extractor)
        _check_width(found, extractor, layer)
        _check_covariance(found)
        if needs_features and found.features_ND is None and found.images_NHWC is None:
            raise _without_features(found.path, metric)
        if protocol is not None:
            named = f"reference={paths.shown(found.path)}"
            protocol.check_reference(named, found.count, protocols.made_by(found.about))
        else:
            _check_drawn(found, size)
        kept = found.images_NHWC if found.features_ND is None else found.features_ND
        return None if kept is None else len(kept)

    def count(self, extractor: str) -> int | None:
        """The number of images, as the file or the JSON beside it says; None: nothing tells."""
        found = self._read[extractor]
        if found.count is None and found.gaussian is None:
            return self._found[extractor].about["count"]
        return found.count

    def about(self, extractor: str) -> dict[str, Any]:
        """The file, its hash, and what is known of how it was made."""
        found = self._read[extractor]
        return {
            "kind": "statistics",
            "path": str(found.path),
            "sha256": found.sha256,
            "count": self.count(extractor),
            "made_from": {name: found.about[name] for name in found.about if name not in _OWN},
        }

    def sizes(self, extractor: str) -> Mapping[str, int] | None:
        """That of the protocol by which the statistics were made, or those of the images that they
        are of, as the JSON beside the file or the images in it tell; None: neither does.
        """
        found = self._read[extractor]
        made_by = protocols.made_by(found.about)
        if isinstance(side := (made_by or {}).get("size"), int):
            return {f"{side}x{side}": found.count or 0}
        if found.images_NHWC is not None:
            count, height, width, _ = found.images_NHWC.shape
            return {f"{width}x{height}": count}
        about = found.about.get("images")
        kept = about.get("sizes") if isinstance(about, dict) else None
        is_whole = isinstance(kept, dict) and all(isinstance(one, int) for one in kept.values())
        return kept if is_whole and kept else None

    def image(self, extractor: str, row: int) -> np.ndarray | None:
        """An image of a file with images, where its features are not its own."""
        found = self._read[extractor]
        if found.images_NHWC is None or found.features_ND is not None:
            return None
        return found.images_NHWC[row]


def _without_features(path, metric):
    return UserError(
        f"metrics={metric} needs the features of the reference images, and reference="
        f"{paths.shown(path)} has their mean and covariance alone; make it with "
        "`t2i evaluate reference DIR --keep-features`, or give the images."
    )


def _check_drawn(found, size):
    """Refuses statistics of images that were drawn at another size than those beside them have."""
    about = found.about.get("images")
    if not isinstance(about, dict) or about.get("kind") not in EMBEDDED:
        return
    there, wanted = about.get("sizes"), size()
    if wanted is None or not isinstance(there, dict) or f"{wanted}x{wanted}" in there:
        return
    raise UserError(
        f"reference={paths.shown(found.path)} is of {about['kind']} drawn at {', '.join(there)} "
        f"pixels, and the images that it is compared with have {wanted}; make it with --size "
        f"{wanted}."
    )


def _check_covariance(found):
    """Refuses a matrix with negative eigenvalues, which is none."""
    try:
        if found.gaussian is not None:
            _ = found.gaussian.factor_DR
    except UserError as error:
        raise UserError(f"reference={paths.shown(found.path)}: {error}") from None


def _check_width(found, extractor, layer):
    """Refuses statistics of another layer, which only their width tells."""
    widths = [] if found.gaussian is None else [len(found.gaussian.mean_D)]
    widths += [] if found.features_ND is None else [found.features_ND.shape[1]]
    if widths and set(widths) != {wanted := extractor.width(layer)}:
        told, named = " and ".join(map(str, dict.fromkeys(widths))), paths.shown(found.path)
        raise UserError(
            f"reference={named} has statistics of features {told} wide, and those of "
            f"{extractor.name} are {wanted} wide (layer {layer}); give statistics of these."
        )
