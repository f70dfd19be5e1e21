"""KID: the squared maximum mean discrepancy of features, with a cubic kernel.

Binkowski et al. 2018, section 4: k(x, y) = (x . y / D + 1)^3
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.moments import checked_pair

SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 2020
"""The seed of torch-fidelity's subsets."""
_BLOCK = 2048  # rows of a block of the kernel's matrix


@dataclasses.dataclass(frozen=True)
class Subsets:
    """KID over random subsets.

    Attributes:
      mean: over the subsets.
      std: their standard deviation, divided by their number, not by one less. It is the spread of
        a subset, and no error of the mean.
      size: images of a subset.
      values: one per subset.
    """

    mean: float
    std: float
    size: int
    values: tuple[float, ...]


def kid(generated_ND: np.ndarray, reference_MD: np.ndarray) -> float:
    """The unbiased estimate from all pairs, in float64 and in blocks; may be a little below 0.

    sum_{i != j} k(x_i, x_j) / (N (N - 1)) + the same of y - 2 mean k(x, y)

    Not multiplied: many papers report 1000 times it.

    Raises:
      UserError: fewer than 2 rows, features that are not finite or of two widths.
    """
    x_ND, y_MD = checked_pair(generated_ND, reference_MD)
    _check_size(2, len(x_ND), len(y_MD))
    return _within(x_ND) + _within(y_MD) - 2 * _total(x_ND, y_MD) / (len(x_ND) * len(y_MD))


def kid_by_subsets(
    generated_ND: np.ndarray,
    reference_MD: np.ndarray,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> Subsets:
    """The unbiased estimate of random subsets, drawn as torch-fidelity draws them
    (`kid_features_to_metric`): of one `numpy.random.RandomState`, the generated images of a subset
    first, then its reference images.

    Raises:
      UserError: fewer images than a subset has.
    """
    x_ND, y_MD = checked_pair(generated_ND, reference_MD)
    _check_size(size, len(x_ND), len(y_MD))
    draw, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x_SD = x_ND[draw.choice(len(x_ND), size, replace=False)]
        y_SD = y_MD[draw.choice(len(y_MD), size, replace=False)]
        values.append(_within(x_SD) + _within(y_SD) - 2 * _total(x_SD, y_SD) / size**2)
    return Subsets(float(np.mean(values)), float(np.std(values)), size, tuple(values))


def _check_size(size, *counts):
    if size < 2 or min(counts) < size:
        raise UserError(
            f"KID of subsets of {size} needs 2 images or more, and as many in both sets; there are "
            f"{counts[0]} generated and {counts[1]} reference images."
        )


def _kernel(x_ND, y_MD):
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def _total(x_ND, y_MD):
    """The sum of the kernel over all pairs."""
    return sum(
        float(_kernel(x_ND[i : i + _BLOCK], y_MD[j : j + _BLOCK]).sum())
        for i in range(0, len(x_ND), _BLOCK)
        for j in range(0, len(y_MD), _BLOCK)
    )


def _within(x_ND):
    """The mean of the kernel over the pairs of two different ones of a set."""
    count = len(x_ND)
    itself = float(((np.square(x_ND).sum(axis=1) / x_ND.shape[1] + 1) ** 3).sum())
    return (_total(x_ND, x_ND) - itself) / (count * (count - 1))
