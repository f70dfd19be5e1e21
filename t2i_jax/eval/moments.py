"""Mean and covariance of features in float64, of shards that are merged one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from t2i_jax.errors import UserError

_BLOCK = 2048  # rows that are in float64 at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of centred outer products of feature vectors.

    Attributes:
      count: how many vectors.
      mean_D: their mean, float64.
      scatter_DD: the sum of (x - mean)(x - mean)^T, float64.
    """

    count: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    @classmethod
    def of(cls, features_ND: ArrayLike, first: int = 0) -> Moments:
        """The moments of features (N, D) of any float type, in float64.

        Args:
          first: the number of the first row, for the sentence.

        Raises:
          UserError: no rows, another number of axes, or a value that is not finite.
        """
        rows_ND = _finite(features_ND, "features", first)
        count, width = rows_ND.shape
        mean_D = rows_ND.mean(axis=0, dtype=np.float64)
        scatter_DD, block_BD = np.zeros((width, width)), np.empty((min(_BLOCK, count), width))
        for start in range(0, count, _BLOCK):
            rows_BD = rows_ND[start : start + _BLOCK]
            centred_BD = np.subtract(rows_BD, mean_D, out=block_BD[: len(rows_BD)])
            scatter_DD += centred_BD.T @ centred_BD
        return cls(count, mean_D, scatter_DD)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together (Chan, Golub and LeVeque 1979, equations 2.1).

        Raises:
          UserError: features of another width.
        """
        if self.mean_D.shape != other.mean_D.shape:
            raise UserError(
                f"moments of features {len(self.mean_D)} and {len(other.mean_D)} wide can't be "
                "merged; give features of one extractor."
            )
        count = self.count + other.count
        step_D = other.mean_D - self.mean_D
        between_DD = np.outer(step_D, step_D) * (self.count * other.count / count)
        return Moments(
            count,
            self.mean_D + step_D * (other.count / count),
            self.scatter_DD + other.scatter_DD + between_DD,
        )

    @property
    def covariance_DD(self) -> np.ndarray:
        """The sample covariance, divided by count - 1.

        Raises:
          UserError: one vector alone.
        """
        if self.count < 2:
            raise UserError("a covariance of 1 image does not exist; give 2 images or more.")
        return self.scatter_DD / (self.count - 1)


def merged(shards: Iterable[Moments]) -> Moments:
    """The moments of all shards together, merged in their order: the same order gives the same
    bits.

    Raises:
      UserError: no shard at all.
    """
    total: Moments | None = None
    for shard in shards:
        total = shard if total is None else total.merge(shard)
    if total is None:
        raise UserError("there are no features to take moments of; give one image or more.")
    return total


def checked(features: ArrayLike, name: str, first: int = 0) -> np.ndarray:
    """Features as float64 (N, D).

    Args:
      name: what the sentence calls them. first: the number of the first row.

    Raises:
      UserError: no rows, another number of axes, or a value that is not finite.
    """
    return _finite(features, name, first).astype(np.float64)


def _finite(features, name, first) -> np.ndarray:
    """Features (N, D) in their own type, as `checked` takes them."""
    found = np.asarray(features)
    if found.ndim != 2 or not found.size:
        raise UserError(f"{name} have the shape {found.shape}; give one row or more as (N, D).")
    if not np.isfinite(found).all():
        row = first + int(np.argmin(np.isfinite(found).all(axis=1)))
        raise UserError(f"{name} are not finite in row {row}; look at the image it belongs to.")
    return found


def checked_pair(generated: ArrayLike, reference: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features as float64 (N, D) and (M, D).

    Raises:
      UserError: as `checked`, or of two widths.
    """
    generated_ND = checked(generated, "generated features")
    reference_MD = checked(reference, "reference features")
    check_widths(generated_ND.shape[1], reference_MD.shape[1])
    return generated_ND, reference_MD


def check_widths(generated: int, reference: int) -> None:
    """Refuses features of two widths.

    Raises:
      UserError: they are.
    """
    if generated != reference:
        raise UserError(
            f"generated features are {generated} wide and reference features {reference}; take "
            "both from one extractor."
        )
