"""CMMD: the squared maximum mean discrepancy of CLIP embeddings with a Gaussian kernel.

Jayasumana et al. 2024, section 4: k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, times 1000.
"""

from __future__ import annotations

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval import distances
from t2i_jax.eval.rows import Rows, check_pair, in_blocks, same_rows

SIGMA, SCALE = 10.0, 1000.0


def cmmd(
    generated_ND: Rows, reference_MD: Rows, sigma: float = SIGMA, scale: float = SCALE
) -> float:
    """The biased estimate (all pairs, those of an image with itself too), times `scale`.

    The vectors are made unit length first, as in cmmd-pytorch. Kernel values are near 1, so their
    differences from 1 are summed, in float64: float32 loses three digits of them. A block of rows
    of each set at a time is in memory.

    Raises:
      UserError: features that are not finite, of two widths, or zero.
    """
    check_pair(generated_ND, reference_MD)
    for rows in (generated_ND, reference_MD):
        _check_lengths(rows)
    across = _mean(generated_ND, reference_MD, sigma, within=False)
    own = [_mean(rows, rows, sigma, within=True) for rows in (generated_ND, reference_MD)]
    return scale * (2 * across - own[0] - own[1])


def _mean(x_ND, y_MD, sigma, within):
    """The mean of 1 - k over all pairs.

    Args:
      within: both are one set, of which an image is no distance apart from itself, whatever
        rounding says.
    """
    total = 0.0
    for place, other, squared_BC in distances.blocks(x_ND, y_MD, _unit):
        if within:
            squared_BC[same_rows(place, other)] = 0
        total -= float(np.expm1(squared_BC * (-1 / (2 * sigma**2))).sum())
    return total / (len(x_ND) * len(y_MD))


def _unit(x_BD):
    return x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)


def _check_lengths(rows):
    if not all(np.linalg.norm(x_BD, axis=1).all() for _, x_BD in in_blocks(rows)):
        raise UserError("an embedding is zero; look at what the extractor was given.")
