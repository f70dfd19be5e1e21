"""Arrays of all images, of which each process computes a share, as every process can use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from t2i_jax.eval.moments import Moments
from t2i_jax.eval.rows import Rows
from t2i_jax.runs.scoring.split import Share, Split


class Gathered:
    """Features of images that could all be used, in memory; a `FeatureSet`.

    Args:
      layers: (N, D) float32 by name.
    """

    def __init__(self, layers: Mapping[str, np.ndarray]):
        self._layers = layers

    def rows(self, layer: str) -> Rows:
        """The features of a layer, (N, D) float32."""
        return self._layers[layer]

    def moments(self, layer: str) -> Moments:
        """Mean and covariance of a layer's features, in float64."""
        return Moments.of(self._layers[layer])

    @property
    def kept(self) -> np.ndarray:
        """The numbers of all images, since none is left out."""
        return np.arange(len(next(iter(self._layers.values()))))

    @property
    def about(self) -> Mapping[str, Any]:
        """The "count" of the images."""
        return {"count": len(self.kept)}


def gathered(
    split: Split, compute: Callable[[int], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `compute` returns for all shards, in the order of the images; every process
    calls it.

    Each process computes every n-th shard, and all as many: one that would have none left computes
    the last once more. In which process a shard is computed changes nothing of it.

    Args:
      compute: number of a shard, ascending -> arrays (size of a shard, ...) by name, of the last
        shard too, whatever fills it.

    Returns:
      By name (images, ...).
    """
    own, last = Share.here(), split.shards - 1
    rounds = -(-split.shards // own.of)
    shards = [min(one * own.of + own.process, last) for one in range(rounds)]
    found = _computed(shards, compute)
    return {name: _of_all(np.stack(parts), own, split) for name, parts in sorted(found.items())}


def _computed(shards, compute):
    found: dict[str, list[np.ndarray]] = {}
    known: tuple[int, Mapping[str, np.ndarray]] | None = None
    for shard in shards:
        if known is None or known[0] != shard:
            known = shard, compute(shard)
        for name, values in known[1].items():
            found.setdefault(name, []).append(values)
    return found


def _of_all(mine, own, split):
    """The array of all images, from the shards `mine` (rounds, size, ...) of this process."""
    every = mine[None] if own.of == 1 else multihost_utils.process_allgather(mine)
    in_order = np.swapaxes(np.asarray(every), 0, 1)  # (rounds, processes, size, ...)
    in_order = in_order.reshape(-1, *mine.shape[1:])[: split.shards]
    return in_order.reshape(-1, *mine.shape[2:])[: split.count]
