"""Images that two processes measure in shares: while they train, and by `t2i evaluate`."""

import json

import pytest

from t2i_jax import runs
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.scoring.monitoring import Measurer
from t2i_jax.runs.scoring.wanted import Wanted
from tests.runs import scoring_toys

from ..loopback import end, start
from .measuring import NAMES, evaluate

_toys = scoring_toys.in_place


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where two processes have trained the toy and evaluated it."""
    home = tmp_path_factory.mktemp("two")
    (home / "prompts.txt").write_text("\n".join(f"a red circle {n}" for n in range(7)))
    scoring_toys.write_images(home / "real", 9)
    statuses, _, err = end(start(2, "-m", "tests.e2e.measuring", home))
    assert statuses == [0, 0], err
    return home


def test_what_two_processes_logged_is_what_one_measures(home, tmp_path):
    lines = map(json.loads, (home / "run" / "metrics.jsonl").read_text().splitlines())
    logged = {line["step"]: line for line in lines if "eval/fid_6" in line}
    assert sorted(logged) == [2, 4]
    recipe, system = runs.load_run_recipe(home / "run"), runs.load(home / "run")
    found = Measurer(recipe, Wanted.of(recipe), held_out(recipe), tmp_path).start(system)()
    assert found == pytest.approx({name: logged[4][f"eval/{name}"] for name in NAMES}, rel=1e-4)
    told = json.loads((home / "run" / "metrics.json").read_text())
    best = min(logged, key=lambda step: logged[step]["eval/fid_6"])
    assert told["validation/best_step"] == best


def test_results_of_two_processes_are_those_of_one_to_the_byte(home, tmp_path):
    evaluate(home, tmp_path / "one")
    for name in ("results.json", "values.json", "plan.json"):
        one, two = (folder / name for folder in (tmp_path / "one", home / "two"))
        assert one.read_bytes() == two.read_bytes(), name
    assert len(list((home / "two" / "images").glob("*/manifest.jsonl"))) == 4
