"""A run that begins with the weights, parts and vocabulary of another one."""

import dataclasses
import json
import pathlib
import re
import shutil
import types

import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.errors import UserError
from t2i_jax.runs import begin, folder, training
from t2i_jax.runs.recipe import changed, load_recipe, reach, recipe_from_dict, recipe_to_dict
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.text.tokenizer import load, train_bpe
from tests.systems import toy_dalle2
from tests.toy_system import recipe as toy

_E2E = pathlib.Path(__file__).resolve().parents[1] / "e2e"
_OTHER = ["data.seed=5", "train.batch_size=4", "train.optim.name=muon", "train.eval_every=0"]


def no_hooks(recipe, build_system):
    return ()


def _train(place, *overrides, recipe=None):
    recipe = recipe or toy.get_config()
    return runs.train(changed(recipe, ["train.eval_every=0", *overrides]), place, hooks=no_hooks)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained toy; its EMA is well apart from its weights."""
    place = tmp_path_factory.mktemp("base") / "run"
    _train(place, "train.optim.learning_rate=0.05")
    return place


def _flat(tree):
    return folder._flatten(tree)


def _assert_equal(one, other, **close):
    one, other = _flat(one), _flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], err_msg=name, **close)


def test_it_begins_with_the_average_the_part_and_the_vocabulary(base, tmp_path, capfd):
    still = ["train.steps=1", "train.optim.learning_rate=1e-9", "train.optim.matrix_rate=1e-9"]
    _train(tmp_path / "new", f"init={base}", *_OTHER, *still)
    said = capfd.readouterr().err
    theirs, ours = folder.read(base), folder.read(tmp_path / "new")
    _assert_equal(ours.params, theirs.ema, atol=1e-6)
    _assert_equal(ours.ema, theirs.ema, atol=1e-6)
    assert "EMA weights of step 4" in said and "arrays" in said and "part   mean:" in said
    _assert_equal(ours.parts["mean"].averaged, theirs.parts["mean"].averaged, rtol=0)
    vocabularies = [
        sorted(p.read_bytes() for p in (run / "text_tokenizer").iterdir())
        for run in (base, tmp_path / "new")
    ]
    assert vocabularies[0] == vocabularies[1]
    stored = runs.load_run_recipe(tmp_path / "new").init
    assert stored == t2i.Init(str(base))


def _stopped(place, *overrides):
    """A start that ends after its parts are trained, before the recipe's own first step."""

    def stop(recipe, build_system):
        if recipe.parts:
            raise KeyboardInterrupt
        return ()

    with pytest.raises(KeyboardInterrupt):
        runs.train(changed(toy.get_config(), overrides), place, hooks=stop)


def test_a_vocabulary_of_a_start_that_saved_nothing_is_made_anew(base, tmp_path, capfd):
    run, short = tmp_path / "run", ["train.steps=1", "task.text.vocab_size=48"]
    _stopped(run, *short)
    before = (run / "text_tokenizer" / "tokenizer.json").stat()
    _stopped(run, *short)
    assert (run / "text_tokenizer" / "tokenizer.json").stat().st_mtime_ns == before.st_mtime_ns
    capfd.readouterr()
    _train(run, "train.steps=1")
    assert "(encoder.vocab_size: 48 -> 64); it is made anew" in capfd.readouterr().err
    wanted, found = (load(place / "text_tokenizer").vocab_size for place in (base, run))
    assert wanted == found > 48


def test_a_part_of_a_start_that_saved_nothing_is_not_taken_for_the_other_runs(base, tmp_path):
    run = tmp_path / "run"
    _stopped(run, "mean.train.steps=3", "train.steps=1")
    with pytest.raises(UserError, match=r"^parts.mean=.*other weights .* train into a new folder"):
        _train(run, f"init={base}", "train.steps=1")


def test_the_last_weights_and_an_export_are_taken_too(base, tmp_path, capfd):
    still = ["train.steps=1", "train.optim.learning_rate=1e-9"]
    _train(tmp_path / "last", f"init={base}", "init.averaged=false", *still)
    _assert_equal(folder.read(tmp_path / "last").params, folder.read(base).params, atol=1e-6)
    runs.export(base, tmp_path / "export")
    capfd.readouterr()
    _train(tmp_path / "new", f"init={tmp_path / 'export'}", "init.averaged=false", *still)
    _assert_equal(folder.read(tmp_path / "new").params, folder.read(base).ema, atol=1e-6)
    told = capfd.readouterr().err
    assert "  taken  " in told and "  init.averaged=False has no effect: " in told


def test_a_run_without_an_average_is_begun_with(tmp_path, capfd):
    _train(tmp_path / "base", "train.ema_decay=0")
    still = ["train.steps=1", "train.optim.learning_rate=1e-9", "train.optim.matrix_rate=1e-9"]
    _train(tmp_path / "new", f"init={tmp_path / 'base'}", *_OTHER, *still)
    assert "weights of step 4" in capfd.readouterr().err
    ours, theirs = folder.read(tmp_path / "new"), folder.read(tmp_path / "base")
    _assert_equal(ours.params, theirs.params, atol=1e-6)


def test_it_resumes_exactly_and_without_the_other_run(base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    whole = _train(tmp_path / "whole", f"init={other}", *_OTHER, "train.steps=6")
    _train(tmp_path / "cut", f"init={other}", *_OTHER, "train.steps=4")
    other.rename(tmp_path / "gone")
    cut = _train(tmp_path / "cut", f"init={other}", *_OTHER, "train.steps=6")
    _assert_equal(cut.weights, whole.weights, rtol=0)
    with pytest.raises(UserError, match="init.*holds a run of another configuration|init.run: "):
        _train(tmp_path / "cut", f"init={base}", *_OTHER, "train.steps=8")


def test_arrays_of_another_shape_are_refused_by_name_unless_asked(base, tmp_path, capfd):
    wider = [f"init={base}", "task.model.dim=16", "train.steps=1"]
    with pytest.raises(UserError, match=r"2 arrays of another shape \(params/toy/net/hid"):
        _train(tmp_path / "new", *wider)
    capfd.readouterr()
    _train(tmp_path / "new", *wider, "task.text.vocab_size=48", "init.misfits=new")
    said = capfd.readouterr().err
    assert "  new    3 arrays: params/toy/net/hidden, params/toy/net/out, params/toy/tex" in said
    assert load(tmp_path / "new" / "text_tokenizer").vocab_size <= 48  # as few rows as there are


_IDS = ClipText("clip.safetensors", toy_dalle2.CLIP, "clip")
_BARE = ClipText("clip.safetensors", toy_dalle2.CLIP)
_RANDOM = ClipText(None, toy_dalle2.CLIP)
_CLIP, _LEARNED = toy_dalle2.clip().task, toy.get_config().task


@pytest.mark.parametrize(
    ("task", "theirs", "taken"),
    [
        (_LEARNED, None, True),
        (_LEARNED, dataclasses.replace(_LEARNED.text, dim=16), True),
        (_LEARNED, dataclasses.replace(_LEARNED.text, vocab_size=65), False),
        (_LEARNED, _CLIP.text_encoder, False),
        (_CLIP, None, True),
        (_CLIP, CaptionIds(64, 12, "clip"), True),  # weights that were converted
        (dataclasses.replace(_CLIP, text=CaptionIds(64, 12, "clip")), None, False),
        (dataclasses.replace(toy_dalle2.prior().task, clip=toy_dalle2.CLIP), None, False),
        (dataclasses.replace(toy_dalle2.decoder().task, clip=toy_dalle2.CLIP), None, False),
        (dataclasses.replace(_LEARNED, text=_IDS), dataclasses.replace(_IDS, source="b"), False),
        (dataclasses.replace(_LEARNED, text=_BARE), _IDS, True),
        (dataclasses.replace(_LEARNED, text=_BARE), dataclasses.replace(_IDS, source="b"), False),
    ],
)
def test_a_vocabulary_is_taken_in_place_of_one_that_would_be_trained(
    task, theirs, taken, tmp_path, monkeypatch
):
    """That of a file or of a part is the one of its weights, whatever the other run has had."""
    train_bpe(["a red circle"], 64).save(tmp_path / "base" / "text_tokenizer")
    theirs = types.SimpleNamespace(text_encoder=theirs or task.text_encoder)
    monkeypatch.setattr(begin, "_recipe_of", lambda *_: types.SimpleNamespace(task=theirs))
    recipe = types.SimpleNamespace(task=task, init=t2i.Init(str(tmp_path / "base")))
    begin.vocabulary(recipe, tmp_path / "new")
    assert (tmp_path / "new").is_dir() == taken


def test_a_run_without_its_vocabulary_or_with_another_one_goes_no_further(base, tmp_path):
    lost, other = (shutil.copytree(base, tmp_path / name) for name in ("lost", "other"))
    shutil.rmtree(lost / "text_tokenizer")
    more = ["train.optim.learning_rate=0.05", "train.steps=6", f"mean={base / 'mean'}"]
    with pytest.raises(UserError, match="has a checkpoint and no text_tokenizer.*; restore text_"):
        _train(lost, *more)
    assert not (lost / "text_tokenizer").exists()
    train_bpe(["a blue cross"], 64).save(other / "text_tokenizer")
    for place, overrides in ((other, more), (tmp_path / "new", [f"init={other}"])):
        with pytest.raises(UserError, match="other' has another vocabulary than its weights were"):
            _train(place, *overrides)
    assert not (tmp_path / "new" / "text_tokenizer").exists()
    for run in (lost, other):
        assert not (run / "checkpoints" / "6").exists()


@pytest.mark.parametrize("init", [None, t2i.Init("base")])
@pytest.mark.parametrize("task", [_LEARNED, _CLIP, dataclasses.replace(_LEARNED, text=_RANDOM)])
def test_no_second_vocabulary_is_trained_for_weights_that_know_one(
    task, init, tmp_path, monkeypatch
):
    """Of runs from before there were digests too."""
    monkeypatch.setattr(training, "last_step", lambda workdir: 4)
    like = toy.get_config()
    recipe = t2i.Recipe(task, like.data, like.train, init=init)
    with pytest.raises(UserError, match="has a checkpoint and no text_tokenizer"):
        training._tokenizer(recipe, tmp_path, {})
    assert not list(tmp_path.iterdir())
    train_bpe(["a red circle"], 64).save(tmp_path / "text_tokenizer")
    assert training._tokenizer(recipe, tmp_path, {}).vocab_size <= 64


def test_a_run_of_another_task_is_refused_and_its_part_named(base, tmp_path):
    mean = toy.get_config().parts["mean"]
    with pytest.raises(UserError, match="is a run of ToyTask, .* MeanColourTask; give init="):
        _train(tmp_path / "new", f"init={base}", recipe=mean)
    with pytest.raises(UserError, match="init='nowhere' is not a folder; give that of a run"):
        _train(tmp_path / "new", "init=nowhere")
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_other_data_in_the_same_folder_are_refused_and_init_is_named(base):
    with pytest.raises(UserError, match=r"data.seed: 0 -> 5.*init= with this one begins with its"):
        _train(base, "data.seed=5", "train.steps=6", "train.optim.learning_rate=0.05")


def test_settings_of_what_comes_finished_are_refused(base, tmp_path):
    def check(*words):
        begin.check_named(changed(toy.get_config(), words), words, tmp_path / "new")

    check(f"init={base}", "*.train.steps=8", "task.model.dim=8")
    check(f"init={base}", "init.parts=False", "mean.train.steps=8")
    for name in ("mean.train.steps", "parts.mean.train.steps"):
        with pytest.raises(UserError, match=f"^{name} is given, and init=.* brings its own mean"):
            check(f"init={base}", f"{name}=8")


def test_settings_of_a_network_are_those_of_the_part_that_takes_its_place(tmp_path):
    def check(*words):
        recipe = changed(load_recipe("configs/parti/shapes.py"), words)
        begin.check_named(recipe, words, tmp_path / "new")

    check("task.tokenizer.image_size=16", "tokenizer.task.model.image_size=16")
    with pytest.raises(UserError, match="^task.tokenizer.dim=8 is given, and the part tokenizer, "):
        check("task.tokenizer.dim=8")


def test_parts_that_are_named_stay(base, tmp_path):
    recipe = changed(toy.get_config(), [f"init={base}", "init.parts=false", "mean.train.steps=2"])
    runs.train(changed(recipe, ["train.steps=1"]), tmp_path / "new", hooks=no_hooks)
    assert (tmp_path / "new" / "mean" / "checkpoints" / "2").is_dir()


def test_init_is_written_as_a_path_and_stored():
    recipe = changed(toy.get_config(), ["init=runs/a", "init.misfits=new", "mean.init=runs/b"])
    assert recipe.init == t2i.Init("runs/a", misfits="new")
    assert recipe.parts["mean"].init == t2i.Init("runs/b")
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
    assert changed(recipe, ["init=none"]).init is None
    assert dataclasses.replace(toy.get_config(), init="runs/a").init == t2i.Init("runs/a")
    with pytest.raises(UserError, match="init.misfits='drop' is not known"):
        changed(toy.get_config(), ["init=runs/a", "init.misfits=drop"])


def test_a_setting_says_which_stage_it_reaches():
    recipe, rate = toy.get_config(), "train.optim.learning_rate=0.5"
    rates = [
        (new.train.optim.learning_rate, new.parts["mean"].train.optim.learning_rate)
        for new in (changed(recipe, [rate]), changed(recipe, [f"*.{rate}"]))
    ]
    assert rates == [(0.5, 3e-4), (0.5, 0.5)]
    [sentence] = reach(recipe, [rate, "task.image_size=8", "mean.train.steps=3", "data.seed=1"])
    assert sentence.startswith("train.optim.learning_rate, data.seed are set for ToyTask alone; ")
    assert "mean.train.optim.learning_rate for the stage before it, *.train.optim" in sentence
    assert not list(reach(recipe, [rate, f"mean.{rate}", f"*.{rate}"]))
    assert not list(reach(changed(recipe, ["mean=runs/a"]), [rate]))
    with pytest.raises(UserError, match="parts.mean.task.text"):
        changed(recipe, ["*.task.text=None"])


@pytest.mark.parametrize("kept", ["trained='decoder'", "trains=('critic',)"])
def test_a_task_that_keeps_weights_must_begin_with_some(kept, tmp_path):
    recipe = load_recipe(_E2E / "tiny_critic.py")
    if kept.startswith("trained"):
        recipe = recipe.parts["tokenizer"]
        task = dataclasses.replace(recipe.task, trained="decoder")
        recipe = dataclasses.replace(recipe, task=task)
    with pytest.raises(UserError, match=re.escape(f"task.{kept}") + ".* give init=RUN"):
        runs.train(recipe, tmp_path / "run")
