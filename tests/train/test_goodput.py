"""Where the time goes: every second has one kind, over several starts, whatever ends them."""

import dataclasses
import json
import os
import time

import jax
import jax.numpy as jnp
import pytest

from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.goodput import FILE, KINDS, Goodput
from t2i_jax.train.loop import Hook, TrainConfig, fit

from .toy import ToyBatches, ToyTask

_CONFIG = TrainConfig(steps=6, batch_size=16, log_every=2, save_every=2, keep=3)


class _Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def _spend(goodput, clock, **seconds):
    for kind, time_spent in seconds.items():
        with goodput.spent_on(kind):
            clock.time += time_spent


def test_every_second_is_of_one_kind():
    clock = _Clock()
    goodput = Goodput(now=clock)
    clock.time += 3
    _spend(goodput, clock, compile=5)
    clock.time += 1
    goodput.start_training()
    with goodput.spent_on("step"):
        clock.time += 7
        _spend(goodput, clock, input=2)  # within, not beside
        clock.time += 1
    clock.time += 1
    with pytest.raises(KeyError), goodput.spent_on("hooks"):
        clock.time += 4
        raise KeyError
    expected = {
        "restart": 4,
        "compile": 5,
        "step": 8,
        "input": 2,
        "hooks": 4,
        "evaluate": 0,
        "other": 1,
        "checkpoint": 0,
        "lost": 0,
    }
    assert goodput.seconds() == expected
    assert goodput.metrics() == {
        "goodput": round(8 / 24, 4),
        **{f"seconds/{kind}": expected[kind] for kind in KINDS},
    }


def test_starts_add_up_and_steps_that_were_made_for_nothing_are_lost():
    clock = _Clock()
    first = Goodput(now=clock)
    first.start_training()
    for step, seconds in ((1, 10), (2, 20), (3, 40)):
        _spend(first, clock, step=seconds)
        if step < 3:
            first.save(step)
    stored = json.loads(json.dumps(first.stored()))
    clock.time += 1000  # nothing runs

    second = Goodput(stored, now=clock)
    second.resume(1)  # the checkpoint of step 2 is damaged, that of 3 was never made
    clock.time += 5
    second.start_training()
    assert second.seconds() | {"restart": 5} == second.seconds()
    assert (second.seconds()["step"], second.seconds()["lost"]) == (10, 60)
    _spend(second, clock, step=30)
    second.save(2)

    third = Goodput(second.stored(), now=clock)
    third.resume(0)  # no checkpoint at all
    assert (third.seconds()["step"], third.seconds()["lost"], sum(third.seconds().values())) == (
        0,
        100,
        105,
    )


def test_figures_that_cannot_be_read_or_do_not_know_a_step_start_anew(tmp_path):
    odd = [f'{{"seconds": {{"step": {value}}}, "saves": {{}}}}' for value in ("9" * 400, "NaN")]
    odd += [f'{{"seconds": {{}}, "saves": {{"3": {"9" * 400}}}}}', '{"a": ' * 10_000, "[" * 10_000]
    for content in ("", "[]", '{"seconds": 1}', '{"seconds": {}, "saves": {"x": 1}}', *odd):
        (tmp_path / FILE).write_text(content)
        assert sum(Goodput.of(tmp_path).seconds().values()) < 1
    (tmp_path / FILE).unlink()
    os.mkfifo(tmp_path / FILE)
    assert sum(Goodput.of(tmp_path).seconds().values()) < 1
    unknown = Goodput({"seconds": {"step": 3.0}, "saves": {}})
    unknown.resume(7)
    assert unknown.seconds()["step"] == 3 and unknown.seconds()["lost"] == 0


@dataclasses.dataclass(frozen=True)
class _SlowTask(ToyTask):
    """A step of a tenth of a second, in which the processor is free."""

    def first(self, params, stats, frozen, batch, key, step):
        loss, rest = super().first(params, stats, frozen, batch, key, step)
        slow = jax.pure_callback(
            _sleep, jax.ShapeDtypeStruct((), jnp.float32), jax.lax.stop_gradient(loss)
        )
        return loss + slow, rest


def _sleep(loss):
    time.sleep(0.1)
    return 0 * loss


class _SlowBatches(ToyBatches):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __next__(self):
        time.sleep(self.seconds)
        return super().__next__()


def _trained(workdir, task, seconds, hooks=(), **changes):
    """(wall time, metrics.json) of a run."""
    begin = time.perf_counter()
    fit(task, _SlowBatches(seconds), dataclasses.replace(_CONFIG, **changes), workdir, hooks=hooks)
    return time.perf_counter() - begin, json.loads((workdir / "metrics.json").read_text())


def test_a_run_accounts_for_its_wall_time(tmp_path, monkeypatch):
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *arguments: (time.sleep(0.3), save(*arguments)))
    hook = Hook(3, lambda *_: time.sleep(0.2))
    wall, figures = _trained(tmp_path, ToyTask(), 0.4, hooks=(hook,), steps=9, save_every=5)
    spent = {kind: figures[f"seconds/{kind}"] for kind in KINDS}
    assert wall - 1 < sum(spent.values()) <= wall
    assert spent["hooks"] >= 0.59 and spent["checkpoint"] > 2 * 0.3
    assert spent["input"] > 0.4 and spent["restart"] > 0.4 and spent["compile"] > 0.05
    assert spent["lost"] == 0 and figures["goodput"] == pytest.approx(
        spent["step"] / sum(spent.values()), abs=0.001
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"goodput", *(f"seconds/{kind}" for kind in KINDS)} <= set(line) for line in lines)


def test_data_that_come_while_the_devices_are_busy_cost_nothing(tmp_path):
    _, fast = _trained(tmp_path / "fast", _SlowTask(), 0.05, steps=12, save_every=20)
    assert fast["seconds/step"] > 12 * 0.1 and fast["seconds/input"] < 0.2
    _, slow = _trained(tmp_path / "slow", _SlowTask(), 0.2, steps=24, save_every=30)
    # half of each wait, but for the batches that came while the step was compiled
    assert slow["seconds/step"] > 24 * 0.1 and 0.5 < slow["seconds/input"] < 24 * 0.2 - 1


def test_a_run_that_fails_knows_what_it_lost_when_it_starts_again(tmp_path):
    def fail(state, step, log):
        if step == 5:
            raise RuntimeError("a preview fails")

    with pytest.raises(RuntimeError, match="a preview fails"):
        _trained(tmp_path, _SlowTask(), 0.0, hooks=(Hook(1, fail),))
    # it accounted for its time all the same
    before = json.loads((tmp_path / "metrics.json").read_text())
    _, after = _trained(tmp_path, _SlowTask(), 0.0)
    # step 5, after the save at 4
    assert before["seconds/lost"] == 0 and 0.09 < after["seconds/lost"] < 0.5
    assert after["seconds/restart"] > before["seconds/restart"] and after["seconds/step"] > 6 * 0.1
