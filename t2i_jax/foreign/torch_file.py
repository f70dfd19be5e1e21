"""The files of torch.save, read by PyTorch; a pickle in them never runs code.

`torch_archive` reads the newer ones of them without PyTorch.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.foreign import file

ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_REMEDY = "save its state_dict() again, best as .safetensors"
# Entries beside the weights in public files: keys of Lightning before 1.6 (the public VQGANs
# are such files), and what dalle2-pytorch's trainers save: the version of the package, and the
# warm-up of the learning rate with the optimiser that it holds. None of these classes is made.
_KEYS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "packaging.version.Version",
    "packaging.version._Version",
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
    "pytorch_warmup.base.LinearWarmup",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
)
_DICTS = ("collections.defaultdict", "builtins.dict")  # a dict whose values are dicts by default


class _Key:
    """Stands for a class of `_KEYS`; there is nothing in it."""

    def __new__(cls, *_: object) -> _Key:
        """Makes a key without the arguments of its class, which are left out."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Leaves out the state of the key."""


def _dict(*_: object) -> dict[Any, Any]:
    """Stands for the classes of `_DICTS`; the factory of default values is left out."""
    return {}


def is_program(path: str | os.PathLike) -> bool:
    """Whether a file is what torch.jit.save writes: code, with the arrays that it uses."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def load(path: str | os.PathLike, field: str) -> Any:
    """The contents of a PyTorch file: tensors and plain values, in lists and dicts.

    Raises:
      UserError: no such file, a damaged one, or one that holds more than that.
    """
    path = file.check(path, field)
    if is_program(path):
        raise UserError(
            f"{field}={str(path)!r} is a TorchScript archive, a program with weights inside, and "
            f"is not run; {_REMEDY}."
        )
    import torch

    starts = (file.ZIP, file.PICKLE)
    reading = file.refusing(path, field, "a file of torch.save", _REMEDY, starts)
    with reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            known: list[Any] = [(_Key, name) for name in _KEYS] + [(_dict, name) for name in _DICTS]
            names = torch.serialization.safe_globals(known)
            # without the check a damaged one may crash
            with torch.sparse.check_sparse_tensor_invariants(), names:
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found is None:
                raise
            raise UserError(
                f"{field}={str(path)!r} was refused: it holds {found[1]}, and reading that could "
                f"run code; {_REMEDY}."
            ) from error
