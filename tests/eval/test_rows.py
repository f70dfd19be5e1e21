"""Features that stay in their files: the rows of an array, and the numbers that come of them, whose
memory does not grow with the features.
"""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import intervals
from t2i_jax.eval.clip_score import PRESETS, clip_score
from t2i_jax.eval.frechet import Gaussian, frechet, frechet_at_infinity
from t2i_jax.eval.inception_score import inception_score, inception_score_adm
from t2i_jax.eval.kid import kid, kid_by_subsets
from t2i_jax.eval.manifold import density_coverage, precision_recall
from t2i_jax.eval.mmd import cmmd
from t2i_jax.eval.rows import StoredRows, moments_of

_WIDTH = 128


def _stored(folder, features_ND, parts):
    folder.mkdir()
    for i, part in enumerate(np.array_split(features_ND, parts)):
        about = {"about": np.array(f"part {i}"), "kept": np.arange(len(part))}
        np.savez(folder / f"{i:03d}.npz", **about, pool3=part, other=part[:, :2])
    return StoredRows(sorted(folder.glob("*.npz")), "pool3")


def _features(count, seed):
    return np.random.default_rng(seed).normal(size=(count, _WIDTH)).astype(np.float32) + seed


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ">f4"])
def test_stored_rows_are_read_as_those_of_an_array(tmp_path, dtype):
    whole = _features(23, 0).astype(dtype)
    rows = _stored(tmp_path / "some", whole, 4)
    assert rows.shape == whole.shape and len(rows) == 23 and rows.ndim == 2
    np.testing.assert_array_equal(np.asarray(rows), whole)
    for chosen in (slice(3, 17), slice(20, None), slice(5), [9, 2, 2, 22, 0], [], np.arange(23)):
        np.testing.assert_array_equal(rows[chosen], whole[chosen])
    assert np.asarray(rows, np.float64).dtype == np.float64


def test_parts_without_rows_have_no_width(tmp_path):
    whole = _features(5, 0)
    for i, part in enumerate((np.zeros((0, 0)), whole[:2], np.zeros((0, 0)), whole[2:])):
        np.savez(tmp_path / f"{i}.npz", a=part)
    rows = StoredRows(sorted(tmp_path.glob("*.npz")), "a")
    assert rows.shape == whole.shape and rows.dtype == whole.dtype
    np.testing.assert_array_equal(rows[[4, 0]], whole[[4, 0]])


@pytest.mark.parametrize(
    "save", [np.savez_compressed, lambda path, a: np.savez(path, a=a.T.copy().T)]
)
def test_what_does_not_lie_row_by_row_is_told_apart(tmp_path, save):
    save(tmp_path / "a.npz", a=_features(3, 0))
    with pytest.raises((ValueError, LookupError)):
        StoredRows([tmp_path / "a.npz"], "a")


def _numbers(x, y):
    """All that is measured block by block."""
    real = Gaussian.of(moments_of(y))

    def distance(chosen):
        return frechet(Gaussian.of(moments_of(x, chosen)), real).value

    value, span = intervals.kid_jackknife(x, y, blocks=4)
    subsets = kid_by_subsets(x, y, subsets=5, size=60)
    halves = intervals.halves(len(x), 1.0, distance, times=2)
    line = frechet_at_infinity(x, real, points=3)
    return [
        kid(x, y), value, span.low, span.high, *subsets.values, *halves.values, *line.values,
        cmmd(x, y), *dataclasses.astuple(precision_recall(x, y)),
        *dataclasses.astuple(density_coverage(x, y)), *inception_score(x).values,
        *inception_score_adm(x, 70).values, clip_score(x, x, PRESETS["hessel"]).value,
    ]  # fmt: skip


def test_numbers_of_stored_rows_are_those_of_arrays(tmp_path, monkeypatch):
    x, y = _features(300, 0), _features(280, 1)
    whole = _numbers(x, y)
    stored = [_stored(tmp_path / str(i), one, 7) for i, one in enumerate((x, y))]
    assert _numbers(*stored) == whole
    monkeypatch.setattr("t2i_jax.eval.rows.BLOCK", 64)
    # a distance of fewer images than features loses digits
    np.testing.assert_allclose(_numbers(*stored), whole, rtol=1e-8)
    assert kid(x, x) == kid(x, x.copy()), "an image of both sets is a pair"
    values = [intervals.kid_jackknife(x, other, blocks=4) for other in (x, x.copy())]
    assert values[0] == values[1]


def test_more_features_need_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("t2i_jax.eval.rows.BLOCK", 256)
    monkeypatch.setattr("t2i_jax.eval.intervals._ROWS", 256)
    peaks = []
    # the first one imports, which keeps more memory
    for turn, count in enumerate((600, 600, 3000)):
        home = tmp_path / str(turn)
        home.mkdir()
        sets = [_stored(home / str(i), _features(count, i), count // 300) for i in range(2)]
        tracemalloc.start()
        _numbers(*sets)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 0.4 * 3000 * _WIDTH * 4, peaks  # of one of the two sets


@pytest.mark.parametrize(
    "measure",
    [kid, kid_by_subsets, intervals.kid_jackknife, cmmd, precision_recall, density_coverage],
)
def test_a_value_that_is_not_finite_is_told_with_its_row(tmp_path, monkeypatch, measure):
    monkeypatch.setattr("t2i_jax.eval.rows.BLOCK", 64)
    broken = _features(1200, 0)
    broken[777, 3] = np.nan
    with pytest.raises(UserError, match="generated features are not finite in row 777"):
        measure(_stored(tmp_path / "broken", broken, 3), _features(1200, 1))
    with pytest.raises(UserError, match="features are not finite in row 777"):
        frechet_at_infinity(broken, Gaussian(np.zeros(_WIDTH), np.eye(_WIDTH)))
    with pytest.raises(UserError, match="128 wide and reference features 2"):
        measure(_features(1200, 0), _features(1200, 1)[:, :2])
