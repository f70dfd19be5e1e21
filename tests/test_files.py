"""What `replacing` writes appears whole or not at all."""

import errno
import pathlib

import numpy as np
import pytest

from t2i_jax.files import replacing
from t2i_jax.pixels import save_png


def _names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "old" and _names(tmp_path) == ["a.txt"]
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt" and not temporary.exists()
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, exists):
    path = tmp_path / "folder"
    if exists:
        path.mkdir()
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise RuntimeError
    assert _names(tmp_path) == ["folder"] * exists and not exists or not _names(path)
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "whole").touch()
    assert _names(tmp_path) == ["folder"] and _names(path) == ["whole"]


def test_what_a_crash_left_is_removed(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        name = temporary.name
        temporary.touch()
    (tmp_path / name).mkdir()
    (tmp_path / name / "left").touch()
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert _names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert _names(tmp_path) == ["folder"] and _names(tmp_path / "folder") == ["mine"]


def test_a_relative_path_stays_where_it_was_when_it_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with replacing("a") as temporary:
        temporary.write_text("here")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "a").read_text() == "here"


@pytest.mark.parametrize("named", [None, "", "within/a.bin"])
def test_an_error_of_writing_names_the_place_that_was_asked_for(tmp_path, named):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "out") as temporary:
        where = [] if named is None else [str(temporary / named)]
        raise OSError(errno.ENOSPC, "No space left on device", *where)
    assert raised.value.filename == str(tmp_path / "out" / (named or ""))
    with pytest.raises(OSError) as raised, replacing(tmp_path / "out"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # a library's own
    assert raised.value.filename == str(tmp_path / "out")


def test_an_image_that_could_not_be_written_whole_is_not_there(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    before, write = (tmp_path / "a.png").read_bytes(), pathlib.Path.write_bytes

    def half(path, data):
        write(path, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    for name in ("a.png", "b.png"):
        with pytest.raises(OSError, match=name):
            save_png(tmp_path / name, np.ones((4, 4, 3), np.uint8))
    assert _names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == before
