"""Runs that are killed, in processes of their own: started again they end in the very bits of an
undisturbed run.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import chex

from t2i_jax.train.loop import fit
from t2i_jax.train.stored import load_params

from .kill_me import BEST, CONFIG, TASK, VALIDATION
from .toy import ToyBatches

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(workdir):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.kill_me", str(workdir)],
        cwd=_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(process, happened):
    """Until `happened()`; fails when the process ends, or two minutes pass, before that."""
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, f"the run ended too early: {process.stderr.read()[-2000:]}"
        assert time.monotonic() < end, "two minutes have passed"
        time.sleep(0.001)


def _finished(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def _being_saved(workdir):
    return any(path.name.endswith("tmp") for path in (workdir / "checkpoints").glob("*"))


def _trained(workdir):
    """The lines of training steps, without those of validations."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "validation/loss" not in line]


def test_killed_while_saving_and_stopped_by_a_signal_it_ends_in_the_same_bits(tmp_path):
    killed = tmp_path / "killed"
    whole = fit(TASK, ToyBatches(), CONFIG, tmp_path / "whole", validation=VALIDATION)
    begin = time.monotonic()

    process = _start(killed)  # killed during its first save, or just after it
    _wait_for(process, lambda: _being_saved(killed) or _finished(killed))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    # until a kill hits the middle of a save, with a finished checkpoint before it
    for _ in range(3):
        process = _start(killed)
        _wait_for(process, lambda: _finished(killed) and _being_saved(killed))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if hit := _being_saved(killed):
            break
    reached = max(_finished(killed))
    assert hit and 0 < reached < CONFIG.steps

    process = _start(killed)  # then a polite stop
    _wait_for(process, lambda: max(_finished(killed), default=0) > reached)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, process.stderr.read()[-2000:]
    assert reached < max(_finished(killed)) < CONFIG.steps

    process = _start(killed)
    assert process.wait(timeout=120) == 0, process.stderr.read()[-2000:]

    _, params, ema, stats = load_params(killed)
    chex.assert_trees_all_equal((params, ema, stats), (whole.params, whole.ema, whole.stats))
    # the best step stays beside the last ones, and can be taken
    assert _finished(killed) == _finished(tmp_path / "whole") == {BEST, 15, 16}
    best = [load_params(workdir, step="best")[1] for workdir in (killed, tmp_path / "whole")]
    chex.assert_trees_all_equal(*best)
    told = json.loads((killed / "metrics.json").read_text())
    assert (told["validation/best_step"], told["validation/best"]) == (BEST, 0.5)
    lines = _trained(killed)
    assert [line["step"] for line in lines] == list(range(1, CONFIG.steps + 1))
    # of all starts, up to their last lines
    seconds = json.loads((killed / "goodput.json").read_text())["seconds"]
    assert lines[-1]["seconds/restart"] > lines[0]["seconds/restart"]
    assert (
        0
        < sum(lines[0][f"seconds/{kind}"] for kind in seconds)
        < sum(seconds.values())
        < time.monotonic() - begin
    )
    for line, same in zip(lines, _trained(tmp_path / "whole"), strict=True):
        assert line["loss"] == same["loss"]
