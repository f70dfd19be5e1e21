"""Every stage of a recipe is looked at before the first one trains."""

import dataclasses
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.errors import UserError
from t2i_jax.runs import check as checks
from t2i_jax.runs.check import check
from t2i_jax.runs.recipe import changed
from tests.e2e import tiny, tiny_dalle2, tiny_imagen
from tests.toy_system import recipe as toy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images with captions, without, and none at all."""
    place = tmp_path_factory.mktemp("folders")
    for name in ("captioned", "bare", "empty"):
        (place / name).mkdir()
    for i in range(6):
        image = Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8))
        for name in ("captioned", "bare"):
            image.save(place / name / f"{i}.png")
        (place / "captioned" / f"{i}.txt").write_text(f"shade {i}")
    return place


def _told(recipe, *overrides, **options):
    with pytest.raises(UserError) as error:
        check(changed(recipe, overrides), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("module", [toy, tiny, tiny_imagen])
def test_a_sound_recipe_passes_and_nothing_compiles(module, folders):
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("it compiles"))
        check(module.get_config())
    check(changed(toy.get_config(), [f"*.data.source=folder:{folders / 'captioned'}"]))


def test_a_folder_without_captions_is_found_before_the_part_trains(folders, tmp_path):
    recipe = changed(toy.get_config(), [f"*.data.source=folder:{folders / 'bare'}"])
    with pytest.raises(UserError, match="no caption"):
        runs.train(recipe, tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoints"))
    check(recipe.parts["mean"])  # which needs images alone


def test_a_split_of_a_source_without_splits_is_refused(folders):
    told = _told(toy.get_config(), f"data.source=folder:{folders / 'captioned'}", "data.split=val")
    assert "data.split='val'" in told and "has no splits; leave it out" in told


def test_a_judge_of_other_captions_is_found_before_the_part_trains(folders, tmp_path):
    own = f"data.source=folder:{folders / 'captioned'}"
    recipe = changed(tiny.get_config(), [f"*.{own}", "train.eval_every=5"])
    with pytest.raises(UserError, match=r"judge='shapes' does not .*'shade \d'.*judge=None, or"):
        runs.train(recipe, tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoints"))
    check(changed(recipe, ["evaluation.judge=None"]))
    assert "'digits' does not understand" in _told(tiny.get_config(), "evaluation.judge=digits")
    # of a recipe that joins what its parts have learnt too
    assert "'digits' does not understand" in _told(
        tiny_dalle2.get_config(), "evaluation.judge=digits"
    )


@pytest.mark.parametrize("field", ["pictures", "preview", "completions"])
def test_more_images_than_one_call_makes_are_refused_by_their_field(field):
    assert _told(tiny.get_config(), f"evaluation.{field}=100001") == (
        f"evaluation.{field}=100001 is too many; give 100000 at most."
    )


def test_missing_data_and_parts_are_named_with_their_stage(folders):
    nowhere = f"data.source=folder:{folders / 'nowhere'}"
    told = _told(toy.get_config(), f"mean.{nowhere}")
    assert told.startswith("mean: folder=") and "is not a folder" in told
    told = _told(toy.get_config(), f"*.{nowhere}")  # of both, and said once
    assert told.count("is not a folder") == 1 and told.startswith("folder=")
    assert "empty" in _told(toy.get_config(), f"data.source=folder:{folders / 'empty'}")
    assert "parts.mean: run='runs/none' is not a folder" in _told(
        toy.get_config(), "mean=runs/none"
    )


def test_images_of_another_size_than_the_stage_before_are_found():
    assert _told(tiny.get_config(), "data.image_size=64") == (
        "data.image_size=64 is not the task's image_size=16; make them equal."
    )
    told = _told(tiny.get_config(), "tokenizer.data.image_size=64")
    assert told.startswith("tokenizer: data.image_size=64 is not the task's image_size=16")


def test_batch_and_mesh_are_checked_for_every_stage():
    devices = jax.devices() * 4
    recipe = changed(toy.get_config(), ["mean.train.batch_size=6"])
    told = _told(recipe, devices=devices)
    assert told.startswith("mean: train.batch_size=6 does not divide over 4 devices")
    told = _told(toy.get_config(), "mean.train.mesh={'data':3}")
    assert told.startswith("mean: mesh=data=3 does not fit 1 device(s)")
    assert "axis" in _told(toy.get_config(), "train.mesh={'rows':1}")


def test_shapes_that_do_not_go_together_are_one_sentence(monkeypatch):
    recipe = toy.get_config()

    def loss(*_):
        raise TypeError("shapes (8,) and (9,) do not match\nand more")

    monkeypatch.setattr(type(recipe.parts["mean"].task), "loss", loss)
    told = _told(recipe)
    assert told.startswith("mean: task: the networks of this MeanColourTask do not work with these")
    assert "(shapes (8,) and (9,) do not match)" in told


def test_a_text_of_another_length_is_found_in_stored_data(folders, tmp_path, monkeypatch):
    class Stored:
        stored = {"text": {"dim": 8, "max_length": 128}}

        def __len__(self):
            return 4

    monkeypatch.setattr(checks, "source_of", lambda data: Stored())
    recipe = toy.get_config()
    task = dataclasses.replace(recipe.task, text=t2i.StoredText(dim=16, max_length=128))
    told = _told(dataclasses.replace(recipe, task=task))
    assert "holds text made with dim=8, and the task has dim=16" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.workers=250", "data.workers=250 are more processes than"),
        ("train.batch_size=2000000000", "GiB on each device, which has"),
        ("task.text.dim=16000000", "the network with its optimiser needs"),
        ("data.workers=10000", "data.workers=10000 is above 256"),
        ("data.image_size=1000000", "data.image_size=1000000 is above 65536"),
        ("data.image_size=9000", "data.image_size=9000 is not the task's image_size=8"),
        (f"train.optim.learning_rate={'9' * 400}", "is beyond all limits; give a number above 0"),
        ("train.optim.learning_rate=nan", "learning_rate=nan is not a finite number"),
        ("train.optim.eps=inf", "eps=inf is not a finite number"),
        ("train.optim.weight_decay=-1", "weight_decay=-1 is below 0"),
        ("train.steps=99999999999", "above 2147483647; give a number from 1 to 2147483647"),
        ("train.seed=99999999999999999999", "; give a number from 0 to 9223372036854775807"),
        ("train.seed=-1", "train.seed=-1 is below 0"),
        ("train.mesh={[1]:1}", "is not values by name or None"),
        ("train.mesh={'data':-2}", "train.mesh="),
        ("parts." + "x" * 300 + "=runs/a", "is given for ToyTask"),
        ("*." + "x" * 300 + "=1", "has no field"),
        ("task.text=" + "(" * 3000, "can't take the place of LearnedText; set its fields"),
    ],
)
def test_a_value_beyond_reason_is_one_short_sentence(override, told):
    with pytest.raises(UserError) as error:
        check(changed(toy.get_config(), [override]))
    sentence = str(error.value)
    assert told in sentence and "\n" not in sentence and len(sentence) < 700, sentence


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: t2i.TrainConfig(steps="3"), "train.steps='3' is not a whole number; give such"),
        (lambda: t2i.TrainConfig(steps=None), "train.steps=None is not a whole number; give such"),
        (lambda: t2i.TrainConfig(ema_decay=[0.5]), "train.ema_decay=[0.5] is not a number; give"),
        (lambda: t2i.DataConfig(image_size="x"), "data.image_size='x' is not a whole number"),
        (lambda: t2i.DataConfig(heldout="x"), "data.heldout='x' is not a number; give such"),
        (lambda: t2i.OptimConfig(b1="x"), "optim.b1='x' is not a number; give such"),
    ],
)
def test_a_value_of_another_type_in_python_is_one_sentence(make, told):
    with pytest.raises(UserError) as error:
        make()
    assert told in str(error.value)


def test_values_of_a_recipe_in_python_are_checked_too():
    recipe = toy.get_config()
    optim = dataclasses.replace(recipe.train.optim, eps=float("nan"))
    train = dataclasses.replace(recipe.train, optim=optim)
    assert _told(dataclasses.replace(recipe, train=train)).startswith(
        "train.optim.eps=nan is not a finite number"
    )
    train = dataclasses.replace(recipe.train, log_every=2.5)
    assert "train.log_every=2.5 is not a whole number" in _told(
        dataclasses.replace(recipe, train=train)
    )


def test_a_run_to_begin_with_is_looked_at_before_the_parts_train(tmp_path):
    recipe = toy.get_config()
    told = _told(recipe, f"init={tmp_path / 'nowhere'}")
    assert "is not a folder; give that of a run" in told


def test_a_package_that_metrics_go_to_is_missed_before_the_part_trains(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    told = _told(toy.get_config(), "train.wandb_project=images")
    assert "train.wandb_project='images' needs Weights & Biases" in told
    with_devices = changed(toy.get_config(), ["train.wandb_project=images"])
    assert check(with_devices, devices=jax.devices(), with_data=False) == []


def test_a_run_within_its_own_images_is_refused_and_one_begun_there_goes_on(
    folders, tmp_path, monkeypatch, capfd
):
    photos = tmp_path / "photos"
    shutil.copytree(folders / "captioned", photos)
    monkeypatch.chdir(photos)
    recipe = changed(toy.get_config(), ["*.data.source=folder:."])
    for workdir in ("runs/toy", str(photos)):
        with pytest.raises(UserError) as error:
            runs.train(recipe, workdir)
        told = str(error.value)
        assert "lies in data.source='folder:.', among whose images its own would count" in told
        assert told.count("name a workdir outside it") == 1  # of both stages
    assert not (photos / "runs").exists() and check(recipe, tmp_path / "run") == []
    hidden = check(recipe, photos / ".runs" / "toy")
    assert hidden == []

    monkeypatch.setattr(checks, "last_step", lambda home: 2 if home.name == "mean" else None)
    [told] = check(recipe, photos / "runs" / "toy")
    assert "move the run out of it, and go on with its new place as workdir" in told
