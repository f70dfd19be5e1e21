"""The best of several images, by how similar they are to what they should show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def most_similar(
    images: np.ndarray, groups: int, count: int, similar: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images of each group that are the most similar to what it should show, best
    first, (groups * count, ...), and how similar they are, (groups, count).

    Args:
      images: those of one group stand together, as many as of each other group.
      similar: how similar each of the images of a group is, given its number.
    """
    kept, scores, each = [], [], len(images) // groups
    for i in range(groups):
        own = images[i * each : (i + 1) * each]
        found = np.asarray(similar(own, i))
        order = np.argsort(-found, kind="stable")[:count]
        kept.append(own[order])
        scores.append(found[order])
    return np.concatenate(kept), np.stack(scores)
