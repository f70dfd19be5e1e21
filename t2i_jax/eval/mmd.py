"""CMMD: the squared maximum mean discrepancy of CLIP embeddings with a Gaussian kernel.

Jayasumana et al. 2024, section 4: k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, times 1000.
"""

from __future__ import annotations

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval import distances
from t2i_jax.eval.moments import checked_pair
from t2i_jax.eval.rows import Rows

SIGMA, SCALE = 10.0, 1000.0


def cmmd(
    generated_ND: Rows, reference_MD: Rows, sigma: float = SIGMA, scale: float = SCALE
) -> float:
    """The biased estimate (all pairs, those of an image with itself too), times `scale`.

    The vectors are made unit length first, as in cmmd-pytorch. Kernel values are near 1, so their
    differences from 1 are summed, in float64: float32 loses three digits of them.

    Raises:
      UserError: features that are not finite, of two widths, or zero.
    """
    x_ND, y_MD = (_unit(one) for one in checked_pair(generated_ND, reference_MD))
    apart = 2 * _mean(x_ND, y_MD, sigma) - _mean(x_ND, x_ND, sigma) - _mean(y_MD, y_MD, sigma)
    return scale * apart


def _mean(x_ND, y_MD, sigma):
    """The mean of 1 - k over all pairs."""
    total = 0.0
    for place, squared_BM in distances.blocks(x_ND, y_MD):
        if x_ND is y_MD:  # an image is no distance apart from itself, whatever rounding says
            rows = np.arange(place.start, place.stop)
            squared_BM[rows - place.start, rows] = 0
        total -= float(np.expm1(squared_BM * (-1 / (2 * sigma**2))).sum())
    return total / (len(x_ND) * len(y_MD))


def _unit(x_ND):
    lengths_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    if not lengths_N1.all():
        raise UserError("an embedding is zero; look at what the extractor was given.")
    return x_ND / lengths_N1
