"""A folder that holds a run is compared with the recipe before anything trains or is written."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.errors import UserError
from t2i_jax.runs import begun, folder
from t2i_jax.runs.check import check
from t2i_jax.runs.recipe import changed
from tests.runs.scoring_toys import write_images
from tests.toy_system import pair
from tests.toy_system import recipe as toy


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained toy, with its part."""
    place = tmp_path_factory.mktemp("base") / "run"
    runs.train(toy.get_config(), place, hooks=lambda recipe, build_system: ())
    return place


def _files(place):
    return {
        path.relative_to(place): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
    }


def _refused(recipe, run):
    """The sentence; nothing in the folder changed."""
    before = _files(run)
    with pytest.raises(UserError) as error:
        runs.train(recipe, run)
    assert _files(run) == before
    return str(error.value)


def test_data_that_were_moved_are_read_on(tmp_path, capfd):
    home = write_images(tmp_path / "here" / "photos", 12)
    for path in home.iterdir():
        path.with_suffix(".txt").write_text(f"image {path.stem}")
    run = tmp_path / "run"

    def train(home, steps, *more):
        words = [f"data.source=folder:{home}", f"train.steps={steps}", *more]
        recipe = changed(toy.get_config().parts["mean"], words)
        return runs.train(recipe, run, hooks=lambda recipe, build_system: ())

    train(home, 2, "train.save_every=1")
    shutil.copytree(run, kept := tmp_path / "kept")
    straight = train(home, 4, "train.save_every=1")
    shutil.rmtree(run)
    kept.rename(run)
    (tmp_path / "there").mkdir()
    moved = home.rename(tmp_path / "there" / "photos")
    capfd.readouterr()
    assert _equal(train(moved, 4, "train.save_every=1").weights, straight.weights)
    said = capfd.readouterr().err
    assert said.count(f"data.source='folder:{moved}' was 'folder:{home}' when ") == 1
    other = moved.rename(moved.with_name("others"))
    with pytest.raises(UserError, match=r"another configuration \(data.source: "):
        train(other, 6)
    next(other.glob("*.png")).unlink()
    fewer = other.rename(home.parent / "photos")
    with pytest.raises(UserError, match="has 11 records and had 12 when the run was saved"):
        train(fewer, 6)


def _equal(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.mark.parametrize(
    ("taken", "get_config", "overrides", "said"),
    [
        ("mean", toy.get_config, [], r"run' holds a run of another configuration \(task.type: "),
        (".", pair.get_config, [], r"run' holds a run of another configuration \(task.type: "),
        (".", toy.get_config, ["train.seed=1"], r"run' holds .*\(train.seed: 0 -> 1\)"),
        (
            ".", toy.get_config, ["mean.train.batch_size=4", "train.steps=9"],
            r"^mean: workdir='.*run/mean' holds .*\(train.batch_size: 8 -> 4\)",
        ),
    ],
)  # fmt: skip
def test_a_run_of_another_configuration_is_left_as_it_is(
    taken, get_config, overrides, said, base, tmp_path
):
    run = shutil.copytree(base / taken, tmp_path / "run")
    told = _refused(changed(get_config(), overrides), run)
    assert told.count("another configuration") == 1 and re.search(said, told)


def test_what_may_change_between_starts_passes(base):
    longer = [
        "train.steps=9", "train.keep=1", "data.threads=2", "mean.train.log_every=1",
        "evaluation.pictures=8", "mean.data.threads=2",
    ]  # fmt: skip
    assert check(changed(toy.get_config(), longer), base) == []


@pytest.mark.parametrize("lost", ["mean", "mean/checkpoints"])
def test_a_part_that_is_lost_is_told_and_not_trained_anew(lost, base, tmp_path):
    run = shutil.copytree(base, tmp_path / "run")
    shutil.rmtree(run / lost)
    told = _refused(changed(toy.get_config(), ["train.steps=6"]), run)
    assert told == (
        f"workdir={str(run)!r}: its part mean is missing, which was trained in "
        f"{str(run / 'mean')!r}; restore that folder from a copy, or train into another workdir."
    )


@pytest.mark.parametrize(
    ("source", "folder", "there", "said"),
    [
        (pair, "part", [], "its part part is missing"),  # which has no checkpoint of its own
        (pair, "part", ["run/part/recipe.json"], None),
        (toy, "part", ["run/part/system.json"], "begun with a finished part, in '.*run/part'"),
        (toy, "../part", ["part/goodput.json"], "begun with a finished part, in '.*[^n]/part'"),
    ],
)
def test_a_recorded_part_is_looked_for_where_it_was(source, folder, there, said, tmp_path):
    for path in [*there, "run/parts.json"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "run/parts.json").write_text(json.dumps({"part": {"folder": folder}}))
    recipe = types.SimpleNamespace(parts={"part": source.get_config()})
    if said is None:
        begun.check(recipe, tmp_path / "run")
        return
    with pytest.raises(UserError, match=said):
        begun.check(recipe, tmp_path / "run")


@pytest.mark.parametrize(("part", "get_config"), [(".", toy.get_config), ("mean", pair.get_config)])
def test_an_exported_system_is_not_trained_over(part, get_config, base, tmp_path):
    out = runs.export(base / part, tmp_path / "out")
    told = _refused(changed(get_config(), ["*.train.steps=9"]), out)
    assert re.search(r"workdir='.*/out' holds an exported system \(system.json\).*init=", told)


@pytest.mark.parametrize("get_config", [toy.get_config, lambda: toy.get_config().parts["mean"]])
def test_a_run_that_joins_parts_is_not_trained_over(get_config, tmp_path):
    folder.write_joined(tmp_path, pair.get_config())
    told = _refused(get_config(), tmp_path)
    assert "holds a run of PairTask, which joins its parts, and this recipe is one of" in told


@pytest.mark.parametrize("inside", [".", "prior"])
def test_what_another_run_was_begun_with_is_not_trained_further(inside, base, tmp_path):
    run, mean = shutil.copytree(base, tmp_path / "run"), toy.get_config().parts["mean"]
    (run / inside).mkdir(exist_ok=True)
    parts = json.loads((run / "parts.json").read_text())
    parts["mean"]["folder"] = {".": "mean", "prior": "../mean"}[inside]
    (run / "parts.json").unlink()
    (run / inside / "parts.json").write_text(json.dumps(parts))
    (tmp_path / "link").symlink_to(run / "mean")
    for workdir in (run / "mean", tmp_path / "link"):
        told = _refused(changed(mean, ["train.steps=9"]), workdir)
        assert told.startswith(f"workdir={str(workdir)!r} is the part mean of run=") and (
            f"with its step 4 and could not be read with another; set train.steps=4, or train in a "
            f"new folder with init={str(workdir)!r}." in told
        )
        assert check(changed(mean, ["train.log_every=1"]), workdir) == []


def test_where_parts_json_is_lost_a_part_is_not_trained_further(base, tmp_path):
    run = shutil.copytree(base, tmp_path / "run")
    (run / "parts.json").unlink()
    told = _refused(changed(toy.get_config(), ["train.steps=6", "mean.train.steps=6"]), run)
    assert "parts.mean.train.steps=6 would train further what this run was begun with" in told
    assert check(changed(toy.get_config(), ["train.steps=6"]), run) == []
