"""The systems: what each one alone knows lies in a package of its own, and a row here makes it
known.

The package's `__init__` holds two names and imports nothing:

- `NAMES`: the public classes and functions, by name the module that holds each.
  A stored configuration names its classes
  by them, and `t2i_jax` offers them at its top.
- `WEIGHTS`: the module that takes the system's weights from and to a PyTorch package
  (`t2i_jax.runs.torch` says what it
  offers); None where there is no such package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from t2i_jax.errors import UserError

SYSTEMS: dict[str, str] = {
    "imagen": "t2i_jax.systems.imagen",
    "parti": "t2i_jax.systems.parti",
    "super_resolution": "t2i_jax.systems.super_resolution",
    "tokenizer": "t2i_jax.systems.tokenizer",
}


def names() -> Mapping[str, str]:
    """The public names of all systems, and the modules that hold them."""
    return {name: home for package in _packages() for name, home in package.NAMES.items()}


def weights() -> Iterator[ModuleType]:
    """The modules that convert weights from and to PyTorch packages."""
    for package in _packages():
        if package.WEIGHTS is not None:
            yield importlib.import_module(package.WEIGHTS)


def weights_of(task: Any) -> ModuleType:
    """The one among `weights` that knows a task.

    Raises:
      UserError: no PyTorch package has such a network.
    """
    for package in _packages():
        if type(task).__name__ in package.NAMES and package.WEIGHTS is not None:
            return importlib.import_module(package.WEIGHTS)
    raise UserError(
        f"task={type(task).__name__} has no PyTorch form; no package of PyTorch has this network."
    )


def _packages():
    return [importlib.import_module(home) for home in SYSTEMS.values()]
