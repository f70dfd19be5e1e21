"""The Frechet distance between Gaussians that were fitted to two sets of features.

d^2 = |m1 - m2|^2 + Tr(S1) + Tr(S2) - 2 Tr((S1 S2)^(1/2))         Dowson and Landau 1982, equation 4

The matrix S1 S2 has the eigenvalues of F^T S2 F for every F with F F^T = S1, which is symmetric: no
square root of a matrix is taken, and no imaginary part has to be dropped.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from threadpoolctl import threadpool_limits

from t2i_jax.errors import UserError
from t2i_jax.eval.moments import Moments, checked_pair
from t2i_jax.eval.rows import Rows, check, moments_of

POINTS = 15
"""The number of sizes at which FD-infinity measures (dgm-eval, `compute_FD_infinity`)."""
FEWEST_FOR_INFINITY = 20
"""The number of images below which there is no line to speak of."""
_FEWEST, _PART = 5000, 10  # the smallest size in images, or as a part of a smaller set
_SINGULAR = 1e-10  # of a Cholesky factor's squared pivots, the smallest over the largest
_UNLIKE = 1e-6  # how far the two halves of a covariance may be apart, over its largest variance
# the sum of negative eigenvalues over that of the others, which rounding leaves in a covariance of
# fewer images than features: below 1e-3 where float16 kept it
_NEGATIVE = 1e-2

# Threads of OpenBLAS wait for each other by counting: on two cores with other work, a second one
# makes a factorisation 20 times slower, and on idle ones it is of little use.
_on_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A normal distribution.

    Attributes:
      mean_D: its mean, float64.
      covariance_DD: its covariance, float64, symmetric.

    Raises:
      UserError: shapes that do not belong together, values that are not finite, variances below 0
        or a matrix that is not symmetric. That no eigenvalue is negative, `factor` sees.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray

    def __post_init__(self):
        width = np.shape(self.mean_D)
        if len(width) != 1 or np.shape(self.covariance_DD) != width * 2:
            raise UserError(
                f"mean {width} and covariance {np.shape(self.covariance_DD)} do not belong "
                "together; give shapes (D,) and (D, D)."
            )
        if not (np.isfinite(self.mean_D).all() and np.isfinite(self.covariance_DD).all()):
            raise UserError("statistics hold a value that is not finite; make them anew.")
        variances_D = np.diagonal(self.covariance_DD)
        if variances_D.min() < 0:
            raise _no_covariance(f"it has the variance {variances_D.min():.3g}")
        apart = (self.covariance_DD - self.covariance_DD.T).max()
        if apart > _UNLIKE * variances_D.max():
            raise _no_covariance(f"it is not symmetric, its halves are {apart:.3g} apart")

    @functools.cached_property
    def factor_DR(self) -> np.ndarray:
        """`factor` of the covariance, computed once."""
        return factor(self.covariance_DD)

    @classmethod
    def of(cls, moments: Moments) -> Gaussian:
        """The Gaussian with these moments; the covariance is the sample's, divided by N - 1."""
        return cls(moments.mean_D, moments.covariance_DD)


@dataclasses.dataclass(frozen=True)
class Frechet:
    """A Frechet distance and what it is made of.

    Attributes:
      value: the squared distance, which is what is called FID.
      means: the part |m1 - m2|^2.
      covariances: the rest.
      clipped: the sum of the negative eigenvalues that were taken for zero; 0 or a little below,
        it grows where a covariance is no covariance.
    """

    value: float
    means: float
    covariances: float
    clipped: float


def frechet(one: Gaussian, other: Gaussian, factor_DR: np.ndarray | None = None) -> Frechet:
    """The Frechet distance of two Gaussians, in float64.

    Args:
      factor_DR: `factor(other.covariance_DD)`, where several are compared with one; None: it is
        computed. A lower triangle takes a quarter of the arithmetic of another one.

    Raises:
      UserError: Gaussians of two widths, or a matrix that is no covariance, as of `factor`.
    """
    if one.mean_D.shape != other.mean_D.shape:
        raise UserError(
            f"statistics are {len(one.mean_D)} and {len(other.mean_D)} wide; take both from one "
            "extractor and layer."
        )
    factor_DR = other.factor_DR if factor_DR is None else factor_DR
    eigenvalues_R = _eigenvalues(_product(one.covariance_DD, factor_DR))
    _check_eigenvalues(eigenvalues_R)
    root = float(np.sqrt(np.maximum(eigenvalues_R, 0)).sum())
    traces = float(np.trace(one.covariance_DD) + np.trace(other.covariance_DD))
    return _distance(one.mean_D - other.mean_D, traces, root, np.minimum(eigenvalues_R, 0).sum())


@_on_one_thread
def factor(covariance_DD: np.ndarray) -> np.ndarray:
    """A factor F (D, D) of the covariance F F^T: by Cholesky, or where that is singular by its
    eigenvectors.

    Raises:
      UserError: negative eigenvalues that are more than rounding.
    """
    try:
        lower_DD = np.linalg.cholesky(covariance_DD)
        pivots_D = np.square(np.diagonal(lower_DD))
        if pivots_D.min() > _SINGULAR * pivots_D.max():
            return lower_DD
    except np.linalg.LinAlgError:
        pass
    eigenvalues_D, vectors_DD = np.linalg.eigh(covariance_DD)
    _check_eigenvalues(eigenvalues_D)
    return vectors_DD * np.sqrt(np.maximum(eigenvalues_D, 0))


def frechet_of_features(generated_ND: Rows, reference_MD: Rows) -> Frechet:
    """The Frechet distance of the Gaussians of two sets of features, without a D x D matrix, for
    fewer images than features.

    Tr((S1 S2)^(1/2)) is the sum of the singular values of X Y^T / sqrt((N - 1)(M - 1)) for centred
    features X and Y; where covariances are singular this keeps digits that eigenvalues lose.

    Raises:
      UserError: fewer than 2 rows, features that are not finite or of two widths.
    """
    x_ND, y_MD = checked_pair(generated_ND, reference_MD)
    if min(len(x_ND), len(y_MD)) < 2:
        raise UserError("a covariance of 1 image does not exist; give 2 images or more.")
    means = x_ND.mean(axis=0), y_MD.mean(axis=0)
    x_ND = (x_ND - means[0]) / np.sqrt(len(x_ND) - 1)
    y_MD = (y_MD - means[1]) / np.sqrt(len(y_MD) - 1)
    root = float(_singular_values(x_ND @ y_MD.T).sum())
    traces = float(np.square(x_ND).sum() + np.square(y_MD).sum())
    return _distance(means[0] - means[1], traces, root, 0.0)


@dataclasses.dataclass(frozen=True)
class Extrapolated:
    """A Frechet distance at infinitely many images.

    Attributes:
      value: where the line meets 1 / N = 0.
      slope: of the line, in distance times images: how much of the distance at N is bias.
      sizes: numbers of images at which was measured.
      values: the distances there.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def frechet_at_infinity(
    generated_ND: Rows, reference: Gaussian, points: int = POINTS, seed: int = 0
) -> Extrapolated:
    """The Frechet distance without the bias of a finite number of generated images (Chong and
    Forsyth 2020, section 4): a line through the distances of random subsets, over 1 / N.

    Args:
      points: subsets, of evenly spaced sizes from min(5000, max(N / 10, 2)) to N, as dgm-eval has
        them. seed: of the subsets, one permutation each.

    Raises:
      UserError: fewer than 20 images, between which there is no line to speak of, or features that
        are not finite.
    """
    count = len(generated_ND)
    if count < FEWEST_FOR_INFINITY:
        raise UserError(
            f"{count} images are too few for FD-infinity; give {FEWEST_FOR_INFINITY} or more."
        )
    check(generated_ND, "generated features")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(min(_FEWEST, max(count / _PART, 2)), count, points).astype(int)
    values = []
    for size in sizes:
        chosen = np.sort(rng.permutation(count)[:size])
        one = Gaussian.of(moments_of(generated_ND, chosen))
        values.append(frechet(one, reference).value)
    slope, value = np.polyfit(1 / sizes, values, 1)
    return Extrapolated(float(value), float(slope), tuple(map(int, sizes)), tuple(values))


def _check_eigenvalues(eigenvalues_R):
    """Refuses those of a matrix that is no covariance, whose distance would mean nothing."""
    below = -np.minimum(eigenvalues_R, 0).sum()
    if below > _NEGATIVE * np.maximum(eigenvalues_R, 0).sum():
        raise _no_covariance(f"it has negative eigenvalues, down to {eigenvalues_R.min():.3g}")


def _no_covariance(why):
    return UserError(
        f"statistics hold a matrix that is no covariance ({why}); make them anew, as numpy.cov of "
        "features with rowvar=False."
    )


def _product(covariance_DD, factor_DR):
    """The product F^T S F (R, R), of which only the upper triangle is to be read."""
    from scipy.linalg import lapack  # before the threads are limited, so that its are, too

    with threadpool_limits(limits=1, user_api="blas"):
        if factor_DR.shape != covariance_DD.shape or np.triu(factor_DR, 1).any():
            return factor_DR.T @ covariance_DD @ factor_DR
        # U S U^T with U = F^T: F is a triangle, and half of the result is enough, which leaves a
        # quarter of the arithmetic of two products. LAPACK's arrays go column by column, which is
        # how the transposed ones lie.
        product_RR, _ = lapack.dsygst(covariance_DD.T, factor_DR.T, itype=2, lower=0)
        return product_RR


@_on_one_thread
def _eigenvalues(symmetric_DD):
    """The eigenvalues of a matrix of which the upper triangle is read."""
    return np.linalg.eigvalsh(symmetric_DD, "U")


@_on_one_thread
def _singular_values(matrix_NM):
    return np.linalg.svd(matrix_NM, compute_uv=False)


def _distance(step_D, traces, root, clipped):
    means, covariances = float(step_D @ step_D), traces - 2 * root
    return Frechet(means + covariances, means, covariances, float(clipped))
