"""Files and tensors of PyTorch: the only place of the package that imports torch, inside
functions.
"""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax.errors import UserError

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the weights in a checkpoint.
_NESTS = ("state_dict", "model", "model_state_dict")


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors, .pt, .pth, .bin or .ckpt file by name; a pickle never runs
    code.

    Raises:
      UserError: no such file, another suffix, or a file that holds more than plain tensors.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _read_safetensors(path)
    return arrays(_state_in(load(path), path))


def load(path: str | pathlib.Path) -> Any:
    """What a .pt, .pth, .bin or .ckpt file holds; nothing but tensors and plain values, so that no
    code runs.

    Raises:
      UserError: no such file, another suffix, or a file that holds more.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"weights={str(path)!r} is not a file; give a .safetensors, .pt, .pth, .bin or .ckpt "
            "file."
        )
    if path.suffix not in _PICKLES:
        raise UserError(
            f"weights={str(path)!r} is of an unknown kind; give .safetensors, .pt, .pth, .bin or "
            ".ckpt."
        )
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(
            f"weights={str(path)!r} was refused ({str(error).splitlines()[0]}); save its "
            "state_dict() again, best as .safetensors."
        ) from error


def write(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as .safetensors, or as a .pt state dict of tensors."""
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    elif path.suffix in _PICKLES:
        import torch

        torch.save(tensors(state), path)
    else:
        raise UserError(f"weights={str(path)!r} is of an unknown kind; give .safetensors or .pt.")


def write_checkpoint(path: str | pathlib.Path, loaded: Mapping[str, Any]) -> None:
    """Writes tensors and plain values, nested in dicts, as torch.save does."""
    import torch

    if pathlib.Path(path).suffix not in _PICKLES:
        raise UserError(f"weights={str(path)!r} is of an unknown kind; give .pt.")
    torch.save(dict(loaded), path)


def arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy arrays from tensors (or arrays); bfloat16 becomes float32, which holds it exactly."""
    return {key: _array(value) for key, value in state.items()}


def tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tensors of PyTorch that own their memory, for `load_state_dict`."""
    import torch

    return {key: torch.from_numpy(np.array(value)) for key, value in state.items()}


def _array(value):
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"weights={str(path)!r} is not a safetensors file ({error}); fetch it again."
        ) from error
    return {k: v.astype(np.float32) if v.dtype.name == "bfloat16" else v for k, v in loaded.items()}


def _state_in(loaded, path):
    for nest in _NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"weights={str(path)!r} holds no state dict; save module.state_dict() there."
        )
    plain = {key: value for key, value in loaded.items() if hasattr(value, "shape")}
    if not plain:
        raise UserError(
            f"weights={str(path)!r} holds no arrays but {sorted(map(str, loaded))}; save a state "
            "dict."
        )
    return plain
