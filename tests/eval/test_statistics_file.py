"""Statistics files: the three forms, both ways, and what is refused."""

import json
import tracemalloc

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.moments import Moments
from t2i_jax.eval.rows import StoredRows
from t2i_jax.eval.statistics_file import (
    read_statistics,
    write_clean_fid,
    write_npz,
    write_statistics,
)
from tests.parity.reference import load

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 6)).astype(np.float32)
ABOUT = {"extractor": {"name": "inception-clean", "sha256": "0" * 64}}


def test_ours_tell_by_what_they_were_made(tmp_path):
    path = tmp_path / "set.npz"
    write_statistics(path, Moments.of(X), ABOUT, features_ND=X)
    found = read_statistics(path, "inception-clean")
    np.testing.assert_array_equal(found.gaussian.covariance_DD, Moments.of(X).covariance_DD)
    np.testing.assert_array_equal(found.features_ND, X)
    assert found.count == 30 and found.about["extractor"] == ABOUT["extractor"]
    first = path.read_bytes()
    write_statistics(path, Moments.of(X), ABOUT, features_ND=X)
    assert path.read_bytes() == first


def test_a_file_is_what_numpy_writes_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("t2i_jax.eval.rows._PART", 100)  # four rows
    moments, images = Moments.of(X), RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
    path = tmp_path / "set.npz"
    write_statistics(path, moments, ABOUT, X, images, moments)
    both = {"mu": moments.mean_D, "sigma": moments.covariance_DD}
    spatial = {"mu_s": moments.mean_D, "sigma_s": moments.covariance_DD}
    np.savez(tmp_path / "numpy.npz", arr_0=images, **both, **spatial, feats=X)
    assert path.read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_more_features_are_kept_in_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("t2i_jax.eval.rows._PART", 2**16)
    monkeypatch.setattr("t2i_jax.files._PART", 2**16)  # which are hashed at a time
    part = RNG.normal(size=(4000, 64)).astype(np.float32)
    np.savez(tmp_path / "part.npz", pool3=part)
    rows, moments = StoredRows([tmp_path / "part.npz"] * 5, "pool3"), Moments.of(part)
    peaks = []
    for write in (
        lambda: write_statistics(tmp_path / "set.npz", moments, ABOUT, rows),
        lambda: write_clean_fid(tmp_path, "set", "clean", moments, rows),
    ):
        tracemalloc.start()
        write()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    found = read_statistics(tmp_path / "set.npz", "inception-clean").features_ND
    np.testing.assert_array_equal(found[-4000:], part)
    with np.load(tmp_path / "set_clean_custom_na_kid.npz") as kept:
        np.testing.assert_array_equal(kept["feats"], np.tile(part, (5, 1)))
    assert max(peaks) < 0.5 * 5 * part.nbytes, peaks


def test_pytorch_fid_reads_ours_and_we_read_theirs(tmp_path):
    fid_score = load("pytorch_fid.fid_score")
    path = tmp_path / "ours.npz"
    write_statistics(path, Moments.of(X), ABOUT)
    mu, sigma = fid_score.compute_statistics_of_path(str(path), None, 1, 6, "cpu")
    np.testing.assert_array_equal(sigma, Moments.of(X).covariance_DD)
    theirs = tmp_path / "theirs.npz"
    np.savez_compressed(theirs, mu=mu, sigma=sigma)  # as its `save_fid_stats` does
    found = read_statistics(theirs, "inception-pytorch-fid", "pytorch-fid")
    assert (found.gaussian.mean_D == mu).all() and found.count is None and found.about == {}


def test_clean_fid_finds_ours_by_its_names(tmp_path, monkeypatch):
    features = load("cleanfid.features")
    fid = load("cleanfid.fid")
    package = tmp_path / "package"
    (package / "stats").mkdir(parents=True)
    monkeypatch.setattr("cleanfid.__file__", str(package / "__init__.py"))
    gaussian, kept = write_clean_fid(package / "stats", "My-Set", "clean", Moments.of(X), X)
    assert fid.test_stats_exists("my-set", "clean")  # it forgets to make the name small
    mu, sigma = features.get_reference_statistics("My-Set", "na", split="custom")
    np.testing.assert_array_equal(sigma, read_statistics(gaussian, "a", "a").gaussian.covariance_DD)
    feats = features.get_reference_statistics("My-Set", "na", split="custom", metric="KID")
    np.testing.assert_array_equal(feats, X)
    np.testing.assert_array_equal(read_statistics(kept, "a", "a").features_ND, X)
    assert read_statistics(kept, "a", "a").count == 30


def test_adms_reference_batches(tmp_path):
    path = tmp_path / "adm.npz"
    images = RNG.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    m = Moments.of(X)
    both = {"mu": m.mean_D, "sigma": m.covariance_DD}
    write_npz(path, {"arr_0": images, **both, "mu_s": m.mean_D, "sigma_s": m.covariance_DD})
    found = read_statistics(path, "inception-tf", "tf")
    assert (found.images_NHWC == images).all() and found.spatial is not None
    write_statistics(tmp_path / "ours.npz", m, ABOUT, images_NHWC=images, spatial=m)
    with np.load(tmp_path / "ours.npz") as ours:
        assert list(ours.files) == ["arr_0", "mu", "sigma", "mu_s", "sigma_s"]
        assert (ours["arr_0"] == images).all() and (ours["sigma_s"] == m.covariance_DD).all()


def test_gray_images_of_a_file_have_three_channels(tmp_path):
    gray = RNG.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "gray.npz", gray)
    found = read_statistics(tmp_path / "gray.npz", "inception-clean", "clean")
    assert (found.images_NHWC == np.repeat(gray, 3, axis=-1)).all()


def _plain(path, **arrays):
    np.savez(path, **(arrays or {"mu": np.zeros(2), "sigma": np.eye(2)}))


def _ours(path):
    write_statistics(path, Moments.of(X), ABOUT)


def _changed(path):
    _ours(path)
    _plain(path)


def _damaged(path):
    """A compressed array of which some bytes are others."""
    np.savez_compressed(path, mu=np.zeros(2), sigma=RNG.normal(size=(64, 64)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)


def _odd_json(path):
    _plain(path)
    path.with_suffix(".json").write_text(json.dumps([1]))


@pytest.mark.parametrize(
    ("make", "mode", "sentence"),
    [
        (_plain, None, "--reference-mode, for example clean"),
        (_plain, "tf", "statistics of tf, not of inception-clean"),
        (_ours, "tf", "statistics of inception-clean, not of inception-clean|has statistics of"),
        (_changed, None, "not the file that set.json beside it describes"),
        (_odd_json, "clean", "set.json beside it is not what"),
        (lambda path: path.write_bytes(b"PK not a zip"), "clean", "can't be read as statistics"),
        (lambda path: None, "clean", "No such file"),
        (lambda path: _plain(path, mu=np.zeros(2)), "clean", "one of mu and sigma alone"),
        (lambda path: _plain(path, other=np.zeros(2)), "clean", "neither mu and sigma nor"),
        (lambda path: _plain(path, mu=np.zeros(2), sigma=np.eye(3)), "clean", "belong together"),
        (lambda path: _plain(path, mu=np.array([None])), "clean", "no npz of plain arrays"),
        (_damaged, "clean", "can't be read as statistics"),
        (lambda path: np.savez(path, X), "clean", r"arr_0 is float32\(30, 6\), and images are"),
        (lambda path: np.savez(path, 5), "clean", r"arr_0 is int64\(\), and images are uint8"),
        (
            lambda path: np.savez(path, np.zeros((0, 4, 4, 3), np.uint8)),
            "clean",
            r"arr_0 is uint8\(0, 4, 4, 3\)",
        ),
        *(
            (
                lambda path, count=count: np.savez(path, np.zeros((2, 4, 4, count), np.uint8)),
                "clean",
                rf"arr_0 is uint8\(2, 4, 4, {count}\), and images are uint8 \(N, H, W, 3\)",
            )
            for count in (2, 4, 5)
        ),
        (
            lambda path: _plain(path, mu=np.array(["a"]), sigma=np.eye(1)),
            "clean",
            r"mu is <U1\(1,\), no real numbers",
        ),
        (lambda path: _plain(path, feats=X[0]), "clean", r"feats is float32\(6,\); give"),
        (lambda path: _plain(path, feats=X * np.nan), "clean", "set.npz': features are not finite"),
    ],
)
def test_statistics_that_are_none_are_said(tmp_path, make, mode, sentence):
    path = tmp_path / "set.npz"
    make(path)
    with pytest.raises(UserError, match=sentence):
        read_statistics(path, "inception-clean", mode)
