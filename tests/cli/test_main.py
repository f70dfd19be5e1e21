"""How the command line starts."""

import errno
import os
import pathlib
import subprocess
import sys
import types

import pytest

from t2i_jax.cli import compile as compiling
from t2i_jax.cli import main as cli
from t2i_jax.cli import quickstart, sample, train
from t2i_jax.errors import UserError
from t2i_jax.quickstart import run as home
from tests.e2e import tiny_imagen
from tests.e2e.command import refused


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "out/000-00.png"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "out/000-00.png"),
        OSError(errno.EROFS, "Read-only file system", "out/000-00.png"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_or_read_only_disk_is_one_sentence(error, capsys):
    def full(words):
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.main(full)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("t2i: ") and told.count("\n") == 1
    assert told.endswith(", and start again.\n") and "Errno" not in told
    assert ("free space" in told) != ("name another place" in told)
    assert "'out/000-00.png'" in told or not isinstance(error, OSError)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_without_a_device_is_one_sentence(platform):
    asks = "from t2i_jax.cli import main; main.main(lambda words: __import__('jax').devices())"
    done = subprocess.run(
        [sys.executable, "-c", asks],
        env={**os.environ, "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    *_, told = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        told == f"t2i: JAX_PLATFORMS={platform!r} has no device here; set it to cpu, or unset it."
    )


@pytest.mark.parametrize("profile", ["10", "15:10", "100:101"])
def test_steps_to_trace_that_make_no_sense_are_refused_before_anything_starts(tmp_path, profile):
    with pytest.raises(UserError, match="^profile=.*; give "):
        train.train(pathlib.Path(tiny_imagen.__file__), workdir=tmp_path / "run", profile=profile)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("compile", tiny_imagen.__file__, "--topology", "v5e:2x2", "--json", "folder"),
        ("data", "inspect", "shapes", "--sheet", "folder"),
        ("data", "pack", "shapes", "folder"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch, words
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    monkeypatch.chdir(tmp_path)
    for work in ("t2i_jax.aot.ahead.slice_devices", "t2i_jax.data.source.open_source"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("it begins"))
    sentence = refused(*words)
    assert "='folder' " in sentence and "; name a" in sentence
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "mine"]


def test_numbers_go_into_a_folder_that_is_made_for_them(tmp_path):
    compiling._write(tmp_path / "deep" / "report.json", {"fits": True})
    assert "fits" in (tmp_path / "deep" / "report.json").read_text()


def test_images_are_not_made_where_they_cannot_be_left(tmp_path, monkeypatch):
    system = types.SimpleNamespace(
        task=types.SimpleNamespace(text_encoder=None),
        generate=lambda *_, **__: pytest.fail("it made images"),
    )
    monkeypatch.setattr("t2i_jax.runs.load", lambda *_, **__: system)
    monkeypatch.setattr(sample, "_is_free", lambda *_: False)
    with pytest.raises(UserError, match="and its numbered neighbours exist; name another folder"):
        sample._sample(sample._Command(run=tmp_path, captions=("a circle",)), None, {})


def test_metrics_that_are_not_finite_are_printed_as_that(tmp_path, monkeypatch, capsys):
    """None is what metrics.json has for them."""
    metrics = {"one": None, "two": float("nan"), "three": float("inf"), "four": 1.23456}
    monkeypatch.setattr(home, "finished", lambda _: metrics)
    quickstart.quickstart(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{name}: not finite" for name in ("one", "two", "three")]
    assert lines[3] == "four: 1.235" and lines[4].startswith("done: ")


@pytest.mark.parametrize("words", [("train", tiny_imagen.__file__), ("data", "inspect", "shapes")])
def test_a_current_folder_that_was_deleted_is_one_sentence(tmp_path, monkeypatch, words):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the current folder can't be found" in refused(*words)
