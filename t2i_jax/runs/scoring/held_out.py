"""Held-out images as real ones that generated images are compared with."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax.config import to_dict
from t2i_jax.data.pipeline import source_of
from t2i_jax.errors import UserError
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.frechet import Gaussian
from t2i_jax.eval.rows import Rows, moments_of
from t2i_jax.runs.samples import Samples
from t2i_jax.runs.scoring.reference import Compute, Reference
from t2i_jax.runs.scoring.sources import stamp
from t2i_jax.runs.scoring.split import Split

_SHARD_SIZE = 64


class HeldOutImages:
    """The first held-out images of a run that can be read, each once, cut and made as large as
    training has them.

    Args:
      samples: of the run. count: of the images.
    """

    def __init__(self, samples: Samples, count: int):
        self.split = Split(count, min(count, _SHARD_SIZE))
        self._samples, self._lock = samples, threading.Lock()
        self._stream: Any = None
        self._shard, self._images = -1, np.zeros(0)
        self._found = 0  # images of the stream so far

    def read(self, index: int) -> np.ndarray:
        """The image with this number, uint8 (H, W, C); those of earlier shards are read anew.

        Raises:
          UserError: fewer images can be read.
        """
        shard = index // self.split.size
        with self._lock:
            if self._stream is None or shard < self._shard:
                self._stream, self._shard, self._found = self._opened(), -1, 0
            while self._shard < shard:
                self._images, self._shard = self._next(), self._shard + 1
            return self._images[index % self.split.size]

    def key(self, shard: int) -> str:
        """A key that changes with the data of the recipe, the files that hold them, and how many
        are held out here.
        """
        told = {**self.about(), **self._records, "shard": shard}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """The data that they are of."""
        data = to_dict(self._samples.data)
        told = {name: data[name] for name in data if name not in ("workers", "threads", "type")}
        return {"kind": self._samples.name, "of": told, "first": self.split.count}

    def passed_over(self) -> dict[str, Any]:
        """The files that are passed over: {}, as the training tells of them for all of its data."""
        return {}

    @functools.cached_property
    def _records(self):
        """The identity of the records that are read; of images with one caption it is as in earlier
        versions, whose features stay.
        """
        once = {"distinct": True} if self._samples.have_copies(self.split.count) else {}
        return {"records": stamp(source_of(self._samples.data)), **once}

    def _opened(self):
        count, size = self.split.count, self.split.size
        return self._samples.batches(count, size, ("image",), distinct=True)

    def _next(self):
        """The images of the next shard."""
        rows, found = self.split.rows(self._shard + 1), next(self._stream, None)
        images = np.zeros(0) if found is None else found["image"]
        self._found += len(images)
        if len(images) < len(rows):
            source, bad = self._samples.data.source, "; ".join(self._stream.bad.names)
            raise UserError(
                f"evaluation.metrics compares with {self.split.count:,} held-out images, and "
                f"{self._found:,} of those of {source!r} that were looked at can be read ({bad}); "
                "repair the others, ask for fewer, or give a larger data.heldout or "
                "evaluation.reference."
            )
        return images


class Leading:
    """The first images of a reference, whose statistics are remembered.

    Args:
      count: of the images; None: all that it has.
    """

    def __init__(self, reference: Reference, count: int | None):
        self._reference, self._count = reference, count
        self._gaussians: dict[tuple[str, str], Gaussian] = {}
        self._arrays: dict[tuple[str, str], Rows] = {}

    def prepare(
        self,
        extractor: Extractor,
        layers: tuple[str, ...],
        compute: Compute,
        needs_features: bool = True,
    ) -> None:
        """Prepares the whole reference, as its own `prepare` does."""
        self._reference.prepare(extractor, layers, compute, needs_features)

    def count(self, extractor: str) -> int | None:
        """The number of images."""
        return self._reference.count(extractor) if self._count is None else self._count

    def about(self, extractor: str) -> Mapping[str, Any]:
        """The entry about the reference in the results, as JSON."""
        return self._reference.about(extractor)

    def sizes(self, extractor: str) -> Mapping[str, int] | None:
        """By size how many images of the whole reference have it; None: nothing tells."""
        return self._reference.sizes(extractor)

    def image(self, extractor: str, row: int) -> np.ndarray | None:
        """The image of a row of the features; None where there are no images."""
        return self._reference.image(extractor, row)

    def gaussian(self, extractor: str, layer: str) -> Gaussian:
        """Mean and covariance of a layer's features."""
        if (extractor, layer) not in self._gaussians:
            self._gaussians[extractor, layer] = (
                self._reference.gaussian(extractor, layer)
                if self._count is None
                else Gaussian.of(moments_of(self.features(extractor, layer, "")))
            )
        return self._gaussians[extractor, layer]

    def features(self, extractor: str, layer: str, metric: str) -> Rows:
        """The features of a layer, (N, D) float32."""
        if (extractor, layer) not in self._arrays:
            found = self._reference.features(extractor, layer, metric)
            self._arrays[extractor, layer] = found if self._count is None else found[: self._count]
        return self._arrays[extractor, layer]
