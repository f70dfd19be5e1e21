"""The systems: what each one alone knows lies in a package of its own, and a row here makes it
known.

The package's `__init__` holds two names and imports nothing:

- `NAMES`: the public classes and functions, by name the module that holds each. A stored
  configuration names its classes by them, and `t2i_jax` offers them at its top.
- `WEIGHTS`: the module that takes the system's weights from and to a PyTorch package
  (`t2i_jax.runs.torch` says what it offers); None where there is no such package.

A system that lives elsewhere is named by an entry point of the group "t2i_jax.systems" in its own
distribution, or by the environment variable T2I_SYSTEMS, as `name=package`, several with commas.
A run never names a package: files of strangers decide nothing about what is imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from t2i_jax.errors import UserError

SYSTEMS: dict[str, str] = {
    "dalle2": "t2i_jax.systems.dalle2",
    "clip": "t2i_jax.systems.clip",
    "decoder": "t2i_jax.systems.decoder",
    "imagen": "t2i_jax.systems.imagen",
    "maskgit": "t2i_jax.systems.maskgit",
    "muse": "t2i_jax.systems.muse",
    "parti": "t2i_jax.systems.parti",
    "prior": "t2i_jax.systems.prior",
    "super_resolution": "t2i_jax.systems.super_resolution",
    "tokenizer": "t2i_jax.systems.tokenizer",
}


def _elsewhere() -> dict[str, str]:
    found = {e.name: e.value for e in importlib.metadata.entry_points(group="t2i_jax.systems")}
    for row in filter(None, os.environ.get("T2I_SYSTEMS", "").split(",")):
        name, _, package = row.partition("=")
        if not (name.isidentifier() and package):
            raise UserError(
                f"T2I_SYSTEMS={row!r} is not of the form name=package; write it so, as "
                "toy=tests.toy_system."
            )
        found[name] = package
    return found


SYSTEMS |= _elsewhere()


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
    return [_package(name, home) for name, home in SYSTEMS.items()]


def _package(name: str, home: str) -> ModuleType:
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the system {name!r} is registered as the package {home}, which can't be imported "
            f"({error}); install it, or put its folder on PYTHONPATH."
        ) from error
