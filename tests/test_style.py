"""The tree is formatted, has no lint, and its public functions are typed as they are used."""

import ast
import importlib.util
import pathlib
import re
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


def test_every_refusal_has_a_remedy():
    """A sentence of a `UserError` ends with what to do; one that hands on another has little of its
    own.
    """
    without = []
    for path in sorted((_ROOT / "t2i_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                parts = [one for one in ast.walk(node) if isinstance(one, ast.Constant)]
                said = "".join(str(part.value) for part in parts)
                words = ("; ", "give", "try ", "must be", "write ")
                hands_on = re.search(r"\{(error|told)\}", ast.unparse(node))
                if len(said) > 30 and not hands_on and not any(word in said for word in words):
                    without.append(f"{path.relative_to(_ROOT)}:{node.lineno}: {said}")
    assert not without
