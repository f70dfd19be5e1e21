"""Images that are there: which of a folder are measured, left out, passed over or measured anew."""

import json
import os
import shutil
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from t2i_jax.cli import sample
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.runs.scoring import features
from t2i_jax.runs.scoring.held_out import HeldOutImages
from t2i_jax.runs.scoring.sources import SourceImages
from tests.data.test_external import tfds_set
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import write_images

_toys = scoring_toys.in_place


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
    metrics, results = scoring_toys.metrics_in(out)
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
    wanted, _ = scoring_toys.metrics_in(tmp_path / "wanted")
    assert {name: one["value"] for name, one in metrics.items()} == {
        name: one["value"] for name, one in wanted.items()
    }


@pytest.mark.parametrize("damage", ["none", "other", "unnumbered", "few", "named"])
def test_a_file_that_is_called_as_the_sheet_is_an_image_elsewhere(
    sampled, tmp_path, damage, capsys
):
    """And a line tells so, as its name is that of a sheet beside such images."""
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
    told = capsys.readouterr().err
    assert told.count(f"t2i: images='folder:{made}' has grid.png among its images, as no cap") == 1
    with pytest.raises(UserError) as error:
        images.captions()
    why = "of t2i sample is not beside it" if damage == "none" else "beside it has not a line for"
    assert f"has no caption for 000-00.png (captions.txt {why}" in str(error.value)
    for path in made.glob("*-*.png"):
        path.rename(made / f"cup {path.name}")
    SourceImages(f"folder:{made}", "images")
    assert not capsys.readouterr().err


def test_what_lies_with_images_and_is_not_measured_is_told(folders, tmp_path):
    made, real = tmp_path / "made", tmp_path / "real"
    shutil.copytree(folders[0], made)
    (made / "other.heic").write_bytes(b"")
    (made / "Thumbs.db").write_bytes(b"")
    shutil.copytree(folders[1], real / "val")
    (real / "train").symlink_to(folders[0])
    told = scoring_toys.evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    assert "images: passed over file of .heic 1\n" in told
    assert "reference: passed over link to a folder 1\n" in told
    metrics, results = scoring_toys.metrics_in(tmp_path / "out")
    assert results["images"]["passed_over"] == {"file of .heic": 1}
    reference = metrics["fid_clean_inception"]["reference"]
    assert reference["passed_over"] == {"link to a folder": 1} and reference["count"] == 60
    (real / "train").unlink()  # what lies there changes no plan, and no comparison
    (made / "other.heic").unlink()
    before = (tmp_path / "out").rename(tmp_path / "before")
    shutil.copytree(before, tmp_path / "out")
    told = scoring_toys.evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    assert "passed over" not in told
    assert "passed_over" not in scoring_toys.metrics_in(tmp_path / "out")[1]["images"]
    assert "fid_clean" in inside("evaluate", "compare", before, tmp_path / "out").stdout
    table = "file,caption\n" + "".join(f"{i:03d}.png,x\n" for i in range(10))
    (real / "val" / "metadata.csv").write_text(table)
    told = scoring_toys.evaluate((made, real), tmp_path / "few", "--metrics", "fid")
    assert "45 images against 10" in told and "image that no table names 50" in told


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
    told = scoring_toys.evaluate((made, real), tmp_path / "out", "--metrics", "fid")
    metrics, results = scoring_toys.metrics_in(tmp_path / "out")
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
    metrics, results = scoring_toys.metrics_in(tmp_path / "out")
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


def test_a_shard_of_broken_images_alone_is_left_out_as_others_are(folders, tmp_path):
    made = write_images(tmp_path / "made", 11)
    (made / "010.png").write_bytes(b"no image")  # the only one of the second shard
    told = scoring_toys.evaluate(
        (made, folders[1]), tmp_path / "out", "--metrics", "fid,kid,pr,is,clip,cmmd"
    )
    metrics, results = scoring_toys.metrics_in(tmp_path / "out")
    assert {one["n_generated"] for one in metrics.values()} == {10} and "not an image 1" in told
    (made / "010.png").unlink()
    scoring_toys.evaluate(
        (made, folders[1]), tmp_path / "whole", "--metrics", "fid,kid,pr,is,clip,cmmd"
    )
    for name, one in scoring_toys.metrics_in(tmp_path / "whole")[0].items():
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
            found.append(
                scoring_toys.metrics_in(tmp_path / "out")[1]["generated"]["inception-clean"][
                    "sha256"
                ]
            )
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
        results = scoring_toys.metrics_in(tmp_path / "out")[1]
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
    metrics, results = scoring_toys.metrics_in(out)
    assert next(iter(metrics.values()))["value"] > 0 and results["images"]["split"] == "train"
    assert '"split": "test"' in json.dumps(results)


def test_features_of_another_split_are_computed_anew(tmp_path):
    keys = {SourceImages("digits", "images", split=name).key(0) for name in ("train", "heldout")}
    assert len(keys) == 2


def test_held_out_images_that_changed_are_known_as_others(folders, tmp_path):
    made = shutil.copytree(folders[0], tmp_path / "made")
    data = DataConfig(source=f"folder:{made}", image_size=8, split="train")
    keys = []
    for _ in range(2):
        samples = types.SimpleNamespace(data=data, name="heldout", have_copies=lambda count: False)
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
    assert (
        scoring_toys.metrics_in(out)[1]["images"]["count"] == 3 and (out / "report.html").exists()
    )
    (tmp_path / "captions.csv").write_text("file,caption\n001.png,x\n002.png,x\n003.png,x\n")
    said = scoring_toys.refused_captions(
        (made, None), tmp_path / "captions.csv", tmp_path / "other"
    )
    assert "has no caption for" in said and said.isprintable()
