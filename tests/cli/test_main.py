"""How the command line starts."""

import os
import sys

import pytest

from t2i_jax.cli import main as cli


def test_a_process_starts_again_once_to_keep_what_it_has_freed(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(cli, "main", lambda: started.append("main"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "t2i_jax.cli.main", "train", "a b.py"])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cli.start()
    assert started[0] == (sys.executable, [sys.executable, "-m", "t2i_jax.cli.main", "train", "a b.py"])
    assert "glibc.malloc.trim_threshold=" in os.environ.pop("GLIBC_TUNABLES")


@pytest.mark.parametrize(("platform", "tunables"), [("linux", "glibc.malloc.check=0"), ("darwin", None)])
def test_a_users_setting_stays_and_other_systems_have_none(monkeypatch, platform, tunables):
    started = []
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append("again"))
    monkeypatch.setattr(cli, "main", lambda: started.append("main"))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    cli.start()
    assert started == ["main"]
    assert os.environ.get("GLIBC_TUNABLES") == tunables
