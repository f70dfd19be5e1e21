"""The command that `t2i quickstart` tells at its end."""

import os
import shlex

import pytest

from t2i_jax.cli import quickstart
from t2i_jax.quickstart import run as home


@pytest.mark.parametrize("on_path", [True, False], ids=["on the PATH", "not on the PATH"])
def test_the_command_that_it_tells_can_be_pasted(tmp_path, monkeypatch, capsys, on_path):
    program, run = tmp_path / "the venv" / "t2i", tmp_path / "my run"
    for folder in (program.parent, run):
        folder.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent if on_path else run), prepend=os.pathsep)
    monkeypatch.setattr("sys.argv", [str(program), "quickstart"])
    monkeypatch.setattr(home, "finished", lambda workdir: {"seconds": 1.0})
    quickstart.quickstart(run)
    told = shlex.split(capsys.readouterr().out.partition(", or run  ")[2])
    assert told[:3] == ["t2i" if on_path else str(program), "sample", str(run)] and len(told) == 4
