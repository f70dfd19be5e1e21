"""What a recipe brings into a run beside its task: the weights of a perceptual judge, and data, of
which the run tells what it leaves out and cuts.
"""

import contextlib
import dataclasses
import itertools
import json
import types

import jax
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.cluster import processes
from t2i_jax.convert import torch_io
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.pipeline import DataConfig, batches
from t2i_jax.data.source import open_source
from t2i_jax.errors import Preempted, UserError
from t2i_jax.models.vgg import Vgg16
from t2i_jax.runs import stored_text, training
from t2i_jax.runs.evaluation import held_out
from t2i_jax.runs.ledger import DataLedger
from t2i_jax.text.classes import ClassLabels
from t2i_jax.text.tokenizer import train_bpe
from tests.data.hostile import encode, photo
from tests.e2e.tiny import get_config
from tests.systems.test_clip import TINY
from tests.toy_system import recipe as toy
from tests.weights import drawn

RECIPE = get_config().parts["tokenizer"]


def no_hooks(recipe, build_system):
    return ()


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file of VGG16, its convolutions alone, with random weights."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    params = drawn(Vgg16().init, image, image)["params"]
    params = jax.tree.map(lambda leaf: 0.02 * leaf, params)  # so that features stay finite
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    torch_io.write(path, convert.to_state(Vgg16(), params))
    return path


def test_a_file_of_weights_turns_the_perceptual_loss_on(vgg, tmp_path, capfd):
    train = dataclasses.replace(RECIPE.train, steps=1, batch_size=1, log_every=1)
    recipe = dataclasses.replace(RECIPE, perceptual=str(vgg), train=train)
    system = runs.train(recipe, tmp_path, hooks=no_hooks)
    assert isinstance(system.task.perceptual, Vgg16)
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["perceptual"] > 0
    assert "perceptual loss is off" not in capfd.readouterr().err
    stored = {path.name for path in tmp_path.rglob("*") if "perceptual" in path.name}
    assert not stored  # the judge's weights are the user's file, no part of the run


def test_micro_batches_are_told_where_a_loss_compares_rows(tmp_path, capfd):
    train = t2i.TrainConfig(steps=1, batch_size=8, accumulate=4)
    told = []
    for task in (t2i.ClipTask(t2i.CLIP(**TINY)), RECIPE.task):
        recipe = dataclasses.replace(RECIPE, task=task, train=train)
        training._with_parts(recipe, tmp_path, {}, None, None)
        told.append("compares the rows of a batch" in capfd.readouterr().err)
    assert told == [True, False]


def test_a_process_that_finds_noted_what_it_would_note_waits_all_the_same(tmp_path, monkeypatch):
    """The first may have written it by then, and waits for the others."""
    waited, task = [], types.SimpleNamespace(columns=lambda parts: {"text": {}, "clip": {}})
    recipe = types.SimpleNamespace(task=task, data=types.SimpleNamespace(source="x"))
    source = types.SimpleNamespace(stored={"text": {"t5": "a", "weights": "1"}})
    monkeypatch.setattr(processes, "gather", lambda mine: waited.append(mine) or [mine, mine])
    counts = []
    for _ in ("the first", "another"):
        stored_text.note(tmp_path, recipe, {}, source)
        counts.append(len(waited))
    assert counts[1] == 2 * counts[0] > 0
    assert json.loads((tmp_path / "stored_text.json").read_text()) == source.stored["text"]
    assert not (tmp_path / "stored_clip.json").exists()


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


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_has_its_channels_whatever_a_folder_holds(channels, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(8):
        image = photo(i, (16, 16)).convert("RGBA" if i % 2 else "L")
        image.save(tmp_path / "images" / f"{i}.png")
    network = dataclasses.replace(RECIPE.task.model, channels=channels)
    recipe = dataclasses.replace(
        RECIPE,
        task=dataclasses.replace(RECIPE.task, model=network),
        data=dataclasses.replace(RECIPE.data, source=f"folder:{tmp_path / 'images'}"),
        train=dataclasses.replace(RECIPE.train, steps=1),
    )
    runs.train(recipe, tmp_path / "run", hooks=no_hooks)
    assert runs.load_run_recipe(tmp_path / "run").task.model.channels == channels
    images = held_out(recipe)(8, ("image",))["image"]
    assert images.shape == (8, 16, 16, channels)


@pytest.mark.parametrize("wrong", range(3))
def test_captions_that_are_no_classes_are_found_before_a_new_run_trains(
    wrong, tmp_path, monkeypatch, capfd
):
    """Held-out ones too; they are read once, unless the data or the classes are others."""
    for name in ("images", "run"):
        (tmp_path / name).mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(photo(i)))
        (tmp_path / "images" / f"{i}.txt").write_text(f"tench {i}" if i != wrong else "a dog")
    task = dataclasses.replace(toy.get_config().task, text=ClassLabels(("tench", "crane"), dim=8))
    data = t2i.DataConfig(f"folder:{tmp_path / 'images'}", 8, threads=0, heldout=0.4)
    recipe = dataclasses.replace(toy.get_config(), task=task, data=data, parts={})
    with pytest.raises(UserError, match="caption 'a dog' names none of the 2 classes"):
        training._fit(recipe, tmp_path / "run", {}, no_hooks, None, None)

    def goes_on(*_):
        raise Preempted("after the check")

    def begun(recipe):
        with pytest.raises(Preempted):
            training._fit(recipe, tmp_path / "run", {}, no_hooks, None, None)
        return capfd.readouterr().err.count("reading the captions of 3 records once")

    monkeypatch.setattr(type(task), "frozen", goes_on)
    classes = dataclasses.replace(task, text=ClassLabels(("tench", "dog"), dim=8))
    capfd.readouterr()
    fitting = dataclasses.replace(recipe, task=classes)
    assert [begun(fitting) for _ in range(2)] == [1, 0]
    other = dataclasses.replace(data, source=f"{data.source}/.")
    assert [begun(dataclasses.replace(fitting, data=other)) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(training, "last_step", lambda workdir: 1)
    assert begun(recipe) == 0


@pytest.fixture
def uneven(tmp_path):
    """Ten images: one is broken, one has no caption, three have long ones, one a foreign word."""
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(encode(photo(i)) if i else b"broken")
        if i != 1:
            words = "a long caption of many words" if i > 6 else "кот" if i == 2 else "a word"
            (tmp_path / f"{i}.txt").write_text(f"{words} {i}")
    return f"folder:{tmp_path}"


@pytest.fixture
def saved(tmp_path_factory):
    """The folder of a run of which a step is saved."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "checkpoints" / "1").mkdir(parents=True)
    return workdir


def test_a_run_tells_what_it_leaves_out_and_cuts(uneven, tmp_path, capsys):
    tokenizer = train_bpe(["a long caption of many words 0123456789"] * 9, 64)
    ledger = DataLedger(tokenizer, 6)
    ledger.begin(uneven, open_source(uneven, image_size=8), ("image", "caption"))
    said = capsys.readouterr().err
    assert said.startswith("data.source=")  # plain sentences, not those of a logger
    assert "images that can't be used: 1\n    not an image: 1 (0.png)" in said
    assert "captions that can't be used: 1\n    no caption: 1 (1.png)" in said
    assert "captions that are not read whole: 4\n    caption of more than 6 tokens: 3 (" in said
    assert "of many words 7'" in said and "among 10 of 10 records" in said
    config = DataConfig(source=uneven, image_size=8, max_bad_rate=1.0)
    stream = batches(config, 4, 0, tokenize=ledger.tokenize)
    for _ in range(9):  # several epochs
        next(stream)
    ledger.end(uneven, stream, tmp_path)
    said = capsys.readouterr().err
    assert "left out: 2\n" in said and "captions that were not read whole: 4\n" in said
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "data/left_out/not an image": 1.0,
        "data/left_out/no caption": 1.0,
        "data/cut/caption of more than 6 tokens": 3.0,
        "data/cut/caption with letters that the vocabulary lacks": 1.0,
    }


def test_where_all_is_well_a_run_tells_nothing(capsys, tmp_path):
    ledger = DataLedger(None, 0)
    (tmp_path / "a.png").write_bytes(encode(photo()))
    ledger.begin("digits", open_source("digits", image_size=8), ("image",))
    source = f"folder:{tmp_path}"
    ledger.begin(source, open_source(source, image_size=8), ("image",))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("stops", [(), (1,), (2, 5)])
def test_what_is_left_out_and_cut_is_counted_over_all_starts(stops, uneven, saved, capsys):
    tokenizer = train_bpe(["a long caption of many words 0123456789"] * 9, 64)
    config = DataConfig(source=uneven, image_size=8, max_bad_rate=1.0, threads=0)
    state = None
    for start, end in itertools.pairwise((0, *stops, 9)):
        ledger = DataLedger(tokenizer, 6)
        stream = batches(config, 4, 0, tokenize=ledger.tokenize)
        if state is not None:
            stream.set_state([state])
        with contextlib.suppress(Preempted), ledger.kept(stream, saved):
            for _ in range(start, end):
                next(stream)
            state = stream.get_state()
            if end < 9:
                raise Preempted("stopped")
    capsys.readouterr()
    ledger.end(uneven, stream, saved)
    said = capsys.readouterr().err
    assert "left out: 2\n" in said and "not an image: 1 (0.png)" in said
    assert "captions that were not read whole: 4\n" in said
    assert json.loads((saved / "metrics.json").read_text()) == {
        "data/left_out/not an image": 1.0,
        "data/left_out/no caption": 1.0,
        "data/cut/caption of more than 6 tokens": 3.0,
        "data/cut/caption with letters that the vocabulary lacks": 1.0,
    }


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"left out": {"different": 3}}', b"\xff"])
def test_a_damaged_count_begins_anew(damage, uneven, saved):
    (saved / "left_out.0.json").write_bytes(damage)
    ledger = DataLedger(None, 0)
    config = DataConfig(source=uneven, image_size=8, max_bad_rate=1.0, threads=0)
    stream = batches(config, 10, 0, wants=("image",))
    with ledger.kept(stream, saved):
        next(stream)
    ledger.end(uneven, stream, saved)
    told = json.loads((saved / "metrics.json").read_text())
    assert told == {"data/left_out/not an image": 1.0}


def test_the_first_process_takes_the_counts_of_those_that_are_gone(uneven, saved):
    ledger, stream = DataLedger(None, 0), batches(DataConfig(source=uneven), 1, 0, wants=("image",))
    earlier = Ledger()
    earlier.note("no image", "x.png")
    told = {"left out": earlier.stored(), "captions cut": Ledger().stored(),
            "texts cut": Ledger().stored()}  # fmt: skip
    (saved / "left_out.3.json").write_text(json.dumps(told))
    for _ in range(2):
        with ledger.kept(stream, saved):
            pass
        assert stream.bad.metrics("") == {"no image": 1.0}
        assert [path.name for path in saved.glob("left*")] == ["left_out.0.json"]
        stream = batches(DataConfig(source=uneven), 1, 0, wants=("image",))
