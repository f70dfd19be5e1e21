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
