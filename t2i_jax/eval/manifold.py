"""Precision and recall, density and coverage: how far the two sets' neighbourhoods reach into each
other.

Every image has a ball around its features that reaches to its k-th neighbour of the same set. A
block of features of each set at a time is in memory, and a number for each image.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval import distances
from t2i_jax.eval.rows import Rows, check_pair, same_rows

NEIGHBOURS = 3
"""The usual k of precision and recall (Kynkaanniemi et al. 2019, section 3)."""
NEIGHBOURS_OF_DENSITY = 5
"""The usual k of density and coverage (Naeem et al. 2020, section 4)."""


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall: the share of each set that lies in the other one's balls.

    Attributes:
      precision: share of generated images in the ball of a reference image, 0 to 1.
      recall: share of reference images in the ball of a generated image, 0 to 1.
    """

    precision: float
    recall: float


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage: precision and recall with less weight on outliers.

    Attributes:
      density: reference balls in which a generated image lies, over k; about 1 for equal
        distributions, and not bounded.
      coverage: share of the reference images in whose ball a generated image lies, 0 to 1.
    """

    density: float
    coverage: float


def precision_recall(
    generated_ND: Rows, reference_MD: Rows, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2), in float64; a
    point on a ball's edge lies in it.

    Raises:
      UserError: no more images than neighbours, features that are not finite or of two widths.
    """
    x_ND, y_MD = generated_ND, reference_MD
    check_pair(x_ND, y_MD)
    x_radius_N, y_radius_M = _radius(x_ND, neighbours), _radius(y_MD, neighbours)
    in_reference_N = np.zeros(len(x_ND), bool)
    in_generated_M = np.zeros(len(y_MD), bool)
    for place, other, squared_BC in distances.blocks(x_ND, y_MD):
        in_reference_N[place] |= (squared_BC <= y_radius_M[other]).any(axis=1)
        in_generated_M[other] |= (squared_BC <= x_radius_N[place, None]).any(axis=0)
    return PrecisionRecall(float(in_reference_N.mean()), float(in_generated_M.mean()))


def density_coverage(
    generated_ND: Rows, reference_MD: Rows, neighbours: int = NEIGHBOURS_OF_DENSITY
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, equations 3 and 4), in float64; a point on a ball's
    edge lies outside, as in the authors' package `prdc`.

    Raises:
      UserError: no more images than neighbours, features that are not finite or of two widths.
    """
    x_ND, y_MD = generated_ND, reference_MD
    check_pair(x_ND, y_MD)
    radius_M, within = _radius(y_MD, neighbours), 0
    covered_M = np.zeros(len(y_MD), bool)
    for _, other, squared_BC in distances.blocks(x_ND, y_MD):
        inside_BC = squared_BC < radius_M[other]
        within += int(inside_BC.sum())
        covered_M[other] |= inside_BC.any(axis=0)
    return DensityCoverage(within / (neighbours * len(x_ND)), float(covered_M.mean()))


def _radius(x_ND, neighbours):
    """The squared distance of each row to its k-th neighbour, itself not counted."""
    count = len(x_ND)
    if not 1 <= neighbours < count:
        raise UserError(
            f"neighbours={neighbours} of {count} images; give from 1 to {count - 1}, or more "
            "images."
        )
    nearest_NK = np.full((count, neighbours), np.inf)
    for place, other, squared_BC in distances.blocks(x_ND, x_ND):
        squared_BC[same_rows(place, other)] = np.inf
        known_BE = np.concatenate([nearest_NK[place], squared_BC], axis=1)
        nearest_NK[place] = np.partition(known_BE, neighbours - 1, axis=1)[:, :neighbours]
    return nearest_NK.max(axis=1)
