"""What a file of another kind is called."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError


@pytest.mark.parametrize("name", ["a.pt", "a.msgpack"])
def test_a_safetensors_file_under_another_name_is_known(tmp_path, name):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / name)
    with pytest.raises(UserError, match="is a safetensors file, which is read under a name that"):
        torch_io.read(tmp_path / name)


def test_weights_that_are_spread_over_several_files_are_named_so(tmp_path):
    part = "model-00002-of-00003.safetensors"
    for name in (part, "pytorch_model.bin.index.json", "model-00001-of-00001.safetensors"):
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / name)
    for path in (tmp_path, tmp_path / part, tmp_path / "pytorch_model.bin.index.json"):
        with pytest.raises(UserError, match=r"is spread over several files \(sharded\); load it"):
            torch_io.read(path)
    assert list(torch_io.read(tmp_path / "model-00001-of-00001.safetensors")) == ["a"]
    with pytest.raises(UserError, match="is not a file; give a regular file"):
        (tmp_path / "empty").mkdir()
        torch_io.read(tmp_path / "empty")
