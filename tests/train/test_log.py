"""Files of a run's folder that are something else, or damaged: set aside and said, never lost."""

import json
import pathlib
import subprocess
import sys

import pytest

from t2i_jax.train.log import Log, add_metrics, make_folder, metrics_of


def _logged(workdir, start=0):
    log = Log(pathlib.Path(workdir), start, 3)
    log.scalars(start + 1, {"loss": 1.0})
    log.store("goodput.json", {"a": 1})
    log.summary({"goodput": 0.5})
    log.close()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0\1", '{"a": ' * 10_000])
def test_metrics_that_are_damaged_are_set_aside(tmp_path, text, capfd):
    (tmp_path / "metrics.json").write_text(text)
    add_metrics(tmp_path, {"loss": 1.0})
    add_metrics(tmp_path, {"psnr": 2.0})
    assert metrics_of(tmp_path) == {"loss": 1.0, "psnr": 2.0}
    assert (tmp_path / "metrics.json.0").read_text() == text
    assert capfd.readouterr().err.count("it is kept as 'metrics.json.0'") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_null_as_json_has_no_number_for_it(tmp_path, value):
    (tmp_path / "metrics.json").write_text('{"earlier": NaN, "of_a_user": [{"a": 1e999}]}')
    add_metrics(tmp_path, {"psnr": value, "loss": 1.0})
    text = (tmp_path / "metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"earlier": None, "of_a_user": [{"a": None}], "psnr": None, "loss": 1.0}
    assert metrics_of(tmp_path) == found


@pytest.mark.parametrize("name", ["metrics.json", "metrics.jsonl", "goodput.json"])
def test_a_folder_in_the_place_of_a_file_is_set_aside(tmp_path, name, capfd):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("keep")
    _logged(tmp_path)
    assert (tmp_path / f"{name}.0" / "mine").read_text() == "keep"
    assert (tmp_path / name).is_file()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1
    assert f"kept as '{name}.0'" in capfd.readouterr().err


def test_a_file_in_the_place_of_a_folder_is_set_aside(tmp_path, capfd):
    name = "samples"
    (tmp_path / name).write_text("keep")
    (tmp_path / f"{name}.0").write_text("an earlier one")
    make_folder(tmp_path / name)
    assert (tmp_path / f"{name}.1").read_text() == "keep"
    assert (tmp_path / f"{name}.0").read_text() == "an earlier one"
    assert (tmp_path / name).is_dir() and f"kept as '{name}.1'" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["my notes\nof a day\n", "notes", '{"step": "one"}\n', "[1]\n"])
def test_lines_that_are_no_metrics_are_set_aside_whole(tmp_path, text, capfd):
    ours = '{"step": 1, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_text(ours + text if text.endswith("\n") else text)
    _logged(tmp_path, start=1)
    kept = (tmp_path / "metrics.jsonl.0").read_text()
    assert text in kept and "are no metrics" in capfd.readouterr().err
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == ([1, 2] if text.endswith("\n") else [2])


def test_a_line_that_a_crash_has_torn_goes_without_a_word(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    _logged(tmp_path, start=1)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2] and not (tmp_path / "metrics.jsonl.0").exists()
    assert "are no metrics" not in capfd.readouterr().err


def test_events_are_those_of_tensorboard_and_pytorch_stays_out(tmp_path):
    program = f"""
import sys
from tests.train.test_log import _logged
_logged({str(tmp_path)!r}, 4)
assert "torch" not in sys.modules
from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2
import pathlib, struct
[path] = pathlib.Path({str(tmp_path)!r}).glob("events.out.tfevents.*")
rest, found = path.read_bytes(), []
while rest:
    (size,) = struct.unpack("<Q", rest[:8])
    found.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
    rest = rest[16 + size :]
assert found[0].file_version == "brain.Event:2"
assert found[1].session_log.status == event_pb2.SessionLog.START and found[1].step == 5
[value] = found[2].summary.value
assert (value.tag, value.simple_value, found[2].step) == ("loss", 1.0, 5)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
