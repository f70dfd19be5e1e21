"""Validation in the trainer: its lines, the best checkpoint, failures and resuming."""

import dataclasses
import json
import math
import os
import signal

import pytest

from t2i_jax.errors import UserError
from t2i_jax.train import best, digests
from t2i_jax.train.log import Log
from t2i_jax.train.loop import Hook, Preempted, fit
from t2i_jax.train.stored import load_params
from t2i_jax.train.validation import Validation

from .idle import OneOfTwo
from .test_loop import _CONFIG, _TASK
from .toy import ToyBatches

_SCORES = {1: 5.0, 2: 4.0, 3: 1.0, 4: math.nan, 5: 2.0, 6: 3.0}


def _validation(every=1):
    return Validation(every, lambda state, frozen: {"loss": _SCORES[int(state.step)], "other": 7.0})


def _fit(workdir, validation, hooks=(), **changes):
    config = dataclasses.replace(_CONFIG, **{"keep": 1, "save_every": 6, **changes})
    return fit(_TASK, ToyBatches(), config, workdir, hooks=hooks, validation=validation)


def _steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_the_best_step_is_saved_when_it_comes_and_stays(tmp_path):
    seen = {}
    hook = Hook(3, lambda state, step, log: seen.setdefault(step, state.params))
    _fit(tmp_path, _validation(), hooks=[hook])
    assert _steps(tmp_path) == [3, 6]
    config, params, _, _ = load_params(tmp_path, step="best")
    assert config["train"]["steps"] == 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line for line in lines if "validation/loss" in line}
    assert sorted(validated) == [1, 2, 3, 4, 5, 6] and validated[4]["validation/loss"] is None
    assert validated[5]["validation/loss"] == 2.0 and validated[5]["validation/other"] == 7.0
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert (told["validation/best_step"], told["validation/best"]) == (3, 1.0)
    by_step = load_params(tmp_path, step=3)[1]
    assert (by_step["first"]["wide"] == params["first"]["wide"]).all()
    with pytest.raises(UserError, match="step=4 has no checkpoint .*; give best or one of 3, 6"):
        load_params(tmp_path, step=4)
    for step in (3.0, "3", True):
        with pytest.raises(UserError, match="is neither 'best' nor a whole number; .* 3, 6"):
            load_params(tmp_path, step=step)


def test_after_a_crash_the_same_step_is_the_best(tmp_path):
    def crash(state, step, log):
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        _fit(tmp_path, _validation(), hooks=[Hook(5, crash)])
    assert _steps(tmp_path)[-1] == 3
    _fit(tmp_path, _validation())  # goes on from the last one
    assert _steps(tmp_path) == [3, 6]
    longer = Validation(1, lambda state, frozen: {"loss": 8.5 - int(state.step)})
    _fit(tmp_path, longer, steps=8, save_every=8)
    assert _steps(tmp_path) == [8]  # the last is the best now


def test_a_step_that_a_stop_saved_unmeasured_is_measured_when_the_run_resumes(tmp_path):
    """The best by far: stopped in its hooks' place, after which nothing would measure it again."""
    asked = Hook(3, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM))
    quiet = dataclasses.replace(_validation(), every=4)
    with pytest.raises(Preempted):
        _fit(tmp_path, quiet, hooks=[asked])
    assert _steps(tmp_path) == [3] and not best.scores(tmp_path / "checkpoints")
    _fit(tmp_path, _validation())
    assert _steps(tmp_path) == [3, 6]
    assert best.scores(tmp_path / "checkpoints")[3] == 1.0
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "validation/loss" in line] == [3, 4, 5, 6]


def test_a_stop_after_the_last_step_leaves_its_validation_to_the_next_start(tmp_path, monkeypatch):
    progress = Log.progress

    def stop_at_the_end(log, step, shown):
        progress(log, step, shown)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    falling = Validation(2, lambda state, frozen: {"loss": 8.0 - int(state.step)})
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Log, "progress", stop_at_the_end)
        _fit(tmp_path, falling)
    assert _steps(tmp_path) == [4, 6] and 6 not in best.scores(tmp_path / "checkpoints")
    for _ in range(2):  # once
        _fit(tmp_path, falling)
        assert best.scores(tmp_path / "checkpoints") == {4: 4.0, 6: 2.0}
        told = json.loads((tmp_path / "metrics.json").read_text())
        assert (told["validation/best_step"], told["validation/best"]) == (6, 2.0)
        lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        assert [line["step"] for line in lines if "validation/loss" in line] == [2, 4, 6]


def test_a_last_step_whose_score_is_not_finite_is_measured_once(tmp_path):
    measured = []

    def measure(state, frozen):
        measured.append(int(state.step))
        return {"loss": _SCORES[int(state.step)]}

    for _ in range(2):
        _fit(tmp_path, Validation(2, measure), steps=4)
        assert measured == [2, 4]


def test_losses_of_other_groups_are_not_compared(tmp_path):
    """The loss of the second group is larger than that of the first ever was."""
    firsts, seconds = {2: 0.03, 4: 0.02}, {4: 0.9, 6: 0.6, 8: 0.5, 10: 0.55}

    def train(steps, trains, losses):
        validation = Validation(2, lambda state, frozen: {"loss": losses[int(state.step)]})
        config = dataclasses.replace(_CONFIG, keep=1, save_every=2, steps=steps)
        task = OneOfTwo(trains=(trains,), apart=False)  # the second reads the first
        fit(task, ToyBatches(), config, tmp_path, validation=validation, allowed=("task.trains",))
        return json.loads((tmp_path / "metrics.json").read_text())["validation/best_step"]

    assert train(4, "first", firsts) == 4
    assert train(10, "second", seconds) == 8
    assert best.best_of(best.scores(tmp_path / "checkpoints")) == 8
    assert _steps(tmp_path) == [8, 10]


def test_scores_of_earlier_releases_count_where_the_same_groups_are_trained(tmp_path, monkeypatch):
    """These gave scores no name, whatever was trained."""
    losses = {2: 0.1, 4: 0.5, 6: 0.3, 8: 0.9}

    def train(steps, trains):
        validation = Validation(2, lambda state, frozen: {"loss": losses[int(state.step)]})
        config = dataclasses.replace(_CONFIG, keep=1, save_every=2, steps=steps)
        task = OneOfTwo(trains=(trains,), apart=False)
        fit(task, ToyBatches(), config, tmp_path, validation=validation, allowed=("task.trains",))

    with monkeypatch.context() as patch:
        patch.setattr(best, "validation_of", lambda *_: "")
        train(4, "first")
    assert _steps(tmp_path) == [2, 4]
    train(6, "first")
    assert _steps(tmp_path) == [2, 6]
    assert best.scores(tmp_path / "checkpoints") == {2: 0.1, 6: 0.3}
    assert json.loads((tmp_path / "metrics.json").read_text())["validation/best_step"] == 2
    train(8, "second")
    assert _steps(tmp_path) == [6, 8]  # the newest is measured anew, and is the better one
    assert best.scores(tmp_path / "checkpoints") == {6: 0.3, 8: 0.9}


def test_a_step_may_have_scores_of_two_kinds(tmp_path):
    folder = tmp_path / "checkpoints"
    for step, text in ((1, '{"score": 1.5}'), (2, '{"score": 2.5, "score_of": "a"}')):
        (folder / str(step) / "data").mkdir(parents=True)
        (folder / str(step) / "data" / "metadata").write_text(text)
    best.add(folder, 2, 7.0)  # measured again, with all groups trained
    best.add(folder, 1, 9.0)  # and a score that it has already
    assert best.scores(folder) == best.scores(folder, "a") == {2: 2.5}
    assert best.scores(folder, "") == {1: 1.5, 2: 7.0}
    names = [best.validation_of(trained, "ab") for trained in ("ab", "ba", "b", "a")]
    assert names[:2] == ["", ""] and len({*names}) == 3


def test_a_run_without_scores_has_no_best_and_says_which_steps_there_are(tmp_path):
    _fit(tmp_path, None, keep=2, save_every=2)
    assert _steps(tmp_path) == [4, 6]
    with pytest.raises(UserError, match="step='best': no checkpoint .* was validated; .* 4, 6"):
        load_params(tmp_path, step="best")


def test_validation_goes_by_its_own_metric_and_after_the_last_step():
    validation = Validation(4, lambda state, frozen: {}, by="reconstruction")
    assert [validation.is_due(step, step == 6) for step in range(1, 7)] == [
        False, False, False, True, False, True,
    ]  # fmt: skip
    assert validation.score({"loss": 1.0, "reconstruction": 2.0}) == 2.0
    assert validation.score({"reconstruction": math.inf}) is validation.score({}) is None


def test_damaged_scores_are_none(tmp_path):
    texts = ["{", "[]", '{"score": "x"}', '{"score": 2.5}', '{"score": NaN}', '{"score": true}']
    for name, text in {**dict(zip("123456", texts)), "7.tmp": "{}"}.items():
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "metadata").write_text(text)
    (tmp_path / "8").mkdir()
    assert best.scores(tmp_path) == {4: 2.5} and best.best_of({}) is None
    assert best.kept([1, 2, 3, 4], 1, {2: 1.0, 3: 1.0, 9: 0.0}) == {2, 4}


def _with_digests(folder, scores):
    for step, score in scores.items():
        (folder / str(step) / "data").mkdir(parents=True)
        (folder / str(step) / "data" / "metadata").write_text(json.dumps({"score": score}))
        digests.write(folder / str(step), 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: (step / "data" / "metadata").write_text('{"score": 0.775}'),
        lambda step: (step / "data" / "metadata").write_text('{"score": 12.775}'),
        lambda step: (step / "data" / "metadata").write_text('{"zcore": 2.775}'),
        lambda step: (step / "data" / "metadata").unlink(),
        lambda step: (step / "digests.0.json").write_text("{}"),
    ],
    ids=["another score", "a longer one", "none", "no file", "the digests"],
)
def test_a_score_in_a_damaged_file_is_not_believed_and_its_step_is_kept(tmp_path, damage):
    _with_digests(tmp_path, {2: 2.775, 4: 1.5, 6: 1.75})
    assert best.scores(tmp_path) == {2: 2.775, 4: 1.5, 6: 1.75} and not best.doubtful(tmp_path)
    damage(tmp_path / "2")
    found, doubtful = best.scores(tmp_path), best.doubtful(tmp_path)
    assert found == {4: 1.5, 6: 1.75} and list(doubtful) == [2]
    assert best.kept([2, 4, 6], 1, found, doubtful) == {2, 4, 6}


def test_a_step_that_is_removed_while_its_score_is_read_is_not_in_doubt(tmp_path, monkeypatch):
    _with_digests(tmp_path, {2: 2.5, 4: 1.5})
    check = digests.check_file

    def removed(step, name):
        if step.name == "2":
            (step / "data" / "metadata").unlink()
            step.rename(tmp_path / "2.orbax-checkpoint-tmp")
        check(step, name)

    monkeypatch.setattr(digests, "check_file", removed)
    assert best.scores(tmp_path) == {4: 1.5} and not best.doubtful(tmp_path)


def test_a_changed_score_makes_no_step_the_best_and_removes_none(tmp_path, capfd):
    _fit(tmp_path, _validation())
    assert _steps(tmp_path) == [3, 6]
    changed = tmp_path / "checkpoints" / "3" / "data" / "metadata"
    changed.write_text(changed.read_text().replace('"score": 1.0', '"score": 0.0'))
    capfd.readouterr()
    assert load_params(tmp_path, step="best")[3] == load_params(tmp_path, step=6)[3]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "the score of step 3 can't be trusted (data/metadata is" in said[0]
    assert "step 6 is, give step=3" in said[0]
    load_params(tmp_path)
    assert not capfd.readouterr().err  # of the newest no score is asked
    falling = Validation(1, lambda state, frozen: {"loss": 8.5 - int(state.step)})
    _fit(tmp_path, falling, steps=8, save_every=8)
    assert _steps(tmp_path) == [3, 8]
    said = [line for line in capfd.readouterr().err.splitlines() if "trusted" in line]
    assert len(said) == 1 and "step 3 can't be trusted" in said[0] and "stays" in said[0]
    changed = tmp_path / "checkpoints" / "8" / "data" / "metadata"
    changed.write_text("{}")
    with pytest.raises(UserError, match="step='best': the score of step 8 .*; give one of .* 3, 8"):
        load_params(tmp_path, step="best")
