"""The best of several images or embeddings, by how similar they are to what they should show."""

from __future__ import annotations

import numpy as np


def most_similar(
    images: np.ndarray, scores_GN: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images of each group that are the most similar to what it should show, best
    first, (groups * count, ...), and how similar they are, (groups, count).

    Args:
      images: or their embeddings, (groups * N, ...); those of one group stand together.
      scores_GN: how similar they are.
    """
    order_GK = np.argsort(-scores_GN, axis=1, kind="stable")[:, :count]
    of_each = images.reshape(*scores_GN.shape, *images.shape[1:])
    kept = of_each[np.arange(len(order_GK))[:, None], order_GK]
    return kept.reshape(-1, *images.shape[1:]), np.take_along_axis(scores_GN, order_GK, axis=1)
