"""Plain MaskGIT through the command line: by class, without anything, from a folder of photographs,
by two processes.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs
from tests.e2e import tiny_maskgit
from tests.e2e.command import inside, pictures

from ..loopback import end, losses, start

_RECIPE = tiny_maskgit.__file__


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert "alignment_heldout" in inside("train", _RECIPE, "--workdir", workdir).stdout
    return workdir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A temple and a flower, four pieces of each, with captions beside them."""
    from sklearn.datasets import load_sample_images

    folder, samples = tmp_path_factory.mktemp("photos"), load_sample_images()
    for name, photo in zip(("temple", "flower"), samples.images, strict=True):
        for i in range(4):
            Image.fromarray(photo[100 * i : 100 * i + 90, 40:160]).save(folder / f"{name}{i}.jpg")
            (folder / f"{name}{i}.txt").write_text(f"a photograph of a {name}\n")
    return folder


def test_a_class_is_asked_for_by_its_name(trained, tmp_path):
    def sample(out, *more):
        done = inside("sample", trained, *more, "--count", 2, "--out", tmp_path / out)
        return done.stderr, list(pictures(tmp_path / out).values())

    _, seven = sample("seven", "7", "--image-size", 16, 24)
    assert [image.shape for image in seven] == [(16, 24, 3)] * 2
    _, again = sample("again", "a handwritten Seven", "--image-size", 16, 24)
    np.testing.assert_array_equal(seven, again)
    # some classes, against another
    sample("both", "seven", "three", "--negative", "eight", "--guidance", 2)
    said = inside("sample", trained, "a cat", status=2).stderr
    assert said.startswith("t2i: caption 'a cat' names none of the 10 classes; name one class (")
    assert "text_tokenizer" not in {path.name for path in trained.iterdir()}
    assert "alignment_heldout" in inside("eval", trained, "evaluation.pictures=4").stdout


def test_without_captions(trained, tmp_path):
    """Trained, looked at, sampled, changed and evaluated with neither captions nor classes."""
    run = tmp_path / "run"
    given = ("task.text=None", f"tokenizer={trained / 'tokenizer'}", "train.eval_every=2")
    inside("train", _RECIPE, *given, "--workdir", run)
    assert (run / "samples" / "0000002.png").exists() and (run / "report.html").exists()
    inside("sample", run, "--count", 4, "--steps", 2, "--out", tmp_path / "out")
    images = pictures(tmp_path / "out")
    assert len(images) == 4 and len({image.tobytes() for image in images.values()}) > 1
    image = next((tmp_path / "out").glob("*-*.png"))
    inside("sample", run, "--init", image, "--strength", 0.5, "--out", tmp_path / "changed")
    assert "validation/loss" in inside("eval", run).stdout
    said = inside("sample", run, "a cat", status=2).stderr
    assert "prompts are given to a system that was trained without texts" in said
    assert "--negative is no option" in inside("sample", run, "--negative", "x", status=2).stderr


def test_photographs_of_a_folder(trained, photos, tmp_path):
    given = (
        f"data.source=folder:{photos}", f"tokenizer={trained / 'tokenizer'}", "data.flip=True",
        "task.text.names=('temple','flower')", "evaluation.judge=None", "data.heldout=0.25",
    )  # fmt: skip
    inside("train", _RECIPE, *given, "--workdir", tmp_path / "run")
    options = ("--init", photos / "temple0.jpg", "--outpaint", 0, 0, 0.5, 0, "--feather", 0)
    inside("sample", tmp_path / "run", "temple", *options, "--out", tmp_path / "out")
    left = pictures(tmp_path / "out")["000-00.png"][:, :8]
    assert left.std() > 5
    others = (*given[:3], "evaluation.judge=None", "--workdir", tmp_path / "no")
    assert "names none of the 10 classes" in inside("train", _RECIPE, *others, status=2).stderr


def test_what_does_not_fit_is_one_sentence(trained, tmp_path):
    """Tokens of another grid or codebook, and another tokenizer than the one trained with."""
    part = tiny_maskgit.get_config().parts["tokenizer"]
    other = dataclasses.replace(part, train=dataclasses.replace(part.train, steps=1, seed=1))
    runs.train(other, tmp_path / "other")
    given = f"tokenizer={tmp_path / 'other'}"
    said = inside("train", _RECIPE, given, "train.steps=6", "--workdir", trained, status=2).stderr
    assert "parts.tokenizer" in said and "has other weights" in said
    packed = tmp_path / "packed"
    inside("data", "pack", "digits", packed, "--size", 16)
    inside("data", "encode-images", packed, trained / "tokenizer")
    on_tokens = (f"data.source=arrayrecord:{packed}", "task.stored_tokens=True")
    run = tmp_path / "run"
    encoded_with = (f"tokenizer={trained / 'tokenizer'}", "evaluation.judge=None")
    inside("train", _RECIPE, *on_tokens, *encoded_with, "--workdir", run)
    assert losses(run)
    said = inside(
        "train", _RECIPE, *on_tokens, given, "--workdir", tmp_path / "no", status=2
    ).stderr
    assert "holds tokens made with" in said


@pytest.mark.long
def test_two_processes_make_what_one_makes(trained, tmp_path):
    two, part = tmp_path / "two", f"tokenizer={trained / 'tokenizer'}"
    sharded = ("train.rules=fsdp", "train.mesh={'fsdp': 2}", "train.eval_every=4")
    command = ("train", _RECIPE, part, *sharded, "--workdir", two)
    statuses, out, err = end(start(2, "-m", "t2i_jax.cli.main", *command))
    assert statuses == [0, 0], err
    assert "alignment_heldout: " in out[0] and "alignment_heldout" not in out[1]
    here, there = losses(trained), losses(two)
    assert list(here) == list(there) == [1, 2, 4]
    np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)
    assert (two / "samples" / "0000004.png").exists()
    assert "alignment_heldout" in json.loads((two / "metrics.json").read_text())
    one, other = (
        t2i.load(run).generate(["7"], seed=3, steps=2, images_per_prompt=4)
        for run in (trained, two)
    )
    assert one.shape == other.shape
    # another number of processes goes on with it, as one goes on alone
    alone = shutil.copytree(trained, tmp_path / "alone")
    for run, mesh in ((alone, ()), (two, ("train.mesh={'fsdp': 1}",))):
        inside("train", _RECIPE, part, "train.steps=6", *mesh, "--workdir", run)
    here, there = losses(alone), losses(two)
    assert max(here) == max(there) == 6
    np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)
