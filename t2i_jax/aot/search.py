"""The search for the settings of a training step on a slice that take the least time by the
roofline: remat policy, gradient accumulation and the axes of the mesh.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from t2i_jax import sharding
from t2i_jax.aot.ahead import Report, gib
from t2i_jax.errors import UserError
from t2i_jax.train import state as states
from t2i_jax.train.chips import chip_of
from t2i_jax.train.config import TrainConfig
from t2i_jax.types import Task

POLICIES = ("none", "attention", "dots", "full")
_MICRO_BATCHES = (1, 2, 4, 8)
SECONDS = 600.0
"""The time limit of a search: nothing is compiled that would end later, if it took as long as the
slowest compilation so far."""

_TENSOR = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a training step that the search tries.

    Attributes:
      remat: remat policy of every network that has one; None: none has.
      accumulate: micro-batches of a step.
      mesh: sizes of the axes, a tuple of pairs; None: the recipe's own.
    """

    remat: str | None
    accumulate: int
    mesh: tuple[tuple[str, int], ...] | None = None

    def __str__(self):
        """The setting as options of a command line; "remat" stands for that of each network."""
        said = [] if self.mesh is None else [f"--mesh {sharding.mesh_text(dict(self.mesh))}"]
        said += [] if self.remat is None else [f"remat={self.remat}"]
        return " ".join([*said, f"train.accumulate={self.accumulate}"])


def search(
    measure: Callable[[Setting], Report],
    policies: Sequence[str | None],
    micro_batches: Sequence[int],
    meshes: Sequence[Mapping[str, int]],
    seconds: float = SECONDS,
    divides: Callable[[Setting], bool] = lambda setting: True,
) -> Iterator[tuple[Setting, Report | None]]:
    """Settings and their reports, one at a time as they are tried; None: there was no time for it.

    First every policy on the recipe's own mesh, then the fastest of them on the other meshes, in
    their order. A batch in more parts is tried only where fewer do not fit.

    Args:
      measure: compiles a step. seconds: see `SECONDS`. divides: whether the batch divides over a
        setting's devices and micro-batches; others are not tried.
    """
    begin, longest, found = time.monotonic(), 0.0, {}

    def tried(setting):
        nonlocal longest
        start = time.monotonic()
        if found and start - begin + longest > seconds:
            return None
        found[setting] = measure(setting)
        longest = max(longest, time.monotonic() - start)
        return found[setting]

    def settings(remat, first, mesh):
        for parts in micro_batches:
            setting = Setting(remat, parts, mesh)
            if parts >= first and divides(setting):
                report = tried(setting)
                yield setting, report
                if report is None or report.fits:
                    return

    for policy in policies:
        yield from settings(policy, min(micro_batches), None)
    best = fastest(found)
    for mesh in meshes:
        yield from settings(best.remat, best.accumulate, tuple(mesh.items()))


def micro_batches(config: TrainConfig) -> Sequence[int]:
    """The numbers of micro-batches to try, in their order; the recipe's own is among them."""
    return sorted({*_MICRO_BATCHES, config.accumulate})


def fastest(reports: Mapping[Setting, Report]) -> Setting:
    """The one with the smallest roofline time among those that fit, or of all where none does."""
    return min(reports, key=lambda setting: (not reports[setting].fits, reports[setting].step))


def meshes(
    task: Task, config: TrainConfig, devices: Sequence[jax.Device]
) -> list[Mapping[str, int]]:
    """Meshes of one slice or several that hold the state and divide the batch, but for the recipe's
    own.

    Meshes with the fewest shards of parameters come first, since sharded parameters are gathered in
    every pass; among equals, those that split no matrix product.
    """
    own = sharding.make_mesh(config.mesh, devices)
    _, state = states.laid(task, config, own)
    chips, fits = len(devices) // own.shape["slice"], []
    for tensor in _TENSOR:
        for fsdp in (2**power for power in range(chips.bit_length())):
            if chips % (tensor * fsdp):
                continue
            shape = {"data": chips // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
            mesh = sharding.make_mesh(shape, devices)
            if mesh.shape != own.shape and _holds(task, config, state, mesh):
                fits.append({axis: size for axis, size in shape.items() if size > 1} or shape)
    return fits


def _holds(task, config, state, mesh):
    """Whether the state has room on a mesh, which splits the batch and all that it says."""
    rules = sharding.rules_of(mesh.shape)
    state = states.on_mesh(state, task, mesh, rules)
    try:
        config.check_batch(mesh)
        states.check_mesh(state, task, mesh, rules)
    except UserError:
        return False
    held, _ = states.apart(state, task.idle_groups)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return sum(map(gib, jax.tree.leaves(held))) < chip.hbm
