"""Metrics of an image tokenizer's reconstructions: PSNR, SSIM, and the usage of its codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from t2i_jax.errors import UserError

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004, section III.C
_EVEN = 7  # pixels of scikit-image's window
_K1, _K2 = 0.01, 0.03
_WHITE = 255.0


def psnr(images_NHWC: np.ndarray, again_NHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, (N,) float64.

    Infinite where the two are equal.

    10 log10(255^2 / mean squared difference), over all pixels and channels.

    Args:
      images_NHWC, again_NHWC: uint8, of one shape.

    Raises:
      UserError: images of another type, or of two shapes.
    """
    difference = np.subtract(*_floats(images_NHWC, again_NHWC))
    error_N = np.mean(np.square(difference), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_WHITE**2 / error_N)


def ssim(images_NHWC: np.ndarray, again_NHWC: np.ndarray) -> np.ndarray:
    """Structural similarity of each image, (N,) float64, 1 where the two are equal (Wang et al.
    2004, equation 13).

    A Gaussian window of 11 x 11 pixels, standard deviation 1.5, wherever it lies inside the image;
    the mean over those places and over the channels.

    Args:
      images_NHWC, again_NHWC: uint8, of one shape, 11 pixels or more a side.

    Raises:
      UserError: images of another type or of two shapes, or smaller than the window.
    """
    offset = np.arange(_WINDOW) - _WINDOW // 2
    weight = np.exp(-(offset**2) / (2 * _SIGMA**2))
    return _ssim(images_NHWC, again_NHWC, weight / weight.sum(), 1.0)


def ssim_skimage(images_NHWC: np.ndarray, again_NHWC: np.ndarray) -> np.ndarray:
    """Structural similarity of each image, (N,) float64, as `skimage.metrics.structural_similarity`
    has it by default, which LlamaGen reports: an even window of 7 x 7 pixels, and variances that
    are divided by one less than its pixels. Arguments and errors as of `ssim`.
    """
    pixels = _EVEN**2
    return _ssim(images_NHWC, again_NHWC, np.full(_EVEN, 1 / _EVEN), pixels / (pixels - 1))


def _ssim(images_NHWC, again_NHWC, weight, unbiased):
    """SSIM by a window that is the outer product of `weight` with itself.

    `unbiased`: what variances are multiplied by.
    """
    x, y = _floats(images_NHWC, again_NHWC)
    if min(x.shape[1:3]) < len(weight):
        raise UserError(
            f"images of {x.shape[1]}x{x.shape[2]} pixels are too small for SSIM; give "
            f"{len(weight)} or more."
        )
    mean_x, mean_y = _windowed(x, weight), _windowed(y, weight)
    var_x = unbiased * (_windowed(x * x, weight) - mean_x**2)
    var_y = unbiased * (_windowed(y * y, weight) - mean_y**2)
    covariance = unbiased * (_windowed(x * y, weight) - mean_x * mean_y)
    c1, c2 = (_K1 * _WHITE) ** 2, (_K2 * _WHITE) ** 2
    brightness = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return np.mean(brightness * structure, axis=(1, 2, 3))


def codebook_usage(ids: np.ndarray, codebook_size: int) -> Mapping[str, float]:
    """The usage of the codebook by the ids of many images.

    Args:
      ids: integers in [0, codebook_size), of any shape.

    Returns:
      "codebook_usage": the fraction of codes that occur at all; "perplexity": e to the entropy of
      the codes' frequency, between 1 and codebook_size, the number of codes that would be used if
      all were used equally often.

    Raises:
      UserError: no ids, or one outside the codebook.
    """
    return usage_of_counts(code_counts(ids, codebook_size))


def code_counts(ids: np.ndarray, codebook_size: int) -> np.ndarray:
    """The number of times that each code occurs, (codebook_size,); the counts of several parts can
    be added.

    Args:
      ids: integers in [0, codebook_size), of any shape.

    Raises:
      UserError: no ids, or one outside the codebook.
    """
    ids = np.asarray(ids).reshape(-1)
    if not ids.size or ids.min() < 0 or ids.max() >= codebook_size:
        which = f"{ids.min()} to {ids.max()}" if ids.size else "none"
        raise UserError(
            f"ids ({which}) are no codes for codebook_size={codebook_size}; give what the "
            "tokenizer encoded."
        )
    return np.bincount(ids, minlength=codebook_size)


def usage_of_counts(counts: np.ndarray) -> Mapping[str, float]:
    """Usage and perplexity of a codebook, as of `codebook_usage`, from the counts of
    `code_counts`.
    """
    p = counts[counts > 0] / counts.sum()
    return {
        "codebook_usage": len(p) / len(counts),
        "perplexity": math.exp(-np.sum(p * np.log(p))),
    }


def _floats(images, again):
    images, again = np.asarray(images), np.asarray(again)
    for name, array in (("images", images), ("reconstructions", again)):
        if array.dtype != np.uint8 or array.ndim != 4 or not array.size:
            raise UserError(
                f"{name} are {array.dtype}{array.shape}; give uint8 images as (N, H, W, C)."
            )
    if images.shape != again.shape:
        raise UserError(
            f"images {images.shape} and reconstructions {again.shape} differ in shape; give pairs."
        )
    return images.astype(np.float64), again.astype(np.float64)


def _windowed(x_NHWC, weight):
    """The weighted mean around every place whose window lies inside: rows, then columns."""
    for axis in (1, 2):
        size = x_NHWC.shape[axis] - len(weight) + 1
        x_NHWC = sum(
            w * np.take(x_NHWC, np.arange(i, i + size), axis) for i, w in enumerate(weight)
        )
    return x_NHWC
