"""The quickstart at toy size: stopped by a signal, carried on, done, and done again at once."""

import dataclasses
import json
import os
import signal

import pytest

from t2i_jax.cli.quickstart import quickstart as command
from t2i_jax.errors import UserError
from t2i_jax.quickstart import run as quickstart
from t2i_jax.runs import folder as folders
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.train.loop import Preempted
from tests.e2e import tiny
from tests.e2e.command import inside


def _recipe():
    recipe = tiny.get_config()
    return dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, steps=6, eval_every=2)
    )


def test_it_carries_on_where_it_was_stopped_and_says_when_it_is_done(tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "quickstart"
    monkeypatch.setattr(quickstart, "get_config", _recipe)
    monkeypatch.setattr(quickstart, "_SHOWN", 4)

    draw = TextToImage.preview
    with monkeypatch.context() as patch:
        patch.setattr(
            TextToImage,
            "preview",
            lambda *args: os.kill(os.getpid(), signal.SIGTERM) or draw(*args),
        )
        with pytest.raises(Preempted, match="stopped after step 2"):
            command(workdir)
    seconds = json.loads((workdir / "metrics.json").read_text())["seconds"]
    assert quickstart.finished(workdir) is None and not (workdir / "report.html").exists()

    command(workdir)
    output = capfd.readouterr()
    assert "resuming from step 2 of 6" in output.err
    assert (
        f"done: open {workdir / 'report.html'}" in output.out
        and "alignment_heldout: " in output.out
    )
    metrics = quickstart.finished(workdir)
    assert metrics["seconds"] > seconds > 0 and {"reconstruction_psnr", "codebook_usage"} <= set(
        metrics
    )
    report = (workdir / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 3
    assert "='http" not in report and '="http' not in report, "a report is read without a network"

    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    command(workdir)
    assert "done: open" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before, (
        "nothing is made again"
    )

    # the page and some metrics made anew by another command; so too where an earlier release did it
    inside("eval", workdir, "evaluation.pictures=4")
    assert "Samples for held-out captions" not in (workdir / "report.html").read_text()
    for is_marked in (True, False):
        if not is_marked:
            (workdir / "quickstart.json").unlink()
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        command(workdir)
        assert "done: open" in capfd.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before

    # stopped while the page was drawn, which shows the run's own metrics by then
    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "_report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        (workdir / "report.html").unlink()
        with pytest.raises(KeyboardInterrupt):
            command(workdir)
    assert (workdir / "report.html").is_file() and quickstart.finished(workdir) is None
    command(workdir)
    assert "Samples for held-out captions" in (workdir / "report.html").read_text()
    assert quickstart.finished(workdir) is not None


@pytest.mark.parametrize("of", ["another task", "other data", "a larger network"])
def test_the_folder_of_another_run_is_none_of_the_quickstarts(of, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "get_config", _recipe)
    other = _recipe()
    if of == "another task":
        other = other.parts["tokenizer"]
    elif of == "other data":
        other = dataclasses.replace(other, data=dataclasses.replace(other.data, source="digits"))
    else:
        model = dataclasses.replace(other.task.model, depth=3)
        other = dataclasses.replace(other, task=dataclasses.replace(other.task, model=model))
    folders.write_joined(tmp_path, other)  # the recipe alone
    (tmp_path / "report.html").write_text("its own")
    (tmp_path / "metrics.json").write_text('{"alignment_heldout": 0.5}')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds another run than a quickstart, a .*Task on '"):
        command(tmp_path)
    assert "done" not in capfd.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
