"""Zero-shot retrieval from similarities (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t2i_jax.eval.alignment import Judge


def recall(scores_QK: np.ndarray, right_QK: np.ndarray, at: int) -> float:
    """The share of queries of which a right key is among the `at` with the highest scores.

    Wrong keys with the same score as the best right one count as better ones by a half, so that a
    network that tells nothing apart finds no more than chance.

    Args:
      right_QK: bool, which keys are right for a query; at least one for each.
    """
    best_Q1 = np.where(right_QK, scores_QK, -np.inf).max(1, keepdims=True)
    wrong_QK = np.where(right_QK, -np.inf, scores_QK)
    better_Q = (wrong_QK > best_Q1).sum(1) + (wrong_QK == best_Q1).sum(1) / 2
    return float(np.mean(better_Q < at))


def measures(scores_IC: np.ndarray, right_IC: np.ndarray) -> Mapping[str, float]:
    """Recall at 1 and at 5 of images among captions and of captions among images.

    Args:
      right_IC: bool, whether a caption is true of an image.
    """
    ways = {
        "text_to_image": (scores_IC.T, right_IC.T),
        "image_to_text": (scores_IC, right_IC),
    }
    return {f"recall@{at}/{name}": recall(*way, at) for name, way in ways.items() for at in (1, 5)}


def agreement(
    images_IHWC: np.ndarray, own: Sequence[str], captions: Sequence[str], judge: Judge | None
) -> np.ndarray:
    """Bool (images, captions): which captions are true of an image.

    The captions that say the same as the image's own, by a judge that looks at the pixels; without
    a judge its own alone.

    Args:
      own: the caption of each image.
    """
    right_IC = np.array([[caption == mine for caption in captions] for mine in own])
    if judge is not None:
        for column, caption in enumerate(captions):
            right_IC[:, column] |= judge.judge(images_IHWC, [caption] * len(own))
    return right_IC
