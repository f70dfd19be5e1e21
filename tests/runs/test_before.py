"""Runs and exports that the code of commit 6cd6d1f wrote load, resume and sample as they did there.

`before/*.tar.xz` hold small runs that were stopped at step 2 of 4; beside each are images that its
system made after all 4 steps, with the root mean square of every array. They were made with the
compiler's flags of these tests on a processor with AVX-512. There exports sample bit for bit;
elsewhere sums may round differently. A step takes sums in another order than it did then: of a run
that is resumed, images may differ by 1 and arrays in the sixth digit.
"""

import dataclasses
import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.discriminator import Discriminator
from t2i_jax.models.vgg import Vgg16
from t2i_jax.runs import folder
from t2i_jax.runs.recipe import changed
from tests.e2e import tiny, tiny_imagen

_HERE = pathlib.Path(__file__).parent / "before"
_CAPTIONS = ["a red circle above a blue square", "a green triangle"]
_IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)


def _unpacked(name, place):
    with tarfile.open(_HERE / f"{name}.tar.xz") as archive:
        archive.extractall(place, filter="data")
    return place


def no_hooks(recipe, build_system):
    return ()


def _same_processor():
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "avx512f" in flags.split()


def _same_images(made, expected):
    assert np.max(np.abs(made.astype(int) - expected)) <= 1


def _same_weights(run, expected):
    contents = folder.read(run)
    found = folder._flatten({**contents.averaged})
    assert found.keys() == expected.keys()
    for name, value in found.items():
        rms = float(np.sqrt(np.mean(np.square(np.asarray(value, np.float64)))))
        np.testing.assert_allclose(rms, expected[name]["rms"], rtol=1e-5, atol=1e-7, err_msg=name)


def _parti():
    return changed(tiny.get_config(), ["tokenizer.train.ema_decay=0.5"])


def _imagen():
    recipe = tiny_imagen.get_config()
    fields = dict(cond_dim=8, dim_mults=(1,), layer_attns=False, layer_cross_attns=True)
    stage = recipe.task.stages[0]
    stage = dataclasses.replace(stage, unet=stage.unet.clone(**fields), image_size=16)
    task = dataclasses.replace(recipe.task, stages=(stage,))
    evaluation = dataclasses.replace(recipe.evaluation, completions=0)
    train = dataclasses.replace(recipe.train, ema_decay=0.5)
    return dataclasses.replace(recipe, task=task, train=train, evaluation=evaluation)


def _super_resolution():
    recipe = tiny.get_config()
    task = t2i.SuperResolutionTask(
        t2i.SuperResolution(scale=2, channels=4, blocks=1), image_size=16
    )
    return t2i.Recipe(task=task, data=recipe.data, train=recipe.train)


def _gan():
    """With `perceptual=`, as recipes named that part then."""
    recipe = tiny.get_config()
    discriminator = Discriminator(dims=(4, 8), groups=2)
    task = t2i.TokenizerTask(recipe.task.tokenizer, discriminator=discriminator, l2_weight=1.0)
    return t2i.Recipe(
        task=task, data=recipe.data, train=recipe.train, perceptual="vgg16.safetensors"
    )


def _of_parti(system):
    """Without the limit of plausibility, which there was not then."""
    options = t2i.PartiOptions(guidance=2.0, temperature=0.7, top_k=8, plausibility=None)
    return system.generate(_CAPTIONS, options, seed=3, images_per_prompt=2)


def _of_imagen(system):
    return system.generate(_CAPTIONS[:1], seed=3, guidance=2.0, steps=3, images_per_prompt=2)


CASES = {
    "parti": (_parti, _of_parti),
    "imagen": (_imagen, _of_imagen),
    "super_resolution": (_super_resolution, lambda system: system.upscale(_IMAGES[:, :8, :8])),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_begun_before_resumes_and_samples(name, tmp_path, monkeypatch):
    place = _unpacked(name, tmp_path)
    monkeypatch.chdir(place)
    recipe, generate = CASES[name][0](), CASES[name][1]
    before = runs.load(place / name)
    assert type(before.task) is type(recipe.task)
    overrides = ["train.keep=1"] + ["tokenizer.train.keep=1"] * (name == "parti")
    system = runs.train(changed(recipe, overrides), place / name, hooks=no_hooks)
    expected = np.load(place / f"{name}.npz")["images"]
    made = np.asarray(generate(system))
    _same_images(made, expected)
    _same_weights(place / name, json.loads((place / f"{name}.json").read_text()))
    np.testing.assert_array_equal(np.asarray(generate(runs.load(place / name))), made)


def test_a_run_against_a_discriminator_with_vgg16_resumes(tmp_path, monkeypatch):
    """Its recipe named the file as `perceptual=`.

    The run is at its last step, so that nothing compiles.
    """
    place = _unpacked("gan", tmp_path)
    monkeypatch.chdir(place)
    _write_vgg(place / "vgg16.safetensors", 0)
    recipe = changed(_gan(), ["train.keep=1", "train.steps=2"])
    system = runs.train(recipe, place / "gan", hooks=no_hooks)
    assert (
        isinstance(system.task.perceptual, Vgg16)
        and system.decode(system.encode(_IMAGES)).shape == _IMAGES.shape
    )
    _write_vgg(place / "other.safetensors", 1)
    with pytest.raises(UserError, match="parts.perceptual has other weights"):
        runs.train(changed(recipe, ["perceptual=other.safetensors"]), place / "gan", hooks=no_hooks)


def test_an_export_of_before_samples_bit_for_bit(tmp_path):
    place = _unpacked("exports", tmp_path)
    for name in ("parti", "imagen"):
        _unpacked(name, tmp_path)
        expected = np.load(place / f"{name}.npz")["images"]
        made = CASES[name][1](runs.load(place / f"{name}_export"))
        _same_images(made, expected)
        if _same_processor():
            np.testing.assert_array_equal(made, expected)
        assert (
            runs.load_run_recipe(place / f"{name}_export").evaluation.options
            == CASES[name][0]().evaluation.options
        )


def _write_vgg(path, seed):
    image = np.zeros((1, 32, 32, 3), np.float32)
    params = Vgg16().init(jax.random.key(seed), image, image)["params"]
    torch_io.write(path, convert.to_state(Vgg16(), jax.device_get(params)))
