"""Images that two processes measure in shares: while they train, and by `t2i evaluate`."""

import json

import pytest

from t2i_jax import runs
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.scoring.monitoring import Measurer
from t2i_jax.runs.scoring.wanted import Wanted
from tests.runs import scoring_toys
from tests.toy_system import recipe as toy

from ..loopback import end, start
from .command import inside

_NAMES = ("fid_6", "kid_9", "clip_5")
_TRAIN = (
    "evaluation.every=2", f"evaluation.metrics={_NAMES}", "evaluation.best=fid_6",
    "evaluation.options.noise=0.3",
)  # fmt: skip
_PROGRAM = """
from unittest import mock
import tests.toy_system.recipe
from t2i_jax.cli import main
from tests.runs import scoring_toys

class Patch:
    def setattr(self, where, value):
        mock.patch(where, value).start()

scoring_toys.use(Patch())
main.main()
"""


@pytest.fixture(autouse=True, scope="module")
def _toys():
    with pytest.MonkeyPatch.context() as patch:
        scoring_toys.use(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A toy that two processes have trained and measured."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    statuses, _, err = end(
        start(2, "-c", _PROGRAM, "train", toy.__file__, *_TRAIN, "--workdir", workdir)
    )
    assert statuses == [0, 0], err
    return workdir


def test_what_two_processes_logged_is_what_one_measures(run, tmp_path):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = {line["step"]: line for line in lines if "eval/fid_6" in line}
    assert sorted(logged) == [2, 4]
    recipe, system = runs.load_run_recipe(run), runs.load(run)
    found = Measurer(recipe, Wanted.of(recipe), held_out(recipe), tmp_path).start(system)()
    assert found == pytest.approx({name: logged[4][f"eval/{name}"] for name in _NAMES}, rel=1e-4)
    told = json.loads((run / "metrics.json").read_text())
    best = min(logged, key=lambda step: logged[step]["eval/fid_6"])
    assert told["validation/best_step"] == best


def test_results_of_two_processes_are_those_of_one_to_the_byte(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {n}" for n in range(7)))
    scoring_toys.write_images(tmp_path / "real", 9)
    words = (
        "evaluate", run, "--prompts", tmp_path / "prompts.txt", "--reference", tmp_path / "real",
        "--metrics", "fid,kid,clip", "--shard-size", 2, "--batch-size", 2, "--out",
    )  # fmt: skip
    statuses, out, err = end(start(2, "-c", _PROGRAM, *words, tmp_path / "two"))
    assert statuses == [0, 0], err
    assert "fid_clean_inception" in out[0] and "fid" not in out[1]
    inside(*words, tmp_path / "one")
    for name in ("results.json", "values.json", "plan.json"):
        one, two = ((tmp_path / home / name).read_bytes() for home in ("one", "two"))
        assert one == two, name
    assert len(list((tmp_path / "two" / "images").glob("*/manifest.jsonl"))) == 4
