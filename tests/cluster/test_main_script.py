"""A script that would train again in each of its reader processes is refused before it trains."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CALL = """
import t2i_jax as t2i
from t2i_jax import runs

recipe = t2i.Recipe(
    task=t2i.TokenizerTask(t2i.VitVQGanVAE(dim=8, image_size=8, patch_size=4, layers=1, heads=1)),
    data=t2i.DataConfig(source="shapes", image_size=8, workers=2),
    train=t2i.TrainConfig(steps=1, batch_size=2, eval_every=0),
)
"""
_PLAIN = 'runs.train(recipe, "run")\n'
_IN_A_FUNCTION = "def main():\n    runs.train(recipe, 'run')\n\nmain()\n"


@pytest.mark.parametrize("call", [_PLAIN, _IN_A_FUNCTION])
def test_a_call_outside_of_the_guard_is_refused_and_nothing_is_made(tmp_path, call):
    (tmp_path / "script.py").write_text(_CALL + call)
    done = _run(tmp_path)
    assert done.returncode == 1
    assert "move the call below `if __name__" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_reader_process_never_trains(tmp_path):
    started = (
        "import multiprocessing, threading\n"
        "def nothing():\n    pass\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=nothing)\n"
        "    child.start(), child.join(), print(child.exitcode)\n"
        "else:\n    runs.train(recipe, 'run')\n"
    )
    (tmp_path / "script.py").write_text(_CALL + started)
    done = _run(tmp_path)
    assert done.stdout.split() == ["1"] and "Traceback" not in done.stderr
    assert done.stderr.count("move the call below") == 1
    assert not (tmp_path / "run").exists()


def _run(folder):
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
