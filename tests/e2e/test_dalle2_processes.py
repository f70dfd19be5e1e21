"""DALL-E 2's parts trained by two processes, and in a process that is killed, against one process
that nothing happens to.
"""

import pathlib
import signal
import subprocess
import sys

import chex
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax.train.stored import load_params

from ..loopback import end, losses, start
from . import tiny_dalle2
from .command import inside

_ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.long
PARTS = ("clip", "prior", "decoder")
CAPTION = ["a red circle"]
QUICK = {"steps": 2, "prior_steps": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, undisturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    inside("train", tiny_dalle2.__file__, "--workdir", workdir)
    return workdir


def test_two_processes_train_each_part_as_one_does(alone, tmp_path):
    two = tmp_path / "two"
    command = ("train", tiny_dalle2.__file__, "--mesh", "fsdp=2", "--workdir", two)
    statuses, out, err = end(start(2, "-m", "t2i_jax.cli.main", *command))
    assert statuses == [0, 0], err
    assert "alignment_heldout: " in out[0] and "alignment_heldout" not in out[1]
    for part in PARTS:
        here, there = losses(alone / part), losses(two / part)
        assert list(here) == list(there) == [1, 2, 4], part
        np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)
        # Adam makes whole steps of gradients that are but rounding
        mine, theirs = (load_params(run / part)[1] for run in (alone, two))
        chex.assert_trees_all_close(mine, theirs, rtol=1e-3, atol=5e-4)
    images = [t2i.load(run).generate(CAPTION, seed=3, **QUICK) for run in (alone, two)]
    assert np.abs(np.subtract(*images, dtype=float)).mean() < 2


def test_killed_within_the_prior_it_ends_in_the_same_bits(alone, tmp_path):
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.e2e.kill_dalle2", killed]
    process = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr[-2000:]
    before = load_params(killed / "clip")
    saved = {path.name for path in (killed / "prior" / "checkpoints").iterdir()}
    assert "2" in saved and "4" not in saved and not (killed / "decoder").exists()
    inside("train", tiny_dalle2.__file__, "--workdir", killed)
    chex.assert_trees_all_equal(load_params(killed / "clip")[1:], before[1:])
    for part in PARTS:
        chex.assert_trees_all_equal(load_params(killed / part)[1:], load_params(alone / part)[1:])
        here, there = losses(alone / part), losses(killed / part)
        assert here == {step: there[step] for step in here}  # a start tells its first step too
    images = [t2i.load(run).generate(CAPTION, seed=3, **QUICK) for run in (alone, killed)]
    np.testing.assert_array_equal(*images)
