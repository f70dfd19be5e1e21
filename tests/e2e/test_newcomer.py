"""The way of a newcomer with 200 drawings of their own, command by command.

Look, pack, train, stop, resume, fine-tune, sample, inpaint, evaluate, export.
"""

import itertools
import json
import os
import pathlib
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.e2e import tiny
from tests.e2e.command import inside, pictures

_COLOURS = ("red", "green", "blue", "orange", "purple")
_FORMS = ("circle", "square", "triangle", "cross")


def _draw(colour, form, place):
    image = Image.new("RGBA", (40, 36), (255, 255, 255, 0))  # transparent, as drawings are
    draw, (x, y) = ImageDraw.Draw(image), (4 + 2 * (place % 5), 4 + 2 * (place // 5))
    box = (x, y, x + 20, y + 20)
    if form == "circle":
        draw.ellipse(box, colour)
    elif form == "square":
        draw.rectangle(box, colour)
    elif form == "triangle":
        draw.polygon([(x, y + 20), (x + 20, y + 20), (x + 10, y)], colour)
    else:
        draw.line([box[:2], box[2:]], colour, 4)
        draw.line([(x, y + 20), (x + 20, y)], colour, 4)
    return image


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    for i, (colour, form, place) in enumerate(itertools.product(_COLOURS, _FORMS, range(10))):
        _draw(colour, form, place).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {colour} {form}, {place}\n")
    (folder / "notes.md").write_text("drawn with Pillow")
    (folder / "._000.png").write_bytes(b"what a Mac leaves behind")
    return folder


def _stop_at_the_first_checkpoint(workdir):
    """SIGTERM to this process, in which the training runs, as a cluster sends it."""

    def watch():
        while not any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_the_whole_way(drawings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    looked = inside("data", "inspect", f"folder:{drawings}", "--sheet", "sheet.png").stdout
    assert "200" in looked and Image.open("sheet.png").size[0] > 100
    packed = inside("data", "pack", f"folder:{drawings}", "packed", "--size", 16).stdout
    assert "200 records" in packed

    recipe = pathlib.Path(tiny.__file__)
    data = "*.data.source=arrayrecord:packed", "*.data.heldout=0.1", "evaluation.judge=None"
    train = "train", recipe, *data, "train.steps=12", "--workdir", "run"
    _stop_at_the_first_checkpoint(tmp_path / "run")
    stopped = inside(*train, status=75)
    steps = {int(path.name) for path in pathlib.Path("run/checkpoints").iterdir()}
    assert max(steps) < 12 and "same command" in stopped.stderr
    assert "done: run" in inside(*train).stdout

    other = tmp_path / "other"
    other.mkdir()
    for i in range(20):
        _draw("brown", "square", i % 10).save(other / f"{i}.png")
        (other / f"{i}.txt").write_text("a brown square")
    tuned = inside(
        "train", recipe, "init=run", f"data.source=folder:{other}", "train.steps=2",
        "train.optim.learning_rate=1e-4", "evaluation.judge=None", "--workdir", "tuned",
    )  # fmt: skip
    assert "done: tuned" in tuned.stdout

    inside("sample", "run", "a red circle", "--count", 4, "--out", "made")
    assert [image.shape for image in pictures(tmp_path / "made").values()] == [(16, 16, 3)] * 4
    Image.fromarray(np.uint8([[255], [0]]).repeat(40, 1)).resize((40, 36), 0).save("mask.png")
    inside(
        "sample", "run", "a blue square", "--init", drawings / "000.png", "--mask", "mask.png",
        "--count", 4, "--out", "inpainted",
    )  # fmt: skip
    half = list(pictures(tmp_path / "inpainted").values())
    assert len(half) == 4 and half[0].shape == (16, 16, 3)

    told = inside("eval", "run").stdout
    metrics = json.loads(pathlib.Path("run/metrics.json").read_text())
    assert any("valid" in name for name in metrics) and "valid" in told
    assert "<svg" in (report := pathlib.Path("run/report.html").read_text()) or "img" in report

    inside("export", "run", "model")
    inside("sample", "model", "a red circle", "--count", 4, "--out", "again")
    for name, image in pictures(tmp_path / "made").items():
        np.testing.assert_array_equal(image, pictures(tmp_path / "again")[name])
