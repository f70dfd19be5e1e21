"""`t2i compile` wires a task as `t2i train` does: for every shipped recipe both lower the same
program.

A step's program follows from three things: the task, its `TrainConfig` and the shapes of what is
frozen. For every shipped recipe these are compared. The text of the program is compared for the
small recipes of the tests, the tokenizer among them with its discriminator and VGG16, and for every
shipped recipe with HYPOTHESIS_PROFILE=long: lowering the papers' networks takes a minute each,
twice.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert, sharding
from t2i_jax.cli.compile import _parts, _stages
from t2i_jax.convert import torch_io
from t2i_jax.models.discriminator import Discriminator
from t2i_jax.models.vgg import Vgg16
from t2i_jax.runs import evaluation, training
from t2i_jax.runs.recipe import changed, load_recipe
from t2i_jax.text.t5 import T5Text
from t2i_jax.train import state as states
from t2i_jax.train.step import train_step
from t2i_jax.types import TrainState
from tests.e2e import tiny

_CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
_RECIPES = sorted(path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob("*.py"))


class _Done(Exception):
    """Training has come as far as its loop."""


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    image = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(Vgg16().init, jax.random.key(0), image, image)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    torch_io.write(path, convert.to_state(Vgg16(), params))
    return path


def _trained(recipe, workdir, monkeypatch):
    """(task, config, frozen) that training gives its loop, by the stage's name: those of the
    recipe's own ("") or, where it joins stages, of each of them.

    Parts are trained for no step, and no data are read.
    """
    found = {}

    def fit(task, stream, config, folder, *, frozen, **_):
        found["" if folder == workdir else folder.name] = task, config, frozen
        if folder == workdir:
            raise _Done
        shapes = sharding.unbox(sharding.initial(task))
        params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        nothing = jnp.zeros((), jnp.int32)
        return TrainState(nothing, params, {}, {}, stats, nothing, jax.random.key(0))

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "check", lambda *args, **options: ())
    monkeypatch.setattr(training, "_source", lambda data: [None])
    monkeypatch.setattr(training, "_check_data", lambda recipe, parts: None)
    monkeypatch.setattr(training, "batches", mock.MagicMock())
    monkeypatch.setattr(training.sharding, "place_frozen", lambda frozen, *_: frozen)
    for name in ("DataLedger", "stored_text", "validation_of", "held_out", "write_report"):
        monkeypatch.setattr(training, name, mock.MagicMock())
    monkeypatch.setattr(evaluation, "held_out", mock.MagicMock())
    monkeypatch.setattr(training, "captions_of", lambda *_: ["a red circle above a blue square"])
    monkeypatch.setattr(training.captions, "check", lambda *_: None)
    monkeypatch.setattr(T5Text, "frozen", T5Text.frozen_shapes)  # nothing is fetched
    monkeypatch.setattr(T5Text, "tokenizer", lambda self, folder=None: None)
    with contextlib.suppress(_Done):
        training.train(recipe, workdir)
    return {"": found[""]} if recipe.task.objectives else found


def _program(task, config, frozen):
    """The lowered step, for one device."""
    mesh = sharding.make_mesh(None, jax.devices()[:1])
    optimisers = states.optimisers_of(task, config)
    state = states.abstract(task, optimisers, config.ema_decay, mesh, "dp")
    step = functools.partial(
        train_step,
        task=task,
        optimisers=optimisers,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    return jax.jit(step).lower(state, frozen, dict(task.batch_spec(config.batch_size))).as_text()


def _shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


def _wired(recipe, tmp_path, monkeypatch, vgg):
    """What compile and training wire: by stage (task, config, frozen) of both."""
    recipe = changed(recipe, ["*.train.mesh=None", "*.train.rules=None"])
    if "perceptual" in recipe.task.parts:
        recipe = changed(recipe, [f"perceptual={vgg}"])
    planned = {"": _parts(recipe)} if recipe.task.objectives else _stages(recipe)
    trained = _trained(recipe, tmp_path / "run", monkeypatch)
    if "perceptual" in recipe.task.parts:
        assert planned[""][0].perceptual is not None and "perceptual" in planned[""][2]
    assert list(planned) == list(trained)
    return {name: (planned[name], trained[name]) for name in planned}


@pytest.mark.parametrize("name", _RECIPES)
def test_compile_and_train_wire_the_same_step(name, tmp_path, monkeypatch, vgg):
    stages = _wired(load_recipe(_CONFIGS / name), tmp_path, monkeypatch, vgg)
    for planned, trained in stages.values():
        assert planned[:2] == trained[:2] and _shapes(planned[2]) == _shapes(trained[2])
        if os.environ.get("HYPOTHESIS_PROFILE") == "long":
            assert _program(*planned) == _program(*trained)


def _gan():
    recipe = tiny.get_config().parts["tokenizer"]
    task = dataclasses.replace(recipe.task, discriminator=Discriminator(dims=(4,), groups=2))
    return dataclasses.replace(recipe, task=task)


@pytest.mark.parametrize("make", [tiny.get_config, _gan], ids=["parti", "gan"])
def test_compile_and_train_lower_the_same_program(make, tmp_path, monkeypatch, vgg):
    planned, trained = _wired(make(), tmp_path, monkeypatch, vgg)[""]
    program = _program(*planned)
    assert program == _program(*trained)
    if "perceptual" in planned[2]:  # its convolutions are in the step that is reported
        without = {name: value for name, value in planned[2].items() if name != "perceptual"}
        bare = dataclasses.replace(planned[0], perceptual=None)
        assert (
            program.count("convolution")
            > _program(bare, planned[1], without).count("convolution") + 12
        )
