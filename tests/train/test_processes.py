"""Several processes over loopback train what one trains, stop together, miss each other, carry on.

See several.py.
"""

import signal
import socket
import time

import chex
import numpy as np
import pytest

from t2i_jax.train.loop import TrainConfig, fit
from t2i_jax.train.stored import load_params

from ..loopback import end, losses, start
from .several import CONFIG, TASK
from .toy import ToyBatches


def several(count, workdir, *what):
    return start(count, "-m", "tests.train.several", workdir, *what, slurm=what[:1] == ("width",))


def finished(workdir):
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )


def assert_lost(killed, others):
    """The others end within a minute, and name the one that was killed."""
    assert killed.wait(timeout=120) == -signal.SIGKILL
    begin = time.monotonic()
    statuses, _, said = end(others)
    assert time.monotonic() - begin < 60
    assert statuses == [75] * len(others), said
    for text in said:
        assert f", pid {killed.pid}) was lost" in text and "start the same command again" in text


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, undisturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    state = fit(
        TASK, ToyBatches(), TrainConfig(**{**vars(CONFIG), "mesh": None, "rules": "dp"}), workdir
    )
    return workdir, state


def assert_as_alone(workdir, alone):
    """Sums over processes are rounded differently, and Adam repeats that in every step."""
    same = losses(alone[0])
    np.testing.assert_allclose(
        [losses(workdir)[step] for step in same], list(same.values()), rtol=1e-4
    )
    chex.assert_trees_all_close(load_params(workdir)[1], alone[1].params, rtol=1e-3, atol=1e-4)


def test_two_processes_stopped_and_killed_end_in_the_bits_of_two_undisturbed_ones(tmp_path, alone):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    statuses, _, said = end(several(2, whole, "after", 1))  # a signal when everything is trained
    assert statuses == [75, 75], said
    assert (
        "stopped by SIGTERM" in said[1]
        and "process 1 (" in said[0]
        and "stopped by SIGTERM" in said[0]
    )
    assert_as_alone(whole, alone)

    statuses, _, said = end(several(2, cut, "SIGINT", 1, 3))
    assert statuses == [75, 75] and all(
        "stopped after step 3, everything is saved" in text for text in said
    ), said
    assert finished(cut) == [3]

    first, second = several(2, cut, "SIGKILL", 1, 7)
    assert_lost(second, [first])
    assert finished(cut) == [3, 5]

    # what process 0 does not read
    for path in (cut / "checkpoints" / "5" / "weights" / "ocdbt.process_1").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    statuses, _, said = end(several(2, cut))
    assert statuses == [0, 0], said
    assert (
        "the checkpoint of step 5 can't be read" in said[0] and "step 3 is taken instead" in said[0]
    )
    assert (cut / "unreadable" / "5.0").is_dir()

    assert losses(cut) == losses(whole)
    chex.assert_trees_all_equal(load_params(cut)[1:], load_params(whole)[1:])


def test_four_processes_go_on_as_two_when_process_0_is_killed(tmp_path, alone):
    first, *others = several(4, tmp_path, "SIGKILL", 0, 8)
    assert_lost(first, others)
    assert finished(tmp_path) == [5]
    statuses, _, said = end(several(2, tmp_path))
    assert statuses == [0, 0], said
    assert_as_alone(tmp_path, alone)


@pytest.mark.parametrize(
    ("what", "process", "status", "sentence"),
    [
        (
            "width",
            1,
            2,
            "has another configuration than process 0 (task.width: 256 -> 8); give every process "
            "the same",
        ),
        ("elsewhere", 1, 2, "has another folder"),
        ("full", 0, 2, "has ended: the disk of 'here' is full; free space."),
        ("raise", 1, 1, "has ended: OSError: the images are gone"),
    ],
)
def test_what_is_wrong_with_one_ends_both_with_a_sentence_that_names_it(
    tmp_path, what, process, status, sentence
):
    processes = several(2, tmp_path / "run", what, process, 7)
    pid = processes[process].pid
    statuses, _, said = end(processes)
    assert statuses == [status, status], said
    assert f"process {process} ({socket.gethostname()}, pid {pid}) {sentence}" in said[1 - process]
    assert sentence.removeprefix("has ended: ") in said[process]


def test_a_stop_ends_those_too_whose_data_hang(tmp_path):
    statuses, _, said = end(several(2, tmp_path, "wait", 1, 7))
    assert statuses == [75, 75] and all("stopped after step 7" in text for text in said), said
    assert finished(tmp_path)[-1] == 7


def test_a_stop_ends_all_while_they_compile(tmp_path):
    begin = time.monotonic()
    statuses, _, said = end(several(2, tmp_path, "compile", 1))
    assert statuses == [75, 75], said
    assert all("stopped while compiling, no step was made; start the same" in one for one in said)
    assert time.monotonic() - begin < 140  # nobody has waited for the compiler


def test_without_being_joined_processes_do_not_train_past_each_other(tmp_path):
    code = """
import os, jax
address, number = (os.environ["JAX_" + name] for name in ("COORDINATOR_ADDRESS", "PROCESS_ID"))
jax.distributed.initialize(address, 2, int(number))
from t2i_jax.train.loop import fit
from tests.train.several import CONFIG, ToyBatches, ToyTask
fit(ToyTask(), ToyBatches(), CONFIG, "nowhere")
"""
    statuses, _, said = end(start(2, "-c", code))
    assert statuses == [1, 1]
    assert all("several processes run, and nothing joins them; use `with" in text for text in said)
