"""The arrays of a PyTorch .bin file, read without PyTorch; nothing that is pickled in it runs.

Many T5s on the Hugging Face hub have no other weights. Such a file is a zip archive: one pickle
with the names, and for each tensor the bytes of its storage.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from t2i_jax.errors import UserError

_STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("float64"),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "BoolStorage": np.dtype("bool"),
    "ByteStorage": np.dtype("uint8"),
}


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor's elements lie: a file of the archive, and offset, size and stride in
    elements.
    """

    storage: tuple[np.dtype, str]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def readers(path: pathlib.Path) -> Mapping[str, Callable[[], np.ndarray]]:
    """For each array of the file its name and a function that reads it.

    Raises:
      UserError: not such an archive (PyTorch before 1.6 wrote another format), or one that holds
        more than tensors.
    """
    try:
        archive = zipfile.ZipFile(path)
        root = next(name for name in archive.namelist() if name.endswith("data.pkl"))[
            : -len("data.pkl")
        ]
        state = _Unpickler(archive.open(f"{root}data.pkl")).load()
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError("it holds no arrays by name")
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"weights={str(path)!r} cannot be read ({error or 'no data.pkl in it'}); save them as "
            "safetensors."
        ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
    return {
        name: lambda tensor=tensor: _read(archive, root, tensor) for name, tensor in tensors.items()
    }


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts and tensors, and refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        """What a global of the pickle stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Tensor(
                storage, offset, tuple(size), tuple(stride)
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
        """The element type of a storage, and the file that holds it."""
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        return dtype, str(key)


def _read(archive, root, tensor):
    dtype, key = tensor.storage
    elements = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.size, tensor.stride)
    )
    if 0 in tensor.size or min((tensor.offset, *tensor.stride)) < 0 or last >= elements.size:
        raise UserError(
            f"weights={archive.filename!r} hold a tensor that lies outside its storage; fetch them "
            "again."
        )
    strides = [stride * dtype.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(
        elements[tensor.offset :], tensor.size, strides, writeable=False
    )
