"""The tree is formatted, has no lint, and its public functions are typed as they are used."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]


def _run(tool, *arguments):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed; pip install -e '.[dev]'")
    command = [sys.executable, "-m", tool, *arguments]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(check):
    _run("ruff", *check, ".")


def test_pyright():
    _run("pyright", "--pythonpath", sys.executable)
