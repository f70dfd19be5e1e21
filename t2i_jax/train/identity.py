"""The key of a compiled program: code, configuration, arguments, libraries, machine as one hash."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t2i_jax.config import fields_of

_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "optax", "numpy")  # what a step is traced through


def identity(what: Any, arguments: Any, options: Any, devices: Sequence[jax.Device]) -> str:
    """The identity of a compiled program, 64 hexadecimal digits that are others whenever tracing
    and compiling might give another program.

    Args:
      what: JSON values, all that the traced function of this package depends on beside its
        arguments.
      arguments: arrays, of which shapes, types and places count.
      options: of the compiler, JSON values.
      devices: of the mesh, in its order.
    """
    leaves, tree = jax.tree.flatten(arguments)
    places = [f"{jax.typeof(leaf)!r} {leaf.sharding} {leaf.committed}" for leaf in leaves]
    ids = [device.id for device in devices]
    whole = [what, str(tree), places, options, ids, _libraries(), _machine(devices[0])]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def is_of_package(value: Any) -> bool:
    """Whether every class of a configuration is one of this package, so that its source counts."""
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, name) for name in fields_of(type(value))]
        return type(value).__module__.split(".")[0] == __name__.split(".")[0] and all(
            map(is_of_package, fields)
        )
    if isinstance(value, Mapping):
        return all(map(is_of_package, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(is_of_package, value))


def _libraries():
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    settings = sorted((name, repr(value)) for name, value in jax.config.values.items())
    return [
        source(),
        sys.version,
        [importlib.metadata.version(name) for name in _DISTRIBUTIONS],
        flags,
        settings,
    ]


def _machine(device):
    processes = [
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    ]
    return [device.device_kind, device.client.platform_version, *processes, *_processor()]


@functools.cache
def source() -> str:
    """A hash of this package's source, hexadecimal."""
    home, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(
            f"{path.relative_to(home)} {path.stat().st_size} ".encode() + path.read_bytes()
        )
    return digest.hexdigest()


@functools.cache
def _processor():
    """The features of the processor: a program for a larger one would stop with an illegal
    instruction.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = {
        line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features")
    }
    return [platform.machine(), platform.processor(), *sorted(features)]
