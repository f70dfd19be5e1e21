"""A run that trains both groups of a toy, then one of them, then both again."""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.train.loop import Hook, TrainConfig, fit
from tests.train.toy import ToyBatches, ToyTask

_WIDTH = 40  # of no other test


@dataclasses.dataclass(frozen=True)
class OneOfTwo(ToyTask):
    """`trains` are the groups that are trained; whether the others count as idle is `apart`."""

    width: int = _WIDTH
    ema_groups: tuple = ("first", "second")
    trains: tuple = ("first", "second")
    apart: bool = True

    @property
    def objectives(self):
        return tuple(one for one in super().objectives if one.group in self.trains)

    @property
    def idle_groups(self):
        rest = tuple(group for group in self.ema_groups if group not in self.trains)
        return rest if self.apart else ()


def in_turns(workdir, mesh=None, apart=True):
    """(the last state, by step where the arrays of "second" lie and how many matrices are on the
    device) of a run that trains both groups, the first alone, and both.
    """
    seen = {}

    def look(state, step, log):
        second = (state.params, state.opt_state, state.ema)
        leaves = jax.tree.leaves([tree["second"] for tree in second])
        there = Counter(a.sharding.memory_kind for a in jax.live_arrays() if a.shape == (8, _WIDTH))
        seen[step] = {leaf.sharding.memory_kind for leaf in leaves}, there["device"]

    for steps, trains in ((2, ("first", "second")), (4, ("first",)), (6, ("first", "second"))):
        config = TrainConfig(
            steps=steps, batch_size=16, log_every=1, save_every=2, ema_decay=0.9, mesh=mesh
        )
        task = OneOfTwo(trains=trains, apart=apart)
        state = None  # the last one is not on the device while the next is trained
        state = fit(
            task, ToyBatches(), config, workdir, hooks=(Hook(1, look),),
            allowed=("task.trains",),
        )  # fmt: skip
    return state, seen


def check(workdir, mesh=None):
    """Fails where an idle group is not in the host's memory, or changes what is computed."""
    state, seen = in_turns(workdir / "apart", mesh)
    usual, _ = in_turns(workdir / "usual", mesh, apart=False)
    for step, (kinds, matrices) in seen.items():
        is_idle = step in (3, 4)
        assert kinds == {sharding.HOST if is_idle else "device"}
        # a parameter, two moments and an average of each group
        assert matrices == (4 if is_idle else 8), f"{matrices} at step {step}"
    for name in ("params", "opt_state", "ema", "stats", "skipped"):
        mine, theirs = (jax.tree.leaves(getattr(one, name)) for one in (state, usual))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}
