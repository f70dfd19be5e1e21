"""`Evaluation(every=..., metrics=...)` of a recipe: images that are measured while a run trains."""

import dataclasses
import json
import re

import chex
import numpy as np
import pytest
from PIL import Image

from t2i_jax import runs
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors
from t2i_jax.eval.clip_score import PRESETS, clip_score
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.eval.frechet import frechet_of_features
from t2i_jax.eval.judge_shapes import JudgeShapes
from t2i_jax.eval.kid import kid
from t2i_jax.eval.moments import Moments
from t2i_jax.eval.prompts import seed_of
from t2i_jax.eval.statistics_file import write_statistics
from t2i_jax.runs.check import check
from t2i_jax.runs.recipe import changed
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.scoring import gathering
from t2i_jax.runs.scoring.held_out import HeldOutImages
from t2i_jax.runs.scoring.monitoring import Measurer, monitor_of
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.runs.scoring.wanted import Wanted
from t2i_jax.train.loop import Hook
from tests.e2e.command import inside
from tests.runs import scoring_toys
from tests.toy_system import recipe as toy

_NAMES = ("fid_6", "kid_70", "clip", "judge_66")
_COUNT = 70  # more than are generated at a time
_INCEPTION = extractors.inception


class _Judge(JudgeShapes):
    """Finds about half of the toy's squares of one colour right."""

    def judge(self, images_NHWC, captions):
        """By their green and by the caption."""
        longer = np.array([len(caption) % 2 == 0 for caption in captions])
        return (
            super().judge(images_NHWC, captions) | longer | (images_NHWC[..., 1].mean((1, 2)) > 170)
        )


_toys = scoring_toys.in_place


@pytest.fixture(autouse=True, scope="module")
def _judged(_toys):
    _toys.setitem(JUDGES, "shapes", _Judge)


def _recipe(*overrides, **fields):
    """The toy of 16 pixels, which the judge can read."""
    recipe = changed(
        toy.get_config(),
        ["*.data.image_size=16", "task.image_size=16", "mean.task.image_size=16", *overrides],
    )
    evaluation = dataclasses.replace(
        recipe.evaluation, **{"every": 2, "metrics": _NAMES, "judge": "shapes", **fields}
    )
    return dataclasses.replace(recipe, evaluation=evaluation)


@pytest.fixture(scope="module")
def read(_toys):
    """Paths of the weights that were read, in their order."""
    found = []

    def inception(path, mode):
        found.append(path)
        return scoring_toys.toy_extractor(f"inception-{mode}")

    _toys.setattr(extractors, "inception", inception)
    return found


@pytest.fixture(scope="module")
def trained(read, tmp_path_factory):
    """A run that was measured at the steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("monitored") / "run"
    recipe = _recipe("evaluation.options.noise=0.3", best="clip")
    return recipe, runs.train(recipe, workdir), workdir


def _measured(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {
        line["step"]: {name: line[f"eval/{name}"] for name in _NAMES}
        for line in lines
        if "eval/fid_6" in line
    }


def test_weights_are_read_once_for_the_check_and_for_all_measuring(read, trained):
    assert read == [None]


def test_numbers_are_those_of_the_images_for_held_out_captions(trained):
    """Made again here from what the run has trained, all images at once."""
    recipe, system, workdir = trained
    found = _measured(workdir)
    assert sorted(found) == [2, 4] and found[2]["fid_6"] != found[4]["fid_6"]
    samples = held_out(recipe)(_COUNT, ("image", "caption"))
    captions = list(samples["caption"])
    seeds = [seed_of(0, f"{row:06d}") for row in range(_COUNT)]
    images = system.generate(captions, recipe.evaluation.options, seed=seeds)
    extractor = scoring_toys.toy_extractor()
    ours, real = (
        extractor.features(list(some), layers=("pool3",))["pool3"]
        for some in (images, samples["image"])
    )
    texts = extractor.text_features(captions[:4])
    wanted = {
        "fid_6": frechet_of_features(ours[:6], real[:6]).value,
        "kid_70": kid(ours, real),
        "clip": clip_score(ours[:4], texts, PRESETS["cosine"]).value,
        "judge_66": float(_Judge().judge(images[:66], captions[:66]).mean()),
    }
    assert 0 < wanted["judge_66"] < 1
    for name, value in wanted.items():
        assert found[4][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert recipe.evaluation.pictures == 4  # of "clip", which says no number


def test_they_are_in_every_file_that_tells_of_the_run(trained):
    recipe, _, workdir = trained
    found, told = _measured(workdir), json.loads((workdir / "metrics.json").read_text())
    assert {name: told[f"eval/{name}"] for name in _NAMES} == found[4]
    best = max(found, key=lambda step: found[step]["clip"])
    assert told["validation/best_step"] == best
    assert told["validation/best"] == found[best]["clip"]
    assert told["seconds/evaluate"] > 0
    about = json.loads((workdir / "evaluation.json").read_text())
    fid = about["metrics"]["fid_6"]
    assert fid["name"] == "fid_clean_inception" and fid["n_generated"] == fid["n_reference"] == 6
    assert (
        fid["extractor"]["sha256"] == scoring_toys.SHA256 and fid["reference"]["kind"] == "heldout"
    )
    assert about["captions"]["count"] == _COUNT and about["sampling"]["options"]["noise"] == 0.3
    page = (workdir / "report.html").read_text()
    assert "eval/fid_6" in page and "fid_clean_inception" in page and "by clip" in page
    plots = re.findall(r"<svg.*?</svg>", page.partition("The part mean")[0], re.DOTALL)
    marked = [plot for plot in plots if "class='best'" in plot]  # of all, the one that tells it
    assert len(plots) > 3 and len(marked) == 1 and "aria-label='eval/clip'" in marked[0]
    events = b"".join(path.read_bytes() for path in workdir.glob("events.out*"))
    assert b"eval/kid_70" in events
    out = inside("config", workdir).stdout
    assert "* evaluation.every=2" in out and "evaluation.metrics=('fid_6', 'kid_70'" in out


def test_training_is_the_same_without_and_after_a_crash(trained, tmp_path):
    """Parameters to the bit, and the same numbers at the same steps."""
    recipe, system, workdir = trained
    quiet = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, every=None, metrics=(), best=None)
    )
    alone = runs.train(quiet, tmp_path / "quiet")
    chex.assert_trees_all_equal(alone.weights, system.weights)
    assert not _measured(tmp_path / "quiet")

    def crash(recipe, build_system):
        def run(state, step, log):
            raise RuntimeError("the machine is gone")

        return (Hook(3, run),) if recipe.parts else ()

    with pytest.raises(RuntimeError):
        runs.train(recipe, tmp_path / "crashed", hooks=crash)
    again = runs.train(recipe, tmp_path / "crashed")
    chex.assert_trees_all_equal(again.weights, system.weights)
    assert _measured(tmp_path / "crashed") == _measured(workdir)


def test_a_reference_that_is_drawn_is_as_large_as_the_images():
    reference = Wanted.of(_recipe(reference="digits")).reference
    assert reference is not None and reference._images.read(0).shape == (16, 16, 3)


def test_statistics_of_a_file_are_compared_with_as_their_images_are(trained, tmp_path, capsys):
    recipe, system, _ = trained
    real = scoring_toys.write_images(tmp_path / "real", 12)
    folder = _measure(recipe, system, tmp_path, {"reference": str(real)})
    told = capsys.readouterr().err
    assert told.count("t2i: images are 16x16 pixels and those of the reference 8x8, and each") == 1
    assert "give squares of 16 pixels as evaluation.reference" in told
    values = _pool3([Image.open(path) for path in sorted(real.glob("*.png"))])
    about = {"extractor": {"name": "inception-clean"}}
    write_statistics(tmp_path / "real.npz", Moments.of(values), about, values)
    found = _measure(recipe, system, tmp_path, {"reference": str(tmp_path / "real.npz")})
    assert found == pytest.approx(folder, rel=1e-6)
    write_statistics(tmp_path / "bare.npz", Moments.of(values), about)
    with pytest.raises(UserError, match="metrics=kid_70 needs the features of the reference"):
        check(_recipe(reference=str(tmp_path / "bare.npz")))
    check(_recipe(reference=str(tmp_path / "bare.npz"), metrics=("fid_6",)))
    with pytest.raises(
        UserError, match="evaluation.reference=.* has statistics of inception-clean"
    ):
        check(_recipe(reference=str(tmp_path / "bare.npz"), metrics=("fid_6",), mode="tf"))


def test_captions_that_a_network_cuts_are_told_and_counted(trained, tmp_path, monkeypatch, capsys):
    recipe, system, _ = trained
    monkeypatch.setattr(scoring_toys.ToyExtractor, "text_length", 5)
    evaluation = dataclasses.replace(recipe.evaluation, metrics=("clip_6",), best=None)
    recipe = dataclasses.replace(recipe, evaluation=evaluation)
    Measurer(recipe, Wanted.of(recipe), held_out(recipe), tmp_path).start(system)()
    assert capsys.readouterr().err.count("t2i: evaluation.metrics=clip_6: caption 0 has") == 1
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert told["metrics"]["clip_6"]["cut_captions"] == 6


def test_a_vocabulary_that_is_missing_is_told_before_anything_compiles(monkeypatch):
    def missing(self, captions):
        raise UserError(f"{self.name} came without a vocabulary; give one.")

    monkeypatch.setattr(scoring_toys.ToyExtractor, "lengths", missing)
    with pytest.raises(UserError, match="evaluation.metrics=clip: clip-toy came without a"):
        check(_recipe(metrics=("clip",)))
    check(_recipe(metrics=("fid_6",)))


def _pool3(images):
    return scoring_toys.toy_extractor().features(images, layers=("pool3",))["pool3"]


def _measure(recipe, system, home, fields):
    """The distances of a trained system, by a monitor of other fields."""
    evaluation = dataclasses.replace(
        recipe.evaluation, metrics=("fid_6", "kid_70"), best=None, **fields
    )
    recipe = dataclasses.replace(recipe, evaluation=evaluation)
    return Measurer(recipe, Wanted.of(recipe), held_out(recipe), home).start(system)()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"metrics": ("fid_3k",)},
            "of 3,000 images, and 2,000 images of 'shapes' are held out; give fid_2",
        ),
        ({"judge": "digits"}, "judge='digits' does not understand the captions of .*'shapes'"),
        ({"reference": "nowhere"}, "evaluation.reference='nowhere' is no folder"),
        ({"reference": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(fields, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as error:
        runs.train(_recipe(**fields), tmp_path / "run")
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("checkpoints"))


def test_a_missing_file_of_weights_is_told_with_its_name_size_and_source(monkeypatch):
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        from t2i_jax.eval import extractors, weights_file

        patch.setattr(
            extractors, "inception", lambda path, mode: weights_file.find(path, "inception")
        )
        with pytest.raises(UserError, match=r"evaluation.weights: .*pt_inception.*MB.*http"):
            check(_recipe(metrics=("fid_6",)))
        with pytest.raises(UserError, match="evaluation.weights: .*'no.pth' is not there"):
            check(_recipe(metrics=("fid_6",), weights={"inception": "no.pth"}))


def test_a_folder_without_a_held_out_part_has_no_distances_of_its_own(tmp_path):
    real = scoring_toys.write_images(tmp_path / "real", 12, size=16)
    source = f"*.data.source=folder:{real}"
    with pytest.raises(UserError, match="data.heldout=0.0 holds nothing of .* out; give a share"):
        check(_recipe(source, judge=None, metrics=("fid_6",)))
    check(_recipe(source, judge=None, metrics=("clip", "fid_6"), reference=str(real)))
    with pytest.raises(UserError, match=r"'fid_9', of 9 images, and . images? of .* are held out"):
        check(_recipe(source, "data.heldout=0.5", judge=None, metrics=("fid_9",)))


def test_held_out_images_that_are_compared_with_are_different_ones_that_can_be_read(tmp_path):
    """Neither further rows of an image nor broken files bring an image in twice."""
    plain = scoring_toys.write_images(tmp_path / "plain", 60, size=16)
    rows = scoring_toys.with_rows(plain, tmp_path / "rows", 5)
    for home, is_plain in ((plain, True), (rows, False)):
        source = (f"*.data.source=folder:{home}", "data.heldout=0.5")
        samples = held_out(_recipe(*source, judge=None, metrics=("fid_6",)))
        count = samples.available(300, distinct=True)
        assert (count == samples.available(300)) == is_plain
        images = HeldOutImages(samples, count)
        found = [images.read(i).tobytes() for i in range(count)]
        assert len(set(found)) == count
        assert set(images._records) == {"records"} | (set() if is_plain else {"distinct"})
        asked = _recipe(*source, judge=None, metrics=(f"fid_{count + 1}",))
        with pytest.raises(UserError, match=f"{count} images of .* are held out; give fid_{count}"):
            check(asked)
        with pytest.raises(UserError, match=f"{count} images of .* are held out; give fid_{count}"):
            Wanted.of(asked).check_count(samples)
        first = next(p for p in home.glob("*.png") if Image.open(p).tobytes() == found[0])
        first.write_bytes(b"no image")
        fewer = HeldOutImages(samples, count - 1)
        assert [fewer.read(i).tobytes() for i in range(count - 1)] == found[1:]
        with pytest.raises(UserError, match=f"{count - 1} of .* can be read .{first.name}: not an"):
            HeldOutImages(samples, count).read(0)


@pytest.mark.parametrize("rate", [0.6, 1.0])
def test_held_out_images_are_looked_for_among_as_many_as_may_be_broken(tmp_path, monkeypatch, rate):
    monkeypatch.setattr("t2i_jax.runs.samples._SPARE", 4)
    home = scoring_toys.write_images(tmp_path / "plain", 60, size=16)
    for path in sorted(home.glob("*.png"))[::2]:
        path.write_bytes(b"no image")
    source = (f"*.data.source=folder:{home}", "data.heldout=0.9", f"data.max_bad_rate={rate}")
    images = HeldOutImages(held_out(_recipe(*source, judge=None, metrics=("fid_6",))), 15)
    assert len({images.read(i).tobytes() for i in range(15)}) == 15


@pytest.mark.parametrize(("count", "size", "processes"), [(10, 3, 3), (7, 3, 2), (2, 2, 4)])
def test_shares_of_several_processes_are_put_together_in_order(count, size, processes, monkeypatch):
    """As one process has them, when there are fewer shards than processes, too."""
    split, seen, given = Split(count, size), [], []

    def compute(shard):
        seen.append(shard)
        rows = np.arange(shard * size, (shard + 1) * size)
        return {"pairs": np.stack([rows, -rows], -1), "rows": rows}

    def of_others(found):  # what the others would have given in this call
        given.append(found)
        return np.stack([found] * processes)

    monkeypatch.setattr(gathering.multihost_utils, "process_allgather", of_others)
    for process in range(processes):
        monkeypatch.setattr(Share, "here", lambda process=process: Share(process, processes))
        gathering.gathered(split, compute)
    assert set(seen) == set(range(split.shards))
    pairs, rows = np.stack(given[::2]), np.stack(given[1::2])
    monkeypatch.setattr(
        gathering.multihost_utils, "process_allgather", lambda one: pairs if one.ndim > 2 else rows
    )
    found = gathering.gathered(split, compute)
    np.testing.assert_array_equal(found["rows"], np.arange(count))
    np.testing.assert_array_equal(found["pairs"], np.stack([found["rows"], -found["rows"]], -1))


def test_nothing_is_set_up_where_nothing_is_asked_for(tmp_path):
    samples = held_out(toy.get_config())
    assert monitor_of(toy.get_config(), samples, lambda *_: None, tmp_path) is None
    assert not list(tmp_path.iterdir())
