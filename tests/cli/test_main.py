"""How the command line starts."""

import errno
import pathlib

import pytest

from t2i_jax.cli import main as cli
from t2i_jax.cli import train
from t2i_jax.errors import UserError
from tests.e2e import tiny_imagen


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


@pytest.mark.parametrize("profile", ["10", "15:10", "100:101"])
def test_steps_to_trace_that_make_no_sense_are_refused_before_anything_starts(tmp_path, profile):
    with pytest.raises(UserError, match="^profile=.*; give "):
        train.train(pathlib.Path(tiny_imagen.__file__), workdir=tmp_path / "run", profile=profile)
    assert not (tmp_path / "run").exists()
