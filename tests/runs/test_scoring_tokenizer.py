"""`t2i evaluate tokenizer`: reconstructions of images, measured pair by pair and as a whole."""

import json
import tracemalloc
import types

import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.frechet import Gaussian, frechet
from t2i_jax.eval.moments import Moments
from t2i_jax.eval.reconstruction import codebook_usage, psnr, ssim, ssim_skimage
from t2i_jax.runs.scoring import tokenizer
from t2i_jax.runs.scoring.split import Share, Split
from tests.e2e.command import inside, refused
from tests.runs.scoring_toys import Levels, toy_extractor, write_images


def _far(one, other):
    return np.abs(one.astype(float) - other).mean((1, 2, 3))


_far.about = {"features": {"file": "other.pth", "sha256": "f" * 64}}
_ALONE = Share()


def _evaluate(folder, out, seed=0, share=_ALONE, crop="adm"):
    images = tokenizer.CroppedImages(f"folder:{folder}", 12, crop, 4)
    measures = tokenizer.Measures([toy_extractor("inception-tf")], {"vgg": _far})
    system = Levels({"all": {"w": np.full(2, seed, np.float32)}})
    return tokenizer.evaluate(out, system, images, measures, out, share, batch_size=3), images


def test_every_pair_is_measured_and_what_was_cut_is_made_again(tmp_path):
    folder = write_images(tmp_path / "images", 10, size=31)
    results, images = _evaluate(folder, tmp_path / "out")
    values = {one["name"]: one["value"] for one in results["metrics"]}
    real = np.stack([images.read(row) for row in range(10)])
    again = np.asarray(Levels({}).decode(Levels({}).encode(real)))
    assert values["psnr_per_image"] == pytest.approx(psnr(real, again).mean())
    assert values["ssim"] == pytest.approx(ssim(real, again).mean())
    assert values["ssim_skimage"] == pytest.approx(ssim_skimage(real, again).mean())
    assert values["lpips_vgg"] == pytest.approx(_far(real, again).mean())
    codes = np.asarray(Levels({}).encode(real))
    assert values["codebook_usage"] == len(np.unique(codes)) / 16
    x, y = (
        Gaussian.of(Moments.of(toy_extractor().features(some)["pool3"])) for some in (again, real)
    )
    assert values["rfid_tf_inception"] == pytest.approx(frechet(x, y).value, rel=1e-5)
    before = (tmp_path / "out" / "results.json").read_bytes()
    (tmp_path / "out" / "codes" / "00001.npz").unlink()
    (tmp_path / "out" / "images" / "00002" / "000008.png").write_bytes(b"")
    assert not _evaluate(folder, tmp_path / "out", share=Share(1, 2))[0]
    _evaluate(folder, tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    told = json.loads(before)
    said = "lpips-vgg=other.pth is not the published vgg16-397923af.pth"
    assert set(told["other_weights"]) == {"lpips-vgg"}
    assert said in told["other_weights"]["lpips-vgg"]
    assert told["images"]["count"] == 10 and len(told["run"]["weights"]) == 16
    with pytest.raises(UserError, match=r"run.weights: .* -> "):
        _evaluate(folder, tmp_path / "out", seed=1)


def test_the_step_that_is_asked_for_is_the_one_that_is_recorded(tmp_path, monkeypatch):
    """The run may train on meanwhile."""

    class Stepped(Levels):
        coded_size = 12

    folder, run = write_images(tmp_path / "images", 3, size=12), tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(
        "t2i_jax.runs.load", lambda run, step: Stepped({"all": {"w": np.full(2, step)}})
    )
    for newest in (500, 600):
        monkeypatch.setattr(tokenizer, "last_step", lambda run, newest=newest: newest)
        inside("evaluate", "tokenizer", run, "--images", folder, "--step", 100)
        told = json.loads((run / "eval" / "tokenizer" / "results.json").read_text())
        assert told["run"]["step"] == 100


def test_codes_of_more_images_need_no_more_memory(tmp_path):
    images = types.SimpleNamespace(split=Split(800, 100))
    codes = np.random.default_rng(0).integers(0, 16, (8, 100, 500), np.int32)
    (tmp_path / "codes").mkdir()
    for shard, some in enumerate(codes):
        np.savez(tmp_path / "codes" / f"{shard:05d}.npz", codes=some)
    tracemalloc.start()
    found = {one.name: one.value for one in tokenizer._usage(tmp_path, Levels({}), images)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == codebook_usage(codes, 16) and peak < codes.nbytes, peak


def test_images_that_changed_are_reconstructed_anew(tmp_path):
    folder = write_images(tmp_path / "images", 4, size=31)
    before, _ = _evaluate(folder, tmp_path / "out")
    for path in write_images(tmp_path / "others", 4, seed=1, size=31).iterdir():
        path.replace(folder / path.name)
    again, _ = _evaluate(folder, tmp_path / "out")
    fresh, _ = _evaluate(folder, tmp_path / "fresh")
    assert again == fresh and again["metrics"] != before["metrics"]
    with pytest.raises(UserError, match="lies in images=.*name a folder outside it"):
        _evaluate(folder, folder / "eval")


def test_exact_reconstructions_count_as_a_hundred_decibels(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 3, size=12)

    def encode(self, images):
        self.kept = images
        return jnp.zeros((len(images), 1), jnp.int32)

    monkeypatch.setattr(Levels, "encode", encode)
    monkeypatch.setattr(Levels, "decode", lambda self, ids: self.kept)
    results, _ = _evaluate(folder, tmp_path / "out")
    values = {one["name"]: one["value"] for one in results["metrics"]}
    assert values["psnr_per_image"] == 100 and values["ssim"] == pytest.approx(1)
    assert values["rfid_tf_inception"] == pytest.approx(0, abs=1e-6) and values["perplexity"] == 1


def test_an_image_that_can_not_be_read_is_named(tmp_path):
    folder = write_images(tmp_path / "images", 3)
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:80])
    with pytest.raises(UserError, match="has 001.png, which can't be used"):
        _evaluate(folder, tmp_path / "out")


def test_reconstructions_of_other_originals_are_no_pairs(tmp_path):
    folder = write_images(tmp_path / "images", 10, size=31)
    results, _ = _evaluate(folder, tmp_path / "out")
    assert results["images"]["of"] == {
        "kind": "folder", "path": str(folder), "size": 12, "crop": "adm",
    }  # fmt: skip
    _evaluate(folder, tmp_path / "same", seed=1)
    told = inside("evaluate", "compare", tmp_path / "out", tmp_path / "same").stdout
    assert "on 10 shared prompts" in told
    _evaluate(folder, tmp_path / "crop", crop="center")
    _evaluate(write_images(tmp_path / "others", 10, seed=1, size=31), tmp_path / "other")
    for name in ("crop", "other"):
        said = refused("evaluate", "compare", tmp_path / "out", tmp_path / name)
        assert "original image in the first and against another" in said
