"""Mean and covariance, merged shard by shard."""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import moments
from t2i_jax.eval.moments import Moments, merged

RNG = np.random.default_rng(0)
# a mean far from zero, which a sum of x x^T would pay for with its digits
FEATURES = RNG.normal(size=(500, 12)) @ RNG.normal(size=(12, 12)) + 1e4


@pytest.mark.parametrize(("shards", "block"), [(1, 2048), (7, 2048), (64, 2048), (1, 64), (2, 33)])
def test_merged_shards_are_numpys_covariance(shards, block, monkeypatch):
    monkeypatch.setattr(moments, "_BLOCK", block)
    found = merged(Moments.of(part) for part in np.array_split(FEATURES, shards))
    assert found.count == 500
    np.testing.assert_allclose(found.mean_D, FEATURES.mean(0), rtol=1e-12)
    wanted = np.cov(FEATURES, rowvar=False)
    np.testing.assert_allclose(found.covariance_DD, wanted, atol=1e-12 * np.abs(wanted).max())


def test_the_same_order_is_the_same_bits_and_another_order_the_same_digits():
    parts = [Moments.of(part) for part in np.array_split(FEATURES, 5)]
    assert (merged(parts).scatter_DD == merged(parts).scatter_DD).all()
    np.testing.assert_allclose(merged(parts[::-1]).scatter_DD, merged(parts).scatter_DD, rtol=1e-9)


def test_float32_features_are_summed_in_float64():
    ones = np.full((4097, 1), 0.1, np.float32)
    assert Moments.of(ones).mean_D[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: merged([]), "no features"),
        (lambda: Moments.of(np.zeros((0, 3))), r"shape \(0, 3\)"),
        (lambda: Moments.of(np.zeros(3)), r"shape \(3,\)"),
        (lambda: Moments.of(np.array([[1.0], [np.nan]])), "row 1"),
        (lambda: Moments.of(np.zeros((1, 3))).covariance_DD, "2 images"),
        (lambda: Moments.of(np.zeros((2, 3))).merge(Moments.of(np.zeros((2, 4)))), "3 and 4 wide"),
    ],
)
def test_what_has_no_moments_is_said(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
