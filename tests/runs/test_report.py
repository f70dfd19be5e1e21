"""The page of a run whose files were damaged or edited, and the score of its checkpoints."""

import os
import types

import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.cli import report as command
from t2i_jax.errors import UserError
from t2i_jax.runs import evaluation, report, training
from t2i_jax.train import best
from tests.runs.test_training import RECIPE

_DEEP, _LONG = '{"a": ' * 10_000, "9" * 400


@pytest.mark.parametrize("text", ["", "[]", _DEEP, f'{{"3": {_LONG}, "4": 0.5}}', "\xff"])
def test_scores_that_are_damaged_count_as_none(tmp_path, text):
    (tmp_path / "scores.json").write_text(text, encoding="latin-1")
    for step in "34":
        (tmp_path / "checkpoints" / step / "data").mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "data" / "metadata").write_text(_DEEP)
    found = best.scores(tmp_path / "checkpoints")
    assert found == ({4: 0.5} if "0.5" in text else {})


@pytest.mark.parametrize(
    "metrics",
    [
        '{"validation/best_step": 3}',
        '{"validation/best_step": "x", "validation/best": null}',
        f'{{"validation/best_step": {_LONG}, "validation/best": {_LONG}, "psnr": {_LONG}}}',
        _DEEP,
    ],
)
def test_the_page_of_a_run_is_written_whatever_its_files_hold(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(metrics)
    lines = [_DEEP, "[1]", f'{{"step": 1, "loss": {_LONG}}}']
    lines += [f'{{"step": {step}, "loss": 0.5, "validation/loss": 1.0}}' for step in (_LONG, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "commands.jsonl").write_text(f'{_DEEP}\n{{"command": "t2i train"}}\n')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "\u00b2.png").write_bytes(b"")
    assert report.write_report(tmp_path, RECIPE)
    page = (tmp_path / report.REPORT).read_text()
    assert "t2i train" in page and "step 3 of" in page


def test_a_pipe_in_the_place_of_a_file_holds_no_run_up(tmp_path, capsys):
    os.mkfifo(tmp_path / "commands.jsonl")
    os.mkfifo(tmp_path / "metrics.jsonl")
    report.note_start(tmp_path)
    assert "kept as 'commands.jsonl.0'" in capsys.readouterr().err
    assert report.write_report(tmp_path, RECIPE)
    assert "<h2>Commands</h2>" in (tmp_path / report.REPORT).read_text()


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
@pytest.mark.parametrize("name", ["samples/0000006.png", "samples/heldout.png", report.REPORT])
def test_what_is_in_the_place_of_a_picture_or_the_page_is_set_aside(tmp_path, name, kind, capsys):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("keep")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    if name == report.REPORT:
        assert report.write_report(tmp_path, RECIPE)
    else:
        evaluation.save_sheet(path, np.zeros((2, 2, 3), np.uint8))
    kept = path.with_name(f"{path.name}.0")
    assert path.is_file() and not path.is_symlink() and os.path.lexists(kept)
    assert kind != "folder" or (kept / "mine").read_text() == "keep"
    assert f"kept as {kept.name!r}" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "text_tokenizer").write_text("")
    recipe = types.SimpleNamespace(task=types.SimpleNamespace(text_encoder=object()))
    with pytest.raises(UserError, match="has a text_tokenizer that is no folder; put the run's"):
        training._fit(recipe, tmp_path, {}, None, None, None)


def test_a_sweep_of_a_system_without_its_options_is_refused(tmp_path, monkeypatch):
    system = types.SimpleNamespace(sweep=lambda held_out, evaluation: {})
    monkeypatch.setattr(runs, "load_run_recipe", lambda run: RECIPE)
    monkeypatch.setattr(runs, "load", lambda run: system)
    with pytest.raises(UserError, match="has no guidance and temperature .* leave --sweep out"):
        command.report(tmp_path, sweep=True)
    assert not any(tmp_path.iterdir())
