"""The Frechet distance: closed forms, and what must not change it."""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.frechet import (
    Gaussian,
    factor,
    frechet,
    frechet_at_infinity,
    frechet_of_features,
)
from t2i_jax.eval.moments import Moments

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 16)) @ RNG.normal(size=(16, 16)) + 3
Y = RNG.normal(size=(400, 16)) @ RNG.normal(size=(16, 16))


def gaussian(features):
    return Gaussian.of(Moments.of(features))


def test_of_gaussians_whose_covariances_commute():
    one = Gaussian(np.array([1.0, 0, 2]), np.diag([4.0, 9, 1]))
    other = Gaussian(np.zeros(3), np.diag([1.0, 1, 25]))
    found = frechet(one, other)
    assert found.means == pytest.approx(5)
    assert found.covariances == pytest.approx((2 - 1) ** 2 + (3 - 1) ** 2 + (1 - 5) ** 2)
    assert found.value == pytest.approx(26) and found.clipped == 0


def test_it_is_symmetric_and_zero_between_equals_and_does_not_see_the_order():
    there, back = frechet(gaussian(X), gaussian(Y)), frechet(gaussian(Y), gaussian(X))
    assert there.value == pytest.approx(back.value, rel=1e-10) and there.value > 1
    assert abs(frechet(gaussian(X), gaussian(X)).value) < 1e-6
    shuffled = RNG.permutation(X)
    assert frechet(gaussian(shuffled), gaussian(Y)).value == pytest.approx(there.value, rel=1e-10)


def test_a_rotation_of_both_changes_nothing_and_a_shift_of_one_adds_its_square():
    turn = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    plain = frechet(gaussian(X), gaussian(Y)).value
    assert frechet(gaussian(X @ turn), gaussian(Y @ turn)).value == pytest.approx(plain, rel=1e-9)
    moved = frechet(gaussian(X), gaussian(X + 2.0))
    assert moved.value == pytest.approx(16 * 4, rel=1e-9)


def test_it_grows_with_noise():
    noisy = [X + scale * RNG.normal(size=X.shape) for scale in (0.5, 1, 2, 4)]
    values = [frechet(gaussian(one), gaussian(X)).value for one in noisy]
    assert values == sorted(values)


def test_features_alone_give_the_same_and_singular_covariances_too():
    assert frechet_of_features(X, Y).value == pytest.approx(
        frechet(gaussian(X), gaussian(Y)).value, rel=1e-9
    )
    few, fewer = X[:9], Y[:6]  # of 16 features
    by_matrix = frechet(gaussian(few), gaussian(fewer))
    assert frechet_of_features(few, fewer).value == pytest.approx(by_matrix.value, rel=1e-6)
    assert -1e-6 < by_matrix.clipped <= 0


def test_a_factor_is_one_whether_the_covariance_is_singular_or_not():
    for covariance in (gaussian(X).covariance_DD, gaussian(X[:5]).covariance_DD, np.zeros((4, 4))):
        root = factor(covariance)
        np.testing.assert_allclose(root @ root.T, covariance, atol=1e-10)


def test_a_triangle_and_any_other_factor_of_a_covariance_give_the_same():
    """The arithmetic of a triangle is another one, and knows half of each matrix alone."""
    one, other = gaussian(X), gaussian(Y)
    triangle = factor(other.covariance_DD)
    assert not np.triu(triangle, 1).any()
    eigenvalues, vectors = np.linalg.eigh(other.covariance_DD)
    whole = vectors * np.sqrt(eigenvalues)
    wide = np.concatenate([whole, np.zeros((16, 3))], axis=1)  # whose product is another matrix
    found = frechet(one, other, triangle)
    assert frechet(one, other) == found
    for root in (whole, wide, np.asfortranarray(triangle)):
        assert frechet(one, other, root).value == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (-np.eye(3), "no covariance .it has the variance -1"),
        (np.diag([1.0, 1, -1e-12]), "it has the variance -1e-12"),
        (np.triu(np.ones((3, 3))), "not symmetric, its halves are 1 apart"),
        (RNG.normal(size=(3, 3)) ** 2, "not symmetric"),
        (np.eye(3) + 5 * (1 - np.eye(3)), "has negative eigenvalues, down to -4"),
    ],
)
def test_a_matrix_that_is_no_covariance_gives_no_distance(matrix, sentence):
    """On either side."""
    whole = Gaussian(np.zeros(3), np.eye(3))
    for make in (lambda one: frechet(one, whole), lambda one: frechet(whole, one)):
        with pytest.raises(UserError, match=sentence):
            make(Gaussian(np.zeros(3), matrix))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_singular_covariance_that_was_rounded_is_one(dtype):
    """Of a third as many images as features; what was kept with few digits has small negative
    eigenvalues.
    """
    covariance = np.cov(RNG.normal(size=(64, 192)) * np.exp(RNG.normal(size=192)), rowvar=False)
    rounded = Gaussian(np.zeros(192), covariance.astype(dtype).astype(np.float64))
    same = frechet(rounded, Gaussian(np.zeros(192), covariance))
    assert abs(same.value) < 0.1 * np.trace(covariance) and same.clipped <= 0


def test_at_infinity_the_bias_of_few_images_is_gone():
    reference = Gaussian(np.zeros(16), np.eye(16))
    same = RNG.normal(size=(2000, 16))
    found = frechet_at_infinity(same, reference)
    assert len(found.sizes) == 15 and found.sizes[0] == 200 and found.sizes[-1] == 2000
    assert found.values[0] > 5 * found.values[-1] > 0 and found.slope > 0
    assert abs(found.value) < 0.2 * found.values[-1]
    assert frechet_at_infinity(same, reference) == found


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: frechet(gaussian(X), gaussian(Y[:, :4])), "16 and 4 wide"),
        (lambda: frechet_of_features(X[:1], Y), "2 images"),
        (lambda: frechet_of_features(X, Y[:, :4]), "16 wide and reference features 4"),
        (lambda: frechet_at_infinity(X[:19], gaussian(Y)), "20 or more"),
        (lambda: Gaussian(np.zeros(3), np.eye(2)), "do not belong together"),
        (lambda: Gaussian(np.zeros(2), np.full((2, 2), np.inf)), "not finite"),
    ],
)
def test_what_can_not_be_compared_is_said(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
