"""The arrays of a PyTorch .bin file, read without PyTorch; nothing that is pickled in it runs.

Many T5s on the Hugging Face hub have no other weights. Such a file is a zip archive: one pickle
with the names, and for each tensor the bytes of its storage.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import file

_REMEDY = "save them as safetensors"

_STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("float64"),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "BoolStorage": np.dtype("bool"),
    "ByteStorage": np.dtype("uint8"),
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The type of a storage's elements; a new one each time, because a pickle may change it."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """The place of a tensor's elements: a file of the archive, and offset, size and stride in
    elements.
    """

    storage: tuple[np.dtype, str]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def readers(path: str | os.PathLike, field: str) -> Mapping[str, Callable[[], np.ndarray]]:
    """The names of the file's arrays, each with a function that reads the array.

    Raises:
      UserError: not such an archive (PyTorch before 1.6 wrote another format), a damaged one, or
        one that holds more than tensors.
    """
    path = file.check(path, field)
    with _refusing(path, field):
        archive = zipfile.ZipFile(path)
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not pickles:
            raise UserError(f"{field}={str(path)!r} is no file of torch.save; {_REMEDY}.")
        root = pickles[0][: -len("data.pkl")]
        state = _Unpickler(io.BytesIO(_bytes(archive, pickles[0]))).load()
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError("it holds no arrays by name")

    def read(tensor):
        with _refusing(path, field):
            return _read(archive, root, tensor)

    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    return {str(name): lambda tensor=tensor: read(tensor) for name, tensor in tensors.items()}


def _refusing(path, field):
    return file.refusing(path, field, "a file of torch.save", _REMEDY, (file.ZIP,))


def _bytes(archive, name):
    """A file of the archive; PyTorch compresses nothing, so none is larger than the archive."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return archive.read(info)


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts and tensors, and refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a global of the pickle; other globals are refused."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Tensor(
                storage, offset, tuple(size), tuple(stride)
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
        """The element type of a storage, and the file that holds it."""
        kind, storage, key = pid[:3]
        if kind != "storage" or storage.dtype not in _STORAGES.values():
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        return storage.dtype, str(key)


def _read(archive, root, tensor):
    dtype, key = tensor.storage
    elements = np.frombuffer(_bytes(archive, f"{root}data/{key}"), dtype)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True)
    )
    if min((0, *tensor.size)) < 0 or len(tensor.size) > 32:
        raise ValueError(f"a tensor has the shape {tensor.size}")
    if 0 in tensor.size:
        return np.zeros(tensor.size, dtype)
    if min((tensor.offset, *tensor.stride)) < 0 or last >= elements.size:
        raise ValueError("a tensor lies outside its storage")
    strides = [stride * dtype.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(
        elements[tensor.offset :], tensor.size, strides, writeable=False
    )
