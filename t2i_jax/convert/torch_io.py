"""Files and tensors of PyTorch: with `foreign.torch_file` the only place of the package that
imports torch, inside functions.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.convert import state_dict
from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays as foreign
from t2i_jax.foreign import file, msgpack_file, safetensors_file, torch_file

SAFE = ".safetensors"
"""The ending of a file of arrays alone; `torch_file.ENDINGS` are those of PyTorch's own."""
# Names of a list of files over which weights are spread, and of one of them.
_PART = re.compile(r"\.index\.json$|-\d+-of-(?!0*1\.)\d+\.\w+$")
# Where training scripts put the weights in a checkpoint.
_NESTS = ("state_dict", "model", "model_state_dict")


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors, .pt, .pth, .bin or .ckpt file by name, as they are named there;
    a pickle never runs code.

    Raises:
      UserError: no such file, another suffix, or a file that holds more than plain tensors.
    """
    loaded = load(path)
    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"weights={str(path)!r} holds no state dict; save module.state_dict() there."
        )
    plain = {str(key): value for key, value in loaded.items() if foreign.is_array(value)}
    if not plain:
        raise UserError(
            f"weights={str(path)!r} holds no arrays but {sorted(map(str, loaded))[:20]}; save a "
            "state dict."
        )
    return arrays(plain)


def load(path: str | pathlib.Path, field: str = "weights") -> Any:
    """The contents of a .safetensors, .pt, .pth, .bin, .ckpt or .msgpack file: nothing but tensors
    and plain values, so that no code runs. A file without an ending is read as msgpack, as Flax
    writes.

    Args:
      field: what the path was given as, for messages.

    Raises:
      UserError: no such file, another suffix, a file that holds more, or one of several over which
        weights are spread.
    """
    check_whole(paths.given(field, path), field)
    path = file.check(path, field)
    if path.suffix.lower() == SAFE:
        return {name: one() for name, one in safetensors_file.readers(path, field).items()}
    if path.suffix.lower() in torch_file.ENDINGS:
        return torch_file.load(path, field)
    kinds = "give .safetensors, .pt, .pth, .bin, .ckpt or .msgpack"
    if path.suffix.lower() in msgpack_file.ENDINGS:
        return msgpack_file.read(path, field, f"fetch it again, or {kinds}")
    raise UserError(f"{field}={str(path)!r} is of an unknown kind; {kinds}.")


def check_whole(path: pathlib.Path, field: str) -> None:
    """Refuses a part of weights, the list of the parts, and a folder that holds such a list.

    Raises:
      UserError: it is one of them.
    """
    listed = [path.name, *(one.name for one in path.glob("*.index.json"))]
    if any(map(_PART.search, listed)):
        raise UserError(
            f"{field}={str(path)!r} is spread over several files (sharded); load it where it was "
            "made, and save its state_dict() in one file."
        )


def write(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as .safetensors, or as a .pt state dict of tensors."""
    path = paths.new("weights", path)
    if path.suffix.lower() == SAFE:
        from safetensors.numpy import save_file

        # not ascontiguousarray, which makes a vector of a single number
        save_file({key: np.array(value, order="C") for key, value in state.items()}, path)
    elif path.suffix.lower() in torch_file.ENDINGS:
        _save(tensors(state), path)
    else:
        raise _unwritten(path, f"{SAFE} or .pt")


def write_checkpoint(path: str | pathlib.Path, loaded: Mapping[str, Any]) -> None:
    """Writes tensors and plain values, nested in dicts, as torch.save does."""
    path = pathlib.Path(path)
    if path.suffix.lower() not in torch_file.ENDINGS:
        raise _unwritten(path, f".pt, or {SAFE} for the weights alone")
    _save(dict(loaded), path)


def _save(held, path):
    """Writes a file as torch.save does; OSError with the system's reason where it can't be written,
    of which torch.save tells nothing: it fails once more when it ends the file.
    """
    import torch

    with open(path, "wb") as file:
        try:
            torch.save(held, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _unwritten(path, remedy):
    # the ending alone: a file is written under a temporary name
    told = f"the ending {path.suffix!r}" if path.suffix else "a name without an ending"
    return UserError(f"out has {told}, as no file that is written here; give {remedy}.")


def arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy arrays from tensors (or arrays); bfloat16 becomes float32, which holds it exactly."""
    return state_dict.arrays(state)


def tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tensors of PyTorch that own their memory, for `load_state_dict`."""
    import torch

    return {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
