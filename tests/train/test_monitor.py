"""Metrics of generated images in the trainer: their lines, the best checkpoint, the work of the
host beside the steps, resuming.
"""

import dataclasses
import json
import math
import os
import signal
import threading
import time

import pytest

from t2i_jax.train import best
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.log import Log, metrics_of
from t2i_jax.train.loop import Hook, Preempted, fit
from t2i_jax.train.monitor import Monitor, Monitoring
from t2i_jax.train.profile import Trace
from t2i_jax.train.validation import Validation

from .test_loop import _CONFIG, _TASK
from .toy import ToyBatches

_CLIP = {2: 0.2, 3: 0.9, 4: 0.5, 6: math.nan}


def _monitor(every=2, finish=lambda step: None, **fields):
    def start(state):
        step = int(state.step)
        time.sleep(0.005)  # what goodput tells has three decimals

        def rest():
            finish(step)
            return {"clip": _CLIP[step], "fid_2": 10.0 * step}

        return rest

    return Monitor(("clip", "fid_2"), every, start, **fields)


def _fit(workdir, monitor, hooks=(), validation=None, **changes):
    config = dataclasses.replace(_CONFIG, **{"keep": 1, "save_every": 6, "log_every": 1, **changes})
    return fit(
        _TASK, ToyBatches(), config, workdir, hooks=hooks, monitor=monitor, validation=validation
    )


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _measured(workdir):
    return {line["step"]: line["eval/fid_2"] for line in _lines(workdir) if "eval/fid_2" in line}


def _steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_the_host_works_beside_the_next_step_and_lines_stay_in_order(tmp_path, monkeypatch):
    """Also those of a validation and of a hook between two lines of the log."""
    stepped = threading.Event()
    beside = []

    def finish(step):
        if step == 2:
            beside.append(stepped.wait(60))

    def after(trace, done, metrics):
        if done == 3:
            stepped.set()

    monkeypatch.setattr(Trace, "after", after)
    hook = Hook(5, lambda state, step, log: log.scalars(step, {"looked_at": 1.0}))
    validation = Validation(3, lambda state, frozen: {"psnr": 1.0})
    _fit(tmp_path, _monitor(finish=finish), [hook], validation, log_every=4)
    assert beside == [True], "step 3 waited for the metrics of step 2"
    assert _measured(tmp_path) == {2: 20.0, 4: 40.0, 6: 60.0}
    steps = [line["step"] for line in _lines(tmp_path)]
    assert steps == sorted(steps) and {3, 5} <= set(steps)
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told["eval/fid_2"] == 60.0 and told["seconds/evaluate"] > 0
    assert not any(name.startswith("validation/best") for name in told)


def test_a_metric_of_images_tells_the_best_step_in_place_of_the_validation(tmp_path):
    losses = Validation(1, lambda state, frozen: {"loss": float(state.step)})
    by = {"by": "clip", "larger_is_better": True}
    _fit(tmp_path, _monitor(**by), validation=losses)
    assert _steps(tmp_path) == [4, 6]
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert (told["validation/best_step"], told["validation/best"]) == (4, 0.5)
    assert best.scores(tmp_path / "checkpoints") == {4: -0.5}
    # by the smallest loss from now on, with which scores of the other kind are not compared
    _fit(tmp_path, None, validation=losses, steps=7, save_every=7)
    assert best.scores(tmp_path / "checkpoints") == {6: 6.0, 7: 7.0} and _steps(tmp_path) == [6, 7]
    smallest = Monitor(("fid_2",), 8, lambda state: lambda: {"fid_2": 3.0}, "fid_2")
    _fit(tmp_path, smallest, validation=losses, steps=8, save_every=8)
    assert best.scores(tmp_path / "checkpoints") == {8: 3.0} and _steps(tmp_path) == [8]


def test_what_a_crash_cost_is_measured_when_the_run_resumes(tmp_path):
    """Saved with step 2, whose metrics were still being computed; and those of step 4 after it."""

    def finish(step):
        if step == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise RuntimeError("the host is gone")

    monitor = _monitor(finish=finish, by=None)
    with pytest.raises(RuntimeError, match="the host is gone"):
        _fit(tmp_path, monitor, save_every=2)
    assert _steps(tmp_path) == [2] and not _measured(tmp_path)
    with pytest.raises(Preempted):
        asked = Hook(5, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM))
        _fit(tmp_path, monitor, save_every=2, hooks=[asked])
    _fit(tmp_path, monitor, save_every=2)
    assert _measured(tmp_path) == {2: 20.0, 4: 40.0, 6: 60.0}
    assert [line["step"] for line in _lines(tmp_path) if "eval/clip" in line] == [2, 4, 6]


def test_a_stop_before_the_metrics_leaves_them_and_the_score_to_the_next_start(tmp_path):
    asked = Hook(3, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM))
    monitor = _monitor(3, by="clip", larger_is_better=True)
    with pytest.raises(Preempted):  # in the hook of step 3, before step 3 is measured
        _fit(tmp_path, dataclasses.replace(monitor, every=5), hooks=[asked])
    assert _steps(tmp_path) == [3] and not _measured(tmp_path)
    _fit(tmp_path, monitor)
    assert _measured(tmp_path) == {3: 30.0, 6: 60.0}
    assert best.scores(tmp_path / "checkpoints") == {3: -0.9}
    assert _steps(tmp_path) == [3, 6]


@pytest.mark.parametrize("by", [None, "fid_2"])
def test_a_stop_after_the_last_step_leaves_its_metrics_to_the_next_start(tmp_path, monkeypatch, by):
    progress = Log.progress

    def stop_at_the_end(log, step, shown):
        progress(log, step, shown)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Log, "progress", stop_at_the_end)
        _fit(tmp_path, _monitor(6, by=by))
    assert _steps(tmp_path) == [6] and not _measured(tmp_path)
    _fit(tmp_path, _monitor(6, by=by))
    assert _measured(tmp_path) == {6: 60.0}
    assert best.scores(tmp_path / "checkpoints", by) == ({} if by is None else {6: 60.0})
    twice = (tmp_path / "metrics.jsonl").read_bytes()
    _fit(tmp_path, _monitor(6))
    assert (tmp_path / "metrics.jsonl").read_bytes() == twice


def test_no_metric_of_an_earlier_step_stays_beside_those_of_the_newest(tmp_path):
    """A start that resumes may measure others."""
    log = Log(tmp_path, 0, 6)
    for step, names in enumerate((("fid_8", "clip"), ("fid_6",)), 1):
        monitor = Monitor(names, 2, lambda state, names=names: lambda: dict.fromkeys(names, 1.0))
        log.summary({"validation/best": 0.5})
        Monitoring(monitor, log, Goodput()).measure(step, _TASK, is_last=True)
    log.close()
    assert metrics_of(tmp_path) == {"validation/best": 0.5, "eval/fid_6": 1.0}
