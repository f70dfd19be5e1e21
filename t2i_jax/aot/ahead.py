"""Ahead-of-time compilation for TPU slices that are not there: whether a step fits, and its cost
per chip.

libtpu holds the compiler and describes any slice, on a machine without a TPU; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.aot import hlo
from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.train import state as states
from t2i_jax.train.chips import Chip, chip_of
from t2i_jax.train.config import TrainConfig
from t2i_jax.train.step import train_step
from t2i_jax.types import Task

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """The cost of a program on one chip; all counts are per step.

    Attributes:
      topology, chips, mesh: the slice, its number of chips, and the axes of the mesh with a size
        above 1.
      fits: whether the compiler found room. problem: the compiler's sentence where it did not.
      arguments, temporaries, code, peak: GiB of HBM; temporaries at their most, results that take
        no argument's place among them. Where the program does not fit, `peak` is what the compiler
        wanted without the code, nan where it does not say.
      hbm: GiB of HBM that a chip has. largest: (path, GiB) of the largest arrays of the state.
      flops: matmul FLOPs. traffic: HBM traffic in bytes.
      collectives: collective bytes by kind. between_slices: bytes of those that go from slice to
        slice.
      compute, memory, interconnect: seconds that each alone would take at the chip's peaks, the
        three times of a roofline. The interconnect's is an estimate: every collective is charged to
        one axis of the torus, and a group that spans several has the bandwidth of all.
      model_flops: FLOPs of the model itself per chip, without what remat computes again, and with
        the padding of convolutions, which `flops` leaves out.
      mfu: model FLOPs utilisation of a step that takes the largest of the three; where convolutions
        pad much it may be above 1.
      seconds: time that lowering and compiling took.
    """

    topology: str
    chips: int
    mesh: Mapping[str, int]
    fits: bool
    arguments: float
    temporaries: float
    hbm: float
    largest: tuple[tuple[str, float], ...]
    seconds: float
    problem: str | None = None
    code: float = 0.0
    peak: float = 0.0
    flops: float = 0.0
    traffic: float = 0.0
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    between_slices: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    interconnect: float = 0.0
    model_flops: float = 0.0
    mfu: float = 0.0

    @property
    def step(self) -> float:
        """The roofline time of a step in seconds: the largest of the three."""
        return max(self.compute, self.memory, self.interconnect)


def slice_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a slice such as "v5p:8x8x8", or of several, "2*v5e:16x16".

    Without a TPU, a process that has called this can't trace any more: `jax.profiler` crashes
    beside libtpu.

    Raises:
      UserError: libtpu is missing, or there is no such slice.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w+):(\d+(?:x\d+){1,2})", topology)
    if not found:
        raise UserError(
            f"topology={topology!r} is no TPU slice; give one such as v5p:8x8x8 or 2*v5e:16x16."
        )
    one_of("topology", found[2], GENERATIONS)
    if math.prod(map(int, [found[1] or 1, *found[3].split("x")])) > 2**16:
        raise UserError(f"topology={topology!r} has more than 65536 chips; give a smaller one.")
    if importlib.util.find_spec("libtpu") is None:
        remedy = "pip install 'jax[tpu]' (Linux, x86-64)"
        raise UserError(f"topology={topology!r} needs the TPU compiler; {remedy}.")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no cloud is asked what it has
    # without these two libtpu complains of this machine
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    # nothing runs on a TPU, so several may compile at once
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": int(found[1])} if found[1] else {}
    if found[2] == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as JAX has it on a v4
    name = f"{found[2]}:{found[3]}" + (
        "x1" if found[2] == "v4" and found[3].count("x") == 1 else ""
    )
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # whatever libtpu has to say
        why = str(error).splitlines()[0][:200]
        raise UserError(
            f"topology={topology!r} is no slice that libtpu knows ({why}); try {found[2]}:4x4."
        ) from None


def compile_step(task: Task, config: TrainConfig, frozen: Any, topology: str) -> Report:
    """Compiles the step that the trainer would run on a slice.

    Args:
      frozen: shapes of the parameters that never change. config: with the mesh, the rules and the
        batch.

    Raises:
      UserError: there is no such slice, or the mesh or the batch does not fit it.
    """
    devices = slice_devices(topology)
    mesh = sharding.make_mesh(config.mesh, devices)
    config.check_batch(mesh)
    optimisers, state = states.laid(task, config, mesh)
    state, _ = states.apart(state, task.idle_groups)
    out = jax.tree.map(lambda leaf: leaf.sharding, state)
    rows = sharding.batch_sharding(mesh)
    spec = {n: _lying(s, rows) for n, s in task.batch_spec(config.batch_size).items()}
    frozen = jax.tree.map(_lying, frozen, sharding.frozen_places(frozen, mesh, config.preset))
    step = functools.partial(
        train_step,
        task=task,
        optimisers=optimisers,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(out, None)).lower(
            state, frozen, spec
        )
    own = task.flops(config.batch_size) / mesh.size
    return _report(lowered, topology, mesh, begin, own, {"state": state, "frozen": frozen})


def compile_sampling(
    task: Task, config: TrainConfig, frozen: Any, topology: str, count: int
) -> Mapping[str, Report]:
    """Compiles the programs that make `count` images at a time on a slice: a report per program, by
    name.

    Args:
      config: with the mesh and the rules. frozen: shapes of the parameters that never change.

    Raises:
      UserError: the task makes no images; there is no such slice, or the mesh does not fit it.
    """
    programs = task.sampling_programs(count)
    if not programs:
        kind = type(task).__name__
        raise UserError(
            f"generate={count} is given for {kind}, which makes no images; leave it out."
        )
    mesh = sharding.make_mesh(config.mesh, slice_devices(topology))
    boxed = sharding.parameters_of(task)
    params = jax.tree.map(
        _lying, sharding.unbox(boxed), sharding.shardings(boxed, mesh, config.preset)
    )
    whole = sharding.replicated(mesh)
    frozen = jax.tree.map(_lying, frozen, sharding.frozen_places(frozen, mesh, config.preset))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    reports = {}
    for name, (group, function, prompt) in programs.items():
        prompt = {entry: _lying(shape, whole) for entry, shape in prompt.items()}
        begin = time.perf_counter()
        read = params if group is None else params[group]
        with jax.set_mesh(mesh):
            lowered = jax.jit(function).lower(read, frozen, prompt, _lying(keys, whole))
        arguments = {"params": read, "frozen": frozen}
        reports[name] = _report(lowered, topology, mesh, begin, 0.0, arguments)
    return reports


def text(report: Report, remedy: str) -> str:
    """The report as lines for a terminal.

    Args:
      remedy: a sentence with what may make the program fit, told where it does not.
    """
    over = ", ".join(f"{axis}={size}" for axis, size in report.mesh.items()) or "one chip"
    lines = [f"{report.topology}: {report.chips} chips, {over}; compiled in {report.seconds:.0f} s"]
    arrays = "; ".join(f"{name} {size:.2f}" for name, size in report.largest)
    if not report.fits:
        lines += [
            f"does not fit: wants {report.peak:.1f} GiB in all, {report.arguments:.1f} of them "
            f"arguments, and a chip has {report.hbm:.0f} GiB of HBM",
            f"the compiler: {report.problem}",
            f"largest arrays of the state on a chip, GiB: {arrays}",
            remedy,
        ]
        return "\n".join(lines)
    own, reached = "", ""
    if report.model_flops:
        own = (
            f" ({report.model_flops / 1e12:.2f} the model's own, with the padding of convolutions)"
        )
        reached = f": MFU {report.mfu:.0%} at that"
    sent = (
        ", ".join(
            f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(report.collectives.items())
        )
        or "none"
    )
    return "\n".join(
        [
            *lines,
            f"fits: peak {report.peak:.1f} of {report.hbm:.0f} GiB of HBM (arguments "
            f"{report.arguments:.2f}, temporaries {report.temporaries:.2f}, code "
            f"{report.code:.2f})",
            f"largest arrays of the state on a chip, GiB: {arrays}",
            f"per chip: {report.flops / 1e12:.2f} TFLOP{own}, HBM traffic "
            f"{report.traffic / 1e9:.1f} GB",
            f"collectives per chip: {sent}; between slices {report.between_slices / 1e9:.2f} GB",
            f"roofline estimate {report.step:.3f} s (compute {report.compute:.3f}, memory "
            f"{report.memory:.3f}, interconnect {report.interconnect:.3f}){reached}",
        ]
    )


def _lying(shape, place):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def _report(lowered, topology, mesh, begin, own, arguments):
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    shape = {axis: size for axis, size in mesh.shape.items() if size > 1}
    known = dict(topology=topology, chips=mesh.size, mesh=shape, hbm=chip.hbm, model_flops=own)
    largest = _largest(arguments)
    try:
        # warnings of the compilation cache, which keeps programs for devices that are there
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        held = sum(gib(leaf) for leaf in jax.tree.leaves(arguments))
        peak = _wanted(str(error), held)
        spent = time.perf_counter() - begin
        problem = str(error).splitlines()[0]
        return Report(
            fits=False,
            arguments=held,
            temporaries=peak - held,
            peak=peak,
            largest=largest,
            seconds=spent,
            problem=problem,
            **known,
        )
    spent = time.perf_counter() - begin
    held = program.memory_analysis()
    given, most = held.argument_size_in_bytes / _GIB, held.peak_memory_in_bytes / _GIB
    code = held.generated_code_size_in_bytes / _GIB
    sizes = dict(arguments=given, temporaries=most - given, code=code, peak=most + code)
    cost = hlo.cost(_text_of(program, topology), mesh.size)
    return Report(
        fits=True, largest=largest, seconds=spent, **sizes, **_roofline(cost, chip, own), **known
    )


def _wanted(said, arguments):
    """The total size in GiB of a program that does not fit, as the compiler says; nan: it does not
    say.
    """
    if used := re.search(r"Used ([\d.]+)G", said):
        return float(used[1])  # the arguments are among them
    temporaries = re.search(r"\(([\d.]+)G\)", said)
    return arguments + float(temporaries[1]) if temporaries else math.nan


def _text_of(program, topology):
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError as error:  # a libtpu newer than jaxlib
        why = str(error).splitlines()[0][:200]
        remedy = "install the libtpu that jax names: pip install 'jax[tpu]'"
        raise UserError(
            f"topology={topology!r}: jaxlib can't read what libtpu compiled ({why}); {remedy}."
        ) from None


def _roofline(cost: hlo.Cost, chip: Chip, own):
    sent: dict[str, float] = {}
    for one in cost.collectives:
        sent[one.kind] = sent.get(one.kind, 0.0) + one.sent
    compute, memory = cost.flops / chip.flops, cost.traffic / chip.bandwidth
    interconnect = sum(sent.values()) / chip.ici + cost.between_slices / chip.dcn
    return dict(
        flops=cost.flops,
        traffic=cost.traffic,
        collectives=sent,
        between_slices=cost.between_slices,
        compute=compute,
        memory=memory,
        interconnect=interconnect,
        mfu=own / chip.flops / max(compute, memory, interconnect),
    )


def _largest(arguments, count=5):
    """The largest arrays: (path, GiB on one chip) of each."""
    found = [
        (jax.tree_util.keystr(path), gib(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(arguments)
    ]
    return tuple(sorted(found, key=lambda pair: -pair[1])[:count])


def gib(leaf: Any) -> float:
    """The size of an array or a shape on one chip, in GiB."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 0.0
    place = getattr(leaf, "sharding", None)
    shape = place.shard_shape(leaf.shape) if place is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize / _GIB
