"""`t2i evaluate` on images that are there: numbers, resuming, refusals."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval import extractors
from t2i_jax.eval.frechet import Gaussian, frechet
from t2i_jax.eval.moments import Moments
from t2i_jax.runs.scoring import features, plan, sizes, sweep
from t2i_jax.runs.scoring.results import read_results
from t2i_jax.runs.scoring.split import Share
from tests.e2e.command import inside, refused
from tests.runs import scoring_toys
from tests.runs.scoring_toys import toy_extractor, write_images

_toys = scoring_toys.in_place


def test_every_number_has_its_network_and_all_that_it_was_made_with(folders, measured):
    out, told = measured
    metrics, results = scoring_toys.metrics_in(out)
    assert {
        "fid_clean_inception", "fid_infinity_clean_inception", "kid_clean_inception",
        "inception_score_clean_inception", "precision_clean_inception", "recall_clean_inception",
        "density_clean_inception", "coverage_clean_inception", "clip_score_clip_toy",
        "clip_score_hessel_clip_toy", "fid_clip_toy", "cmmd_clip_toy", "fd_dinov2_toy",
        "score_pickscore_toy",
    } == set(metrics)  # fmt: skip
    for name, one in metrics.items():
        assert f"{name}: " in told and one["n_generated"] == 45
        assert one["extractor"]["sha256"] == scoring_toys.SHA256
        assert (one["n_reference"] == 60) == (one["reference"] is not None)
    x, y = (Gaussian.of(Moments.of(scoring_toys.features_of(folder))) for folder in folders)
    assert metrics["fid_clean_inception"]["value"] == pytest.approx(frechet(x, y).value, rel=1e-6)
    spans = [one["interval"] for one in metrics.values() if one["interval"]]
    assert all(span["low"] <= span["high"] for span in spans) and len(spans) == 7
    assert results["images"]["count"] == 45 and "jax" in results["software"]
    assert results["generated"]["inception-clean"]["sizes"] == {"8x8": 45}


def test_values_of_each_image_are_kept_and_the_page_shows_the_extremes(measured):
    out, _ = measured
    values = json.loads((out / "values.json").read_text())
    metrics, _ = scoring_toys.metrics_in(out)
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
    scoring_toys.evaluate(folders, out, "--metrics", scoring_toys.ALL)
    assert not ran, "all features were there"
    [home] = (out / "features" / "generated").glob("inception-clean-*")
    (home / "00001.npz").unlink()
    (home / "00002.npz").write_bytes((home / "00003.npz").read_bytes()[:500])
    (home / "00003.npz").write_bytes((home / "00004.npz").read_bytes())  # of other images
    scoring_toys.evaluate(folders, out, "--metrics", scoring_toys.ALL)
    assert ran == ["inception-clean"] * 3
    for name, data in before.items():
        assert (out / name).read_bytes() == data


def test_results_that_another_command_would_replace_are_kept(folders, tmp_path):
    """Those of other metrics, references and modes, once, and told; nothing is lost to a command
    that measures the same and more.
    """
    other, out = write_images(tmp_path / "other", 8, 5), tmp_path / "out"
    commands = {
        name: ("evaluate", "--images", folders[0], "--shard-size", 10, "--out", out, *more)
        for name, more in {
            "fid": ("--reference", folders[1], "--metrics", "fid"),
            "other": ("--reference", other, "--metrics", "fid"),
            "both": ("--reference", other, "--metrics", "fid,clip"),
            "clip": ("--metrics", "clip"),
        }.items()
    }
    files = ("results.json", "values.json", "marks.json", "report.html")
    before, kept = {}, []
    for name, replaced in (
        ("fid", None), ("fid", None), ("other", "fid"), ("both", None), ("clip", "both"),
        ("both", None), ("fid", None), ("clip", "fid"), ("fid", "clip"),
    ):  # fmt: skip
        told = inside(*commands[name]).stderr
        if replaced is not None and replaced not in kept:
            kept.append(replaced)
            assert f"are kept in results-{len(kept)}" in told
            home = out / f"results-{len(kept)}"
            assert {one: (home / one).read_bytes() for one in files} == before[replaced]
            assert read_results(home).results["metrics"]
        before[name] = {one: (out / one).read_bytes() for one in files}
    assert kept == ["fid", "both", "clip"] and len(list(out.glob("results-*"))) == 3


def test_a_table_of_guidances_that_another_would_replace_is_kept(tmp_path, capsys):
    def table(**values):
        results = {
            float(name[1:]): {"metrics": [{"name": "fid", "value": one}]}
            for name, one in values.items()
        }
        sweep.write(tmp_path, results)
        plan.check_several(tmp_path)
        return capsys.readouterr().err

    assert not table(g1=1.0, g2=2.0)
    assert not table(g1=1.0, g2=2.0, g3=3.0)
    assert "(guidance 1; guidance 2)" in table(g1=1.5, g3=3.0)
    assert json.loads((tmp_path / "results-1" / "sweep.json").read_text())["2"] == {"fid": 2.0}


def test_shards_of_another_size_and_two_processes_give_the_same_numbers(
    folders, measured, tmp_path, monkeypatch
):
    whole, _ = scoring_toys.metrics_in(measured[0])
    out = tmp_path / "one"
    scoring_toys.evaluate(folders, out, "--metrics", "fid,kid", shard=1000)
    single, _ = scoring_toys.metrics_in(out)
    for name in ("fid_clean_inception", "kid_clean_inception"):
        assert single[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-9)
    out = tmp_path / "two"
    for process in (1, 0):
        share = Share(process, 2)
        monkeypatch.setattr("t2i_jax.runs.scoring.split.Share.here", lambda share=share: share)
        told = scoring_toys.evaluate(folders, out, "--metrics", scoring_toys.ALL)
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


def test_neighbours_stand_beside_their_own_images_where_others_are_left_out(folders, tmp_path):
    made = write_images(tmp_path / "made", 4)
    for row in range(4):
        (made / f"{row:03d}.txt").write_text(f"picture {row}")
    (made / "001.png").write_bytes((made / "001.png").read_bytes()[:90])
    scoring_toys.evaluate((made, folders[1]), tmp_path / "out", "--metrics", "fid")
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
        (
            (*images, "--metrics", "fid", "--mode", "clean,clean", "--reference", real),
            "mode='clean,clean' has clean twice; give it once",
        ),
        ((*images, "--metrics", "is", "--reference", real), "is compared with by none"),
        ((*images, "--metrics", "judge:cats"), "judge:cats is no judge; known: compositions, "),
        (
            (*images, "--metrics", "judge:shape"),
            "metrics=judge:shape is no judge; did you mean 'shapes'?",
        ),
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
    told = scoring_toys.evaluate(folders, tmp_path / "out", "--metrics", "is,clip_fid")
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


def test_images_of_other_sizes_than_the_real_ones_are_told_without_a_protocol(folders, tmp_path):
    """Each is squeezed into the network's input as it is."""
    other = write_images(tmp_path / "other", 4, size=12)
    Image.new("RGB", (12, 9)).save(other / "wide.png")
    (other / "wide.txt").write_text("wide")
    for number, (made, real, said) in enumerate((
        (folders[0], folders[1], None),
        (folders[0], other, "are 8x8 pixels and those of the reference 12x12 (and 1 other size)"),
        (other, other, "are 12x12 (and 1 other size) pixels and those of the reference 12x12"),
    )):  # fmt: skip
        command = ("evaluate", "--images", made, "--reference", real, "--metrics", "fid,is")
        told = inside(*command, "--out", tmp_path / f"{number}").stderr
        assert told.count("give --protocol NAME for numbers that stand") == (said is not None)
        assert said is None or said in told
    results = scoring_toys.metrics_in(tmp_path / "1")[1]
    real = types.SimpleNamespace(sizes=lambda name: {"12x12": 4, "12x9": 1})
    assert sizes.told_of_results({**results, "protocol": {"name": "coco30k"}}, real) is None
    assert sizes.told_of_results(results, None) is None
    [fid, *others] = results["metrics"]
    for crop, is_told in (("none", True), ("padded", True), ("before", False), ("after", False)):
        extractor = {**fid["extractor"], "preprocessing": {"crop": crop}}
        cut = {**fid, "extractor": extractor}
        assert bool(sizes.told_of_results({**results, "metrics": [cut, *others]}, real)) == is_told
        assert sizes.told_of_results({**results, "metrics": [cut, fid]}, real)


def test_statistics_of_images_of_other_sizes_are_told_as_the_images_are(folders, tmp_path):
    """The size that the images had when their features were made: after a protocol, which the
    sentence names, their own, or that of the images that the file has.
    """
    other = write_images(tmp_path / "other", 6, size=12)
    for name, *more in (("by", "--protocol", "coco30k"), ("own",), ("same",)):
        images = folders[1] if name == "same" else other
        inside("evaluate", "reference", images, "--out", tmp_path / f"{name}.npz", *more)
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((6, 9, 12, 3), np.uint8))
    np.savez(tmp_path / "plain.npz", mu=np.zeros(6), sigma=np.eye(6))
    for name, said in (
        ("by", "those of the reference 256x256, and each"),
        ("own", "those of the reference 12x12, and each"),
        ("adm", "those of the reference 12x9, and each"),
        ("same", None),
        ("plain", None),
    ):
        mode = ("--reference-mode", "clean") if name in ("adm", "plain") else ()
        told = inside(
            "evaluate", "--images", folders[0], "--reference", tmp_path / f"{name}.npz",
            "--metrics", "fid", "--out", tmp_path / name, *mode,
        ).stderr  # fmt: skip
        assert (said in told) if said else "pixels" not in told, (name, told)
        assert ("give --protocol coco30k for numbers" in told) == (name == "by")


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
