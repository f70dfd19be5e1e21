"""The Inception Score of generated images, from a classifier's logits.

Salimans et al. 2016, section 4.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.rows import Rows, check, in_blocks

SEED, SPLITS = 2020, 10
"""The seed and the splits of torch-fidelity."""
ADM_SPLIT = 5000
"""The number of images in a split of ADM's evaluator."""


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """An Inception Score.

    Attributes:
      mean: over the splits, from 1 to the number of classes; larger is better.
      std: their standard deviation, divided by their number.
      values: one per split.
    """

    mean: float
    std: float
    values: tuple[float, ...]


def inception_score(
    logits_NC: Rows, splits: int = SPLITS, seed: int | None = SEED
) -> InceptionScore:
    """The Inception score exp(mean KL(p(y|x) || p(y))) of each of `splits` parts, in float64, as
    torch-fidelity has it (`isc_features_to_metric`). A block of logits at a time is in memory.

    Args:
      logits_NC: the 1008 logits without bias ("logits_unbiased").
      seed: the images are first shuffled by `numpy.random.RandomState(seed).permutation`; None:
        they stay in their order.

    Raises:
      UserError: fewer images than splits.
    """
    check(logits_NC, "logits")
    count = len(logits_NC)
    if not 1 <= splits <= count:
        raise UserError(f"splits={splits} of {count} images; give from 1 to {count}.")
    order_N = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    edges = np.arange(splits + 1) * count // splits
    split_N = np.empty(count, int)
    split_N[order_N] = np.repeat(np.arange(splits), np.diff(edges))
    return _scored(logits_NC, split_N)


def inception_score_adm(logits_NC: Rows, size: int = ADM_SPLIT) -> InceptionScore:
    """The Inception score of ADM's evaluator: splits of `size` consecutive images, not shuffled;
    the last one may be smaller, and counts as much (guided-diffusion, `compute_inception_score`).
    """
    check(logits_NC, "logits")
    if size < 1:
        raise UserError(f"size={size} of a split is not positive; give 1 or more.")
    return _scored(logits_NC, np.arange(len(logits_NC)) // size)


def _scored(logits_NC: Rows, split_N: np.ndarray) -> InceptionScore:
    """The score of each split.

    The mean over x of sum_c p(c|x) (log p(c|x) - log p(c)) is that of sum_c p(c|x) log p(c|x) less
    sum_c p(c) log p(c), so sums over the images are enough.

    Args:
      split_N: the split of each image, all from 0 on.
    """
    count_S = np.bincount(split_N)
    certain_S = np.zeros(len(count_S))
    p_SC = np.zeros((len(count_S), logits_NC.shape[1]))
    for place, logits_BC in in_blocks(logits_NC):
        p_BC, certain_B = _probabilities(logits_BC)
        for split in np.unique(split_N[place]):
            mine = split_N[place] == split
            p_SC[split] += p_BC[mine].sum(axis=0)
            certain_S[split] += certain_B[mine].sum()
    p_SC /= count_S[:, None]
    log_p_SC = np.log(p_SC, out=np.zeros_like(p_SC), where=p_SC > 0)
    values_S = np.exp(certain_S / count_S - (p_SC * log_p_SC).sum(axis=1))
    return InceptionScore(
        float(values_S.mean()), float(values_S.std()), tuple(map(float, values_S))
    )


def _probabilities(logits_BC):
    """The probabilities p(c|x) (B, C), and sum_c p(c|x) log p(c|x) (B,)."""
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    log_p_BC = shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True))
    p_BC = np.exp(log_p_BC)
    return p_BC, (p_BC * log_p_BC).sum(axis=1)
