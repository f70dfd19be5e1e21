"""`t2i evaluate` on images that are there: numbers, resuming, statistics, refusals."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import tarfile
import tracemalloc
import types

import numpy as np
import pytest
from PIL import Image

from t2i_jax import files
from t2i_jax.cli import sample
from t2i_jax.cluster import lock
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.data.table import ENDINGS, FILE_KEYS
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, layout, prompts, statistics_file
from t2i_jax.eval.frechet import Gaussian, frechet
from t2i_jax.eval.moments import Moments
from t2i_jax.runs.scoring import features, pairing, statistics
from t2i_jax.runs.scoring.held_out import HeldOutImages
from t2i_jax.runs.scoring.sources import SourceImages, size_of_run
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.systems.base import Given
from t2i_jax.systems.muse.task import MuseTask
from tests.data.test_external import tfds_set
from tests.e2e import tiny
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import toy_extractor, write_images
from tests.systems import toy_muse

ALL = "fid,fid_infinity,kid,is,pr,dc,clip,clip_hessel,clip_fid,cmmd,fdd,pickscore"


_toys = scoring_toys.in_place


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Generated and real images."""
    home = tmp_path_factory.mktemp("images")
    return write_images(home / "made", 45), write_images(home / "real", 60, seed=1)


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    """The folder of all metrics, and what was printed."""
    out = tmp_path_factory.mktemp("out") / "all"
    return out, _evaluate(folders, out, "--metrics", ALL)


def _evaluate(folders, out, *more, shard=10):
    made, real = folders
    common = ("--images", made, "--reference", real, "--out", out, "--shard-size", shard)
    return inside("evaluate", *common, *more).stdout


def _features(folder):
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return toy_extractor().features(images, 32)["pool3"]


def _metrics(out):
    results = json.loads((out / "results.json").read_text())
    return {one["name"]: one for one in results["metrics"]}, results


def test_every_number_has_its_network_and_all_that_it_was_made_with(folders, measured):
    out, told = measured
    metrics, results = _metrics(out)
    assert {
        "fid_clean_inception", "fid_infinity_clean_inception", "kid_clean_inception",
        "inception_score_clean_inception", "precision_clean_inception", "recall_clean_inception",
        "density_clean_inception", "coverage_clean_inception", "clip_score_clip_toy",
        "clip_score_hessel_clip_toy", "fid_clip_toy", "cmmd_clip_toy", "fd_dinov2_toy",
        "score_pickscore_toy",
    } == set(metrics)  # fmt: skip
    for name, one in metrics.items():
        assert f"{name}: " in told and one["n_generated"] == 45
        assert one["extractor"]["sha256"] == "0" * 64
        assert (one["n_reference"] == 60) == (one["reference"] is not None)
    x, y = (Gaussian.of(Moments.of(_features(folder))) for folder in folders)
    assert metrics["fid_clean_inception"]["value"] == pytest.approx(frechet(x, y).value, rel=1e-6)
    spans = [one["interval"] for one in metrics.values() if one["interval"]]
    assert all(span["low"] <= span["high"] for span in spans) and len(spans) == 7
    assert results["images"]["count"] == 45 and "jax" in results["software"]
    assert results["generated"]["inception-clean"]["sizes"] == {"8x8": 45}


def test_values_of_each_image_are_kept_and_the_page_shows_the_extremes(measured):
    out, _ = measured
    values = json.loads((out / "values.json").read_text())
    metrics, _ = _metrics(out)
    assert len(values["clip_score_clip_toy"]) == 45
    mean = np.mean([value for _, _, value in values["clip_score_clip_toy"]])
    assert metrics["clip_score_clip_toy"]["value"] == pytest.approx(mean)
    page = (out / "report.html").read_text()
    assert "The worst by clip_score_clip_toy" in page and "nearest reference image" in page


def test_the_same_again_and_what_was_lost_ends_in_the_same_bytes(folders, measured, monkeypatch):
    out, _ = measured
    before = {name: (out / name).read_bytes() for name in ("results.json", "values.json")}
    ran = []
    batches = extractors.Extractor.batches

    def counted(self, images, *more):
        ran.append(self.name)
        return batches(self, images, *more)

    monkeypatch.setattr(extractors.Extractor, "batches", counted)
    _evaluate(folders, out, "--metrics", ALL)
    assert not ran, "all features were there"
    [home] = (out / "features" / "generated").glob("inception-clean-*")
    (home / "00001.npz").unlink()
    (home / "00002.npz").write_bytes((home / "00003.npz").read_bytes()[:500])
    (home / "00003.npz").write_bytes((home / "00004.npz").read_bytes())  # of other images
    _evaluate(folders, out, "--metrics", ALL)
    assert ran == ["inception-clean"] * 3
    for name, data in before.items():
        assert (out / name).read_bytes() == data


def test_shards_of_another_size_and_two_processes_give_the_same_numbers(
    folders, measured, tmp_path, monkeypatch
):
    whole, _ = _metrics(measured[0])
    out = tmp_path / "one"
    _evaluate(folders, out, "--metrics", "fid,kid", shard=1000)
    single, _ = _metrics(out)
    for name in ("fid_clean_inception", "kid_clean_inception"):
        assert single[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-9)
    out = tmp_path / "two"
    for process in (1, 0):
        share = Share(process, 2)
        monkeypatch.setattr("t2i_jax.runs.scoring.split.Share.here", lambda share=share: share)
        told = _evaluate(folders, out, "--metrics", ALL)
        assert bool(told) == (process == 0)
    assert (out / "results.json").read_bytes() == (measured[0] / "results.json").read_bytes()


def test_another_plan_is_refused_with_its_field(folders, measured):
    made, real = folders
    said = refused(
        "evaluate", "--images", made, "--reference", real, "--out", measured[0], "--metrics", "fid"
    )
    assert "images.shard_size: 10 -> 1000" in said
    said = refused("evaluate", "--images", real, "--metrics", "is", "--out", measured[0])
    assert "images.count: 45 -> 60" in said
    said = refused("evaluate", "--images", made, "--metrics", "is", "--out", real)
    assert "and no plan.json" in said


def test_statistics_are_the_folder_they_were_made_of(folders, measured, tmp_path):
    made, real = folders
    npz = tmp_path / "real.npz"
    told = inside("evaluate", "reference", real, "--out", npz, "--keep-features").stdout
    assert "statistics of 60 images" in told and not npz.with_name("real.npz.shards").exists()
    common = ("evaluate", "--images", made, "--shard-size", 10, "--reference")
    out = tmp_path / "by_file"
    inside(*common, npz, "--out", out, "--metrics", "fid,kid,pr")
    by_file, whole = _metrics(out)[0], _metrics(measured[0])[0]
    for name in ("kid_clean_inception", "recall_clean_inception"):
        assert by_file[name]["value"] == whole[name]["value"]
    fid = by_file["fid_clean_inception"]
    assert fid["value"] == pytest.approx(whole["fid_clean_inception"]["value"], rel=1e-9)
    assert fid["n_reference"] == 60 and fid["reference"]["made_from"]["images"]["count"] == 60
    plain = tmp_path / "plain.npz"
    with np.load(npz) as found:
        np.savez(plain, mu=found["mu"], sigma=found["sigma"])
    inside(*common, plain, "--reference-mode", "clean", "--out", tmp_path / "c", "--metrics", "fid")
    for metrics, more, sentence in (
        ("fid", (), "say it with --reference-mode, for example clean"),
        ("fid", ("--reference-mode", "tf"), "has statistics of tf, not of inception-clean"),
        ("kid", ("--reference-mode", "clean"), "mean and covariance alone"),
    ):
        said = refused(*common, plain, "--out", tmp_path / "r", "--metrics", metrics, *more)
        assert sentence in said
    said = refused(*common, npz, "--mode", "tf", "--out", tmp_path / "r", "--metrics", "fid")
    assert "has statistics of inception-clean, not of inception-tf" in said
    assert "name a new FILE.npz" in refused("evaluate", "reference", real, "--out", npz)


def test_statistics_of_more_images_need_no_more_memory(tmp_path):
    """Images are read batch by batch, and their features shard by shard."""

    class Numbered:
        split = Split(1200, 100)

        def read(self, index):
            return np.full((64, 64, 3), index % 256, np.uint8)

        def key(self, shard):
            return str(shard)

    class Few(Numbered):
        split = Split(200, 100)

    peaks = []
    for images in (Few(), Few(), Numbered()):  # the first one compiles
        tracemalloc.start()
        found = features.compute(
            images, toy_extractor(), ("pool3",), tmp_path / str(len(peaks)), lambda one: one,
            Share(), 32,
        )  # fmt: skip
        assert found.moments("pool3").count == images.split.count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1], peaks
    assert peaks[2] < 0.5 * 1200 * 64 * 64 * 3  # of all images


def test_statistics_are_made_by_one_command_at_a_time(folders, tmp_path):
    npz = tmp_path / "real.npz"
    other = lock.held(tmp_path / "real.npz.shards", "out")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(other.__enter__).result()
        said = refused("evaluate", "reference", folders[1], "--out", npz)
        assert "real.npz.shards' is in use by process" in said and not npz.exists()
        pool.submit(other.__exit__, None, None, None).result()
    inside("evaluate", "reference", folders[1], "--out", npz)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real.json", "real.npz"]


def test_adm_reads_what_is_made_for_it_and_we_read_its_images(folders, tmp_path):
    made, real = folders
    npz = tmp_path / "adm.npz"
    inside("evaluate", "reference", real, "--out", npz, "--adm", "--mode", "tf")
    with np.load(npz) as found:
        assert found["arr_0"].shape == (60, 8, 8, 3) and found["sigma"].shape == (6, 6)
        # where `mu` stands, the evaluator takes all four and looks no further
        assert found["mu_s"].shape == (2,) and found["sigma_s"].shape == (2, 2)
        np.savez(tmp_path / "only.npz", arr_0=found["arr_0"])
    said = refused("evaluate", "reference", real, "--out", tmp_path / "no.npz", "--adm")
    assert "give --mode tf" in said and "inception-clean" in said
    common = ("evaluate", "--images", made, "--mode", "tf", "--metrics", "fid,kid")
    values = []
    for name, more in (("adm", ()), ("only", ("--reference-mode", "tf"))):
        out = tmp_path / name
        inside(*common, "--reference", tmp_path / f"{name}.npz", "--out", out, *more)
        values.append({name: one["value"] for name, one in _metrics(out)[0].items()})
    assert values[0]["kid_tf_inception"] == values[1]["kid_tf_inception"]
    assert values[0]["fid_tf_inception"] == pytest.approx(values[1]["fid_tf_inception"], rel=1e-9)


def test_clean_fid_reads_what_is_made_for_it(folders, tmp_path):
    command = ("evaluate", "reference", folders[1], "--clean-fid", "Mine", "--out")
    inside(*command, tmp_path / "real.npz")
    names = ("mine_clean_custom_na.npz", "mine_clean_custom_na_kid.npz")
    with np.load(tmp_path / "real.npz") as ours, np.load(tmp_path / names[0]) as theirs:
        np.testing.assert_allclose(theirs["sigma"], ours["sigma"], rtol=1e-6, atol=1e-9)
    with np.load(tmp_path / names[1]) as theirs:
        assert theirs["feats"].shape == (60, 6)
    said = refused(*command, tmp_path / "again.npz")
    assert names[0] in said and "give another name" in said
    said = refused(*command, tmp_path / "no.npz", "--mode", "tf")
    assert "give --mode clean" in said and "inception-tf" in said
    command = ("evaluate", "reference", folders[1], "--clean-fid", "a/b", "--out")
    assert "is no name of files" in refused(*command, tmp_path / "no.npz")
    assert not (tmp_path / "again.npz").exists() and not (tmp_path / "no.npz").exists()


@pytest.mark.parametrize("place", range(5))  # features, both files of clean-fid, JSON, npz
def test_statistics_killed_between_their_files_are_gone_on_with(
    folders, tmp_path, monkeypatch, place
):
    command = ("evaluate", "reference", folders[1], "--clean-fid", "Mine", "--out")
    inside(*command, tmp_path / "whole" / "real.npz")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 4

    class Killed(BaseException):
        pass

    written, replacing = [], files.replacing

    @contextlib.contextmanager
    def killed(path):
        with replacing(path) as temporary:
            yield temporary
            written.append(path)
            if len(written) > place:
                raise Killed

    home = tmp_path / "killed"
    monkeypatch.setattr(statistics_file.files, "replacing", killed)
    with pytest.raises(Killed):
        inside(*command, home / "real.npz")
    monkeypatch.undo()
    assert not (home / "real.npz").exists()
    inside(*command, home / "real.npz")
    assert {path.name: path.read_bytes() for path in home.iterdir()} == whole


def test_statistics_killed_at_their_end_are_known_as_whole(folders, tmp_path, monkeypatch):
    real, home = shutil.copytree(folders[1], tmp_path / "real"), tmp_path / "out"
    npz = home / "real.npz"
    command = ("evaluate", "reference", real, "--out", npz, "--clean-fid", "Mine")

    class Killed(BaseException):
        pass

    def killed(path):
        (path / next(path.glob("inception*")).name / "00000.npz").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(statistics.shutil, "rmtree", killed)
        inside(*command)
    assert npz.exists() and npz.with_name("real.npz.shards").exists()
    whole = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    monkeypatch.setattr(features, "_computed", lambda *_: pytest.fail("features are computed"))
    for _ in range(2):  # what was killed, and what had ended
        assert f"statistics of 60 images are already in {npz}" in inside(*command).stdout
        assert {path.name: path.read_bytes() for path in home.iterdir()} == whole
    for more, field in (
        (("--keep-features",), "command.keep_features: False -> True"),
        (("--mode", "tf"), "--clean-fid=Mine is for clean-fid"),
    ):
        assert field in refused(*command, *more)
    shutil.copy(real / "001.png", real / "000.png")
    assert "made by another command (command.images.files: " in refused(*command)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == whole


@pytest.mark.parametrize(
    "beside", ["none", "older", "foreign", "edited", "of another file", "of a folder"]
)
def test_statistics_that_are_there_are_left_alone(folders, tmp_path, beside):
    npz = tmp_path / "real.npz"
    command = ("evaluate", "reference", folders[1], "--out", npz)
    inside(*command)
    about = json.loads(npz.with_suffix(".json").read_text())
    if beside == "older":  # of earlier releases
        del about["command"]
    elif beside == "foreign":
        about = {"annotations": []}
    elif beside == "edited":
        del about["images"]["left_out"]
    elif beside == "of another file":
        npz.write_bytes(b"another file")
    npz.with_suffix(".json").write_text(json.dumps(about))
    if beside == "none":
        npz.with_suffix(".json").unlink()
    elif beside == "of a folder":
        npz.unlink()
        npz.mkdir()

    def there():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    before = there()
    said = refused(*command)
    assert "name a new FILE.npz" in said and "out=" in said
    assert there() == before


def test_statistics_take_the_place_of_no_other_file(folders, tmp_path):
    npz, other = tmp_path / "coco.npz", tmp_path / "coco.json"
    other.write_text('{"annotations": []}')
    said = refused("evaluate", "reference", folders[1], "--out", npz)
    assert "coco.json beside it, and another file is there" in said and not npz.exists()
    assert other.read_text() == '{"annotations": []}'


def test_two_results_are_compared_image_by_image(folders, measured, tmp_path):
    made, real = folders
    shutil.copytree(made, tmp_path / "worse")
    for path in (tmp_path / "worse").glob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    _evaluate((tmp_path / "worse", real), tmp_path / "w", "--metrics", "fid,clip_hessel")
    told = inside("evaluate", "compare", measured[0], tmp_path / "w").stdout
    assert "clip_score_hessel_clip_toy" in told and "45 shared prompts" in told
    assert "fid_clean_inception" in told
    _evaluate(folders, tmp_path / "tf", "--metrics", "fid", "--mode", "tf")
    said = refused("evaluate", "compare", measured[0], tmp_path / "tf")
    assert "share no metric" in said
    assert "is missing or damaged" in refused("evaluate", "compare", made, real)


def test_images_of_two_folders_are_compared_by_their_names(folders, measured, tmp_path):
    made = shutil.copytree(folders[0], tmp_path / "made")
    for path in made.glob("000.*"):  # all others would move up by one
        path.unlink()
    command = ("evaluate", "--images", made, "--metrics", "clip", "--out")
    inside(*command, tmp_path / "out")
    told = inside("evaluate", "compare", measured[0], tmp_path / "out").stdout
    [line] = [one for one in told.splitlines() if one.startswith("clip_score_clip_toy ")]
    assert " +0 " in line and "on 44 shared prompts, without 1 image that one of them" in line
    for path in made.iterdir():
        path.rename(made / f"x{path.name}")
    inside(*command, tmp_path / "x")
    said = refused("evaluate", "compare", measured[0], tmp_path / "x")
    assert "has 0 prompts that both results hold (the first has '000.png' alone, the second" in said


def test_captions_of_a_file_are_found_by_name_or_taken_in_order(folders, measured, tmp_path):
    made, _ = folders
    names = sorted(path.name for path in made.glob("*.png"))
    texts = [path.with_suffix(".txt").read_text() for path in sorted(made.glob("*.png"))]
    rows = [f"{name},{text},{'ab'[i % 2]}" for i, (name, text) in enumerate(zip(names, texts))]
    by_name, in_order = tmp_path / "names.csv", tmp_path / "order.txt"
    by_name.write_text("\n".join(["file,caption,category", *rows[::-1]]))
    in_order.write_text("\n".join(texts))
    found = []
    for file in (by_name, in_order):
        out = tmp_path / file.stem
        inside("evaluate", "--images", made, "--captions", file, "--metrics", "clip", "--out", out)
        found.append(_metrics(out))
    whole = _metrics(measured[0])[0]["clip_score_clip_toy"]["value"]
    assert [one[0]["clip_score_clip_toy"]["value"] for one in found] == [pytest.approx(whole)] * 2
    parts = found[0][1]["categories"]["clip_score_clip_toy"]
    assert {name: one["count"] for name, one in parts.items()} == {"a": 23, "b": 22}
    in_order.write_text("\n".join(texts[:-1]))
    said = refused(
        "evaluate", "--images", made, "--captions", in_order, "--metrics", "clip", "--out",
        tmp_path / "short",
    )  # fmt: skip
    assert "44 captions for 45 images" in said
    by_name.write_text("\n".join(["file,caption,category", *rows[1:], "x.png,text,a"]))
    said = refused(
        "evaluate", "--images", made, "--captions", by_name, "--metrics", "clip", "--out",
        tmp_path / "other",
    )  # fmt: skip
    assert "has no caption for 000.png" in said


def _refused_captions(folders, file, place):
    return refused(
        "evaluate", "--images", folders[0], "--captions", file, "--metrics", "clip", "--out", place
    )


@pytest.mark.parametrize("key", FILE_KEYS)
def test_every_column_that_names_an_image_pairs_captions_by_name(folders, measured, tmp_path, key):
    made, _ = folders
    rows = [
        {key: path.name, "caption": path.with_suffix(".txt").read_text()}
        for path in sorted(made.glob("*.png"))
    ]
    file = tmp_path / "names.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[::-1])))
    images = SourceImages(f"folder:{made}", "images")
    found = pairing.paired(images, prompts.read(str(file)), "made").of_images
    assert [one.text for one, _ in found] == [row["caption"] for row in rows]
    file.write_text("\n".join(map(json.dumps, [*rows[1:], rows[1]])))
    assert "no caption for 000.png" in _refused_captions(folders, file, tmp_path / "out")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_that_names_no_images_is_never_paired_by_its_order(folders, tmp_path, ending):
    rows = [{"image_file": path.name, "caption": "x"} for path in sorted(folders[0].glob("*.png"))]
    file = tmp_path / f"captions{ending}"
    mark = "\t" if ending == ".tsv" else ","
    if ending == ".json":
        file.write_text(json.dumps(rows))
    elif "json" in ending:
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text("\n".join(map(mark.join, [list(rows[0]), *(r.values() for r in rows)])))
    said = _refused_captions(folders, file, tmp_path / "out")
    assert "has the columns image_file, caption" in said and "file/file_name" in said


def test_captions_in_order_are_as_many_as_images_or_as_a_benchmark_groups_them(folders, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join("abc"))
    said = _refused_captions(folders, few, tmp_path / "out")
    assert "3 captions for 45 images" in said
    row = {"tag": "colors", "include": [], "prompt": "a red bench"}
    bench = tmp_path / "bench.jsonl"
    bench.write_text("\n".join([json.dumps(row)] * 3))
    known = prompts.read(f"geneval:{bench}")
    for count in (3, 12):
        numbers = [number for _, number in pairing._in_order(count, known, "made")]
        assert numbers == [*range(count // 3)] * 3
    assert "or 4 for each" in _refused_captions(folders, f"geneval:{bench}", tmp_path / "out")


def _benchmark(home, kind):
    """Two prompts, of which neither the order of texts nor that of names is that of the set."""
    texts = ["two red cups", "a blue cup", "an apple"]
    if kind == "geneval":
        rows = [{"tag": "colors", "include": [], "prompt": text} for text in texts]
        (home / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return prompts.read(f"geneval:{home / 'set.jsonl'}")
    if kind == "t2i-compbench":
        (home / "color_val.txt").write_text("\n".join([*texts, texts[0]]))
        return prompts.read(f"t2i-compbench:{home / 'color_val.txt'}")
    (home / "set").mkdir()
    for name, text in zip((9, 10, "x1"), texts, strict=True):
        (home / "set" / f"{name}.txt").write_text(text)
    return prompts.read(f"dpg:{home / 'set'}")


@pytest.mark.parametrize("kind", layout.LAYOUTS)
def test_images_for_a_scorer_have_the_captions_that_they_were_made_of(tmp_path, kind):
    known = _benchmark(tmp_path, kind)
    each = known.images_per_prompt

    def made(place):
        images = np.full((each, 8, 8, 3), place, np.uint8)
        images[..., 1] = np.arange(each)[:, None, None]
        return images

    home = tmp_path / "made"
    layout.write(home, known, made)
    folders = [home, *((home / "color", home / "color" / "samples") if "comp" in kind else ())]
    for folder in folders:
        images = SourceImages(f"folder:{folder}", "images")
        found, rule = pairing.paired(images, known, "made")
        read = [tuple(images.read(row)[0, 0, :2]) for row in range(len(found))]
        assert read == [(known.prompts.index(one), number) for one, number in found]
        assert len(found) == len(known) * (1 if kind == "dpg" else each)
        assert bool(rule) == (kind != "geneval")
    path = sorted(home.rglob("*.png"))[-1]
    path.rename(home / "other.png")
    with pytest.raises(UserError, match="has 'other.png', which is of no prompt of"):
        pairing.paired(SourceImages(f"folder:{home}", "images"), known, "made")
    (home / "other.png").unlink()
    with pytest.raises(UserError, match=f"of {kind}, and .* of others; give as many of each"):
        pairing.paired(SourceImages(f"folder:{home}", "images"), known, "made")


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(11)],
        [f"image_{i}_of_11.png" for i in range(11)],
        [f"{i}/x.png" for i in range(11)],
        [f"{i:03d}-00.png" for i in range(995, 1006)],
        [f"{i:02d} {word}.png" for i, word in enumerate("kjihgfedcba")],
        ["e.png", "a10.png", "a9.png"],
    ],
)
def test_captions_in_order_are_in_that_of_the_numbers_of_files(tmp_path, capsys, names):
    for i, name in enumerate(names):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "made" / name)
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(f"caption {i}" for i in range(len(names))))
    images = SourceImages(f"folder:{tmp_path / 'made'}", "images")
    found, rule = pairing.paired(images, prompts.read(str(file)), "made")
    shown = [images.read(row)[0, 0, 0] for row in range(len(names))]
    is_numbered, told = names[0] != "e.png", capsys.readouterr().err
    wanted = shown if is_numbered else range(len(names))
    assert [one.text for one, _ in found] == [f"caption {i}" for i in wanted]
    assert bool(rule) == (is_numbered and shown != sorted(shown))
    assert ("order of the numbers in the names" in told) == bool(rule)
    assert ("letters of the names" in told and "'a10.png' before 'a9.png'" in told) != is_numbered
    if not is_numbered:  # nothing tells that they are in the order of a benchmark
        with pytest.raises(UserError, match="are not numbered .*give a table with the columns"):
            rows = ["Prompt\tCategory\tChallenge", *(f"{i}\tx\tx" for i in range(len(names)))]
            (tmp_path / "parti.tsv").write_text("\n".join(rows))
            pairing.paired(images, prompts.read(f"parti:{tmp_path / 'parti.tsv'}"), "made")


def test_images_that_are_named_by_ids_have_the_captions_of_these(tmp_path):
    (tmp_path / "set.csv").write_text("id,caption\n31,x\n7,y\n100,z\n")
    write_images(tmp_path / "made", 3)
    for i, name in enumerate((100, 31, 7)):
        (tmp_path / "made" / f"{i:03d}.png").rename(tmp_path / "made" / f"{name}.png")
    images = SourceImages(f"folder:{tmp_path / 'made'}", "images")
    found, rule = pairing.paired(images, prompts.read(f"coco:{tmp_path / 'set.csv'}"), "made")
    assert [(images.source.image_name(i), one.text) for i, (one, _) in enumerate(found)] == [
        ("100.png", "z"), ("31.png", "x"), ("7.png", "y"),
    ]  # fmt: skip
    assert rule == "by their ids"


def test_a_folder_for_genevals_scorer_is_measured_with_its_prompts(tmp_path):
    """`metadata.jsonl` beside the images has the name of a table of images, and is none."""
    rows = [{"tag": "colors", "include": [], "prompt": f"a {one} cup"} for one in ("red", "blue")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    known = prompts.read(f"geneval:{tmp_path / 'prompts.jsonl'}")
    made = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    layout.write(tmp_path / "made", known, lambda place: made[place])
    inside(
        "evaluate", "--images", tmp_path / "made", "--captions", f"geneval:{known.source}",
        "--metrics", "clip", "--out", tmp_path / "out",
    )  # fmt: skip
    values = json.loads((tmp_path / "out" / "values.json").read_text())["clip_score_clip_toy"]
    assert [row[:2] for row in values] == [[f"0000{i}", n] for i in range(2) for n in range(4)]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A folder of `t2i sample`: three captions, two images of each."""
    home = tmp_path_factory.mktemp("sampled")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    sample._save(home, images, ["a red cup", "12 blue  cups", "an apple"], 2)
    return home


@pytest.mark.parametrize("captions", ["beside", "numbered", "plain", "moved"])
def test_a_folder_of_t2i_sample_is_its_images_with_their_captions(sampled, tmp_path, captions):
    home, out, more = sampled, tmp_path / "out", ()
    if captions == "plain":
        (tmp_path / "prompts.txt").write_text("a red cup\n12 blue  cups\nan apple\n")
        more = ("--captions", tmp_path / "prompts.txt")
    elif captions == "numbered":
        more = ("--captions", sampled / "captions.txt")
    elif captions == "moved":
        home = shutil.copytree(sampled, tmp_path / "all" / "seed0").parent
    done = inside("evaluate", "--images", home, "--metrics", "is,clip", "--out", out, *more)
    metrics, results = _metrics(out)
    assert results["images"]["count"] == 6
    assert results["images"]["passed_over"] == {"grid.png of t2i sample": 1}
    assert "images: passed over grid.png of t2i sample 1" in done.stdout
    assert ("have the numbers of t2i sample" in done.stderr) == (captions == "numbered")
    names = [f"{i:03d}-{j:02d}.png" for i in range(3) for j in range(2)]
    texts = [text for text in ("a red cup", "12 blue cups", "an apple") for _ in range(2)]
    rows = [f"{name}\t{text}" for name, text in zip(names, texts, strict=True)]
    bare = shutil.copytree(sampled, tmp_path / "bare")
    (bare / "grid.png").unlink()
    (bare / "captions.txt").unlink()
    (tmp_path / "table.tsv").write_text("\n".join(["file\tcaption", *rows]))
    inside(
        "evaluate", "--images", bare, "--metrics", "is,clip", "--captions", tmp_path / "table.tsv",
        "--out", tmp_path / "wanted",
    )  # fmt: skip
    wanted, _ = _metrics(tmp_path / "wanted")
    assert {name: one["value"] for name, one in metrics.items()} == {
        name: one["value"] for name, one in wanted.items()
    }


@pytest.mark.parametrize("damage", ["none", "other", "unnumbered", "few", "named"])
def test_a_file_that_is_called_as_the_sheet_is_an_image_elsewhere(sampled, tmp_path, damage):
    made = shutil.copytree(sampled, tmp_path / "made")
    if damage == "none":
        (made / "captions.txt").unlink()
    elif damage == "other":
        (made / "captions.txt").write_bytes(b"\xff\xfe")
    elif damage == "unnumbered":
        (made / "captions.txt").write_text("a red cup\n12 blue cups\nan apple\n")
    elif damage == "few":
        (made / "captions.txt").write_text("000 a red cup\n001 12 blue cups\n")
    else:
        (made / "001-01.png").rename(made / "cup.png")
    images = SourceImages(f"folder:{made}", "images")
    assert images.split.count == 7
    assert "grid.png of t2i sample" not in images.passed_over().get("passed_over", {})


def _with_rows(folder, home, each):
    """A folder whose table names every image so many times."""
    rows = [
        f"{path.name},caption {i} of {path.stem}"
        for path in sorted(folder.glob("*.png"))
        for i in range(each)
    ]
    shutil.copytree(folder, home)
    (home / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    return home


def test_an_image_that_a_table_names_in_several_rows_is_one_image(folders, measured, tmp_path):
    made, real = (_with_rows(one, tmp_path / one.name, 5) for one in folders)
    told = _evaluate((made, real), tmp_path / "out", "--metrics", "fid,kid,pr,dc,is")
    metrics, results = _metrics(tmp_path / "out")
    whole, _ = _metrics(measured[0])
    for name, one in metrics.items():
        assert one["value"] == pytest.approx(whole[name]["value"], rel=1e-9), name
        assert one["n_reference"] in (None, 60) and one["n_generated"] == 45
    assert results["images"]["passed_over"]["further row of an image"] == 180
    assert "reference: passed over further row of an image 240\n" in told
    inside("evaluate", "reference", real, "--out", tmp_path / "real.npz")
    about = json.loads((tmp_path / "real.json").read_text())["images"]
    assert about["count"] == 60 and about["passed_over"]["further row of an image"] == 240
    out = tmp_path / "clip"
    inside("evaluate", "--images", made, "--metrics", "clip", "--out", out)
    assert _metrics(out)[0]["clip_score_clip_toy"]["n_generated"] == 5 * 45
    said = refused("evaluate", "--images", made, "--metrics", "clip,is", "--out", tmp_path / "both")
    assert "metrics=clip takes an image of" in said and "has 180 further rows of images" in said


def test_what_lies_with_images_and_is_not_measured_is_told(folders, tmp_path):
    made, real = tmp_path / "made", tmp_path / "real"
    shutil.copytree(folders[0], made)
    (made / "other.heic").write_bytes(b"")
    (made / "Thumbs.db").write_bytes(b"")
    shutil.copytree(folders[1], real / "val")
    (real / "train").symlink_to(folders[0])
    told = _evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    assert "images: passed over file of .heic 1\n" in told
    assert "reference: passed over link to a folder 1\n" in told
    metrics, results = _metrics(tmp_path / "out")
    assert results["images"]["passed_over"] == {"file of .heic": 1}
    reference = metrics["fid_clean_inception"]["reference"]
    assert reference["passed_over"] == {"link to a folder": 1} and reference["count"] == 60
    (real / "train").unlink()  # what lies there changes no plan, and no comparison
    (made / "other.heic").unlink()
    before = (tmp_path / "out").rename(tmp_path / "before")
    shutil.copytree(before, tmp_path / "out")
    told = _evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    assert "passed over" not in told
    assert "passed_over" not in _metrics(tmp_path / "out")[1]["images"]
    assert "fid_clean" in inside("evaluate", "compare", before, tmp_path / "out").stdout
    table = "file,caption\n" + "".join(f"{i:03d}.png,x\n" for i in range(10))
    (real / "val" / "metadata.csv").write_text(table)
    told = _evaluate((made, real), tmp_path / "few", "--metrics", "fid")
    assert "45 images against 10" in told and "image that no table names 50" in told


def test_images_of_one_name_with_two_captions_are_no_pairs(folders, measured, tmp_path):
    made = shutil.copytree(folders[0], tmp_path / "made")
    (made / "003.txt").write_text("another caption")
    inside("evaluate", "--images", made, "--metrics", "clip", "--out", tmp_path / "out")
    said = refused("evaluate", "compare", measured[0], tmp_path / "out")
    assert "'003.png' is measured against one caption" in said and "(1 of 45 values)" in said
    older = shutil.copytree(measured[0], tmp_path / "older")
    (older / "marks.json").unlink()  # as earlier versions wrote results
    told = inside("evaluate", "compare", older, tmp_path / "out").stdout
    assert "on 45 shared prompts" in told


def test_the_columns_of_a_comparison_tell_its_folders_apart(measured, tmp_path):
    one, other = (tmp_path / name / "eval" / "coco" for name in "ab")
    for home in (one, other):
        shutil.copytree(measured[0], home)
    head = inside("evaluate", "compare", one, other).stdout.splitlines()[0].split()
    assert head[1:3] == [str(one), str(other)]
    head = inside("evaluate", "compare", measured[0], other).stdout.splitlines()[0].split()
    assert head[1:3] == ["all", "coco"]


@pytest.mark.parametrize("side", [12, 40])
def test_a_reference_that_is_drawn_is_as_large_as_the_images(tmp_path, side):
    made = write_images(tmp_path / "made", 3, size=side)
    reference = ("--reference", "digits", "--metrics", "fid")
    inside("evaluate", "--images", made, *reference, "--out", tmp_path / "out")
    about = _metrics(tmp_path / "out")[0]["fid_clean_inception"]["reference"]
    assert list(about["sizes"]) == [f"{side}x{side}"]
    keys = {SourceImages("digits", "images", size).key(0) for size in (None, 32, side)}
    assert len(keys) == 2  # those of the usual size are those of before


def test_a_folder_that_is_called_as_a_built_in_dataset_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    done = inside("evaluate", "--images", "digits", "--metrics", "is", "--out", tmp_path / "out")
    assert "images=digits is the built-in dataset, not the folder of that name" in done.stderr
    write_images(tmp_path / "digits" / "x", 3)
    done = inside("evaluate", "--images", "./digits", "--metrics", "is", "--out", tmp_path / "own")
    assert "built-in" not in done.stderr and "(3 images)" in done.stdout


def test_images_of_other_kinds_are_read_and_broken_real_ones_counted(folders, tmp_path):
    made, real = (shutil.copytree(one, tmp_path / one.name) for one in folders)
    Image.open(made / "000.png").convert("L").save(made / "000.png")
    Image.open(made / "001.png").convert("RGBA").resize((31, 17)).save(made / "001.png")
    (real / "003.png").write_bytes((real / "003.png").read_bytes()[:90])
    told = _evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    metrics, results = _metrics(tmp_path / "out")
    assert "45 images against 59" in told
    assert metrics["fid_clean_inception"]["reference"]["left_out"] == {"truncated image": 1}
    assert results["generated"]["inception-clean"]["sizes"] == {"31x17": 1, "8x8": 44}


@pytest.mark.parametrize("metric", ["is", "clip", "judge:shapes"])
def test_broken_images_are_left_out_and_counted_by_every_metric(tmp_path, metric):
    made = write_images(tmp_path / "made", 6, size=16)
    (tmp_path / "captions.csv").write_text(
        "file,caption,category\n" + "".join(f"{i:03d}.png,a red circle,a\n" for i in range(6))
    )
    (made / "001.png").write_bytes((made / "001.png").read_bytes()[:90])
    Image.open(made / "003.png").resize((24, 24)).save(made / "003.png")
    told = inside(
        "evaluate", "--images", made, "--captions", tmp_path / "captions.csv", "--metrics", metric,
        "--out", tmp_path / "out",
    ).stdout  # fmt: skip
    metrics, results = _metrics(tmp_path / "out")
    assert {one["n_generated"] for one in metrics.values()} == {5}
    assert told.count("left out truncated image 1") == 1
    [about] = results["generated"].values()
    assert about["count"] == 5 and about["left_out"] == {"truncated image": 1}
    for rows in json.loads((tmp_path / "out" / "values.json").read_text()).values():
        assert [row[0] for row in rows] == ["00000", "00002", "00003", "00004", "00005"]
    for path in made.glob("*.png"):
        path.write_bytes(b"")
    assert "none of 6 images can be used" in refused(
        "evaluate", "--images", made, "--captions", tmp_path / "captions.csv", "--metrics", metric,
        "--out", tmp_path / "none",
    )  # fmt: skip


def test_neighbours_stand_beside_their_own_images_where_others_are_left_out(folders, tmp_path):
    made = write_images(tmp_path / "made", 4)
    for row in range(4):
        (made / f"{row:03d}.txt").write_text(f"picture {row}")
    (made / "001.png").write_bytes((made / "001.png").read_bytes()[:90])
    _evaluate((made, folders[1]), tmp_path / "out", "--metrics", "fid")
    page = (tmp_path / "out" / "report.html").read_text().partition("nearest to them")[2]
    assert [f">picture {row}<" in page for row in range(4)] == [True, False, True, True]


def test_what_can_not_be_measured_is_one_sentence(folders, tmp_path):
    made, real = folders
    alone, empty = tmp_path / "alone", tmp_path / "empty"
    write_images(alone, 1)
    empty.mkdir()
    bare = write_images(tmp_path / "bare", 3)
    (bare / "001.txt").unlink()
    images = ("evaluate", "--images", made, "--out", tmp_path / "out")
    for words, sentence in (
        (("evaluate",), "RUN or --images DIR is measured, and neither is given"),
        ((*images,), "metrics are missing"),
        ((*images, "--metrics", "fid"), "metrics=fid compares with real images"),
        ((*images, "--metrics", "fidd"), "metrics='fidd' is not known; did you mean"),
        ((*images, "--metrics", "fid,fid", "--reference", real), "has fid twice"),
        ((*images, "--metrics", "is", "--reference", real), "is compared with by none"),
        ((*images, "--metrics", "judge:cats"), "judge:cats is no judge"),
        ((*images, "--metrics", "judge:shapes"), "judge:shapes does not understand the captions"),
        ((*images, "--metrics", "is", "--protocol", "coco30k"), "30,000 images, and there are 45"),
        ((*images, "--metrics", "is", "--mode", "clear"), "mode='clear' is not known"),
        ((*images, "--metrics", "is", "--prompts", "parti:x"), "give --captions FILE"),
        (
            (*images, "--metrics", "fid", "--reference", real, "--reference-mode", "clean"),
            "is for statistics in a file",
        ),
        ((*images, "--metrics", "fid", "--reference", tmp_path / "none"), "is no folder"),
        ((*images, "--metrics", "fid", "--reference", empty), "holds no images"),
        ((*images, "--metrics", "fid", "--reference", alone), "holds 1 image"),
        (("evaluate", "--images", alone, "--metrics", "is"), "holds 1 image"),
        (("evaluate", "--images", bare, "--metrics", "clip"), "no caption for 001.png"),
        (("evaluate", made, "--metrics", "is"), "give --prompts"),
        (("evaluate", made, "--count", "5"), "count=5 is for a run that generates images for"),
        (("evaluate", made, "--prompts", "parti:x", "--count", "0"), "count=0 is below 1"),
        ((*images, "--metrics", "is", "--guidance", "3"), "guidance='3' is for a run that"),
        *(
            (("evaluate", *of, flag, value), "is for a run that generates images for prompts")
            for of in ((made,), ("--images", made, "--metrics", "is"))
            for flag, value in (("--seed", 1), ("--batch-size", 2), ("--mesh", "data=1"))
        ),
        *(
            (("evaluate", made, flag, value), "is for a run that generates images for prompts")
            for flag, value in (("--reference", real), ("--out", tmp_path), ("--inception", real))
        ),
        (
            (*images, "--metrics", "is", "--protocol", "coco30k", "--mode", "tf"),
            "which has its own; leave out one of them",
        ),
        (("evaluate", "reference", real), "--out FILE.npz is missing"),
        (("evaluate", "compare", real), "B is missing"),
    ):
        assert sentence in refused(*words), words


def test_a_vocabulary_that_is_missing_is_told_before_anything_is_computed(
    folders, tmp_path, monkeypatch
):
    def missing(self, captions):
        raise UserError(f"{self.name} came without a vocabulary; give one.")

    monkeypatch.setattr(features, "compute", lambda *_: pytest.fail("features are computed"))
    monkeypatch.setattr(scoring_toys.ToyExtractor, "lengths", missing)
    for metrics, network in (("is,clip_hessel", "clip"), ("hpsv2", "hpsv2")):
        said = refused(
            "evaluate", "--images", folders[0], "--metrics", metrics, "--out", tmp_path / "out"
        )
        assert f"metrics={metrics.split(',')[-1]}: {network}-toy came without" in said


def test_captions_that_a_network_cuts_are_told_once_and_counted(tmp_path):
    made = write_images(tmp_path / "made", 5)
    for row, length in enumerate((60, 90, 65, 78, 77)):
        (made / f"{row:03d}.txt").write_text("x" * length)
    (made / "003.png").write_bytes(b"no image")  # of which nothing is measured
    common = ("evaluate", "--images", made, "--out", tmp_path / "out", "--metrics")
    told = inside(*common, "clip,clip_hessel,pickscore,clip_fid", "--reference", made).stderr
    assert [line for line in told.splitlines() if line.endswith(("cut.", "other.", "others."))] == [
        "t2i: metrics=clip,pickscore: caption 1 has 90 tokens, the last 13 are cut; so is one "
        "other.",
        "t2i: metrics=clip_hessel: caption 1 has 106 tokens, the last 29 are cut; so are 3 others.",
    ]
    assert _metrics(tmp_path / "out")[1]["cut_captions"] == {
        "clip_score_clip_toy": 1, "clip_score_hessel_clip_toy": 3, "score_pickscore_toy": 1,
    }  # fmt: skip


def test_a_refused_command_begins_no_plan(folders, tmp_path):
    """The command with what the refusal asks for is no other plan."""
    made, out = tmp_path / "made", tmp_path / "out"
    write_images(made, 3)
    for path in made.glob("*.txt"):
        path.unlink()
    command = ("evaluate", "--images", made, "--metrics", "clip", "--out", out)
    assert "give --captions FILE" in refused(*command) and not out.exists()
    (tmp_path / "captions.txt").write_text("one\ntwo\nthree\n")
    assert "3 images" in inside(*command, "--captions", tmp_path / "captions.txt").stdout


def test_networks_that_compare_with_nothing_have_no_neighbours(folders, tmp_path):
    told = _evaluate(folders, tmp_path / "out", "--metrics", "is,clip_fid")
    assert "inception_score_clean_inception" in told and "fid_clip_toy" in told
    assert "nearest to them" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("metric", "least"), [("pr", 4), ("dc", 6)])
def test_too_few_real_images_are_told_before_anything_is_computed(
    folders, tmp_path, monkeypatch, metric, least
):
    few = write_images(tmp_path / "few", least - 1)
    npz = tmp_path / "few.npz"
    inside("evaluate", "reference", few, "--out", npz, "--keep-features")
    monkeypatch.setattr(features, "compute", lambda *_: pytest.fail("features are computed"))
    for reference in (few, npz):
        said = refused(
            "evaluate", "--images", folders[0], "--reference", reference, "--metrics", metric,
            "--out", tmp_path / "out",
        )  # fmt: skip
        assert f"metrics={metric} takes {least} real images or more, and reference=" in said


def test_a_shard_of_broken_images_alone_is_left_out_as_others_are(folders, tmp_path):
    made = write_images(tmp_path / "made", 11)
    (made / "010.png").write_bytes(b"no image")  # the only one of the second shard
    told = _evaluate((made, folders[1]), tmp_path / "out", "--metrics", "fid,kid,pr,is,clip,cmmd")
    metrics, results = _metrics(tmp_path / "out")
    assert {one["n_generated"] for one in metrics.values()} == {10} and "not an image 1" in told
    (made / "010.png").unlink()
    _evaluate((made, folders[1]), tmp_path / "whole", "--metrics", "fid,kid,pr,is,clip,cmmd")
    for name, one in _metrics(tmp_path / "whole")[0].items():
        assert metrics[name]["value"] == pytest.approx(one["value"], rel=1e-9), name


def test_results_may_lie_among_the_images_and_are_none_of_them(
    folders, measured, tmp_path, monkeypatch
):
    made = shutil.copytree(folders[0], tmp_path / "made")
    command = (
        "evaluate", "--images", made, "--reference", folders[1], "--shard-size", 10, "--metrics",
        "fid,clip", "--out", made / "eval",
    )  # fmt: skip
    inside(*command)
    before = (made / "eval" / "results.json").read_bytes()
    monkeypatch.setattr(features, "_computed", lambda *_: pytest.fail("features are computed"))
    inside(*command)
    assert (made / "eval" / "results.json").read_bytes() == before
    assert json.loads(before)["images"]["count"] == 45


def test_images_that_changed_are_measured_anew(folders, tmp_path):
    """Those of a folder and of archives."""
    made, command = tmp_path / "made", ("--metrics", "is", "--out")
    write_images(made, 4)

    def archive(home):
        with tarfile.open(tmp_path / "made.tar", "w") as file:
            for path in sorted(home.iterdir())[:8]:
                file.add(path, path.name)

    archive(made)
    for spec, change in (
        (made, lambda: shutil.copy(folders[1] / "000.png", made / "000.png")),
        (f"webdataset:{tmp_path / 'made.tar'}", lambda: archive(folders[1])),
    ):
        found = []
        for _ in range(2):
            inside("evaluate", "--images", spec, *command, tmp_path / "out")
            found.append(_metrics(tmp_path / "out")[1]["generated"]["inception-clean"]["sha256"])
            change()
        assert found[0] != found[1], spec
        shutil.rmtree(tmp_path / "out")


def _kept_by_hugging_face(home, images):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in images]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(home)
    return f"hf:{home}"


def _kept_by_tensorflow(home, images):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    home = home / "tiny" / "1.0.0"
    tfds_set(home, features, [{"image": path.read_bytes()} for path in images], "heldout")
    return f"tfds:{home}"


@pytest.mark.parametrize("keep", [_kept_by_hugging_face, _kept_by_tensorflow])
def test_sets_of_other_packages_that_changed_are_measured_anew(folders, tmp_path, keep):
    found = []
    for folder in folders:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        spec = keep(tmp_path / "set", sorted(folder.glob("*.png"))[:4])
        inside("evaluate", "--images", spec, "--metrics", "is", "--out", tmp_path / "out")
        results = _metrics(tmp_path / "out")[1]
        found.append(results["generated"]["inception-clean"]["sha256"])
    assert found[0] != found[1]
    assert results["images"]["split"] == "heldout" and results["images"]["count"] == 4


def test_images_and_reference_are_splits_of_a_set(folders, tmp_path):
    datasets = pytest.importorskip("datasets")
    home, out, splits = tmp_path / "set", tmp_path / "out", {}
    for split, folder in zip(("train", "test"), folders, strict=True):
        rows = {"image": [str(path) for path in sorted(folder.glob("*.png"))[:6]]}
        splits[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(home)
    of_set = ("--images", f"hf:{home}", "--reference", f"hf:{home}", "--metrics", "fid")
    said = refused("evaluate", *of_set, "--split", "train", "--out", out)
    assert "no split 'heldout', but" in said and not out.exists()
    inside("evaluate", *of_set, "--split", "train", "--reference-split", "test", "--out", out)
    metrics, results = _metrics(out)
    assert next(iter(metrics.values()))["value"] > 0 and results["images"]["split"] == "train"
    assert '"split": "test"' in json.dumps(results)


def test_features_of_another_split_are_computed_anew(tmp_path):
    keys = {SourceImages("digits", "images", split=name).key(0) for name in ("train", "heldout")}
    assert len(keys) == 2


def test_a_reference_that_is_drawn_is_as_large_as_what_the_run_makes():
    """Of stored tokens the size of the data says nothing, and what is only joined has none."""
    base, superres = (toy_muse.system_of(task) for task in (toy_muse.TASK, toy_muse.SUPERRES))
    parts = {
        name: Given(one.task.network, one.weights, one)
        for name, one in (("base", base), ("superres", superres))
    }
    joined = MuseTask().with_parts(parts).system({}, {}, parts, {}, None)
    stored = dataclasses.replace(toy_muse.TASK, stored_tokens=True, image_size=None)
    parti = tiny.get_config().task
    for made_by, size, data in (
        (base, 8, DataConfig("arrayrecord:x")),
        (stored, 8, DataConfig("arrayrecord:x")),
        (superres, 16, DataConfig("arrayrecord:x")),
        (joined, 16, None),
        (dataclasses.replace(parti, stored_tokens=True), parti.tokenizer.image_size, None),
        (types.SimpleNamespace(made_size=None), 12, DataConfig("shapes", image_size=12)),
    ):
        recipe = types.SimpleNamespace(evaluation=tiny.get_config().evaluation, data=data)
        assert size_of_run(recipe, made_by) == size


def test_held_out_images_that_changed_are_known_as_others(folders, tmp_path):
    made = shutil.copytree(folders[0], tmp_path / "made")
    data = DataConfig(source=f"folder:{made}", image_size=8, split="train")
    keys = []
    for _ in range(2):
        samples = types.SimpleNamespace(data=data, name="heldout")
        keys.append(HeldOutImages(samples, 4).key(0))
        shutil.copy(folders[1] / "000.png", made / "000.png")
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "name", [b"a\xff.png", b"a\nb.png", "ä🌍.png".encode(), b" .png", b"-a.png"]
)
def test_files_may_have_any_name(folders, tmp_path, name):
    made = write_images(tmp_path / "made", 3)
    odd = made / os.fsdecode(name)
    (made / "000.png").rename(odd)
    (made / "000.txt").rename(odd.with_suffix(".txt"))
    out = tmp_path / "out"
    inside("evaluate", "--images", made, "--metrics", "is,clip", "--out", out)
    assert _metrics(out)[1]["images"]["count"] == 3 and (out / "report.html").exists()
    (tmp_path / "captions.csv").write_text("file,caption\n001.png,x\n002.png,x\n003.png,x\n")
    said = _refused_captions((made, None), tmp_path / "captions.csv", tmp_path / "other")
    assert "has no caption for" in said and said.isprintable()


def test_two_networks_of_one_name_are_refused_where_they_differ(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        extractors,
        "clip",
        lambda path, preprocessing="clip", **_: toy_extractor("c", preprocessing),
    )
    said = refused(
        "evaluate", "--images", folders[0], "--reference", folders[1], "--metrics", "clip,cmmd",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "clip and cmmd are both 'c'" in said and not (tmp_path / "out").exists()


def test_a_value_that_is_not_finite_is_told_with_the_number_of_its_image(
    folders, tmp_path, monkeypatch
):
    batches = extractors.Extractor.batches

    def broken(self, images, *more):
        for found in batches(self, images, *more):
            is_last = len(found["pool3"]) == 5
            yield {**found, "pool3": found["pool3"] * (np.nan if is_last else 1)}

    monkeypatch.setattr(extractors.Extractor, "batches", broken)
    said = refused(
        "evaluate", "--images", folders[0], "--reference", folders[1], "--metrics", "fid",
        "--shard-size", 10, "--out", tmp_path / "out",
    )  # fmt: skip
    assert "features are not finite in row 40" in said
