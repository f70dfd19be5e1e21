"""A cascade through the command line: train, resume one stage, sample, complete, change,
export, refuse.
"""

import json

import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from tests.e2e import tiny_imagen
from tests.e2e.command import inside, pictures

_RECIPE = tiny_imagen.__file__
_CAPTION = "a red circle above a blue square"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert "alignment_heldout" in inside("train", _RECIPE, "--workdir", workdir).stdout
    return workdir


def test_one_stage_carries_on_where_both_stopped(trained):
    changes = ("train.steps=6", "task.train_stages=(2,)", "--profile", "5:6")
    done = inside("train", _RECIPE, *changes, "--workdir", trained)
    assert "resuming from step 4 of 6" in done.stderr
    assert len(list((trained / "profile").rglob("perfetto_trace.json.gz"))) == 1
    assert {name: int(n) for name, n in t2i.load(trained).updates.items()} == {
        "stage_1": 4,
        "stage_2": 6,
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"alignment_heldout", "alignment_completed"} <= set(metrics) and metrics[
        "kept_changed"
    ] == 0
    # beside what was measured of the pictures
    assert 0 < metrics["goodput"] < 1 and metrics["seconds/compile"] > 0


def test_sampling_completing_and_changing(trained, tmp_path):
    def sample(out, *more):
        # as many as the run was measured on at once, by the same programs
        return inside("sample", trained, _CAPTION, "--count", 4, "--out", tmp_path / out, *more)

    done = sample("plain")
    assert "stage 2" in done.stderr  # a bar for each stage
    assert {picture.shape for picture in pictures(tmp_path / "plain").values()} == {(16, 16, 3)}
    sample("small", "--stop-at", 1, "--sampler", "ddim", "--steps", 2)
    assert pictures(tmp_path / "small")["000-00.png"].shape == (8, 8, 3)

    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    known = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(known).save(tmp_path / "picture.png")
    sample(
        "completed",
        "--init",
        tmp_path / "picture.png",
        "--mask",
        tmp_path / "mask.png",
    )
    for picture in pictures(tmp_path / "completed").values():
        np.testing.assert_array_equal(picture[:, :8], known[:, :8])
    sample("changed", "--init", tmp_path / "picture.png", "--strength", 0.5)

    inside("export", trained, tmp_path / "system")
    inside(
        "sample",
        tmp_path / "system",
        _CAPTION,
        "--count",
        4,
        "--out",
        tmp_path / "exported",
    )
    plain, exported = pictures(tmp_path / "plain"), pictures(tmp_path / "exported")
    assert all(np.array_equal(plain[name], exported[name]) for name in plain)


def test_pictures_made_of_other_pictures(tmp_path):
    """Trained on a folder of pairs: a picture and NAME.cond.png."""
    (tmp_path / "pairs").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        picture = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "pairs" / f"{i}.png")
        Image.fromarray(255 - picture).save(tmp_path / "pairs" / f"{i}.cond.png")
    recipe = tmp_path / "pairs.py"
    recipe.write_text(
        "import dataclasses\nfrom t2i_jax import DataConfig, Evaluation, ImagenOptions, "
        "ImagenTask\nfrom tests.e2e import tiny_imagen\ndef get_config():\n    recipe = "
        "tiny_imagen.get_config()\n    stage = recipe.task.stages[0]\n    stage = "
        "dataclasses.replace(stage, unet=stage.unet.clone(cond_images_channels=3))\n    data = "
        f"DataConfig(source='folder:{tmp_path / 'pairs'}', image_size=8, threads=0, flip=True)\n   "
        " evaluation = Evaluation(pictures=2, preview=2, options=ImagenOptions(steps=1))\n    "
        "return dataclasses.replace(recipe, task=ImagenTask(stage), data=data, "
        "evaluation=evaluation)\n"
    )
    inside("train", recipe, "--workdir", tmp_path / "run")
    inside(
        "sample",
        tmp_path / "run",
        "--cond",
        tmp_path / "pairs" / "0.cond.png",
        "--out",
        tmp_path / "out",
    )
    assert pictures(tmp_path / "out")["000-00.png"].shape == (8, 8, 3)
    sentence = inside("sample", tmp_path / "run", status=2).stderr
    assert "cond_images do not fit the cascade (cond_images_channels=3)" in sentence


def test_mistakes_get_one_sentence(trained, tmp_path):
    def refused(*arguments):
        return inside(*arguments, status=2).stderr

    def sample(*more):
        return refused("sample", trained, _CAPTION, *more)

    assert "did you mean 'heun'" in sample("--sampler", "heum")
    assert "stop_at=3 is no stage" in sample("--stop-at", 3)
    assert "--cond is no option of t2i sample" in sample("--cond", tmp_path / "none.png")
    assert "--temperature is no option of t2i sample" in sample("--temperature", 0.5)
    assert "mask" in sample("--mask", tmp_path / "none.png")
    assert "start_at=2 is nothing without --start" in sample("--start-at", 2)
    assert "start='" in sample("--start-at", 2, "--start", tmp_path / "none.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    Image.new("L", (4, 8)).save(tmp_path / "mask.png")
    assert "as large as the image or of its aspect" in sample(
        "--init", tmp_path / "picture.png", "--mask", tmp_path / "mask.png"
    )
    assert "trained on captions" in refused("sample", trained) or "empty" in refused(
        "sample", trained
    )

    def train(*more):
        return refused("train", _RECIPE, "--workdir", tmp_path / "new", *more)

    assert "train_stages=(3,) names 3" in train("task.train_stages=(3,)")
    assert "image_size=8 is not the task's image_size=16" in train("data.image_size=8")
    assert "stage.image_size=9" in train("task.stages.1.image_size=9")
    assert "evaluation.options.temperature" in train("evaluation.options.temperature=0.5")
