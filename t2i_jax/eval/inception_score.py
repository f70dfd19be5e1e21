"""The Inception Score of generated images, from a classifier's logits.

Salimans et al. 2016, section 4.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.moments import checked
from t2i_jax.eval.rows import Rows

SEED, SPLITS = 2020, 10
"""The seed and the splits of torch-fidelity."""
ADM_SPLIT = 5000
"""Images of a split of ADM's evaluator."""


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
    """exp(mean KL(p(y|x) || p(y))) of each of `splits` parts, in float64, as torch-fidelity has it
    (`isc_features_to_metric`).

    Args:
      logits_NC: the 1008 logits without bias ("logits_unbiased").
      seed: the images are first shuffled by `numpy.random.RandomState(seed).permutation`; None:
        they stay in their order.

    Raises:
      UserError: fewer images than splits.
    """
    logits_NC = checked(logits_NC, "logits")
    count = len(logits_NC)
    if not 1 <= splits <= count:
        raise UserError(f"splits={splits} of {count} images; give from 1 to {count}.")
    if seed is not None:
        logits_NC = logits_NC[np.random.RandomState(seed).permutation(count)]
    edges = [i * count // splits for i in range(splits + 1)]
    return _scored(logits_NC, edges)


def inception_score_adm(logits_NC: Rows, size: int = ADM_SPLIT) -> InceptionScore:
    """The same as ADM's evaluator has it: splits of `size` consecutive images, not shuffled; the
    last one may be smaller, and counts as much (guided-diffusion, `compute_inception_score`).
    """
    logits_NC = checked(logits_NC, "logits")
    if size < 1:
        raise UserError(f"size={size} of a split is not positive; give 1 or more.")
    return _scored(logits_NC, [*range(0, len(logits_NC), size), len(logits_NC)])


def _scored(logits_NC, edges):
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    log_p_NC = shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))
    p_NC, values = np.exp(log_p_NC), []
    for start, end in zip(edges, edges[1:]):
        p_SC, log_p_SC = p_NC[start:end], log_p_NC[start:end]
        with np.errstate(divide="ignore"):
            marginal_C = np.log(p_SC.mean(axis=0))
        gain_SC = np.where(p_SC > 0, p_SC * (log_p_SC - np.maximum(marginal_C, -1e300)), 0)
        values.append(float(np.exp(gain_SC.sum(axis=1).mean())))
    return InceptionScore(float(np.mean(values)), float(np.std(values)), tuple(values))
