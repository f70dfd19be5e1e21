"""Precision, recall, density, coverage, KID, CMMD, Inception Score and CLIP score: what must hold
whatever the features are. That they are the packages' numbers is for tests/parity/test_metrics.py.
"""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import distances
from t2i_jax.eval.clip_score import PRESETS, ClipScoring, clip_score
from t2i_jax.eval.inception_score import inception_score, inception_score_adm
from t2i_jax.eval.kid import kid, kid_by_subsets
from t2i_jax.eval.manifold import density_coverage, precision_recall
from t2i_jax.eval.mmd import cmmd

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(120, 8)), RNG.normal(size=(150, 8)) * 1.3 + 0.4


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("t2i_jax.eval.rows.BLOCK", 32)


def apart(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=-1)


def test_distances_in_blocks_are_the_distances(small_blocks):
    found = np.zeros((len(X), len(Y)))
    for place, other, block in distances.blocks(X, Y):
        assert block.shape <= (32, 32)
        found[place, other] = block
    np.testing.assert_allclose(np.sqrt(found), apart(X, Y), rtol=1e-9)
    numbers, near = distances.nearest(X, Y, 3)
    np.testing.assert_array_equal(numbers, np.argsort(apart(X, Y), axis=1)[:, :3])
    np.testing.assert_allclose(near, np.sort(apart(X, Y), axis=1)[:, :3], rtol=1e-9)


def test_precision_and_recall_by_their_definition(small_blocks):
    radius_x, radius_y = np.sort(apart(X, X), 1)[:, 3], np.sort(apart(Y, Y), 1)[:, 3]
    found = precision_recall(X, Y)
    assert found.precision == (apart(X, Y) <= radius_y).any(1).mean()
    assert found.recall == (apart(Y, X) <= radius_x).any(1).mean()
    assert 0.2 < found.precision < 1 and 0.2 < found.recall < 1


def test_density_and_coverage_by_their_definition(small_blocks):
    radius = np.sort(apart(Y, Y), 1)[:, 5]
    inside = apart(X, Y) < radius
    found = density_coverage(X, Y)
    assert found.density == pytest.approx(inside.sum() / (5 * len(X)))
    assert found.coverage == inside.any(0).mean()


def test_equal_sets_and_sets_apart():
    same, far = precision_recall(X, X), precision_recall(X, Y + 1e3)
    assert (same.precision, same.recall) == (1, 1) and (far.precision, far.recall) == (0, 0)
    assert density_coverage(X, X).coverage == 1 and density_coverage(X, Y + 1e3).density == 0


def test_copies_of_few_images_have_precision_and_no_recall():
    copied = np.repeat(Y[:4], 30, axis=0) + 1e-9 * RNG.normal(size=(120, 8))
    found = precision_recall(copied, Y)
    assert found.precision == 1 and found.recall <= 4 / 150


def test_copies_of_an_image_are_no_distance_apart_whatever_rounding_says():
    some = np.abs(RNG.normal(size=(12, 2048))).astype(np.float32)
    copies, more = np.repeat(some[:10], 6, axis=0), np.repeat(some, 7, axis=0)
    found = precision_recall(copies, more)  # every ball has the radius 0
    assert (found.precision, found.recall) == (1, 10 / 12)
    assert density_coverage(copies, more, 3).coverage == 0  # on the edge is outside
    numbers, apart = distances.nearest(more, copies, 1)
    assert not apart[:70].any() and numbers[:7, 0].tolist() == [0] * 7


def test_kid_in_blocks_is_the_sum_over_pairs(small_blocks):
    def mean(x, y, off):
        kernel = (x @ y.T / 8 + 1) ** 3
        return kernel[~np.eye(len(x), dtype=bool)].mean() if off else kernel.mean()

    wanted = mean(X, X, True) + mean(Y, Y, True) - 2 * mean(X, Y, False)
    assert kid(X, Y) == pytest.approx(wanted, rel=1e-10)
    halves = [kid(*np.split(RNG.normal(size=(400, 8)), 2)) for _ in range(20)]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / np.sqrt(20)
    assert min(halves) < 0 < kid(X, Y)


def test_cmmd_keeps_the_digits_of_kernels_near_one(small_blocks):
    x, y = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (X, Y))

    def mean(a, b):
        squared = np.square(a[:, None] - b[None]).sum(-1).astype(np.longdouble)
        return np.exp(-squared / 200).mean()

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(3 * X, Y) == pytest.approx(float(wanted), rel=1e-9)
    assert cmmd(X, X) == pytest.approx(0, abs=1e-12)


def test_inception_scores_in_blocks_are_those_of_all_logits_at_once(small_blocks):
    logits = 3 * RNG.normal(size=(103, 7))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def scores(parts):
        gains = [part * np.log(part / part.mean(axis=0)) for part in parts]
        return [np.exp(gain.sum(axis=1).mean()) for gain in gains]

    order, edges = np.random.RandomState(2020).permutation(103), [i * 103 // 10 for i in range(11)]
    wanted = scores(p[order[start:end]] for start, end in zip(edges, edges[1:]))
    np.testing.assert_allclose(inception_score(logits).values, wanted, rtol=1e-12)
    wanted = scores(np.split(p, [40, 80]))
    np.testing.assert_allclose(inception_score_adm(logits, 40).values, wanted, rtol=1e-12)


def test_clip_scores_in_blocks_are_those_of_all_embeddings_at_once(small_blocks):
    images, captions = X, Y[: len(X)]
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(captions, axis=1)
    wanted = np.maximum(2.5 * (images * captions).sum(axis=1) / lengths, 0)
    found = clip_score(images, captions, PRESETS["hessel"])
    np.testing.assert_array_equal(found.values_N, wanted)
    assert found.value == wanted.mean()


def test_inception_scores_of_known_classifiers():
    sure = 50.0 * np.eye(5)[np.arange(100) % 5]
    assert inception_score(sure, splits=4, seed=None).mean == pytest.approx(5)
    assert inception_score(np.ones((20, 7))).mean == pytest.approx(1)
    assert inception_score(np.where(sure > 0, 0, -1e4), splits=2, seed=None).mean == pytest.approx(
        5
    )
    consecutive = inception_score_adm(sure[np.argsort(np.arange(100) % 5)], size=20)
    assert consecutive.values == pytest.approx([1] * 5)


def test_clip_scores_of_known_angles():
    images, captions = np.array([[2.0, 0], [0, 3], [1, 0]]), np.array([[1.0, 0], [0, 5], [-4, 0]])
    assert clip_score(images, captions, PRESETS["cosine"]).value == pytest.approx(1 / 3)
    assert clip_score(images, captions, PRESETS["hessel"]).values_N.tolist() == [2.5, 2.5, 0]
    assert clip_score(images, captions, PRESETS["torchmetrics"]).value == pytest.approx(100 / 3)
    away = clip_score(images, -images, PRESETS["torchmetrics"])
    assert away.value == 0 and away.values_N.tolist() == [-100] * 3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: precision_recall(X[:3], Y), "neighbours=3 of 3 images"),
        (lambda: kid(X[:1], Y), "2 images or more"),
        (lambda: kid_by_subsets(X, Y), "subsets of 1000"),
        (lambda: cmmd(np.zeros((2, 3)), np.ones((2, 3))), "zero"),
        (lambda: inception_score(X[:5]), "splits=10 of 5 images"),
        (lambda: clip_score(X, Y, PRESETS["cosine"]), "one caption for each"),
        (lambda: ClipScoring(clamp="all"), "clamp='all'"),
        (lambda: ClipScoring(scale=0), "scale=0"),
    ],
)
def test_what_has_no_number_is_said(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
