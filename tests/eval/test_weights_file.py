"""Weights of the metrics' networks, as a user names them."""

import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import weights_file


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
