"""Two commands that write to one place at once: each result is whole, and none takes another's."""

import concurrent.futures
import types

import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.cli import sample
from t2i_jax.cluster import lock
from t2i_jax.errors import UserError
from t2i_jax.runs import torch as torch_files

_MANY = 4


def test_samples_of_commands_that_run_at_once_are_in_folders_of_their_own(tmp_path):
    def command(number):
        image = np.full((4, 4, 3), number, np.uint8)
        with sample._new_folder(tmp_path / "out") as folder:
            sample._save(folder, [image] * 8, ["a caption"], 8)
        return folder, number

    (tmp_path / "out").mkdir()  # an empty one is used as it is
    with concurrent.futures.ThreadPoolExecutor(_MANY) as pool:
        made = list(pool.map(command, range(_MANY)))
    names = sorted(folder.name for folder, _ in made)
    assert names == ["out", "out-2", "out-3", "out-4"]
    for folder, number in made:
        found = {path.name for path in folder.iterdir()}
        assert found == {*(f"000-{i:02d}.png" for i in range(8)), "grid.png", "captions.txt"}
        assert all((image == number).all() for image in _images(folder)), (
            f"{folder} has another command's images"
        )


def _images(folder):
    from PIL import Image

    return [np.asarray(Image.open(path)) for path in folder.glob("000-*.png")]


def test_a_folder_that_a_killed_command_left_empty_is_used(tmp_path):
    with lock.held(tmp_path / "out"):
        left = (tmp_path / "out" / lock.FILE).read_text()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / lock.FILE).write_text(left.replace('"pid": ', '"pid": 9999'))
    with sample._new_folder(tmp_path / "out") as folder:
        assert folder == tmp_path / "out"


def test_a_file_for_pytorch_is_written_by_one_command_at_a_time(tmp_path, monkeypatch):
    begun = concurrent.futures.Future()

    def to_torch(contents, path):
        with path.open("wb") as file:
            file.write(b"first half, ")
            begun.set_result(None)
            with pytest.raises(lock.InUse, match=r"^out='.*a\.pt' is in use by process"):
                concurrent.futures.ThreadPoolExecutor(1).submit(
                    runs.export_torch, tmp_path, tmp_path / "a.pt"
                ).result()
            file.write(b"second half")

    monkeypatch.setattr(
        torch_files.systems, "weights_of", lambda task: types.SimpleNamespace(to_torch=to_torch)
    )
    monkeypatch.setattr(
        torch_files.folders, "load_run_recipe", lambda run: types.SimpleNamespace(task=None)
    )
    monkeypatch.setattr(torch_files.folders, "read", lambda run: None)
    runs.export_torch(tmp_path, tmp_path / "a.pt")
    assert begun.done() and (tmp_path / "a.pt").read_bytes() == b"first half, second half"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    with pytest.raises(UserError, match="exists; name a new file"):
        runs.export_torch(tmp_path, tmp_path / "a.pt")
