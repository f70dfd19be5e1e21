"""Sharding by logical axis names: one maker of device meshes, a few rule presets, one resolver.

Parameters carry their names and lie as a preset of rules says. Activations are constrained by
`constrain`, while a mesh is set (`jax.set_mesh`): without it the compiler may well gather a whole
batch where it should gather a weight.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.tracing import traced_once
from t2i_jax.types import Key
from t2i_jax.values import shown

# from the slowest network to the fastest
MESH_AXES = ("slice", "data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")  # a batch is split over all of them
HOST = "pinned_host"
"""The memory of a device's host, as JAX names it."""

_SMALL = 2**16  # elements; smaller frozen arrays are not worth gathering

# Logical axes that parameters may name:
# embed (model width), mlp (hidden width), heads, kv (width of a head), vocab, code (codebook rows),
# latent (codebook
# width), conv_in, conv_out, patch (flattened pixels), text (width of text embeddings), layers
# (scanned), None. A rule gives the mesh axes for a logical axis; axes that are not listed are
# replicated.
RULES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dp": {},
    "fsdp": {"embed": ("fsdp",), "text": ("fsdp",), "conv_in": ("fsdp",), "patch": ("fsdp",)},
    "fsdp_tp": {
        "embed": ("fsdp",),
        "text": ("fsdp",),
        "conv_in": ("fsdp",),
        "patch": ("fsdp",),
        "mlp": ("tensor",),
        "heads": ("tensor",),
        "vocab": ("tensor",),
        "code": ("tensor",),
        # conv_out stays whole. On a mesh data=2, fsdp=2, tensor=2 with a kernel split over both of
        # its channel axes, XLA (jax 0.10.2, CPU) gives a wrong gradient for a strided convolution
        # that another one follows, by 90% and without a warning; each split alone is right.
        # tests/train/eight_layouts.py (`strided`) is the smallest such network.
    },
}


# Where the axes of an activation lie, whatever the preset: an axis of the mesh that is not used has
# the size 1.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "length": ("sequence",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def rules_of(shape: Mapping[str, int] | None) -> str:
    """The preset that uses every axis of a mesh of this shape."""
    split = {axis for axis, size in (shape or {}).items() if size != 1}
    return "fsdp_tp" if "tensor" in split else "fsdp" if "fsdp" in split else "dp"


def parse_mesh(text: str) -> Mapping[str, int]:
    """The sizes of a mesh's axes: {"data": 2, "fsdp": 4} from "data=2,fsdp=4".

    Raises:
      UserError: an unknown axis, or a size that is no number.
    """
    shape = {}
    for part in filter(None, text.split(",")):
        axis, _, size = (word.strip() for word in part.partition("="))
        one_of("mesh axis", axis, MESH_AXES)
        if not re.fullmatch("-?[0-9]{1,9}", size) or axis in shape:
            raise UserError(f"mesh={text!r} has {part!r}; give each axis once, as data=2,fsdp=4.")
        shape[axis] = int(size)
    return shape


def mesh_text(sizes: Mapping[str, int]) -> str:
    """The text of a mesh's sizes as `parse_mesh` takes it: "data=2,fsdp=4" of {"data": 2, "fsdp":
    4}.
    """
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices` (all of them when None) with the axes `MESH_AXES`, in that order.

    Devices of several TPU slices lie so that the axis "slice", and no other, goes from one slice to
    the next.

    Args:
      shape: size per axis; axes left out have size 1, and one axis may be -1: whatever remains.
        None: all on "data".

    Raises:
      UserError: no sizes by axis, an unknown axis, or a product that is not the number of devices.
    """
    if shape is not None:
        _check_sizes(shape)
    devices = list(devices if devices is not None else jax.devices())
    sizes = dict(shape) if shape else {"data": -1}
    slices = (
        len({getattr(device, "slice_index", 0) for device in devices})
        if devices[0].platform == "tpu"
        else 1
    )
    if slices > 1:
        sizes.setdefault("slice", slices)
    for axis in sizes:
        one_of("mesh axis", axis, MESH_AXES)
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes = {
            axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()
        }
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh={mesh_text(sizes)} does not fit {len(devices)} device(s); the sizes must "
            f"multiply to {len(devices)}, for example data={len(devices)}."
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    whole = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    if slices == 1:
        laid = mesh_utils.create_device_mesh(whole, devices, allow_split_physical_axes=True)
        return Mesh(laid, MESH_AXES, axis_types=types)
    if whole[0] != slices:
        raise UserError(
            f"mesh={mesh_text(sizes)} has slice={whole[0]} for {slices} slices; give "
            f"slice={slices}."
        )
    between = (slices, *(1 for _ in MESH_AXES[1:]))
    within = mesh_utils.create_hybrid_device_mesh(
        (1, *whole[1:]), between, devices, allow_split_physical_axes=True
    )
    return Mesh(within, MESH_AXES, axis_types=types)


def _check_sizes(shape):
    sizes = shape.values() if isinstance(shape, Mapping) else [None]
    if not all(isinstance(size, (int, np.integer)) for size in sizes):
        raise UserError(
            f'mesh={shown(shape)} is not sizes by axis; give for example {{"data": 2, "fsdp": 4}}.'
        )


def resolve(
    logical: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: str
) -> PartitionSpec:
    """The partition of one array: an axis that the mesh does not divide, or that is taken already,
    is replicated.
    """
    one_of("sharding rules", rules, RULES)
    taken: set[str] = set()
    spec: list[Any] = []
    for name, size in zip(logical, shape, strict=True):
        axes = [a for a in RULES[rules].get(name or "", ()) if a not in taken]
        parts = math.prod(mesh.shape[a] for a in axes)
        if parts > 1 and size % parts == 0:
            taken.update(axes)
            spec.append(tuple(axes) if len(axes) > 1 else axes[0])
        else:
            spec.append(None)
    return PartitionSpec(*spec)


def ways(axis: str) -> int:
    """The size of an axis of the mesh that is set: the number of shards it makes.

    1 without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def on_one_cpu() -> bool:
    """Whether the program that is traced is for a mesh of one device, and that is a CPU."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return mesh.size == 1 and device is not None and device.platform == "cpu"


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """The array x, constrained to lie on the mesh that is set as its axes' names say
    (`ACTIVATIONS`).

    Without a mesh, x itself.

    An axis of x that the mesh does not divide is replicated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for name, size in zip(names, x.shape, strict=True):
        axes = ACTIVATIONS.get(name or "", ())
        parts = math.prod(mesh.shape[axis] for axis in axes)
        spec.append(axes if parts > 1 and size % parts == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def unbox(tree: Any) -> Any:
    """The tree without its `nn.LogicallyPartitioned` boxes: plain arrays or shapes."""
    return nn.meta.unbox(tree)


def parameters_of(task: Any) -> dict[str, Any]:
    """The shapes of a task's parameters by group, boxed with their logical axes; nothing is
    computed.
    """
    return dict(initial(task)[0])


@traced_once
def initial(task: Any) -> tuple[dict[str, Any], Any]:
    """The shapes of the result of `task.init`, parameters boxed as in `parameters_of` and
    statistics; nothing is computed.
    """
    return jax.eval_shape(init_of(task), jax.random.key(0))


def init_of(task: Any) -> Callable[[Key], tuple[dict[str, Any], Any]]:
    """The function `task.init`, which is traced once: it is asked for several times before a
    training begins.
    """
    try:
        return _init_of(task)
    except TypeError:  # a task that can't be hashed
        return task.init


@functools.lru_cache(maxsize=8)
def _init_of(task):
    return jax.jit(task.init)


def shardings(boxed: Any, mesh: Mesh, rules: str) -> Any:
    """A NamedSharding per leaf, for a tree of (boxed) arrays or shapes.

    A leaf without names is replicated.
    """

    def of(leaf):
        if isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, resolve(leaf.names, leaf.value.shape, mesh, rules))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(of, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every array of a batch over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_of_processes(mesh: Mesh, batch_size: int) -> list[tuple[int, ...]]:
    """The rows of a batch that lie on the devices of each process, ascending.

    Two may hold the same rows.
    """
    rows: list[set[int]] = [set() for _ in range(jax.process_count())]
    for device, (held,) in batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        rows[device.process_index].update(range(*held.indices(batch_size)))
    return [tuple(sorted(held)) for held in rows]


def put(tree: Any, places: Any) -> Any:
    """The arrays of this process, the same in every process, laid on a mesh; those that lie there
    already stay.

    `places` are shardings, a tree like `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    # Among several processes `device_put` would first send every array to all of them, to compare.
    def lay(leaf, place):
        if isinstance(leaf, jax.Array) and leaf.sharding == place:
            return leaf
        return jax.make_array_from_callback(leaf.shape, place, np.asarray(leaf).__getitem__)

    return jax.tree.map(lay, tree, places)


def place_frozen(frozen: Any, mesh: Mesh, rules: str) -> Any:
    """The frozen parameters on the mesh, as `frozen_places` says; {} for None."""
    frozen = frozen if frozen is not None else {}
    return put(frozen, frozen_places(frozen, mesh, rules))


def frozen_places(frozen: Any, mesh: Mesh, rules: str) -> Any:
    """A sharding per frozen array: whole on every device under "dp", else large ones split over the
    axis "fsdp".
    """
    ways = mesh.shape["fsdp"] if rules != "dp" else 1

    def of(leaf):
        divisible = [size if size % ways == 0 else 0 for size in leaf.shape]
        if ways == 1 or math.prod(leaf.shape) < _SMALL or not any(divisible):
            return replicated(mesh)
        axis = divisible.index(max(divisible))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(of, frozen)


def default_device() -> jax.Device:
    """The device on which new arrays lie, as `jax.default_device` has it."""
    (device,) = jnp.zeros(()).devices()
    return device


def whole(tree: Any) -> Any:
    """The arrays in a form that this process can use alone.

    Arrays that lie in the host's memory, or that other processes hold in part, become NumPy arrays.
    Those on a mesh of one device lie on that device, as those of a run that is loaded do: one
    program is compiled for both.
    """

    def of(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if leaf.sharding.memory_kind == HOST:
            if leaf.is_fully_addressable:
                return jax.device_get(leaf)
            leaf = jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
        if leaf.is_fully_addressable:
            devices = leaf.sharding.device_set
            return jax.device_put(leaf, *devices) if len(devices) == 1 else leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(of, tree)


def on_host(place: NamedSharding) -> NamedSharding:
    """The sharding of arrays that lie in the memory of the devices' host."""
    return place.with_memory_kind(HOST)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
