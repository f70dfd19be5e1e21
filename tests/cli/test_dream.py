"""`dream`: what its console script takes, which run makes the image, and where that goes."""

import configparser
import importlib.metadata
import os
import pathlib
import sys
import types

import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.cli import dream
from t2i_jax.errors import UserError

_SETUP = pathlib.Path(__file__).resolve().parents[2] / "setup.cfg"


@pytest.fixture
def script(monkeypatch, capsys):
    """What runs the console script as it is installed: words to (status, stdout, stderr)."""
    setup = configparser.ConfigParser()
    setup.read(_SETUP)
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    scripts = dict(map(str.strip, line.split("=")) for line in lines)
    start = importlib.metadata.EntryPoint("dream", scripts["dream"], "console_scripts").load()
    monkeypatch.setattr("t2i_jax.heap.keep_freed_memory", lambda: False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dream", *map(str, words)])
        status = 0
        try:
            start()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(folder of the run, captions, what else was asked for) of each image that was made, in an
    empty folder that is the current one.
    """
    found = []

    def load(folder):
        def generate(prompts, options, **given):
            found.append((folder.name, prompts, given))
            return np.zeros((1, 4, 4, 3), np.uint8)

        return types.SimpleNamespace(generate=generate, generates=folder.name != "tokenizer")

    recipe = types.SimpleNamespace(evaluation=types.SimpleNamespace(options=None))
    monkeypatch.setattr(runs, "load_run_recipe", lambda _: recipe)
    monkeypatch.setattr(runs, "load", load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUN", raising=False)
    return found


def test_the_run_that_was_trained_last_is_the_newest(tmp_path, made):
    for minute, (name, what) in enumerate(
        (("first", "checkpoints"), ("second", "recipe.json"), ("third", "checkpoints"))
    ):
        place = tmp_path / "runs" / name / what
        place.mkdir(parents=True)
        os.utime(place, (60 * minute, 60 * minute))
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "first" / "metrics.json").touch()  # measured again, after all others
    dream.dream("a circle")
    os.utime(tmp_path / "runs" / "first" / "checkpoints")
    dream.dream("a circle")
    assert [run for run, *_ in made] == ["third", "first"]


def test_a_folder_that_takes_no_image_is_refused_before_one_is_made(tmp_path, made, monkeypatch):
    (tmp_path / "runs" / "one" / "checkpoints").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(UserError, match="^folder='.*nothing can be written into it; go to an"):
            dream.dream("a circle")
    assert not made and not list(tmp_path.glob("*.png"))
    for _ in range(2):
        dream.dream("a circle")
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-circle.png", "a-circle-2.png"}


def test_a_run_that_was_not_named_is_in_the_sentence_that_refuses_it(tmp_path, made, monkeypatch):
    (tmp_path / "runs" / "tokenizer" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="^run='runs/tokenizer' makes no images .*with --run FOLD"):
        dream.dream("a circle")
    monkeypatch.setenv("T2I_RUN", "gone")
    with pytest.raises(UserError, match="^T2I_RUN='gone' is the folder of no run; set this env"):
        dream.dream("a circle")
    assert not made


def test_the_script_takes_its_words(tmp_path, made, script):
    (tmp_path / "elsewhere" / "checkpoints").mkdir(parents=True)
    status, out, _ = script("A circle!", "--run", "elsewhere", "--guidance=3", "--seed", 5)
    assert (status, out) == (0, "1 image of elsewhere: a-circle.png\n")
    [(run, captions, given)] = made
    assert (run, captions) == ("elsewhere", ["A circle!"])
    assert (given["guidance"], given["seed"]) == (3.0, 5)
    status, out, _ = script("--help")
    assert status == 0 and out.startswith("usage: dream CAPTION [OPTIONS]\n")
    assert {"--run", "--guidance", "--seed"} <= set(out.split()) and len(made) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "CAPTION"),
        (("a", "circle"), "circle"),
        (("a circle", "--sed", 5), "--seed"),
        (("a circle", "--seed", "x"), "seed"),
        (("a circle",), "run is missing: there is no run in the folder runs"),
    ],
)
def test_mistakes_are_one_sentence(made, script, words, said):
    status, out, err = script(*words)
    assert status == 2 and not out and not made
    assert err.startswith("t2i: ") and err.count("\n") == 1 and said in err
