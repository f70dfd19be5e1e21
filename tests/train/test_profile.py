"""A trace of a few steps: what TensorBoard and Perfetto read of it, and what is refused."""

import gzip
import json
import os
import signal

import jax
import pytest

from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.train.loop import Hook, Preempted, TrainConfig, fit
from t2i_jax.train.profile import Profile

from .toy import ToyBatches, ToyTask

_CONFIG = TrainConfig(steps=6, batch_size=16, log_every=2, save_every=2, keep=3)


def _fit(workdir, profile, hooks=()):
    return fit(
        ToyTask(), ToyBatches(), _CONFIG, workdir, hooks=hooks, profile=Profile.parse(profile)
    )


def _traces(workdir):
    """Of every trace the steps that it holds, by the file of TensorBoard's plugin and by that of
    Perfetto.
    """
    found = []
    for folder in sorted((workdir / "profile" / "plugins" / "profile").glob("*")):
        (space,), (perfetto,) = folder.glob("*.xplane.pb"), folder.glob("perfetto_trace.json.gz")
        planes = jax.profiler.ProfileData.from_file(str(space)).planes
        events = [event for plane in planes for line in plane.lines for event in line.events]
        first = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
        events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
        second = [
            int(event["args"]["step_num"]) for event in events if event.get("name") == "train"
        ]
        assert {"step", *["input"] * (len(first) > 1)} <= {event.get("name") for event in events}
        found.append((sorted(first), sorted(second)))
    return found


def test_the_steps_that_were_asked_for_are_traced(tmp_path, capfd):
    _fit(tmp_path, "3:4")
    assert _traces(tmp_path) == [([3, 4], [3, 4])]
    assert f"steps 3 to 4 are traced in '{tmp_path / 'profile'}'" in capfd.readouterr().err


def test_a_run_that_ends_or_is_stopped_before_the_last_one_closes_the_trace(tmp_path, capfd):
    stop = Hook(
        1, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
    )
    with pytest.raises(Preempted):
        _fit(tmp_path / "stopped", "2:5", hooks=(stop,))
    assert _traces(tmp_path / "stopped") == [([2, 3], [2, 3])]
    assert "steps 2 to 3 are traced" in capfd.readouterr().err
    _fit(tmp_path / "ended", "5:9")
    assert _traces(tmp_path / "ended") == [([5, 6], [5, 6])]


def test_a_run_that_is_past_those_steps_says_so(tmp_path, capfd, monkeypatch):
    _fit(tmp_path, "6:6")
    capfd.readouterr()
    _fit(tmp_path, "1:2")
    assert f"profile=1:2 is not traced: '{tmp_path}' is at step 6 already" in capfd.readouterr().err
    assert len(_traces(tmp_path)) == 1
    monkeypatch.setattr(processes, "is_first", lambda: False)  # of several, one says it
    _fit(tmp_path, "1:2")
    assert "is not traced" not in capfd.readouterr().err


def test_a_trace_that_cannot_be_written_costs_no_training(tmp_path, capfd):
    (tmp_path / "profile").write_text("no folder")
    assert _fit(tmp_path, "2:3").step == 6
    assert "the trace can't be written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", r"profile='10' is no range of steps; give FIRST:LAST, as 10:15"),
        ("5:3", r"profile=5:3 is no range"),
        ("0:3", r"1 <= FIRST <= LAST"),
        ("a:b", r"profile='a:b' is no range"),
        ("7:8", r"profile=7:8 lies behind train.steps=6"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        _fit(tmp_path / "run", text)
    assert not (tmp_path / "run").exists()
