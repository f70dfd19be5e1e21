"""Muse, its tokenizer and both of its stages, trained by two processes against one."""

import chex
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax.train.stored import load_params

from ..loopback import end, losses, start
from . import tiny_muse
from .command import inside


@pytest.mark.long
def test_two_processes_train_each_stage_as_one_does(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    inside("train", tiny_muse.__file__, "--workdir", alone)
    command = ("train", tiny_muse.__file__, "--mesh", "fsdp=2", "--workdir", two)
    statuses, out, err = end(start(2, "-m", "t2i_jax.cli.main", *command))
    assert statuses == [0, 0], err
    assert "alignment_heldout: " in out[0] and "alignment_heldout" not in out[1]
    for part in ("tokenizer", "base", "superres"):
        here, there = losses(alone / part), losses(two / part)
        assert list(here) == list(there) == [1, 2, 4], part
        # gradients that are but rounding move Adam by whole steps, and codes that lie near a
        # boundary change with the order of sums
        np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)
        mine, theirs = (load_params(run / part)[1] for run in (alone, two))
        chex.assert_trees_all_close(mine, theirs, rtol=1e-3, atol=5e-4)
    images = [
        t2i.load(run).generate(["a red circle"], seed=3, steps=2, superres_steps=2)
        for run in (alone, two)
    ]
    assert np.abs(np.subtract(*images, dtype=float)).mean() < 2
