"""The trainer on the toy task, in this process: resuming, stopping, what it writes, what it
refuses.
"""

import dataclasses
import importlib.machinery
import json
import os
import signal
import sys
import threading
import time
import types

import chex
import jax
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.errors import ReaderKilled, UserError
from t2i_jax.train.background import is_compiling
from t2i_jax.train.log import WANDB_ID, check_wandb
from t2i_jax.train.loop import Hook, Preempted, TrainConfig, fit
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.stored import load_params

from .toy import ToyBatches, ToyTask

_CONFIG = TrainConfig(
    steps=6,
    batch_size=16,
    log_every=2,
    save_every=2,
    keep=3,
    ema_decay=0.9,
    optim=OptimConfig(learning_rate=0.01),
)

_TASK = ToyTask()


def _fit(workdir, task=_TASK, batches=None, hooks=(), **changes):
    return fit(
        task, batches or ToyBatches(), dataclasses.replace(_CONFIG, **changes), workdir, hooks=hooks
    )


def assert_same_state(a, b):
    """Bit for bit."""

    def plain(state):
        return state.replace(key=jax.random.key_data(state.key))

    chex.assert_trees_all_equal(plain(a), plain(b))


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, _fit(workdir)


def test_it_learns_writes_and_stores(uninterrupted):
    workdir, state = uninterrupted
    lines = _lines(workdir)
    assert [line["step"] for line in lines] == [1, 2, 4, 6] and lines[-1]["loss"] < lines[0]["loss"]
    assert {"grad_norm/first", "skipped", "images_per_second", "input_wait"} <= set(lines[-1])
    assert "mfu" not in lines[-1]  # nobody knows a CPU's peak
    for line in lines:  # of every optimiser of a step
        assert line["learning_rate/first"] == line["learning_rate/second"] == pytest.approx(0.01)
        assert line["grad_norm/second"] > 0
    assert "seconds_first_step" in lines[0]
    assert any(entry.name.startswith("events") for entry in workdir.iterdir())
    stored, params, ema, stats = load_params(workdir)
    assert stored["task"]["type"] == "ToyTask" and stored["train"]["steps"] == 6
    chex.assert_trees_all_equal((params, ema, stats), (state.params, state.ema, state.stats))
    assert set(ema) == {"first"}


def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(uninterrupted, tmp_path):
    _, whole = uninterrupted

    def stop_at(at):
        return Hook(
            1, lambda state, step, log: os.kill(os.getpid(), signal.SIGTERM) if step == at else None
        )

    for number in (3, 4):  # 3 is no multiple of save_every
        with pytest.raises(Preempted, match=f"after step {number}, everything is saved"):
            _fit(tmp_path, hooks=(stop_at(number),))
    assert_same_state(_fit(tmp_path), whole)
    steps = [line["step"] for line in _lines(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_a_finished_run_does_nothing_and_a_longer_one_carries_on(uninterrupted, tmp_path):
    batches = ToyBatches()
    first = _fit(tmp_path, batches=batches)
    again = _fit(tmp_path, batches=batches)
    assert_same_state(first, again)
    longer = _fit(tmp_path, steps=8, log_every=1)  # harmless changes
    assert longer.step == 8


def test_the_position_of_the_data_is_that_of_the_batches_trained_on(tmp_path):
    seen = []

    class Watched(ToyBatches):
        def set_state(self, states):
            seen.extend(states)
            super().set_state(states)

    _fit(tmp_path, steps=3)
    _fit(tmp_path, steps=4, batches=Watched())
    assert seen == [{"number": 3}]  # not 5, although two batches more had been read ahead


def test_lines_of_steps_that_were_not_saved_are_forgotten(tmp_path):
    _fit(tmp_path, steps=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # what a kill leaves
    _fit(tmp_path, steps=4)
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4]
    assert _lines(tmp_path)[2]["loss"] != 1.0


def test_hooks_run_at_their_steps_and_after_the_last(tmp_path):
    ran = []
    hook = Hook(
        2, lambda state, step, log: (ran.append(step), log.scalars(step, {"eval/x": float("nan")}))
    )
    _fit(tmp_path, steps=5, hooks=(hook,))
    assert ran == [2, 4, 5]
    assert {"step": 5, "eval/x": None} in _lines(tmp_path)


def test_the_heap_is_cleared_after_compiling_and_after_a_hook_that_compiled(tmp_path, monkeypatch):
    done, cleared = [], []
    monkeypatch.setattr("t2i_jax.heap.clear", lambda: cleared.append(len(done)))

    def compiles_at_step_2(state, step, log):
        done.append(step)
        if step == 2:  # a program that no cache has
            jax.jit(lambda x: x + time.time_ns() % 2**16)(np.zeros(3)).block_until_ready()

    _fit(tmp_path, hooks=(Hook(1, compiles_at_step_2),))
    assert done == [1, 2, 3, 4, 5, 6] and cleared == [0, 2]


def test_a_stop_while_the_data_hangs_saves_and_stops(tmp_path):
    class Hanging(ToyBatches):
        def __next__(self):
            if self.number == 4:  # two batches were taken, so a step is made
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            return super().__next__()

    with pytest.raises(Preempted):
        _fit(tmp_path, batches=Hanging(), save_every=100)
    assert load_params(tmp_path)[3]["seen"] > 0


@pytest.fixture
def slow_compiler(monkeypatch):
    """The program of the step is compiled until the test ends, that of the first state at once.

    The event is set when it has begun.
    """
    begun, over, compile_now = threading.Event(), threading.Event(), jax.stages.Lowered.compile

    def compile_slowly(self, **options):
        if "jit_train_step" in self.as_text()[:200]:
            begun.set()
            over.wait(60)
        return compile_now(self, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_slowly)
    yield begun
    over.set()
    while is_compiling():
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "done"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_stop_does_not_wait_for_the_compiler(tmp_path, number, done, request, capsys):
    if done:
        _fit(tmp_path, steps=done)
    begun = request.getfixturevalue("slow_compiler")

    def send():
        begun.wait(60)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    since = f"step {done} is saved" if done else "no step was made"
    with pytest.raises(Preempted, match=f"stopped while compiling, {since}; start the same"):
        _fit(tmp_path)
    assert is_compiling() and "compiling: 0 s" in capsys.readouterr().err


def test_steps_that_are_not_finite_are_skipped_and_too_many_end_the_run(tmp_path):
    state = _fit(tmp_path / "a", batches=ToyBatches(poison=(1, 3)))
    assert list(state.skipped) == [2, 0] and state.stats["seen"] == 4 * 16
    with pytest.raises(UserError, match="not finite 2 times in a row .* lower optim.learning_rate"):
        _fit(tmp_path / "b", batches=ToyBatches(poison=(2, 3)), max_skipped_in_a_row=2)
    assert load_params(tmp_path / "b")[0]["train"]["steps"] == 6  # the checkpoint of step 2 stays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task=ToyTask(width=8)), r"task.width: 16 -> 8"),
        (dict(optim=OptimConfig(learning_rate=0.02)), r"train.optim.learning_rate: 0.01 -> 0.02"),
        (dict(seed=1), r"train.seed: 0 -> 1\); change it back, or name a new workdir"),
    ],
)
def test_another_configuration_does_not_carry_on(uninterrupted, changes, message):
    with pytest.raises(UserError, match=message):
        _fit(uninterrupted[0], steps=7, **changes)


def test_a_change_that_is_allowed_carries_on(uninterrupted, tmp_path):
    fit(
        ToyTask(),
        ToyBatches(),
        _CONFIG,
        tmp_path,
        extra_config={"data": {"workers": 1, "set": "a"}},
    )
    longer = dataclasses.replace(_CONFIG, steps=7)
    changed = {"data": {"workers": 2, "set": "a"}}
    assert (
        fit(
            ToyTask(),
            ToyBatches(),
            longer,
            tmp_path,
            extra_config=changed,
            allowed=("data.workers",),
        ).step
        == 7
    )
    with pytest.raises(UserError, match="data.set: 'a' -> 'b'"):
        fit(
            ToyTask(),
            ToyBatches(),
            longer,
            tmp_path,
            extra_config={"data": {"workers": 1, "set": "b"}},
        )


def test_a_configuration_of_an_earlier_release_is_upgraded_before_it_is_compared(tmp_path):
    fit(ToyTask(), ToyBatches(), _CONFIG, tmp_path, extra_config={"data": {"set": "a"}})
    longer, today = dataclasses.replace(_CONFIG, steps=7), {"source": {"name": "a"}}
    with pytest.raises(UserError, match="another configuration"):
        fit(ToyTask(), ToyBatches(), longer, tmp_path, extra_config=today)

    def upgrade(stored):
        return {"source": {"name": stored["data"]["set"]}}

    state = fit(ToyTask(), ToyBatches(), longer, tmp_path, extra_config=today, upgrade=upgrade)
    assert state.step == 7


class _Broken(ToyBatches):
    """Batches with one entry changed."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __next__(self):
        return self.change(super().__next__())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"x": b["x"], "yy": b["y"]}, r"batch\['y'\] is missing; did you mean 'yy'"),
        (
            lambda b: {**b, "y": b["y"][:, :4]},
            r"batch\['y'\] is float32 \(16, 4\); the task wants float32 \(16, 8\)",
        ),
        (lambda b: {**b, "y": b["y"].astype(np.float64)}, r"batch\['y'\] is float64"),
        (lambda b: next(iter(())), "the data has ended"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        _fit(tmp_path, batches=_Broken(change))


def test_what_was_trained_until_a_reader_process_was_killed_is_saved(uninterrupted, tmp_path):
    class Killed(ToyBatches):
        def __next__(self):
            if self.number == 3:
                raise ReaderKilled("killed")
            return super().__next__()

    with pytest.raises(ReaderKilled, match="killed"):
        _fit(tmp_path, batches=Killed(), save_every=100)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["3"]
    assert_same_state(_fit(tmp_path), uninterrupted[1])


def test_an_error_of_the_data_is_raised_as_it_is(tmp_path):
    def fail(batch):
        raise OSError("the disk of the images is gone")

    with pytest.raises(OSError, match="the disk of the images is gone"):
        _fit(tmp_path, batches=_Broken(fail))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rules="fsd"), "did you mean 'fsdp'"),
        (dict(steps=0), r"train.steps=0 is below 1"),
        (dict(ema_decay=1.0), r"train.ema_decay=1.0 is outside"),
        (
            dict(batch_size=10, accumulate=4),
            r"batch_size=10 is not a multiple of train.accumulate=4; try batch_size=8",
        ),
        (dict(optim_by_group={"frst": OptimConfig()}), "names 'frst'.*did you mean 'first'"),
        (dict(mesh={"data": 3}), "does not fit 1 device"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        _fit(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_configuration_survives_json_and_groups_have_optimisers_of_their_own():
    given = TrainConfig(optim_by_group={"second": OptimConfig(learning_rate=1.0)}, mesh={"data": 1})
    known = {"TrainConfig": TrainConfig, "OptimConfig": OptimConfig}
    assert config.from_dict(json.loads(json.dumps(config.to_dict(given))), known) == given
    rates = {group: of.learning_rate for group, of in given.optim_of(["first", "second"]).items()}
    assert rates == {"first": OptimConfig().learning_rate, "second": 1.0}


def test_wandb_is_only_wanted_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="wandb_project='images' needs Weights & Biases"):
        _fit(tmp_path, wandb_project="images")


class _Wandb(types.ModuleType):
    """Stands in for Weights & Biases: what it is asked for, and the ids it gives."""

    def __init__(self):
        super().__init__("wandb")
        self.asked, self.logged = [], []

    def init(self, *, id, **asked):
        self.asked.append({"id": id, **asked})
        run = types.SimpleNamespace(id=id or f"new{len(self.asked)}", finish=lambda: None)
        run.log = lambda metrics, step: self.logged.append((run.id, step, metrics))
        return run


def test_a_run_that_is_carried_on_stays_one_run_in_wandb(tmp_path, monkeypatch):
    wandb = _Wandb()
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for workdir, steps in (("one", 2), ("one", 4), ("other", 2)):
        _fit(tmp_path / workdir, steps=steps, wandb_project="images")
    assert [asked["id"] for asked in wandb.asked] == [None, "new1", None]
    assert {asked["resume"] for asked in wandb.asked} == {"allow"}
    assert {(run, step) for run, step, _ in wandb.logged} >= {("new1", 2), ("new1", 4), ("new3", 2)}

    (tmp_path / "one" / WANDB_ID).write_bytes(b"\xff damaged")
    _fit(tmp_path / "one", steps=6, wandb_project="images")
    assert wandb.asked[-1]["id"] is None  # a new one, rather than no training


_SETTINGS = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DISABLED")


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases without a login."""
    made = _Wandb()
    made.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    made.api = types.SimpleNamespace(api_key=None)
    made.settings = types.SimpleNamespace(mode="online")
    made.setup = lambda: types.SimpleNamespace(settings=made.settings)
    monkeypatch.setitem(sys.modules, "wandb", made)
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return made


def test_a_login_to_wandb_is_missed_before_anything_trains(wandb, monkeypatch):
    with pytest.raises(UserError, match="wandb_project='images' needs a login .*; run `wandb log"):
        check_wandb("images")
    check_wandb(None)
    for name, value in (("WANDB_API_KEY", "k"), ("WANDB_MODE", "offline"),
                        ("WANDB_MODE", "disabled")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_wandb("images")
    wandb.settings.mode = "offline"  # as `wandb offline` has it
    check_wandb("images")
    wandb.settings.mode, wandb.api.api_key = "online", "of a .netrc"
    check_wandb("images")
    del wandb.api, wandb.setup  # another release
    check_wandb("images")
    assert not wandb.asked


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_wandb_refuses_costs_no_training(fails, wandb, tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise RuntimeError("its server is away")

    wandb.api.api_key = "k"
    begin = wandb.init if fails != "init" else refuse

    def init(**asked):
        run = begin(**asked)
        if fails != "init":
            setattr(run, fails, refuse)
        return run

    monkeypatch.setattr(wandb, "init", init)
    assert int(_fit(tmp_path, wandb_project="images").step) == 6
    said = capfd.readouterr().err
    assert said.count("can't be sent to Weights & Biases (its server is away)") == 1
    assert len(_lines(tmp_path)) >= 3
