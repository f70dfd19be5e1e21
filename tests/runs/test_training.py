"""What a recipe brings into a run beside its task: the weights of a perceptual judge."""

import dataclasses

import jax
import numpy as np
import pytest

from t2i_jax import convert, runs
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.vgg import Vgg16
from tests.e2e.tiny import get_config

RECIPE = get_config().parts["tokenizer"]


def no_hooks(recipe, build_system):
    return ()


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file of VGG16, its convolutions alone, with random weights."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    params = Vgg16().init(jax.random.key(0), image, image)["params"]
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    torch_io.write(path, convert.to_state(Vgg16(), jax.device_get(params)))
    return path


def test_a_file_of_weights_turns_the_perceptual_loss_on(vgg, tmp_path, capfd):
    train = dataclasses.replace(RECIPE.train, steps=1, log_every=1)
    recipe = dataclasses.replace(RECIPE, perceptual=str(vgg), train=train)
    system = runs.train(recipe, tmp_path, hooks=no_hooks)
    assert isinstance(system.task.perceptual, Vgg16)
    assert '"perceptual"' in (tmp_path / "metrics.jsonl").read_text()
    assert "perceptual loss is off" not in capfd.readouterr().err
    stored = {path.name for path in tmp_path.rglob("*") if "perceptual" in path.name}
    assert not stored  # the judge's weights are the user's file, no part of the run


def test_without_a_file_it_is_off_and_a_line_says_so(tmp_path, capfd):
    task = dataclasses.replace(RECIPE.task, perceptual=Vgg16())
    train = dataclasses.replace(RECIPE.train, steps=1)
    system = runs.train(
        dataclasses.replace(RECIPE, task=task, train=train), tmp_path, hooks=no_hooks
    )
    assert system.task.perceptual is None
    said = [
        line for line in capfd.readouterr().err.splitlines() if "perceptual loss is off" in line
    ]
    assert len(said) == 1 and "perceptual=FILE" in said[0]


def test_another_file_is_refused_before_anything_trains(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        runs.train(
            dataclasses.replace(RECIPE, perceptual=str(tmp_path / "none.pth")),
            tmp_path / "run",
            hooks=no_hooks,
        )
    whole = get_config()
    with pytest.raises(
        UserError, match="parts.perceptual is given for PartiTask, whose parts are tokenizer"
    ):
        runs.train(
            dataclasses.replace(whole, tokenizer=None, perceptual="vgg.pth"),
            tmp_path / "run",
            hooks=no_hooks,
        )
