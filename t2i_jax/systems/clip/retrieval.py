"""Zero-shot retrieval and classification from similarities (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def recall(scores_QK: np.ndarray, own_Q: Sequence[int], at: int) -> float:
    """The share of queries whose own key is among the `at` with the highest scores.

    Keys with the same score as the own one count as better ones by a half, so that a network that
    tells nothing apart finds no more than chance.

    Args:
      own_Q: the number of each query's own key.
    """
    own = scores_QK[np.arange(len(scores_QK)), np.asarray(own_Q)][:, None]
    better = (scores_QK > own).sum(1) + ((scores_QK == own).sum(1) - 1) / 2
    return float(np.mean(better < at))


def measures(scores_TI: np.ndarray, captions: Sequence[str]) -> Mapping[str, float]:
    """Recall at 1 and 5 in both directions, of captions and the images that they belong to.

    Images with the same caption are all right for it, so that each direction counts the best of
    them.

    Args:
      scores_TI: row i is caption i, column i its image.
    """
    same_TT = np.array([[one == other for other in captions] for one in captions])
    found = {}
    for name, scores in (("text_to_image", scores_TI), ("image_to_text", scores_TI.T)):
        best_T1 = np.where(same_TT, scores, -np.inf).max(1, keepdims=True)
        others = np.where(same_TT, -np.inf, scores)
        better = (others > best_T1).sum(1) + (others == best_T1).sum(1) / 2
        for at in (1, 5):
            found[f"recall@{at}/{name}"] = float(np.mean(better < at))
    return found


def classified(scores_IC: np.ndarray, truth_I: Sequence[int]) -> float:
    """The share of images whose class has the highest score."""
    return recall(scores_IC, truth_I, 1)
