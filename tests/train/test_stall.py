"""A run that waits for data says so, on the progress line and in a sentence."""

import dataclasses
import re
import threading
import time

import pytest

from t2i_jax.train import stall
from t2i_jax.train.log import Log
from t2i_jax.train.loop import TrainConfig, fit

from .toy import ToyBatches, ToyTask

_CONFIG = TrainConfig(steps=6, batch_size=16, log_every=2, save_every=100)


class _Batches(ToyBatches):
    """Batch `number` takes `seconds[number]`, the others no time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __next__(self):
        time.sleep(self.seconds.get(self.number, 0))
        return super().__next__()


def test_much_waiting_is_marked_and_said_once(tmp_path, capfd):
    config = dataclasses.replace(_CONFIG, steps=12)
    fit(ToyTask(), _Batches(dict.fromkeys(range(15), 0.2)), config, tmp_path)
    said = capfd.readouterr().err
    assert len(re.findall(r"wait=\d\d+% !", said)) >= 2
    sentences = re.findall(r"training waits for data, \d+% of the time up to step \d+: .*", said)
    assert (
        len(sentences) == 1 and "data.workers" in sentences[0] and "t2i data pack" in sentences[0]
    )


class _Late(ToyBatches):
    """Batch `number` comes once `enough` is set: however long the first step takes to compile,
    training waits for it.
    """

    def __init__(self, late, enough):
        super().__init__()
        self.late, self.enough = late, enough

    def __next__(self):
        if self.number == self.late:
            self.enough.wait(60)
        return super().__next__()


@pytest.mark.parametrize("number", [0, 3])
def test_a_long_wait_shows_while_it_lasts(tmp_path, capfd, monkeypatch, number):
    shown, enough, progress = [], threading.Event(), Log.progress

    def seen(self, step, figures):
        progress(self, step, figures)
        shown.extend(name for name in figures if name == "waiting for data")
        if len(shown) >= 2:
            enough.set()

    monkeypatch.setattr(stall, "_LONG", 0.3)
    monkeypatch.setattr(Log, "progress", seen)
    config = dataclasses.replace(_CONFIG, log_every=100)  # no line of figures that could tell
    fit(ToyTask(), _Late(number, enough), config, tmp_path)
    said = capfd.readouterr().err
    assert enough.is_set() and re.search(r"waiting for data=\ds !", said)
    sentences = re.findall(
        r"no batch has come for \d s after step \d; if the data stay slow: .*data.workers", said
    )
    assert len(sentences) == (number > 0)  # the first batch: the readers only start


class _Log:
    """Keeps what it is told."""

    def __init__(self):
        self.said, self.shown = [], []

    def say(self, sentence):
        self.said.append(sentence)

    def progress(self, step, shown):
        self.shown.append(shown)


def test_short_waits_and_a_single_bad_line_are_not_complained_of():
    log, times = _Log(), iter(range(100))
    stalls = stall.Stalls(log, now=lambda: float(next(times)))
    for share in (0.19, 0.5, 0.1, 0.3, 0.19):
        stalls.check(10, share)
    give_up = stalls.watch(10, False, lambda: True)
    assert give_up() and not log.shown and not log.said
    stalls.check(20, 0.21)
    stalls.check(30, 0.21)
    stalls.check(40, 0.9)
    assert len(log.said) == 1 and "21% of the time up to step 30" in log.said[0]
