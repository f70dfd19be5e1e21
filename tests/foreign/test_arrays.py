"""Odd but legal tensors and files of PyTorch are read right, or refused in a sentence; none runs
code.
"""

import collections
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays, safetensors_file, torch_archive, torch_file
from tests.foreign.edits import damaged

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4)
BASE = torch.from_numpy(NUMBERS.copy())


class Sub(torch.nn.Parameter):
    """A subclass of a subclass."""


READ = {
    "columns": (BASE[:, ::2], NUMBERS[:, ::2]),
    "transposed": (BASE.T, NUMBERS.T),
    "repeated": (BASE[:1].expand(3, 4), NUMBERS[:1].repeat(3, 0)),
    "part of a storage": (BASE[1:, 1], NUMBERS[1:, 1]),
    "parameter": (torch.nn.Parameter(BASE), NUMBERS),
    "subclass": (Sub(BASE), NUMBERS),
    "gradient": (BASE.clone().requires_grad_(), NUMBERS),
    "empty": (torch.zeros(0, 3), np.zeros((0, 3), np.float32)),
    "scalar": (torch.tensor(1.5), np.float32(1.5)),
    "negated view": (torch._neg_view(BASE), -NUMBERS),
    "half": (BASE.half(), NUMBERS.astype(np.float16)),
    "double": (BASE.double(), NUMBERS.astype(np.float64)),
    "bool": (BASE > 5, NUMBERS > 5),
    "int8": (BASE.to(torch.int8), NUMBERS.astype(np.int8)),
    "uint16": (BASE.to(torch.uint16), NUMBERS.astype(np.uint16)),
    "coordinates": (BASE.to_sparse(), NUMBERS),
    "rows": (BASE.to_sparse_csr(), NUMBERS),
    "channels last": (BASE.reshape(1, 3, 2, 2).to(memory_format=torch.channels_last),
                      NUMBERS.reshape(1, 3, 2, 2)),
    "bfloat16": (BASE.bfloat16(), NUMBERS),
    "float8_e4m3fn": (BASE.to(torch.float8_e4m3fn), NUMBERS),
    "float8_e5m2": (
        BASE.to(torch.float8_e5m2), NUMBERS.astype(ml_dtypes.float8_e5m2).astype(np.float32)
    ),
}  # fmt: skip
REFUSED = {
    "complex": (BASE.to(torch.complex64), "complex64"),
    "conjugate": (BASE.to(torch.complex64).conj(), "complex64"),
    "quantised": (torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8), "quantised"),
    "meta": (torch.empty(3, 4, device="meta"), "without numbers"),
    "trillion": (torch.zeros(1).expand(10**12), "stands for 1000000000000"),
    "sparse trillion": (
        torch.sparse_coo_tensor(torch.tensor([[1], [2]]), torch.ones(1), (10**6, 10**6)), "sparse"
    ),
    "nested": (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
    "none": (None, "None and no array"),
    "text": ("x", "a str"),
    "list": ([1.0, 2.0], "a list"),
    "huge": (10**400, "an int"),
    "imaginary": (1j, "a complex"),
    "size": (torch.Size([2]), "a Size"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_tensor_is_read_alive_and_from_a_file(name, tmp_path):
    tensor, wanted = READ[name]
    torch.save({"a": tensor}, tmp_path / "a.pt")
    for value in (tensor, torch_file.load(tmp_path / "a.pt", "weights")["a"]):
        found = arrays.array(value)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_is_said(name, tmp_path):
    value, said = REFUSED[name]
    torch.save({"a": value}, tmp_path / "a.pt")
    for one in (value, torch_file.load(tmp_path / "a.pt", "weights")["a"]):
        with pytest.raises(arrays.NoArray, match=said):
            arrays.array(one)


def test_shared_memory_and_the_older_format_make_no_difference(tmp_path):
    state = {"a": BASE[0], "b": BASE[:, 0], "c": BASE}
    for new in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        found = torch_io.read(tmp_path / "a.pt")
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value.numpy())


class _Code:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def test_damaged_and_hostile_files_are_one_sentence_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": BASE}, "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    torch.save({"a": _Code()}, "code.pt")
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    torch.save({"a": collections.defaultdict(int)}, "default.pt")
    for name, content in {
        "empty.pt": b"",
        "short.pt": whole[: len(whole) // 2],
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page.pt": b"<!DOCTYPE html><html></html>",
        "text.bin": b"nothing",
        "zip.ckpt": b"PK\x03\x04" + bytes(100),
        "named.safetensors": whole,
    }.items():
        (tmp_path / name).write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        if path.name != "good.pt":
            with pytest.raises(UserError, match=f"weights='{path}'"):
                torch_io.load(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="Linear.*could run code"):
        torch_io.load(tmp_path / "module.pt")


def test_classes_that_lightning_has_as_keys_are_named_and_not_made(tmp_path, monkeypatch):
    home = "pytorch_lightning.callbacks.model_checkpoint"
    parts = home.split(".")
    for i in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:i]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": home})
    module.Other = type("Other", (), {"__module__": home})
    for name in ("ModelCheckpoint", "Other"):
        kept = {"callbacks": {getattr(module, name): {"best": BASE}}, "state_dict": {"a": BASE}}
        torch.save(kept, tmp_path / f"{name}.ckpt")
    monkeypatch.undo()
    loaded = torch_io.load(tmp_path / "ModelCheckpoint.ckpt")
    assert torch.equal(loaded["state_dict"]["a"], BASE)
    assert home not in sys.modules
    with pytest.raises(UserError, match="model_checkpoint.Other.*could run code"):
        torch_io.load(tmp_path / "Other.ckpt")


def test_an_optimiser_in_a_file_is_not_made_and_its_dicts_are_plain(tmp_path):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(BASE.clone())])
    of = collections.defaultdict(dict, {"b": BASE})
    torch.save({"a": BASE, "optimiser": optimiser, "of": of}, tmp_path / "a.pt")
    loaded = torch_io.load(tmp_path / "a.pt")
    assert torch.equal(loaded["a"], BASE) and torch.equal(loaded["of"]["b"], BASE)
    assert type(loaded["of"]) is dict and vars(loaded["optimiser"]) == {}


def test_every_type_of_safetensors_is_read(tmp_path):
    from safetensors.torch import save_file

    kinds = {
        name: (BASE > 5 if name == "bool" else BASE.to(getattr(torch, name)))
        for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
                     "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool")
    }  # fmt: skip
    save_file({**kinds, "scalar": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    found = safetensors_file.readers(tmp_path / "a.safetensors", "weights")
    assert found["scalar"]() == np.float32(2) and found["scalar"]().shape == ()
    for name, tensor in kinds.items():
        wanted = tensor.numpy() if name == "bool" else tensor.float().numpy()
        np.testing.assert_array_equal(found[name]().astype(wanted.dtype), wanted)
        np.testing.assert_array_equal(torch_io.read(tmp_path / "a.safetensors")[name], wanted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of a file of torch.save and of a safetensors file with the same arrays."""
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("whole")
    state = {"a": BASE.clone(), "b.c": BASE.bfloat16(), "d": torch.tensor(3)}
    torch.save(state, place / "a.pt")
    save_file(state, place / "a.safetensors")
    return {name: (place / f"a.{name}").read_bytes() for name in ("pt", "safetensors")}


@pytest.mark.parametrize("kind", ["pt", "safetensors", "bin"])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(kind, whole, tmp_path_factory, data):
    content = data.draw(damaged(whole[kind.replace("bin", "pt")]))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content)
    try:
        if kind == "bin":
            found = [read() for read in torch_archive.readers(path, "weights").values()]
        else:
            found = list(torch_io.read(path).values())
        assert all(isinstance(one, np.ndarray) for one in found)
    except UserError as error:
        assert "weights" in str(error)
