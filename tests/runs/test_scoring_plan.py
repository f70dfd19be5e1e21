"""The plan of a folder of results: which commands go on there, and what is said of others."""

import copy
import dataclasses
import json
import re
import types

import pytest

from t2i_jax import files
from t2i_jax.errors import UserError
from t2i_jax.runs import folder as folders
from t2i_jax.runs.scoring import plan
from t2i_jax.train import identity
from tests.e2e.command import inside
from tests.runs import scoring_toys
from tests.toy_system import recipe as toy

_toys = scoring_toys.in_place


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """plan.json of images that a run generates, and of those of a folder."""
    home = tmp_path_factory.mktemp("plans")
    inside("train", toy.__file__, "--workdir", home / "run")
    (home / "prompts.txt").write_text("a red circle\na blue circle\n")
    common = ("--prompts", home / "prompts.txt", "--batch-size", 2, "--mesh", "data=1")
    inside("evaluate", home / "run", *common, "--out", home / "of_run")
    scoring_toys.write_images(home / "images", 3)
    (home / "captions.txt").write_text("one\ntwo\nthree\n")
    inside(
        "evaluate", "--images", home / "images", "--captions", home / "captions.txt", "--metrics",
        "is", "--out", home / "of_folder",
    )  # fmt: skip
    return [home / name / plan.FILE for name in ("of_run", "of_folder")]


def _fields(told, path=()):
    """The path of every field, and its value."""
    for name, value in told.items():
        if isinstance(value, dict) and value:
            yield from _fields(value, (*path, name))
        else:
            yield (*path, name), value


def _another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, "x"] if isinstance(value, list) else f"{value}x"


@pytest.mark.parametrize("number", [0, 1])
def test_every_field_of_a_plan_is_refused_by_its_name_where_it_differs(plans, tmp_path, number):
    told = json.loads(plans[number].read_text())
    fields = list(_fields(told))
    assert len(fields) > (80, 20)[number]
    for path, value in fields:
        begun = copy.deepcopy(told)
        home = begun
        for name in path[:-1]:
            home = home[name]
        home[path[-1]] = _another(value)
        (tmp_path / plan.FILE).write_text(json.dumps(begun))
        with pytest.raises(UserError, match=re.escape(f"another plan ({'.'.join(path)}: ")):
            plan.settle(tmp_path, told)
        assert json.loads((tmp_path / plan.FILE).read_text()) == begun
    (tmp_path / plan.FILE).write_text(json.dumps(told))
    plan.settle(tmp_path, told)


@pytest.mark.parametrize("number", [0, 1])
def test_a_plan_of_an_earlier_version_is_gone_on_with(plans, tmp_path, number):
    """It has none of the fields that came later, and says EMA weights whatever there was."""
    told = json.loads(plans[number].read_text())
    begun = copy.deepcopy(told)
    del begun["software"]["source"], begun["software"]["flags"]
    if number == 0:
        told["run"]["ema"] = False
        del begun["sampling"]["samplers"]
    (tmp_path / plan.FILE).write_text(json.dumps(begun))
    plan.settle(tmp_path, told)
    for group, name in (("software", "jax"), ("images", "count")):
        other = {**told, group: {**told[group], name: "another"}}
        with pytest.raises(UserError, match=re.escape(f"another plan ({group}.{name}: ")):
            plan.settle(tmp_path, other)


def test_an_edited_source_and_other_flags_of_the_compiler_are_another_plan(tmp_path, monkeypatch):
    """The version stays the same whatever is edited."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_b --xla_a=1")
    plan.settle(tmp_path, {"software": plan.software()})
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=here  --xla_b")
    plan.settle(tmp_path, {"software": plan.software()})
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=2")
    with pytest.raises(UserError, match=r"software.flags: .*--xla_a=1"):
        plan.settle(tmp_path, {"software": plan.software()})
    monkeypatch.undo()
    before = plan.software()["source"]
    monkeypatch.setattr(identity.pathlib.Path, "read_bytes", lambda self: b"edited")
    monkeypatch.setattr(plan, "source", identity.source.__wrapped__)
    assert plan.software()["source"] != before and len(before) == 16


def test_the_plan_says_whether_the_checkpoint_had_averages(plans, tmp_path):
    run = plans[0].parent.parent / "run"
    recipe = folders.load_run_recipe(run)
    assert json.loads(plans[0].read_text())["run"]["ema"] is True
    train = dataclasses.replace(recipe.train, ema_decay=0.0)
    assert folders.is_averaged(run, dataclasses.replace(recipe, train=train)) is False
    (tmp_path / folders.EXPORT).touch()
    assert folders.is_averaged(tmp_path, recipe) is None
    joined = types.SimpleNamespace(objectives=(), parts=recipe.task.parts)
    of_mean = folders.is_averaged(run / "mean", folders.load_run_recipe(run / "mean"))
    assert isinstance(of_mean, bool)
    found = folders.is_averaged(run, types.SimpleNamespace(task=joined, train=None))
    assert found == {"mean": of_mean}


def test_a_folder_whose_plan_was_never_finished_is_gone_on_with(tmp_path):
    """A killed command has left half a plan under its temporary name."""
    (tmp_path / files.partial(plan.FILE)).write_text('{"images": ')
    plan.settle(tmp_path, {"images": 3})
    assert [path.name for path in tmp_path.iterdir()] == [plan.FILE]
    (tmp_path / plan.FILE).rename(tmp_path / "other.json")
    with pytest.raises(UserError, match="holds 'other.json' and no plan.json"):
        plan.settle(tmp_path, {"images": 3})
