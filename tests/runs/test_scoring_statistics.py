"""Statistics of real images: what they hold, how they are made, and references that are drawn."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import shutil
import tracemalloc
import types

import numpy as np
import pytest

from t2i_jax import files
from t2i_jax.cluster import lock
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.eval import statistics_file
from t2i_jax.runs.scoring import features, statistics
from t2i_jax.runs.scoring.sources import SourceImages, size_of_run
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.systems.base import Given
from t2i_jax.systems.dalle2.system import DALLE2System
from t2i_jax.systems.dalle2.task import DALLE2Task
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.muse.task import MuseTask
from tests.e2e import tiny
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import toy_extractor, write_images
from tests.systems import toy_muse
from tests.systems.toy_cascade import TASK as CASCADE

_toys = scoring_toys.in_place


def test_statistics_are_the_folder_they_were_made_of(folders, measured, tmp_path):
    made, real = folders
    npz = tmp_path / "real.npz"
    told = inside("evaluate", "reference", real, "--out", npz, "--keep-features").stdout
    assert "statistics of 60 images" in told and not npz.with_name("real.npz.shards").exists()
    common = ("evaluate", "--images", made, "--shard-size", 10, "--reference")
    out = tmp_path / "by_file"
    inside(*common, npz, "--out", out, "--metrics", "fid,kid,pr")
    by_file, whole = scoring_toys.metrics_in(out)[0], scoring_toys.metrics_in(measured[0])[0]
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


@pytest.mark.parametrize("sign", [-1, 5])
def test_a_matrix_that_is_no_covariance_is_told_before_anything_is_computed(
    folders, tmp_path, monkeypatch, sign
):
    monkeypatch.setattr(features, "compute", lambda *_: pytest.fail("features are computed"))
    np.savez(tmp_path / "x.npz", mu=np.zeros(6), sigma=np.eye(6) + sign * (1 - np.eye(6)))
    said = refused(
        "evaluate", "--images", folders[0], "--reference", tmp_path / "x.npz", "--reference-mode",
        "clean", "--metrics", "fid", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "x.npz': statistics hold a matrix that is no covariance (it has negative" in said


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
        gc.collect()
        tracemalloc.start()
        found = features.compute(
            images, toy_extractor(), ("pool3",), tmp_path / str(len(peaks)), lambda one: one,
            Share(), 32,
        )  # fmt: skip
        assert found.moments("pool3").count == images.split.count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 2 * peaks[1], peaks  # of six times as many images
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
        values.append({name: one["value"] for name, one in scoring_toys.metrics_in(out)[0].items()})
    assert values[0]["kid_tf_inception"] == values[1]["kid_tf_inception"]
    more = ("--metrics", "fid", "--out", tmp_path / "fid")
    inside("evaluate", "--images", made, "--mode", "tf", "--reference", npz, *more)
    assert not (tmp_path / "fid" / "features" / "reference").exists(), "its images are not read"
    [one] = scoring_toys.metrics_in(tmp_path / "fid")[0].values()
    assert one["value"] == values[0]["fid_tf_inception"]
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


@pytest.mark.parametrize("side", [12, 40])
def test_a_reference_that_is_drawn_is_as_large_as_the_images(tmp_path, side):
    made = write_images(tmp_path / "made", 3, size=side)
    reference = ("--reference", "digits", "--metrics", "fid")
    inside("evaluate", "--images", made, *reference, "--out", tmp_path / "out")
    about = scoring_toys.metrics_in(tmp_path / "out")[0]["fid_clean_inception"]["reference"]
    assert list(about["sizes"]) == [f"{side}x{side}"]
    keys = {SourceImages("digits", "images", size).key(0) for size in (None, 32, side)}
    assert len(keys) == 2  # those of the usual size are those of before


def test_statistics_of_what_is_drawn_are_of_one_size_that_is_said(tmp_path):
    """Features of squares of another size are those of another set of images."""
    fitting, other = (write_images(tmp_path / f"{side}", 3, size=side) for side in (12, 16))
    command = ("evaluate", "reference", "digits", "--split", "heldout", "--out", tmp_path / "d.npz")
    assert "images=digits is drawn at any size; give --size 64" in refused(*command)
    assert not (tmp_path / "d.npz").exists()
    inside(*command, "--size", 12)
    assert "are already in" in inside(*command, "--size", 12).stdout
    assert "made by another command (command.images.files: " in refused(*command, "--size", 16)
    about = json.loads((tmp_path / "d.json").read_text())
    assert list(about["images"]["sizes"]) == ["12x12"]
    common = ("--reference", tmp_path / "d.npz", "--metrics", "fid", "--out", tmp_path / "out")
    inside("evaluate", "--images", fitting, *common)
    said = refused("evaluate", "--images", other, *common)
    assert "drawn at 12x12 pixels, and the images that it is compared with have 16" in said
    for words, told in (
        ((*command, "--size", 12, "--protocol", "coco30k"), "beside protocol='coco30k', which has"),
        (("evaluate", "reference", fitting, *command[-2:], "--size", 12), "are as large as they"),
    ):
        assert told in refused(*words)


def test_a_reference_that_is_drawn_is_as_large_as_what_the_run_makes():
    """Of stored tokens the size of the data says nothing, what is only joined has none, and a
    cascade stops where it is told to, or before a stage that was not trained.
    """
    base, superres = (toy_muse.system_of(task) for task in (toy_muse.TASK, toy_muse.SUPERRES))
    parts = {
        name: Given(one.task.network, one.weights, one)
        for name, one in (("base", base), ("superres", superres))
    }
    joined = MuseTask().with_parts(parts).system({}, {}, parts, {}, None)
    stored = dataclasses.replace(toy_muse.TASK, stored_tokens=True, image_size=None)
    parti, packed = tiny.get_config().task, DataConfig("arrayrecord:x")
    drawn = DataConfig("shapes", image_size=12)
    imagen = ImagenSystem(CASCADE, {}, {"stage_1": 3, "stage_2": 3})
    early = dataclasses.replace(imagen, updates={"stage_1": 3, "stage_2": 0})
    first = dataclasses.replace(CASCADE, train_stages=(1,))
    unclip = DALLE2System(DALLE2Task(decoder=first), {}, *[imagen] * 2, early)
    for made_by, size, data, options in (
        (base, 8, packed, {}),
        (base, 24, packed, {"image_size": 24}),
        (base, None, packed, {"image_size": (16, 24)}),
        (stored, 8, packed, {}),
        (superres, 16, packed, {}),
        (joined, 16, None, {}),
        (joined, 8, None, {"stop_at": "base"}),
        (joined, None, None, {"stop_at": "base", "image_size": 32}),
        (dataclasses.replace(parti, stored_tokens=True), parti.tokenizer.image_size, None, {}),
        (dataclasses.replace(parti, tokenizer=None), 12, drawn, {}),
        (CASCADE, 16, drawn, {}),
        (first, 8, drawn, {}),
        (imagen, 16, drawn, {}),
        (imagen, 8, drawn, {"stop_at": 1}),
        (imagen, 24, drawn, {"image_sizes": (8, 24)}),
        (imagen, None, drawn, {"image_sizes": (8, (16, 24))}),
        (early, 8, drawn, {}),
        (unclip, 8, drawn, {}),
        (unclip.task, 8, drawn, {}),
        (DALLE2Task(), 12, drawn, {}),
    ):
        task = getattr(made_by, "task", made_by)
        evaluation = types.SimpleNamespace(options=task.options(**options))
        recipe = types.SimpleNamespace(evaluation=evaluation, data=data)
        assert size_of_run(recipe, made_by) == size, (made_by, options)
