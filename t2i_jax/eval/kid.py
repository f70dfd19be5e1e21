"""KID: the squared maximum mean discrepancy of features, with a cubic kernel.

Binkowski et al. 2018, section 4: k(x, y) = (x . y / D + 1)^3
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.rows import Rows, check_pair, in_blocks

SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 2020
"""The seed of torch-fidelity's subsets."""


@dataclasses.dataclass(frozen=True)
class Subsets:
    """The KID over random subsets of the features.

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


def kid(generated_ND: Rows, reference_MD: Rows) -> float:
    """The unbiased estimate from all pairs, in float64 and in blocks; may be a little below 0.

    sum_{i != j} k(x_i, x_j) / (N (N - 1)) + the same of y - 2 mean k(x, y)

    Not multiplied: many papers report 1000 times it.

    Raises:
      UserError: fewer than 2 rows, features that are not finite or of two widths.
    """
    x_ND, y_MD = generated_ND, reference_MD
    check_pair(x_ND, y_MD)
    _check_size(2, len(x_ND), len(y_MD))
    return _within(x_ND) + _within(y_MD) - 2 * _total(x_ND, y_MD) / (len(x_ND) * len(y_MD))


def kid_by_subsets(
    generated_ND: Rows,
    reference_MD: Rows,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> Subsets:
    """The unbiased estimate of random subsets, drawn as torch-fidelity draws them
    (`kid_features_to_metric`): of one `numpy.random.RandomState`, the generated images of a subset
    first, then its reference images. One subset at a time is in memory.

    Raises:
      UserError: fewer images than a subset has.
    """
    x_ND, y_MD = generated_ND, reference_MD
    check_pair(x_ND, y_MD)
    _check_size(size, len(x_ND), len(y_MD))
    draw, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x_SD, y_SD = (
            np.asarray(one[draw.choice(len(one), size, replace=False)], np.float64)
            for one in (x_ND, y_MD)
        )
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
        float(_kernel(x_BD, y_BD).sum())
        for _, x_BD in in_blocks(x_ND)
        for _, y_BD in in_blocks(y_MD)
    )


def _within(x_ND):
    """The mean of the kernel over the pairs of two different ones of a set."""
    count = len(x_ND)
    squares_N = np.concatenate([np.square(x_BD).sum(axis=1) for _, x_BD in in_blocks(x_ND)])
    itself = float(((squares_N / x_ND.shape[1] + 1) ** 3).sum())
    return (_total(x_ND, x_ND) - itself) / (count * (count - 1))
