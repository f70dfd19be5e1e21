"""One two-way table per network: where each array of a PyTorch state dict lives in ours, and how
its layout differs.

A table is a list of `Entry`, `Constant` and `Unused` for one configuration of a network. `to_ours`
and `to_torch` run it in the two directions on NumPy arrays; nothing here knows PyTorch.

    table = [
        Entry("norm.weight", "generator/norm/scale"),
        Entry("out.weight", "generator/out/kernel", LINEAR),
        *(Entry(f"layers.{i}.fc.weight", "generator/fc/kernel", LINEAR, layer=i) for i in range(9)),
        Entry("to_logits.weight", "generator/embed/embedding"),  # tied: a second entry for a leaf
        Constant("pos_indices", indices),
    ]
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign.arrays import not_finite, some
from t2i_jax.words import counted

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The difference between an array of PyTorch and ours: two inverse functions that move, reshape
    or scale.
    """

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _permuted(name: str, axes: Sequence[int]) -> Layout:
    back = tuple(int(i) for i in np.argsort(axes))
    return Layout(name, lambda a: a.transpose(axes), lambda a: a.transpose(back))


def reshaped(
    torch_shape: Sequence[int], our_shape: Sequence[int], name: str = "reshaped"
) -> Layout:
    """A layout that keeps all elements in their order under another shape."""
    return Layout(name, lambda a: a.reshape(our_shape), lambda a: a.reshape(torch_shape))


SAME = Layout("same", lambda a: a, lambda a: a)
LINEAR = _permuted("linear (out, in) <-> (in, out)", (1, 0))
CONV = _permuted("conv (O, I, H, W) <-> (H, W, I, O)", (2, 3, 1, 0))
CONV1X1 = Layout(
    "1x1 conv (O, I, 1, 1) <-> (I, O)", lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]
)
DEPTHWISE = Layout(
    "depthwise conv (C, 1, H, W) <-> (H, W, C)",
    lambda a: a[:, 0].transpose(1, 2, 0),
    lambda a: a.transpose(2, 0, 1)[:, None],
)
CHANNEL = Layout(
    "channel vector (1, C, 1, 1) <-> (C)", lambda a: a[0, :, 0, 0], lambda a: a[None, :, None, None]
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of PyTorch and its place in ours.

    Attributes:
      torch: key of the state dict.
      ours: path in our nested dict, as "a/b/c" or a tuple. Several entries may name one leaf (tied
        weights): they must then hold equal values.
      layout: how the arrays differ.
      layer: index along the leading axis of our leaf, for layers stacked by a scan; None: the entry
        is the whole leaf.
      share: (which, of how many) of equal parts of our leaf's last axis, where one array of ours is
        several of PyTorch: queries, keys and values; None: all of it.
      first: where an array of PyTorch is several leaves of ours, one below the other, its first row
        that is of this leaf; the table has them in their order. None: all of it is.
    """

    torch: str
    ours: str | tuple[str, ...]
    layout: Layout = SAME
    layer: int | None = None
    share: tuple[int, int] | None = None
    first: int | None = None

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The part of our leaf that the entry is, a view."""
        part = leaf if self.layer is None else leaf[self.layer]
        if self.share is None:
            return part
        which, many = self.share
        width = part.shape[-1] // many
        return part[..., which * width : (which + 1) * width]

    @property
    def path(self) -> tuple[str, ...]:
        """The place in ours, as keys."""
        return tuple(self.ours.split("/")) if isinstance(self.ours, str) else tuple(self.ours)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A saved array that the configuration determines: checked on import where it is there, rebuilt
    on export.
    """

    torch: str
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Unused:
    """A saved array of which the package makes no use: any value is accepted on import, this one is
    written on export.
    """

    torch: str
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Refused:
    """A setting that the package can't express: export refuses it with this sentence, import goes
    on.
    """

    sentence: str
    torch: str = ""


Row = Entry | Constant | Unused | Refused


@dataclasses.dataclass(frozen=True)
class Network:
    """The description of one network for conversion.

    Attributes:
      model: the configuration class, a Linen module.
      recognise: whether a state dict is one of this network's, by its keys.
      fields: `(state, module or None) -> fields`, all that shapes and the live module's attributes
        determine. With `told`: `(state, told) -> fields`, where `told` holds the fields that a live
        module, a stored configuration or the user tells.
      table: `model -> entries`.
      shapes: `model -> nested dict of ShapeDtypeStruct`, unboxed; the same tree as the converted
        parameters.
      ignore: how the names of arrays begin that may be there and are not needed, unless the table
        has them.
      optional: paths of groups of our parameters that may be left out as a whole (a discriminator
        that was not kept).
      upgrade: a state dict of an earlier release as one of the current release; changes names and
        shapes only.
      told: the fields that a live module tells, in whole; it refuses options of the module that
        have no form here. None: `fields` reads the module.
      stored: the same for what a checkpoint holds beside the weights: `loaded -> fields`.
      configured: what the configuration tells that is published beside a file of weights:
        `path of the file -> fields`; those that the user gives go before them.
      writes: whether a model has a form under the names of this package, where several packages
        have the same network.
      same: `(name, inferred fields, value) -> bool`, whether a field that is told is what was
        inferred.
    """

    model: type
    recognise: Callable[[State], bool]
    fields: Callable[[State, Any], dict[str, Any]]
    table: Callable[[Any], Sequence[Row]]
    shapes: Callable[[Any], Mapping[str, Any]]
    ignore: tuple[str, ...] = ()
    optional: tuple[tuple[str, ...], ...] = ()
    upgrade: Callable[[State], State] = dict
    told: Callable[[Any], Mapping[str, Any]] | None = None
    stored: Callable[[Any], Mapping[str, Any]] = lambda loaded: {}
    configured: Callable[[pathlib.Path], Mapping[str, Any]] = lambda path: {}
    writes: Callable[[Any], bool] = lambda model: True
    same: Callable[[str, Mapping[str, Any], Any], bool] = lambda name, found, value: (
        found[name] == value
    )


def within(table: Sequence[Row], torch: str, ours: str) -> list[Row]:
    """The table of a network that is a part of a larger one.

    Args:
      torch: what its names begin with in the state dict of the whole, for example "vae."; "" for
        nothing.
      ours: the key of its parameters in those of the whole.
    """

    def moved(entry: Row) -> Row:
        named = dataclasses.replace(entry, torch=torch + entry.torch)
        return (
            dataclasses.replace(named, ours=(ours, *entry.path))
            if isinstance(entry, Entry)
            else named
        )

    return [moved(entry) for entry in table]


class Watched(dict[str, Any]):
    """A state dict that remembers which of its arrays was last looked up, and so do its parts.

    Attributes:
      last: [its whole name and shape], or [] before anything was looked up.
    """

    def __init__(self, state: State, before: str = "", last: list[str] | None = None):
        super().__init__(state)
        self.before, self.last = before, [] if last is None else last

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self.last[:] = [f"{self.before}{name} has shape {np.shape(value)}"]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The array of a name, or `default`, like `get` of a dict."""
        if name not in self:
            return default
        return self[name]


def part(state: State, torch: str) -> dict[str, Any]:
    """The arrays whose names begin with `torch`, under the rest of their names."""
    found = {
        key.removeprefix(torch): value for key, value in state.items() if key.startswith(torch)
    }
    return Watched(found, state.before + torch, state.last) if isinstance(state, Watched) else found


def upgraded(state: State, torch: str, upgrade: Callable[[State], State]) -> dict[str, Any]:
    """A state dict of which the part whose names begin with `torch` is upgraded."""
    inside = upgrade(part(state, torch))
    return dict(state) | {torch + name: value for name, value in inside.items()}


def to_ours(table: Sequence[Row], state: State, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of our parameters, from a state dict.

    Args:
      table: the network's table.
      state: arrays by PyTorch name, already stripped of wrappers.
      shapes: our nested dict of arrays or `ShapeDtypeStruct`, unboxed; gives the wanted shapes and
        dtypes.

    Raises:
      UserError: one that lists every missing, extra, misshaped and disagreeing array, and those
        of another type or with values that are not finite.
    """
    wanted, entries, wrong = flatten(shapes), [e for e in table if isinstance(e, Entry)], []
    found: dict[tuple[str, ...], np.ndarray] = {}
    for constant in table:
        if not isinstance(constant, Constant) or constant.torch not in state:
            continue
        if not np.array_equal(np.asarray(state[constant.torch]), constant.value):
            wrong.append(f"{constant.torch} differs from the value that this configuration fixes")
    # Files keep one of several equal arrays, under any of their names.
    tied: dict[Any, set[str]] = {}
    for entry in entries:
        tied.setdefault((entry.path, entry.layer, entry.share), set()).add(entry.torch)
    for entry in entries:
        if entry.path not in wanted:
            raise KeyError(f"table bug: no leaf {'/'.join(entry.path)} in our parameters")
        if entry.torch not in state:
            if not tied[entry.path, entry.layer, entry.share] & state.keys():
                wrong.append(f"{entry.torch} is missing")
            continue
        _place(entry, np.asarray(state[entry.torch]), wanted[entry.path], found, wrong)
    uncovered = wanted.keys() - {e.path for e in entries}
    if uncovered:
        raise KeyError(f"table bug: no entry for {sorted('/'.join(p) for p in uncovered)}")
    wrong += [f"{key} is not known here" for key in state if key not in {e.torch for e in table}]
    if wrong:
        raise UserError(
            f"the weights do not fit ({counted(len(wrong), 'array')}): {some(wrong)}; check the "
            "fields given."
        )
    empty = (name for name, inside in shapes.items() if isinstance(inside, Mapping) and not inside)
    return unflatten(found) | {group: {} for group in empty}


def to_torch(
    table: Sequence[Row],
    params: Mapping[str, Any],
    shapes: Mapping[str, Any],
    optional: Sequence[tuple[str, ...]] = (),
) -> dict[str, np.ndarray]:
    """A state dict of NumPy arrays from ours, in the table's order.

    Args:
      shapes: our nested dict of arrays or `ShapeDtypeStruct`, unboxed; gives the wanted shapes.
      optional: groups that are left out where `params` has nothing of them.

    Raises:
      UserError: one that lists every leaf that is missing, of another shape, or not known; or what
        the table refuses.
    """
    if refused := [row.sentence for row in table if isinstance(row, Refused)]:
        raise UserError(refused[0])
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    absent = [group for group in optional if not any(_within(path, group) for path in leaves)]
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    wanted = {
        path: shape
        for path, shape in wanted.items()
        if not any(_within(path, group) for group in absent)
    }
    wrong = [f"{'/'.join(path)} is missing" for path in sorted(wanted.keys() - leaves.keys())]
    wrong += [
        f"{'/'.join(path)} is not known here" for path in sorted(leaves.keys() - wanted.keys())
    ]
    wrong += [
        f"{'/'.join(path)} has shape {leaves[path].shape} instead of {shape}"
        for path, shape in wanted.items()
        if path in leaves and leaves[path].shape != shape
    ]
    if wrong:
        raise UserError(
            f"the parameters do not fit ({counted(len(wrong), 'array')}): {'; '.join(wrong)}; "
            "check the model given."
        )
    state = {}
    for entry in table:
        if isinstance(entry, (Constant, Unused)):
            state[entry.torch] = entry.value
        elif isinstance(entry, Entry) and entry.path in wanted:
            array = np.array(entry.layout.to_torch(entry.of(leaves[entry.path])))
            above = [state[entry.torch]] if entry.first else []
            state[entry.torch] = np.concatenate([*above, array]) if above else array
    return state


def _within(path, group):
    return path[: len(group)] == group


def flatten(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The leaves of a nested dict by path."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, (*path, key)) if isinstance(value, Mapping) else {(*path, key): value}
        )
    return flat


def unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _place(entry, array, wanted, found, wrong):
    whole = np.broadcast_to(np.float32(0), tuple(wanted.shape))
    expected = entry.layout.to_torch(entry.of(whole)).shape
    if entry.first is not None:
        array = array[entry.first : entry.first + expected[0]]
    if array.shape != expected:
        wrong.append(f"{entry.torch} has shape {array.shape} instead of {expected}")
        return
    ours, unfit = _as_type(entry.layout.to_ours(array), np.dtype(wanted.dtype))
    if unfit:
        wrong.append(f"{entry.torch} {unfit}")
        return
    if entry.layer is not None or entry.share is not None:
        leaf = found.setdefault(entry.path, np.empty(wanted.shape, wanted.dtype))
        entry.of(leaf)[...] = ours
    elif entry.path in found and not np.array_equal(found[entry.path], ours):
        wrong.append(f"{entry.torch} differs from the array that it is tied to")
    else:
        found[entry.path] = np.array(ours)


def _as_type(array, dtype):
    """The array in another type of numbers, and why it has no place there ("": it has)."""
    if dtype.kind == "f" and array.dtype.kind != "f" and array.ndim:
        return array, f"is of the type {array.dtype} instead of {dtype}"
    with np.errstate(over="ignore", invalid="ignore"):
        ours = array.astype(dtype)
    if unfit := not_finite(ours):
        return ours, f"has {unfit}"
    if dtype.kind in "biu" and not np.array_equal(ours, array):
        return ours, f"has values that {dtype} can't hold"
    return ours, ""
