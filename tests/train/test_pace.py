"""What is told of a run's speed, on clocks that the tests move."""

import pytest

from t2i_jax.train import pace
from t2i_jax.train.chips import CHIPS, Chip, chip_of
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.pace import Pace


class _Run:
    """A run of 100 steps of 8 images whose steps take as long as the test says."""

    def __init__(self, done=0, flops=lambda: 1e12):
        self.time = 0.0
        self.clock = Goodput(now=lambda: self.time)
        self.pace = Pace(done, 100, 8, flops, self.clock, now=lambda: self.time)
        self.done = done

    def spend(self, kind, seconds):
        with self.clock.spent_on(kind):
            self.time += seconds

    def steps(self, count, each):
        self.spend("step", count * each)
        self.done += count
        return self.pace.measure(self.done)


@pytest.mark.parametrize("done", [0, 40])
def test_the_time_left_knows_nothing_of_compiling_and_of_the_first_step(done):
    run = _Run(done)
    run.spend("compile", 500)
    metrics, shown = run.steps(1, each=30)
    assert metrics == {"seconds_first_step": 530} and shown == {"first step": "530.0s"}
    metrics, shown = run.steps(9, each=2)
    assert shown["left"] == ("3:00" if done == 0 else "1:40")
    assert shown["steps/s"] == "0.5" and shown["img/s"] == "4" and shown["wait"] == "0%"
    assert metrics["seconds_per_step"] == 2 and metrics["images_per_second"] == 4


def test_the_time_left_counts_previews_and_saves_which_go_on_and_the_speed_does_not():
    run = _Run()
    run.steps(1, each=2)
    run.spend("hooks", 18)
    _, shown = run.steps(9, each=2)
    assert shown["left"] == "6:00" and shown["steps/s"] == "0.5"


def test_the_time_left_follows_a_change_of_speed():
    run = _Run()
    run.steps(1, each=100)
    for _ in range(25):
        _, shown = run.steps(2, each=100)
    assert shown["left"] == "1:21:40" and shown["steps/s"] == "0.01"
    for _ in range(20):
        _, shown = run.steps(1, each=1)
    assert shown["left"] == "0:29" and shown["steps/s"] == "1"


def test_mfu_is_told_where_the_peak_is_known_and_never_on_a_cpu(monkeypatch):
    def never():
        raise AssertionError("its FLOPs are of no use")

    run = _Run(flops=never)
    run.steps(1, each=1)
    metrics, shown = run.steps(1, each=1)
    assert "mfu" not in metrics and "MFU" not in shown and shown["steps/s"] == "1"
    monkeypatch.setattr(pace, "chip_of", lambda kind: Chip(4e12))
    run = _Run()
    run.steps(1, each=1)
    metrics, shown = run.steps(1, each=1)
    assert metrics["mfu"] == 0.25 and shown["MFU"] == "25%"


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),  # the same name, fewer watts
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
    ],
)
def test_the_peak_is_that_of_the_form_of_a_chip(kind, teraflops):
    assert chip_of(kind).flops == teraflops * 1e12


def test_every_tpu_has_a_share_of_its_hosts_network():
    """Per host of so many chips, in Gbit/s."""
    hosts = {"TPU v4": (4, 200), "TPU v5e": (8, 200), "TPU v5p": (4, 200), "TPU v6e": (8, 800)}
    for kind, (chips, rate) in hosts.items():
        assert CHIPS[kind].dcn == rate * 1e9 / 8 / chips
