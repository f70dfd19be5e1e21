"""The plan of a folder of results: which commands go on there, and what is said of others."""

import copy
import json
import re

import pytest

from t2i_jax import files
from t2i_jax.errors import UserError
from t2i_jax.runs.scoring import plan
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


def test_a_folder_whose_plan_was_never_finished_is_gone_on_with(tmp_path):
    """A killed command has left half a plan under its temporary name."""
    (tmp_path / files.partial(plan.FILE)).write_text('{"images": ')
    plan.settle(tmp_path, {"images": 3})
    assert [path.name for path in tmp_path.iterdir()] == [plan.FILE]
    (tmp_path / plan.FILE).rename(tmp_path / "other.json")
    with pytest.raises(UserError, match="holds 'other.json' and no plan.json"):
        plan.settle(tmp_path, {"images": 3})
