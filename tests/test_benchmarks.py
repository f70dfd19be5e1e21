"""The comparison with the PyTorch packages runs, at toy sizes, and prints what its README says."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
_VS_PYTORCH = runpy.run_path(str(_FOLDER / "vs_pytorch.py"))


@pytest.mark.parametrize(("system", "row"), [("parti", "encode"), ("imagen", "train_base")])
def test_both_sides_of_a_row_run_in_turns(system, row):
    command = [sys.executable, str(_FOLDER / "one_process.py"), system, "turns", row, "2", "small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout.splitlines()[-1])
    assert set(times) == {"theirs", "ours"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())


def test_the_table_holds_medians_and_their_ratio():
    alone = {"first": 5.0, "later": 2.0, "peak": 3_000_000, "working": 1_000_000}
    turns = {"theirs": [4.0, 6.0, 5.0], "ours": [2.0, 2.5, 9.0]}
    row = {"first": alone, "second": {**alone, "first": 2.5}, "theirs": {**alone, "peak": 7_000_000}, "turns": turns}
    lines = _VS_PYTORCH["table"]({"rows": {"encode": row}}).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| encode | 5 | 2.5 | 2.00x | 3.0 | 0.5 | 1 | 1 | 7 | 3 | 3 |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["imagen", "--rows", "train_gan"], "there are train_base"), (["parti", "--repeats", "0"], "--repeats=0 is below 1")],
)
def test_what_is_not_there_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        _VS_PYTORCH["main"](arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
