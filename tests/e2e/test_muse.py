"""Muse through the command line: stopped and resumed, sampled at both sizes, inpainted, exported,
evaluated, loaded, refused.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.data.pipeline import batches
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError
from t2i_jax.runs.check import check
from t2i_jax.runs.folder import part_in
from t2i_jax.train.loop import Hook
from tests.e2e import tiny_muse
from tests.e2e.command import inside, pictures, t2i_command

_RECIPE = tiny_muse.__file__
_CAPTION = "a red circle above a blue square"


class Stopped(Exception):
    """In place of a machine that goes away."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(folder, the step) of a run that SIGTERM stopped while its first stage trained."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    command = t2i_command(
        "train", _RECIPE, "base.train.steps=1000000", "base.train.log_every=1", "--workdir", workdir
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    metrics, deadline = workdir / "base" / "metrics.jsonl", time.monotonic() + 500
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and '"step": 3' in metrics.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 75, errors[-3000:]
    step = int(re.search(r"stopped after step (\d+), everything is saved", errors).group(1))
    said = inside("sample", workdir, _CAPTION, status=2).stderr
    assert said.count("\n") == 1 and "holds no checkpoint" in said  # its stages are not trained
    return workdir, step


@pytest.fixture(scope="module")
def trained(stopped):
    workdir, step = stopped
    done = inside("train", _RECIPE, f"base.train.steps={step + 2}", "--workdir", workdir)
    assert f"resuming from step {step} of {step + 2}" in done.stderr
    assert "alignment_heldout" in done.stdout and f"done: {workdir}" in done.stdout
    return workdir


def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(stopped, trained, tmp_path):
    """The first stage alone and at once, from the same tokenizer."""
    _, step = stopped
    stage = tiny_muse.get_config().parts["base"]
    train = dataclasses.replace(stage.train, steps=step + 2)
    parts = {"tokenizer": str(trained / "tokenizer")}
    whole = runs.train(dataclasses.replace(stage, train=train, parts=parts), tmp_path / "whole")
    again = t2i.load(trained / "base")
    assert set(again.weights) == {"maskgit", "critic"}
    jax.tree.map(np.testing.assert_array_equal, again.weights, whole.weights)


def _stopped_and_resumed(recipe, folder, capsys):
    """The system of four steps that were stopped after the third and went on from the second."""

    def hooks(recipe, build_system):
        def stop(state, step, log):
            raise Stopped

        return (Hook(3, stop),)

    with pytest.raises(Stopped):
        runs.train(recipe, folder, hooks=hooks)
    again = runs.train(recipe, folder)
    assert "resuming from step 2 of 4" in capsys.readouterr().err
    return again


def test_so_is_a_super_resolution_that_was_stopped(trained, tmp_path, capsys):
    stage = tiny_muse.get_config().parts["superres"]
    stage = dataclasses.replace(stage, parts={"tokenizer": str(trained / "tokenizer")})

    again = _stopped_and_resumed(stage, tmp_path / "run", capsys)
    whole = t2i.load(trained / "superres")
    jax.tree.map(np.testing.assert_array_equal, again.weights, whole.weights)


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """Drawn images that are no squares, packed, with the tokens of both sizes and of one."""
    here = tmp_path_factory.mktemp("packed")
    (here / "photos").mkdir()
    records = open_source("shapes", image_size=24)
    for i in range(8):
        Image.fromarray(records[i]["image"][i % 4 :]).save(here / "photos" / f"{i}.png")
        (here / "photos" / f"{i}.txt").write_text(records[i]["caption"])
    inside("data", "pack", f"folder:{here / 'photos'}", here / "packed")
    encode = ("data", "encode-images", here / "packed", trained)
    said = inside(*encode, "--image-size", 8)
    assert "stored: 4 tokens of each of 8 images" in said.stdout
    said = inside(*encode, "--cond-image-size", 8)
    assert "stored: 16 and 4 tokens of each of 8 images" in said.stdout
    for size in ("--image-size", "--cond-image-size"):
        assert "there already" in inside(*encode, size, 8).stdout
    return here / "packed"


def _on_tokens(trained, packed):
    """The recipe of the super-resolution, on stored tokens."""
    stage = tiny_muse.get_config().parts["superres"]
    return dataclasses.replace(
        stage,
        task=dataclasses.replace(stage.task, stored_tokens=True),
        data=dataclasses.replace(stage.data, source=f"arrayrecord:{packed}", heldout=0.3),
        train=dataclasses.replace(stage.train, eval_every=2),
        parts={"tokenizer": str(trained / "tokenizer")},
    )


def test_stored_tokens_are_those_that_a_super_resolution_makes_of_images(trained, packed):
    tokens, tokenizer = _on_tokens(trained, packed), part_in(trained / "tokenizer")
    images = tiny_muse.get_config().parts["superres"].task
    made = []
    for task in (tokens.task, images):
        spec = task.batch_spec(1)
        stream = batches(
            tokens.data, 8, 3, tokenize=lambda texts: (texts, texts), wants=tuple(spec)
        )
        task = dataclasses.replace(task, text=None)
        made.append(jax.jit(task.inputs_of)(
            {}, {"tokenizer": tokenizer.weights},
            {name: value for name, value in next(stream).items() if "text" not in name},
        ))  # fmt: skip
    np.testing.assert_array_equal(made[0].ids_BN, made[1].ids_BN)
    np.testing.assert_array_equal(made[0].cond_ids_BM, made[1].cond_ids_BM)
    assert made[0].cond_ids_BM.shape == (8, 4) and len(np.unique(made[0].ids_BN)) > 1


def test_a_super_resolution_on_stored_tokens_is_resumed_looked_at_and_sampled(
    trained, packed, tmp_path, capsys
):
    recipe = _on_tokens(trained, packed)

    again = _stopped_and_resumed(recipe, tmp_path / "run", capsys)
    whole = runs.train(recipe, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, again.weights, whole.weights)
    assert (tmp_path / "run" / "samples" / "0000004.png").exists()
    assert "validation/loss" in (tmp_path / "run" / "metrics.jsonl").read_text()
    image = next(packed.with_name("photos").glob("*.png"))
    given = ("--cond", image, "--steps", 1, "--out", tmp_path / "out")
    inside("sample", tmp_path / "run", _CAPTION, *given)
    assert pictures(tmp_path / "out")["000-00.png"].shape == (16, 16, 3)


def test_stored_tokens_that_do_not_fit_a_super_resolution_are_refused(trained, packed, tmp_path):
    recipe = _on_tokens(trained, packed)
    path = packed / "manifest.json"
    written = path.read_text()
    columns = json.loads(written)["columns"]
    made = columns["superres_tokens"]

    def refused(says, **changes):
        told = {**columns, **changes}
        told = {name: about for name, about in told.items() if about is not None}
        path.write_text(json.dumps({**json.loads(written), "columns": told}))
        try:
            with pytest.raises(UserError, match=says):
                runs.train(recipe, tmp_path / "run")
        finally:
            path.write_text(written)

    refused("holds no superres_tokens; .*--cond-image-size", superres_tokens=None)
    for name, has, wants in (
        ("tokenizer", "0" * 16, f"'{made['tokenizer']}'"),
        ("cond_tokenizer", "0" * 16, f"'{made['cond_tokenizer']}'"),
        ("num_tokens", 64, 16),
        ("cond_num_tokens", 16, 4),
    ):
        says = f"superres_tokens made with {name}={has!r}, and the task has {name}={wants}"
        refused(says, superres_tokens={**made, name: has})
    # of several stages the last one's before the first is trained
    muse = tiny_muse.get_config()
    parts = {**muse.parts, **recipe.parts, "superres": dataclasses.replace(recipe, parts={})}
    told = {**columns, "superres_tokens": {**made, "cond_tokenizer": "0" * 16}}
    path.write_text(json.dumps({**json.loads(written), "columns": told}))
    with pytest.raises(UserError, match="superres: .* made with cond_tokenizer='0000"):
        check(dataclasses.replace(muse, parts=parts))
    path.write_text(written)
    check(dataclasses.replace(muse, parts=parts))
    other = dataclasses.replace(recipe.data, image_size=32)
    with pytest.raises(UserError, match="data.image_size=32 is not the task's image_size=16"):
        runs.train(dataclasses.replace(recipe, data=other), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_run_leaves_its_folder_and_is_done(trained):
    assert {"tokenizer", "base", "superres", "recipe.json", "parts.json", "samples"} <= {
        path.name for path in trained.iterdir()
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"alignment_heldout", "alignment_completed", "kept_changed"} <= metrics.keys()
    inside("train", _RECIPE, f"base.train.steps={_steps(trained)}", "--workdir", trained)


def _steps(trained):
    return runs.load_run_recipe(trained / "base").train.steps


def _sample(run, out, *more):
    """As many images as the run was measured on at once, by the same programs."""
    inside("sample", run, _CAPTION, "--count", 4, "--out", out, *more)
    return list(pictures(out).values())


@pytest.fixture
def drawn(tmp_path):
    """An image of 32 pixels, in image.png; mask.png keeps its left half."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return image


def test_sampling_at_both_sizes_and_the_exported_system(trained, drawn, tmp_path):
    plain = _sample(trained, tmp_path / "plain")
    assert [image.shape for image in plain] == [(16, 16, 3)] * 4
    assert _sample(trained, tmp_path / "small", "--stop-at", "base")[0].shape == (8, 8, 3)
    init = ("--init", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    kept = _sample(trained, tmp_path / "inpainted", *init, "--feather", 0)
    wanted = np.asarray(Image.fromarray(drawn).resize((16, 16), Image.Resampling.BICUBIC))
    for made in kept:
        np.testing.assert_array_equal(made[:, :8], wanted[:, :8])
    # the second stage alone, on any image
    larger = _sample(trained / "superres", tmp_path / "larger", "--cond", tmp_path / "image.png")
    assert larger[0].shape == (16, 16, 3)
    inside("export", trained, tmp_path / "system")
    np.testing.assert_array_equal(_sample(tmp_path / "system", tmp_path / "exported"), plain)


@pytest.mark.long
def test_other_images_through_both_stages(trained, drawn, tmp_path):
    """tests/systems/test_muse.py and the notebook about editing have each of these in Python."""
    init = ("--init", tmp_path / "image.png")
    plain = _sample(trained, tmp_path / "plain")
    wide = _sample(trained, tmp_path / "wide", "--image-size", 16, 32)
    assert wide[0].shape == (16, 32, 3)
    for name, options in {
        "against": ("--negative", "green", "--guidance", 9),
        "changed": (*init, "--strength", 0.4),
        "edited": (*init, "--edit-steps", 2),
    }.items():
        assert not np.array_equal(plain, _sample(trained, tmp_path / name, *options)), name


def test_from_python_and_evaluated(trained):
    system = t2i.load(trained)
    assert isinstance(system.task, t2i.MuseTask)
    few = {"images_per_prompt": 4, "steps": 2, "superres_steps": 2}
    steps = system.generate([_CAPTION], return_steps=True, **few)
    assert [step.shape[1] for step in steps] == [8, 8, 16, 16]
    alone, meshed = (
        one.generate([_CAPTION], seed=2, stop_at="base", **few)
        for one in (system, t2i.load(trained, mesh={"data": 1}))
    )
    np.testing.assert_array_equal(meshed, alone)
    for run in (trained, trained / "base", trained / "superres"):
        printed = inside("eval", run, "evaluation.pictures=4").stdout
        assert run == trained or "validation/loss" in printed
    assert "alignment_heldout" in json.loads((trained / "metrics.json").read_text())


def test_mistakes_get_one_sentence(trained, tmp_path):
    def refused(*arguments):
        done = inside(*arguments, status=2)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("t2i: "), done.stderr
        return done.stderr

    def sample(*more):
        return refused("sample", trained, "a red circle", *more)

    assert "did you mean 'base'" in sample("--stop-at", "bas")
    for field, number in (("--steps", 0), ("--steps", -1), ("--edit-steps", -1)):
        assert "is below 1; give a number from 1" in sample(field, number)
    assert "superres_steps=0" in sample("--superres-steps", 0)
    assert "multiples of 8 pixels" in sample("--image-size", 16, 20)
    assert "edit_steps=2 says what becomes of init_images" in sample("--edit-steps", 2)
    assert "is nothing without --init" in sample("--mask", tmp_path / "none.png")
    assert "strength=0.3 is nothing without --init" in sample("--strength", 0.3)
    assert "no_mask_token_prob=0" in sample("--remask", "--critic", "false")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    Image.new("L", (4, 8)).save(tmp_path / "mask.png")
    both = ("--init", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    assert "as large as the image or of its aspect" in sample(*both)
    assert "cond_images=None: this system enlarges" in refused(
        "sample", trained / "superres", "a red circle"
    )
    helped = inside("sample", trained, "--help").stdout
    assert "--superres-steps" in helped and "--outpaint" in helped and "--stop-at" in helped

    def train(*more):
        return refused("train", _RECIPE, "--workdir", tmp_path / "new", *more)

    assert "cond_image_size=7: image_size=7" in train("superres.task.cond_image_size=7")
    assert "data.image_size=8 is not the task's image_size=16" in train(
        "superres.data.image_size=8"
    )
    assert "parts.base" in train("base=/nowhere")
