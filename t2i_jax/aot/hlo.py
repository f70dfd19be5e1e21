"""The cost of a compiled program, counted in its HLO text: matmul FLOPs, HBM traffic, collective
bytes.

XLA's own `cost_analysis` counts the body of a loop once; a scanned transformer is one such body.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "u64": 64,
    "f64": 64,
    "c64": 64,
    "c128": 128,
}
_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\](\{[^}]*\})?")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\))? \{([^}]*)\}"
)
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_TAKING = ("dynamic-slice", "slice", "gather")  # read of an array what they give
# matmuls of all queries and keys
_KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_FREE = {  # move nothing
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "conditional",
    "call",
    "opt-barrier",
    "send",
    "recv",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: the shape of its result, its operation, its operands' names, and all that
    follows as written.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: as "all-gather". size: bytes of the whole array on one device: what is gathered, reduced
        or exchanged.
      group: ids of the devices that take part with the first one. times: how often it runs in a
        step.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    times: int

    @property
    def sent(self) -> float:
        """The bytes that each device sends in a step, by a ring over the group."""
        ways = len(self.group)
        share = {"all-reduce": 2 * (ways - 1) / max(ways, 1), "collective-permute": 1.0}
        return self.times * self.size * share.get(self.kind, (ways - 1) / max(ways, 1))


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a program on one device.

    Attributes:
      flops: FLOPs of matmuls and convolutions (multiply-add = 2).
      traffic: HBM traffic in bytes, by each operation's operands and results.
      collectives: collective operations within a slice. between_slices: bytes sent to other slices.
    """

    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    between_slices: float


def cost(text: str, devices: int) -> Cost:
    """Counts a program's HLO text, as `compiled.as_text()` gives it.

    Loops count as often as they run.

    Args:
      devices: on which it runs in all, for collectives over everything.
    """
    program, entry = _parse(text)
    # names are a module's own
    shapes = {line.name: line.shape for body in program.values() for line in body}
    flops, traffic, between, collectives = 0.0, 0.0, 0.0, []
    for name, times in _runs(program, entry).items():
        body = program[name]
        flops += times * sum(_flops(line, shapes) for line in _inside(program, body))
        for line in body:
            traffic += times * _traffic(line, shapes, program)
            # the runtime between slices takes it from there
            if line.operation == "send" and "megascale" in line.rest:
                between += times * _bytes(shapes.get(line.operands[0], ""))
        for kind, size, where in _collectives(program, body, shapes):
            collectives.append(Collective(kind, size, _group(where, devices), times))
    return Cost(flops, traffic, tuple(collectives), between)


def _collectives(program, body, shapes):
    """The collectives of a computation and of the fusions in it: (kind, bytes of the whole array,
    description of the group) of each.

    Fusions may hold an asynchronous one in several pieces, all on its channel: it counts once.
    """
    channels = set()
    for line, fusion in _within(program, body):
        kind = line.operation.removesuffix("-start")
        if kind not in _COLLECTIVES:
            continue
        channel = re.search(r"channel_id=(\d+)", line.rest)
        if fusion and channel and channel[1] in channels:
            continue
        channels.add(channel and channel[1])
        if fusion.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # which a TPU has as a sum of which each device keeps a part
        read = sum(_bytes(shapes.get(operand, "")) for operand in line.operands)
        yield kind, max(_bytes(_given(line)), read), line.rest


def _parse(text):
    """The computations of a program: (instructions by computation, name of the entry)."""
    program, entry, lines = {}, "", []
    for line in text.splitlines():
        if line.endswith("{") and (start := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            lines = program[start[2]] = []
            entry = start[2] if start[1] else entry
        elif " = " in line and line.startswith("  "):
            lines.append(_instruction(line))
    return program, entry


def _instruction(line):
    name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(right) if right.startswith("(") else right.index(" ")
    shape, right = right[:end], right[end:].strip()
    operation, _, _ = right.partition("(")
    right = right[len(operation) :]
    end = _closing(right)
    return Instruction(name.lstrip("%"), shape, operation, tuple(_NAME.findall(right[:end])), right)


def _closing(text):
    """The place behind the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return place + 1
    return len(text)


def _runs(program, entry) -> Mapping[str, int]:
    """The number of runs of each computation that is not part of a fusion; of a condition every
    branch counts.
    """
    runs: dict[str, int] = collections.defaultdict(int)

    def visit(name, times):
        runs[name] += times
        for line in program[name]:
            if line.operation == "while":
                body, condition = (
                    re.search(rf"{part}=%?([\w.\-]+)", line.rest)[1]
                    for part in ("body", "condition")
                )
                visit(body, times * _trips(line, program, condition))
            elif line.operation == "conditional":
                for branches in re.findall(
                    r"(?:true|false|branch)_computations?=(\{[^}]*\}|%?[\w.\-]+)", line.rest
                ):
                    for branch in re.findall(r"[\w.\-]+", branches):
                        visit(branch, times)
            elif line.operation in ("call", "async-start") and (
                called := _CALLED.search(line.rest)
            ):
                visit(called[1], times)

    visit(entry, 1)
    return runs


def _trips(line, program, condition):
    """The number of iterations of a loop: as its line says, or the number that its condition
    compares with.
    """
    if trips := re.search(r"known_trip_count[^0-9]*(\d+)", line.rest):
        return int(trips[1])
    compared = [
        inner for inner in _inside(program, program[condition]) if inner.operation == "constant"
    ]
    numbers = [
        re.match(r"\((\d+)\)", inner.rest) for inner in compared if inner.shape.startswith("s32[]")
    ]
    return max((int(number[1]) for number in numbers if number), default=1)


def _inside(program, body) -> Iterator[Instruction]:
    """The instructions of a computation and of the fusions in it."""
    return (line for line, _ in _within(program, body))


def _within(program, body, fusion="") -> Iterator[tuple[Instruction, str]]:
    """The instructions of a computation and of the fusions in it, each with the name of the
    fusion's computation that holds it, or "" outside a fusion.
    """
    for line in body:
        yield line, fusion
        if line.operation == "fusion" and (called := _CALLED.search(line.rest)):
            yield from _within(program, program[called[1]], called[1])


@functools.cache
def _arrays(shape: str) -> Sequence[tuple[str, tuple[int, ...], str]]:
    """The arrays of a shape: (dtype, sizes, layout) of each."""
    return [
        (dtype, tuple(map(int, filter(None, sizes.split(",")))), layout or "")
        for dtype, sizes, layout in _ARRAY.findall(shape)
    ]


def _bytes(shape, only_hbm=False):
    """The bytes of all arrays; `only_hbm`: without those that lie in the chip's own memory, "S(1)"
    in a layout.
    """
    return _total(_arrays(shape), only_hbm)


def _total(arrays, only_hbm=False):
    wanted = [a for a in arrays if not only_hbm or "S(" not in a[2]]
    return sum(math.prod(sizes) * _BITS.get(dtype, 8) // 8 for dtype, sizes, _ in wanted)


def _given(line):
    """The shape of what an instruction gives; of the start of an asynchronous one, what that will
    have given.
    """
    operation, pieces = line.operation, line.shape.startswith("(")
    if not operation.endswith("-start") or operation == "all-reduce-start" or not pieces:
        return line.shape
    elements = _elements(line.shape)  # operands, results, and what is needed until it is done
    return elements[0 if operation == "copy-start" else 1]


def _elements(shape):
    """The shapes in a tuple's shape."""
    elements, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            elements.append("")
        else:
            elements[-1] += letter
    return elements


def _traffic(line, shapes, program):
    """The bytes that an instruction reads from and writes to HBM; of slices only the slice."""
    operation = line.operation.removesuffix("-start")
    if operation in _FREE or operation.endswith("-done") or operation == "async":
        return 0
    given = _given(line)
    read = [shapes.get(name, "") for name in line.operands]
    if operation in _TAKING or operation == "dynamic-update-slice":
        part, whole = (given, read[0]) if operation in _TAKING else (read[1], given)
        return _bytes(part, True) + min(_bytes(part), _bytes(whole, True))
    if line.operation == "fusion":
        sizes = [min(_read(program, line, i), _bytes(shape, True)) for i, shape in enumerate(read)]
        return sum(sizes) + _written(program, line)
    return sum(_bytes(shape, True) for shape in read) + _bytes(given, True)


def _read(program, line, number):
    """The bytes of the slices that a fusion takes of an operand, where it reads nothing else of it.

    Infinite: the whole.
    """
    inner = _fused(program, line)
    own = next(
        (
            one
            for one in inner.values()
            if one.operation == "parameter" and one.rest.startswith(f"({number})")
        ),
        None,
    )
    if own is None:
        return math.inf
    total, users = 0, _users(inner, own.name)
    for user in users:
        places = [
            place for place, name in enumerate(user.operands) if _seen(inner, name) == own.name
        ]
        if user.operation == "fusion":
            total += sum(_read(program, user, place) for place in places)
        elif user.operation not in (*_TAKING, "dynamic-update-slice") or places != [0]:
            return math.inf
        elif user.operation in _TAKING:
            total += _bytes(user.shape)
    return total if users else math.inf


def _fused(program, line):
    return {one.name: one for one in program[_CALLED.search(line.rest)[1]]}


def _users(inner, name):
    """The instructions that use a value, also under another shape."""
    users = [one for one in inner.values() if name in one.operands]
    again = [
        more for one in users if one.operation == "bitcast" for more in _users(inner, one.name)
    ]
    return [one for one in users if one.operation != "bitcast"] + again


def _seen(inner, name):
    while inner[name].operation == "bitcast":
        name = inner[name].operands[0]
    return name


def _written(program, line):
    """The bytes that a fusion writes; of an array that it updates in place, only the update."""
    inner = _fused(program, line)
    root = list(inner.values())[-1]
    outputs = root.operands if root.operation == "tuple" else (root.name,)
    total = 0
    for name, array in zip(outputs, _arrays(line.shape), strict=False):
        made = inner[_seen(inner, name)]
        if made.operation == "fusion" and not made.shape.startswith("("):
            total += min(_written(program, made), _total([array], True))
        elif made.operation == "dynamic-update-slice":
            total += _bytes(inner[made.operands[1]].shape)
        else:
            total += _total([array], True)
    return total


def _flops(line, shapes):
    if line.operation == "dot":
        left = _arrays(shapes[line.operands[0]])[0][1]
        over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
        summed = math.prod(left[int(axis)] for axis in over[1].split(",") if axis) if over else 1
        return 2 * math.prod(_arrays(line.shape)[0][1]) * summed
    if line.operation == "custom-call":
        return _kernel(line, shapes)
    return _convolution(line, shapes) if line.operation == "convolution" else 0


def _kernel(line, shapes):
    """The FLOPs of splash attention for the pairs that are seen, half of all where it is causal.

    The kernel computes whole blocks of pairs, so some more. Queries and keys come as (batch, heads,
    length, width).
    """
    matmuls = next((count for name, count in _KERNELS.items() if line.name.startswith(name)), 0)
    operands = [array for name in line.operands for array in _arrays(shapes.get(name, ""))]
    inputs = [sizes for _, sizes, _ in operands if len(sizes) == 4]
    if not matmuls or len(inputs) < 2:
        return 0
    queries, keys = inputs[0], inputs[1][2]
    # the kernel is given the places of the queries; segments have an axis more, for the batch
    causal = any(
        kind == "s32" and len(places) == 2 and queries[2] in places for kind, places, _ in operands
    )
    return (1 if causal else 2) * matmuls * math.prod(queries) * keys


def _convolution(line, shapes):
    """The FLOPs of a convolution: multiply-adds that touch no padding and no hole of a dilation,
    times two.
    """
    left, right, out = (
        _arrays(shape)[0][1]
        for shape in (*(shapes[name] for name in line.operands[:2]), line.shape)
    )
    of_left, of_right, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest).groups()
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\d_x\-]+)", line.rest))
    spatial = [label for label in of_out if label.isdigit()]
    groups = re.search(r"batch_group_count=(\d+)", line.rest)
    total = 2 * left[of_left.index("b")] // int(groups[1] if groups else 1)
    total *= right[of_right.index("i")] * right[of_right.index("o")]
    for n, label in enumerate(spatial):
        here = {key: values.split("x")[n] for key, values in window.items()}
        steps = np.arange(out[of_out.index(label)])[:, None] * int(here.get("stride", 1))
        taps = np.arange(right[of_right.index(label)])[None] * int(here.get("rhs_dilate", 1))
        holes = int(here.get("lhs_dilate", 1))
        places = steps + taps - int(here.get("pad", "0_0").rsplit("_", 1)[0])
        inside = (
            (places >= 0)
            & (places < (left[of_left.index(label)] - 1) * holes + 1)
            & (places % holes == 0)
        )
        total *= int(inside.sum())
    return total


def _group(rest, devices):
    """The ids of the devices that exchange with the first one."""
    if mesh := _MESH_GROUPS.search(rest):
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        ids = np.arange(math.prod(axes.values()))
        if mesh[2]:  # the devices in another order
            order = tuple(map(int, mesh[3].split(",")))
            ids = ids.reshape(tuple(map(int, mesh[2].split(",")))).transpose(order)
        ids, split = ids.reshape(tuple(axes.values())), re.findall(r"'([^']+)'", mesh[4])
        return tuple(
            ids[tuple(slice(None) if name in split else 0 for name in axes)].reshape(-1).tolist()
        )
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, of, order = (
            tuple(map(int, part.split(","))) if part else None for part in iota.groups()
        )
        ids = np.arange(math.prod(of)).reshape(of)
        ids = ids.transpose(order) if order else ids
        return tuple(ids.reshape(shape).reshape(-1, shape[-1])[0].tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, listed[1].split(",")))
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return (int(pairs[1]), int(pairs[2]))
    return tuple(range(devices))
