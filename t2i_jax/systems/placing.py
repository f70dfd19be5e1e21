"""Where the weights of a system lie: on the devices of a mesh, or in the memory of the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t2i_jax import sharding
from t2i_jax.errors import UserError


def places(
    task: Any, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
) -> tuple[jax.sharding.Mesh, Mapping[str, Any]]:
    """A mesh of devices, and by group the sharding of each parameter of the task, as its logical
    axes say.

    Args:
      shape: sizes of the mesh's axes; None: all devices on "data". devices: None: all there are.

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh = sharding.make_mesh(shape, devices)
    boxed = sharding.parameters_of(task)
    return mesh, sharding.shardings(boxed, mesh, sharding.rules_of(shape))


def on_mesh(
    system: Any, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
) -> Any:
    """A system with `weights`, `frozen` and `mesh`, which samples on a mesh of all devices, or of
    these.

    Its images stay the same.

    Parameters are sharded as their logical axes say, images over the batch's axes, heads (and the
    KV cache) over "tensor".

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh, place = places(system.task, shape, devices)
    weights = jax.device_put(
        dict(system.weights), {group: place[group] for group in system.weights}
    )
    frozen = sharding.place_frozen(system.frozen, mesh, sharding.rules_of(shape))
    return dataclasses.replace(system, weights=weights, frozen=frozen, mesh=mesh)


def offloaded(system: Any) -> Any:
    """A system with `weights`, `frozen` and `mesh`, whose weights are in the host's memory; its
    images stay the same.

    A program has on the device what it reads, and nothing when it has ended.

    Raises:
      UserError: a system on a mesh, whose devices share the weights.
    """
    if system.mesh is not None:
        raise UserError(
            "offload keeps weights out of the memory of one device, and a mesh shares them among "
            "several; give one of the two."
        )
    own = {name: jax.device_get(getattr(system, name)) for name in ("weights", "frozen")}
    return dataclasses.replace(system, **own)
