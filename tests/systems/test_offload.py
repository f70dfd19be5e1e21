"""Weights of a cascade, or of Muse, in the host's memory: of its stages only the one that runs is
on the device.
"""

import dataclasses
import gc

import jax
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.on_host import initialise
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.muse.system import MuseSystem
from t2i_jax.systems.muse.task import MuseTask
from tests.systems import toy_muse
from tests.systems.toy_cascade import TASK

_INPUTS = 2**14  # bytes of prompts, keys and images; a stage is larger


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_between_stages_no_more_than_one_is_on_the_device(monkeypatch):
    params = jax.device_get(initialise(TASK.init, jax.random.key(0))[0])
    updates = {"stage_1": 1, "stage_2": 1}
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(2, 3, 6)).astype(np.float32), np.ones((2, 3), bool)
    usual = ImagenSystem(TASK, jax.device_put(params), updates)
    wanted = usual.generate(prompts, seed=1, batch_size=1)
    offloaded, there = usual.offloaded(), []
    del usual
    gc.collect()
    others = jax.live_arrays()  # held, so that their ids stay theirs
    before = {id(array) for array in others}
    program = ImagenSystem._program

    def watched(self, params, *given, **settings):
        gc.collect()
        live = sum(a.nbytes for a in jax.live_arrays() if id(a) not in before)
        there.append((settings["number"], live))
        return program(self, params, *given, **settings)

    monkeypatch.setattr(ImagenSystem, "_program", watched)
    found = offloaded.generate(prompts, seed=1, batch_size=1)
    np.testing.assert_array_equal(found, wanted)
    assert [number for number, _ in there] == [1, 2, 1, 2]
    for number, live in there:
        own = _bytes(params[f"stage_{number}"])
        assert _INPUTS < own <= live < own + _INPUTS
    gc.collect()
    assert sum(a.nbytes for a in jax.live_arrays() if id(a) not in before) < _INPUTS


def test_of_muse_neither_stage_is_on_the_device_when_the_other_begins(monkeypatch):
    stages = [toy_muse.system_of(task) for task in (toy_muse.TASK, toy_muse.SUPERRES)]
    gc.collect()
    others = jax.live_arrays()  # held, so that their ids stay theirs
    before = {id(array) for array in others}
    there = jax.device_put([(jax.device_get((one.weights, one.frozen))) for one in stages])
    stages = [
        dataclasses.replace(one, weights=weights, frozen=frozen)
        for one, (weights, frozen) in zip(stages, there, strict=True)
    ]
    usual = MuseSystem(MuseTask(), {}, *stages)
    steps = {"steps": 1, "superres_steps": 1}
    wanted = usual.generate(toy_muse.CAPTIONS, batch_size=2, **steps)
    offloaded = usual.offloaded()
    own = [_bytes((one.weights, one.frozen)) for one in stages]
    del usual, stages, there
    there = []
    make = MaskGitSystem.make

    def watched(self, *given):
        gc.collect()
        there.append(sum(a.nbytes for a in jax.live_arrays() if id(a) not in before))
        return make(self, *given)

    monkeypatch.setattr(MaskGitSystem, "make", watched)
    found = offloaded.generate(toy_muse.CAPTIONS, batch_size=2, **steps)
    np.testing.assert_array_equal(found, wanted)
    assert len(there) == 4 and max(there) < _INPUTS < min(own)
    for stage in (offloaded.base, offloaded.superres):
        leaves = jax.tree.leaves((stage.weights, stage.frozen))
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_a_system_on_a_mesh_is_not_offloaded():
    params = initialise(TASK.init, jax.random.key(0))[0]
    spread = ImagenSystem(TASK, params, {"stage_1": 1, "stage_2": 1}).on_mesh({"data": 1})
    with pytest.raises(UserError, match="a mesh shares them among several"):
        spread.offloaded()
