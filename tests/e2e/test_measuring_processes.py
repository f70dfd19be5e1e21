"""Images that two processes measure in shares, and eight devices of one: while they train, and by
`t2i evaluate`.
"""

import json
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.runs import scoring_toys

from ..loopback import end, start
from .measuring import NAMES, evaluate
from .measuring_eight import monitored, tokens

_ROOT = pathlib.Path(__file__).resolve().parents[2]

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
    found = monitored(home, tmp_path)
    assert found == pytest.approx({name: logged[4][f"eval/{name}"] for name in NAMES}, rel=1e-4)
    told = json.loads((home / "run" / "metrics.json").read_text())
    best = min(logged, key=lambda step: logged[step]["eval/fid_6"])
    assert told["validation/best_step"] == best


@pytest.fixture(scope="module")
def one(home):
    """The results of this process, with one device."""
    evaluate(home, home / "one")
    return home / "one"


def test_results_of_two_processes_are_those_of_one_to_the_byte(home, one):
    for name in ("results.json", "values.json", "plan.json"):
        assert (one / name).read_bytes() == (home / "two" / name).read_bytes(), name
    assert len(list((home / "two" / "images").glob("*/manifest.jsonl"))) == 4


def test_two_killed_processes_go_on_and_end_in_the_same_bytes(home, one):
    statuses, _, _ = end(start(2, "-m", "tests.e2e.measuring_killed", home, 3))
    assert -signal.SIGKILL in statuses and 0 not in statuses
    assert list((home / "killed" / "features").rglob("partial-*.npz"))
    statuses, _, err = end(start(2, "-m", "tests.e2e.measuring_killed", home, 0))
    assert statuses == [0, 0], err
    for name in ("results.json", "values.json", "plan.json"):
        assert (one / name).read_bytes() == (home / "killed" / name).read_bytes(), name


@pytest.fixture(scope="module")
def eight(home):
    """Where a process with eight devices has measured the same."""
    command = [sys.executable, "-m", "tests.e2e.measuring_eight", home]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def test_results_of_eight_devices_are_those_of_one_to_the_byte(eight, one):
    """What each device computes does not depend on how many there are, and JSON says how many."""
    for name in ("results.json", "values.json", "plan.json"):
        told = (eight / "eight" / name).read_text()
        as_one = told.replace('"devices_per_process": 8', '"devices_per_process": 1')
        assert as_one == (one / name).read_text(), name
        assert (as_one != told) == (name != "values.json")


def test_devices_that_share_the_weights_measure_what_one_does(eight, one):
    """Sums of a sharded product have another order, which may round a pixel the other way."""
    found, wanted = (
        {one["name"]: one["value"] for one in json.loads(path.read_text())["metrics"]}
        for path in (eight / "sharded" / "results.json", one / "results.json")
    )
    assert found == pytest.approx(wanted, rel=1e-3)


def test_eight_devices_log_what_one_does_and_measure_a_tokenizer_as_one_does(eight, tmp_path):
    logged = json.loads((eight / "eight.json").read_text())
    assert logged == pytest.approx(monitored(eight, tmp_path / "run"), rel=1e-4)
    tokens(eight, tmp_path / "tokens", scoring_toys.Levels({}))
    told = (eight / "eight-tokens" / "results.json").read_text()
    as_one = told.replace('"devices_per_process": 8', '"devices_per_process": 1')
    assert as_one == (tmp_path / "tokens" / "results.json").read_text()
