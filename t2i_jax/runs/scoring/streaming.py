"""Images of a run that are measured shard by shard and then removed, for sets that are too large to
keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.split import Share

KEPT = 64  # images that stay, the first of all


def generate(
    make: Callable[[int], None],
    measure: Callable[[int], None],
    is_measured: Callable[[int], bool],
    shards: ImageShards,
    share: Share,
    progress: Callable[[Any], Any] = iter,
) -> None:
    """Generates the images of the shards that are this process's and measures them, and removes all
    but the first `KEPT` images of the set; their manifests stay.

    Shards that are measured are passed over; those of which the images are all there, as of an
    evaluation that keeps them, keep them.

    Args:
      make: generates the images of a shard. measure: computes the features of one, into files.
      is_measured: whether its features are there.
    """
    for shard in progress(list(share.mine(shards.split.shards))):
        is_whole = shards.is_whole(shard)
        if not is_measured(shard):
            if not is_whole:
                make(shard)
            measure(shard)
        if not is_whole:  # a measured one was killed while they were removed
            shards.drop(shard, KEPT)
    processes.gather(None)
