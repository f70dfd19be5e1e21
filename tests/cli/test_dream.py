"""`dream`: which run it takes, and where its image goes."""

import os
import types

import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.cli import dream
from t2i_jax.errors import UserError


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The folders of the runs that made an image, in an empty folder that is the current one."""
    found = []

    def load(folder):
        image = np.zeros((1, 4, 4, 3), np.uint8)
        return types.SimpleNamespace(generate=lambda *_, **__: found.append(folder.name) or image)

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
    assert made == ["third", "first"]


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
