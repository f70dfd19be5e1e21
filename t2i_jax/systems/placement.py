"""A trained system on many devices: its weights split as in training, its pictures shared out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import sharding
from t2i_jax.errors import UserError


def places(task: Any, shape: Mapping[str, int] | None) -> tuple[jax.sharding.Mesh, Mapping[str, Any]]:
    """A mesh of all devices, and by group where on it each parameter of the task lies, as its logical axes say.

    Args:
      shape: sizes of the mesh's axes; None: all devices on "data".

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh = sharding.make_mesh(shape)
    boxed = dict(jax.eval_shape(task.init, jax.random.key(0))[0])
    return mesh, sharding.shardings(boxed, mesh, sharding.rules_of(shape))


def on_mesh(system: Any, shape: Mapping[str, int] | None) -> Any:
    """The same system, which samples on a mesh of all devices.

    Parameters lie as their logical axes say, pictures are split over the batch's axes, heads (and with Parti what is kept
    of the past) over "tensor". The pictures are those of one device.

    Args:
      system: `PartiSystem` or `ImagenSystem`. shape: as in `places`.

    Raises:
      UserError: a mesh that does not fit the devices, or a system that has no mesh.
    """
    if not hasattr(system, "mesh"):
        raise UserError(f"mesh is given for {type(system).__name__}, which works on one device; leave it out.")
    mesh, place = places(system.task, shape)
    weights = jax.device_put(dict(system.weights), {group: place[group] for group in system.weights})
    frozen = sharding.place_frozen(system.frozen, mesh, sharding.rules_of(shape))
    return dataclasses.replace(system, weights=weights, frozen=frozen, mesh=mesh)
