"""An own folder from the held-out part to the page: validation while training, the best checkpoint,
`t2i eval`, `t2i export --step best`, report.html.
"""

import dataclasses
import json
import re
import shutil
import types

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import runs, sharding
from t2i_jax.cluster import processes
from t2i_jax.data import heldout
from t2i_jax.data.pipeline import batches, division_of, source_of
from t2i_jax.errors import UserError
from t2i_jax.runs import division, evaluation, validation
from t2i_jax.runs.evaluation import preview_hooks
from t2i_jax.runs.plot import plot
from t2i_jax.runs.recipe import changed
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.validation import validation_of
from tests.e2e import tiny
from tests.e2e.command import inside

_THINGS = ("кошка", "a red ball", "猫", "a tree & <b>leaves</b>", "une maison", "boat", "sun")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    for i, (thing, shade) in enumerate((t, s) for t in _THINGS for s in (40, 120, 200)):
        Image.new("RGB", (16, 16), (shade, 10 * i, 255 - 10 * i)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"{thing} {i % 2}", encoding="utf-8")
    return folder


def _recipe(drawings, share):
    data = [f"data.source=folder:{drawings}", f"data.heldout={share}"]
    part = [f"tokenizer.{assignment}" for assignment in data]
    recipe = changed(tiny.get_config(), [*data, *part, "train.keep=1", "tokenizer.train.keep=1"])
    evaluation = dataclasses.replace(recipe.evaluation, judge=None, pictures=4)
    train = dataclasses.replace(recipe.train, eval_every=4)
    return dataclasses.replace(recipe, evaluation=evaluation, train=train)


@pytest.fixture(scope="module")
def trained(drawings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "run"
    recipe = _recipe(drawings, 0.2)
    system = runs.train(recipe, workdir)
    return recipe, system, workdir


def _validated(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "validation/loss" in line}


def test_every_stage_is_validated_with_its_checkpoints(trained):
    _, _, workdir = trained
    for home, names in ((workdir, ("accuracy",)), (workdir / "tokenizer", ("reconstruction",))):
        found = _validated(home)
        assert sorted(found) == [2, 4]  # train.save_every=2
        for name in ("loss", *names):
            assert all(np.isfinite(line[f"validation/{name}"]) for line in found.values())
        told = json.loads((home / "metrics.json").read_text())
        by = "loss" if home == workdir else "reconstruction"
        values = {step: line[f"validation/{by}"] for step, line in found.items()}
        assert told["validation/best_step"] == min(values, key=values.get)


def test_eval_measures_the_same_and_prints_it(trained, monkeypatch):
    _, _, workdir = trained
    logged = _validated(workdir)[4]["validation/loss"]
    out = inside("eval", workdir).stdout
    assert f"validation/loss: {logged:.4g}" in out and "validation/accuracy: " in out
    with monkeypatch.context() as patch:  # null in metrics.jsonl
        patch.setattr(evaluation, "lines_of", lambda *_: [{"step": 4, "validation/loss": None}])
        assert "validation/loss: not finite\n" in inside("eval", workdir).stdout
    assert json.loads((workdir / "metrics.json").read_text())["validation/loss"] is None
    # computed anew from the folder, as another source of data would have it
    out = inside("eval", workdir, "data.threads=1").stdout
    again = float(re.search(r"validation/loss: (\S+)", out)[1])
    assert again == pytest.approx(logged, rel=1e-3)
    assert (workdir / "samples" / "heldout.png").is_file()
    assert not (workdir / "samples" / "training.png").exists()


def test_the_best_step_is_loaded_evaluated_and_exported(trained, tmp_path):
    _, _, workdir = trained
    best = int(json.loads((workdir / "metrics.json").read_text())["validation/best_step"])
    inside("export", workdir, tmp_path / "system", "--step", "best")
    theirs = runs.load(tmp_path / "system").weights["parti"]["decoder"]
    for ours in (runs.load(workdir, step="best"), runs.load(workdir, step=best)):
        chex.assert_trees_all_equal(ours.weights["parti"]["decoder"], theirs)
    assert "validation/loss" in inside("eval", workdir, "--step", best).stdout
    told = inside("export", workdir, tmp_path / "x", "--step", "beste", status=2).stderr
    assert "step='beste' is no step; give best" in told
    with pytest.raises(UserError, match="an exported system, which has one step"):
        runs.load(tmp_path / "system", step="best")


def test_a_step_is_measured_as_of_that_step(trained, monkeypatch):
    """Losses may depend on it, as that of a GAN on the step at which its discriminator begins."""
    recipe, _, workdir = trained
    best = json.loads((workdir / "metrics.json").read_text())["validation/best_step"]
    monkeypatch.setattr(evaluation.folders, "trained_arrays", lambda *_: ({}, {}))
    monkeypatch.setattr(evaluation, "validate", lambda *given: {"validation/step": given[5]})
    recipe = changed(recipe, ["data.threads=1"])
    for asked, step in ((1, 1), (3, 3), (4, 4), ("best", best), (None, 4)):
        found = evaluation._validation(recipe, held_out(recipe), workdir, asked)
        assert found == {"validation/step": step}


def test_what_the_run_is_looked_at_with_was_never_trained_on(trained, drawings):
    recipe, _, _ = trained
    captions = set(held_out(recipe)(6, ("caption",))["caption"])
    every = {path.read_text(encoding="utf-8") for path in drawings.glob("*.txt")}
    stream = batches(recipe.data, 5, 0, wants=("caption",), repeat=False)
    seen = {caption for batch in stream for caption in batch["caption"]}
    assert captions and not captions & seen and captions | seen == every


def test_every_run_has_a_page_of_its_own(trained):
    recipe, _, workdir = trained
    inside("report", workdir, "--sweep")
    for home in (workdir, workdir / "tokenizer"):
        page = (home / "report.html").read_text(encoding="utf-8")
        assert "<svg" in page and "validation/loss" in page and "learning rate" in page
        assert "norm of the gradient" in page and "folder:" in page and "Commands" in page
        assert "='http" not in page and '="http' not in page and "<script" not in page
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 2 and "The part tokenizer" in page
    assert "Guidance and temperature" in page and "While it trained" in page
    assert "--step best" in page and "PartiTask" in page and "batch_size" in page


def test_a_run_without_a_held_out_part_says_so(drawings, tmp_path, capfd):
    recipe = _recipe(drawings, 0.0).parts["tokenizer"]
    system = runs.train(recipe, tmp_path / "run")
    told = [line for line in capfd.readouterr().err.split("\n") if "data.heldout=0.0 ho" in line]
    assert len(told) == 1 and "WARNING" not in told[0]
    assert not _validated(tmp_path / "run")
    found = runs.evaluate(recipe, system, tmp_path / "run")
    assert "this run has no held-out part" in capfd.readouterr().err
    assert "reconstruction_psnr" in found and not any("validation" in name for name in found)
    names = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert "training.png" in names and "heldout.png" not in names


def test_curves_are_drawn_of_any_numbers():
    for points in ([(1, 2.0)], [(1, 0.0), (2, 0.0)], [(i, 10.0**-i) for i in range(9)],
                   [(i, float("nan")) for i in range(3)] + [(5, -1e300), (6, 1e300)],
                   [(i, 1e-9 * i) for i in range(2000)]):  # fmt: skip
        made = plot("a & b", {"one": points, "two": points[:1]}, marked=2, decades=True)
        assert made.startswith("<figure") and "nan" not in made and "a &amp; b" in made
    assert plot("empty", {"one": [(1, float("inf"))]}) == ""


def _none_of_it(kind, drawings, folder):
    """A folder of which no held-out image can be used, and the share."""
    if kind == "one image":
        for name in ("00.png", "00.txt"):
            shutil.copy(drawings / name, folder)
        return 0.3
    shutil.copytree(drawings, folder, dirs_exist_ok=True)
    if kind == "a share too small":
        return 1e-9
    config = dataclasses.replace(_recipe(folder, 0.2).data, image_size=8)
    division = division_of(config, source := source_of(config))
    for i in range(len(source)):
        if division.is_held_out(i, source.caption(i)):
            (folder / source.image_name(i)).write_bytes(b"broken")
    return 0.2


@pytest.mark.parametrize("kind", ["one image", "a share too small", "none can be read"])
def test_where_no_held_out_image_can_be_used_training_data_are_looked_at(
    kind, drawings, tmp_path, monkeypatch, capfd
):
    if kind == "a share too small":
        monkeypatch.setattr(heldout, "_LOOKED_AT", 3)
    share = _none_of_it(kind, drawings, tmp_path)
    recipe = _recipe(tmp_path, share)
    for one in (recipe, recipe.parts["tokenizer"]):
        samples = held_out(one)
        assert samples.name == "training" and not samples.is_held_out and samples.none
        assert len(samples(2, ("image",))["image"]) == 2
        assert validation_of(one, samples, None, None) is None
        assert "so there is no validation loss and no best" in capfd.readouterr().err


def test_a_preview_that_cannot_be_drawn_costs_a_sentence(drawings, tmp_path):
    def refuse(*_):
        raise UserError("no sample that can be used.")

    said, system = [], types.SimpleNamespace(preview=refuse)
    [hook] = preview_hooks(_recipe(drawings, 0.2), lambda *_: system)
    log = types.SimpleNamespace(say=said.append, workdir=tmp_path)
    hook.run(types.SimpleNamespace(params={}, ema={}, stats={}), 4, log)
    assert said == ["step 4 has no preview: no sample that can be used."]
    assert not list(tmp_path.iterdir())


def _with_another(monkeypatch, theirs):
    """Another process has these values whenever the two tell each other theirs."""
    monkeypatch.setattr(processes, "gather", lambda mine: [mine, theirs])


def test_a_preview_that_one_process_cannot_draw_is_drawn_by_none(drawings, tmp_path, monkeypatch):
    said, system = [], types.SimpleNamespace(preview=lambda *_: (np.zeros((4, 4, 3), np.uint8), {}))
    [hook] = preview_hooks(_recipe(drawings, 0.2), lambda *_: system)
    log = types.SimpleNamespace(say=said.append, workdir=tmp_path, scalars=lambda *_: None)
    state = types.SimpleNamespace(params={}, ema={}, stats={})
    _with_another(monkeypatch, "its disk is away.")
    hook.run(state, 4, log)
    assert said == ["step 4 has no preview: its disk is away."] and not list(tmp_path.iterdir())
    _with_another(monkeypatch, None)
    hook.run(state, 8, log)
    assert len(said) == 1 and (tmp_path / "samples" / "0000008.png").is_file()


def test_what_one_process_can_not_use_is_held_out_for_none(drawings, monkeypatch):
    recipe = _recipe(drawings, 0.2)
    assert held_out(recipe).name == "heldout"
    _with_another(monkeypatch, "nothing of it can be used")
    samples = held_out(recipe)
    assert samples.name == "training" and not samples.is_held_out
    assert samples.none == "nothing of it can be used" and samples.part == "train"


@pytest.mark.parametrize(
    ("trained", "asked", "where", "name"),
    [
        (0.2, 0.2, "same", "heldout"),
        (0.2, 0.1, "same", "heldout"),
        (0.2, 0.0, "same", "training"),
        (0.0, 0.0, "same", "training"),
        (0.2, 0.3, "same", None),
        (0.0, 0.1, "same", None),
        (0.2, 0.2, "other", "heldout"),  # by its captions
        (0.2, 0.3, "other", "other"),
        (0.2, 0.0, "other", "other"),
        (0.0, 0.3, "other", "other"),
        (0.0, 0.0, "other", "other"),
    ],
)
def test_only_what_was_never_trained_on_is_called_held_out(
    trained, asked, where, name, drawings, tmp_path, monkeypatch
):
    shutil.copytree(drawings, tmp_path / "other")
    monkeypatch.chdir(drawings.parent)
    before = _recipe(drawings, trained).data
    place = f"./{drawings.name}/" if where == "same" else tmp_path / "other"  # written otherwise
    recipe = _recipe(place, asked)
    if name is None:
        with pytest.raises(UserError, match=f"data.heldout={asked} of .* would call images held o"):
            held_out(recipe, before)
        return
    samples = held_out(recipe, before)
    assert samples.name == name and samples.is_held_out == (name == "heldout")
    assert samples.is_other == (where == "other")
    assert held_out(recipe).name in ("heldout", "training")  # of a run that is trained on them


def test_eval_with_other_data_says_what_they_are(trained, drawings, tmp_path):
    home = trained[2] / "tokenizer"
    told = inside("eval", home, "data.heldout=0.5", status=2).stderr
    assert "data.heldout=0.5 of data.source='folder:" in told and "leave it at that" in told
    shutil.copytree(drawings, tmp_path / "other")
    before = json.loads((home / "metrics.json").read_text())
    ran = inside("eval", home, f"data.source=folder:{tmp_path / 'other'}", "data.heldout=0")
    assert "is another set than this run was trained on" in ran.stderr
    assert "its numbers are named other" in ran.stderr and "has no held-out part" not in ran.stderr
    assert "other/loss: " in ran.stdout and "validation/" not in ran.stdout
    assert (home / "samples" / "other.png").is_file()
    after = json.loads((home / "metrics.json").read_text())
    kept = {name: value for name, value in before.items() if name.startswith("validation/")}
    assert kept.items() <= after.items()
    page = (home / "report.html").read_text(encoding="utf-8")
    assert "Samples of another set" in page
    assert f"trained on <code>folder:{drawings}</code>" in page


@pytest.fixture(scope="module")
def of_classes(drawings, tmp_path_factory):
    """The folder of few captions, which is divided by number, and a run on it."""
    home = tmp_path_factory.mktemp("classes")
    for i in range(60):
        shutil.copy(drawings / f"{i % 20:02d}.png", home / f"{i:02d}.png")
        (home / f"{i:02d}.txt").write_text("a cat" if i % 2 else "a dog")
    recipe = _recipe(home, 0.2).parts["tokenizer"]
    run = tmp_path_factory.mktemp("of_classes") / "run"
    runs.train(recipe, run)
    assert "image by image" in division.noted(run).line()
    return home, run


@pytest.mark.parametrize("which", ["unchanged", "moved", "fewer"])
def test_eval_calls_what_goes_by_number_held_out_in_the_data_of_the_run_alone(
    which, of_classes, tmp_path
):
    home, run = of_classes
    if which == "moved":
        shutil.copytree(home, tmp_path / "other")
        told = "is another set than this run was trained on"
        ran = inside("eval", run, f"data.source=folder:{tmp_path / 'other'}")
    elif which == "fewer":
        kept = [(home / name).rename(tmp_path / name) for name in ("00.png", "00.txt")]
        told = "has changed since this run was trained (60 records then, 59 now)"
        try:
            ran = inside("eval", run)
        finally:
            for path in kept:
                path.rename(home / path.name)
    else:
        ran, told = inside("eval", run), ""
    assert told in ran.stderr and ("are named other" in ran.stderr) == bool(told)
    assert ("other/loss: " in ran.stdout) == bool(told)
    assert ("validation/loss: " in ran.stdout) == (not told)


def test_an_exported_run_keeps_how_its_data_were_divided(of_classes, tmp_path):
    out = runs.export(of_classes[1], tmp_path / "out")
    assert division.noted(out) == division.noted(of_classes[1])
    for damaged in ("", "[]", "{}", '{"limit": "x"}'):
        (out / division.FILE).write_text(damaged)
        with pytest.raises(UserError, match="holds no division of data; restore it from a copy"):
            division.noted(out)
    (out / division.FILE).unlink()
    assert division.noted(out) is None


class _Told:
    """A task that measures how many rows it is given at once."""

    text_encoder, idle_groups, validated_by = None, (), "loss"
    compares_rows = False

    def validate(self, params, stats, frozen, batch, key, step):
        return {"rows": jnp.float32(len(batch["x"])), "loss": jnp.mean(batch["x"])}


class _Comparing(_Told):
    compares_rows = True


def _of(monkeypatch, task=_Told, **train):
    """A recipe of it, whose held-out batches count on from 0."""
    asked = []

    def two_batches(samples, task, size, *_):
        asked.append(size)
        return [{"x": np.arange(size, dtype=np.float32)}] * 2

    monkeypatch.setattr(validation, "HeldOutBatches", two_batches)
    config = t2i.TrainConfig(validate_every=1, **train)
    data = t2i.DataConfig("digits")
    return types.SimpleNamespace(train=config, task=task(), data=data), asked


_SAMPLES = types.SimpleNamespace(is_held_out=True)


@pytest.mark.parametrize(("task", "rows"), [(_Told, 4.0), (_Comparing, 16.0)])
def test_what_training_has_at_once_validation_has_at_once_too(task, rows, monkeypatch):
    """But where rows are compared, which are then all of a batch."""
    recipe, _ = _of(monkeypatch, task, batch_size=16, accumulate=4)
    made = validation.validation_of(recipe, _SAMPLES, sharding.make_mesh(), None)
    state = types.SimpleNamespace(params={}, ema={}, stats={}, step=np.int32(3))
    assert made.measure(state, {}) == {"rows": rows, "loss": 7.5}


@pytest.mark.parametrize(
    ("train", "size", "names", "at_once"),
    [
        ({"batch_size": 64}, 64, "validation", 64),
        ({"batch_size": 96, "accumulate": 2}, 96, "validation", 48),
        ({"batch_size": 96}, 64, "validation_64", 64),
        ({"batch_size": 96, "accumulate": 2, "task": _Comparing}, 64, "validation_64", 64),
    ],
)
def test_another_measurement_has_another_name(monkeypatch, train, size, names, at_once):
    recipe, asked = _of(monkeypatch, **train)
    found = validation.validate(recipe, _SAMPLES, {}, {}, {}, 3, None)
    assert asked == [size]
    assert found == {f"{names}/rows": at_once, f"{names}/loss": (size - 1) / 2}


def test_held_out_batches_that_one_process_can_not_read_are_measured_by_none(monkeypatch, capfd):
    recipe, _ = _of(monkeypatch, batch_size=16)
    broken = "folder='x' has no captions; give some."
    _with_another(monkeypatch, broken)
    assert validation.validation_of(recipe, _SAMPLES, sharding.make_mesh(), None) is None
    assert f"there is no validation loss: {broken}" in capfd.readouterr().err
