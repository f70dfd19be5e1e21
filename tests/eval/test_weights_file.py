"""Weights of the metrics' networks, as a user names them."""

import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, weights_file


@pytest.mark.parametrize("what", weights_file.PUBLISHED)
def test_weights_are_found_from_the_home_folder(what, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.pth").write_bytes(b"weights")
    for path in ("folder/a.pth", "folder"):
        assert weights_file.find(f"~/{path}", what) == tmp_path / path
        assert weights_file.find(tmp_path / path, what) == tmp_path / path
    with pytest.raises(UserError, match=f"{what}='~/none.pth' is not there; fetch "):
        weights_file.find("~/none.pth", what)


@pytest.mark.parametrize("name", ["afile", "a.msgpack", "a.safetensors", "a.pth", "a.txt"])
def test_a_file_of_something_else_is_told_by_the_name_of_its_option(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(UserError) as error:
        extractors.inception(path)
    assert str(error.value).startswith(f"inception={str(path)!r} ")
    assert "weights=" not in str(error.value)
