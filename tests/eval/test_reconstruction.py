"""PSNR, SSIM and the use of a codebook."""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.reconstruction import codebook_usage, psnr, ssim, ssim_skimage

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 16, 14, 3), dtype=np.uint8)


def slow_ssim(x, y):
    """Equation 13 of Wang et al. 2004, one window at a time."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[..., None]
    found = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11].astype(float), y[i : i + 11, j : j + 11].astype(float)
            mean_a, mean_b = ((window * v).sum((0, 1)) for v in (a, b))
            var_a, var_b = (
                (window * (a - mean_a) ** 2).sum((0, 1)),
                (window * (b - mean_b) ** 2).sum((0, 1)),
            )
            both = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
            c1, c2 = 2.55**2, 7.65**2
            found.append(
                (2 * mean_a * mean_b + c1)
                * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return np.mean(found)


def test_psnr_of_a_known_difference():
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    again = images.copy()
    again[0] += 10
    np.testing.assert_allclose(psnr(images, again), [20 * np.log10(25.5), np.inf])


def test_psnr_does_not_wrap_around():
    black, white = np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0


def test_ssim_is_the_papers():
    noisy = np.clip(IMAGES.astype(int) + RNG.integers(-60, 60, IMAGES.shape), 0, 255).astype(
        np.uint8
    )
    np.testing.assert_allclose(
        ssim(IMAGES, noisy), [slow_ssim(a, b) for a, b in zip(IMAGES, noisy)], rtol=1e-9
    )
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1)
    assert (ssim(IMAGES, 255 - IMAGES) < 0).all()


def test_ssim_of_scikit_image_by_its_own_steps():
    """`skimage.metrics.structural_similarity(x, y, data_range=255, channel_axis=-1)`: filtered with
    its border and cut, so that the border does not count.
    """
    from scipy import ndimage

    noisy = np.uint8(np.clip(IMAGES + RNG.normal(0, 20, IMAGES.shape), 0, 255))
    pixels, cut = 49, (slice(3, -3), slice(3, -3))

    def one(x, y):
        def mean(values):
            return ndimage.uniform_filter(values, 7)

        ux, uy = mean(x), mean(y)
        vx, vy, vxy = (
            pixels / (pixels - 1) * (mean(a * b) - mean(a) * mean(b))
            for a, b in ((x, x), (y, y), (x, y))
        )
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        found = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
        return found[cut].mean()

    wanted = [
        np.mean([one(x[..., c], y[..., c]) for c in range(x.shape[-1])])
        for x, y in zip(IMAGES.astype(float), noisy.astype(float), strict=True)
    ]
    np.testing.assert_allclose(ssim_skimage(IMAGES, noisy), wanted, rtol=1e-9)
    assert np.abs(ssim_skimage(IMAGES, noisy) - ssim(IMAGES, noisy)).max() > 1e-3
    with pytest.raises(UserError, match="too small for SSIM; give 7 or more"):
        ssim_skimage(IMAGES[:, :6], IMAGES[:, :6])


def test_usage_counts_codes_and_their_evenness():
    even = codebook_usage(np.array([[0, 1], [2, 3]]), 8)
    assert even["codebook_usage"] == 0.5 and even["perplexity"] == pytest.approx(4)
    uneven = codebook_usage(np.array([0, 0, 0, 1]), 8)
    assert uneven["codebook_usage"] == 0.25 and uneven["perplexity"] == pytest.approx(4 / 3**0.75)


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="float64"):
        psnr(IMAGES / 255, IMAGES)
    with pytest.raises(UserError, match="differ in shape"):
        psnr(IMAGES, IMAGES[:2])
    with pytest.raises(UserError, match="8x14 pixels are too small"):
        ssim(IMAGES[:, :8], IMAGES[:, :8])
    with pytest.raises(UserError, match="0 to 8.*codebook_size=8"):
        codebook_usage(np.arange(9), 8)
    with pytest.raises(UserError, match="none"):
        codebook_usage(np.array([], int), 8)
