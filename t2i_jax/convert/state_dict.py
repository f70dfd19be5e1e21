"""State dicts as people save them: inside checkpoints, behind prefixes of what wraps a network, as
an average beside the network itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays as foreign
from t2i_jax.terminal import say

# Modules that hold another one and are no part of it: of DataParallel, DistributedDataParallel and
# AveragedModel; of torch.compile; of FSDP; of activation checkpointing; of Lightning's Fabric.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
_COUNT = "n_averaged"  # a buffer of AveragedModel, beside the network in it
EMA, ONLINE = "ema_model", "online_model"  # of the averages of ema-pytorch
# Where training scripts put the weights in a checkpoint.
_NESTS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
# Words in the name of a place where an average is kept, and one that makes them a moment of Adam.
_AVERAGES, _MOMENT = {"ema", "swa", "avg", "average", "averaged", "shadow", "polyak"}, "exp"
_DEEPEST = 12  # containers within containers, and names before the network's own


def flat(loaded: Any) -> dict[str, Any]:
    """The leaves of nested dicts and lists, by their names joined with dots; of lists only those
    that hold arrays or dicts.
    """
    found: dict[str, Any] = {}
    for name, value in _leaves(loaded, (), ()):
        if name in found:
            raise UserError(f"the weights have two entries named {name!r}; leave one.")
        found[name] = value
    return found


def unwrapped(state: Mapping[str, Any]) -> dict[str, str]:
    """The names of a state dict as keys, without what wraps a network, wherever it stands; the
    values are the names as they were.

    Where an average is kept beside the network that it averages, only the average stays.

    Raises:
      UserError: two arrays that get one name and are not equal.
    """
    found: dict[str, str] = {}
    averaged = {place for name in state for place in _before(name, EMA)}
    wrapping = {place for name in state for place in _before(name, WRAPPERS[0])}
    for name, value in state.items():
        if averaged.intersection(_before(name, ONLINE)):
            continue
        *place, last = name.split(".")
        if last == _COUNT and tuple(place) in wrapping:
            continue
        kept = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if kept in found and not _same(state[found[kept]], value):
            raise UserError(
                f"the weights have {found[kept]!r} and {name!r}, which are one array and differ; "
                "save the state dict of one network."
            )
        found.setdefault(kept, name)
    return found


def roots(
    names: Mapping[str, Any], recognise: Callable[[Mapping[str, Any]], Any]
) -> Iterator[tuple[str, Any]]:
    """The places of networks in a state dict: the prefix of their names, "" or ending in a dot, and
    the result of `recognise` (None: no network).

    A network within a network is not looked for.
    """
    yield from _roots(names, recognise, "", 0)


def averaged(state: Mapping[str, Any]) -> set[str]:
    """The places of PyTorch's `AveragedModel` in a state dict, as those of `roots`: it counts there
    how many networks it is the average of.
    """
    places = (name.split(".")[:-1] for name in state if name.split(".")[-1] == _COUNT)
    kept = ([part for part in place if part not in WRAPPERS] for place in places)
    return {"".join(f"{part}." for part in place) for place in kept}


def main(
    found: list[tuple[str, Any]],
    order: list[Any],
    values: Mapping[str, Any],
    averages: Collection[str] = (),
) -> tuple[str, Any] | None:
    """The network that is meant among those of `roots`; None for none.

    The first in `order` counts. Where there are several, an average counts, then the one where
    training scripts put their weights. The same arrays at several places count once. A line on
    stderr names the others, and averages that are lists without names.

    Args:
      values: the state dict. averages: places of averages, which `averaged` finds; others have a
        name that says so.

    Raises:
      UserError: several, and nothing that tells which one is meant.
    """
    if not found:
        return None
    first = min((network for _, network in found), key=order.index)
    every = places = [place for place, network in found if network is first]
    for kind in (lambda place: _is_average(place) or place in averages, _is_usual):
        places = [place for place in places if kind(place)] or places
    places = _different(places, values)
    if len(places) > 1:
        raise UserError(
            f"the weights hold {len(places)} networks of one kind, at {_named(places)}; save the "
            "state dict of the one that is meant."
        )
    others = [place for place in every if place != places[0]]
    passed = _different([places[0], *others], values)[1:] + _nameless(values, every)
    if passed:
        say(
            f"t2i: of the weights those at {_named(places)} are taken and those at "
            f"{_named(passed)} are not; for these save their state dict alone."
        )
    return places[0], first


def _named(places):
    return ", ".join(place.rstrip(".") or "the top" for place in places)


def _nameless(values, places):
    """The places of averages that are lists of arrays, which tell no names."""
    found = {}
    for name in values:
        place, _, last = name.rpartition(".")
        if last.isdecimal() and _is_average(place) and not name.startswith(tuple(places)):
            found[place] = None
    return list(found)


def inner(module: Any, name: str, root: str) -> Any:
    """The module within a live one whose names begin at `root`.

    Args:
      name: any name of its state dict as it was. root: what stands before the network's names,
        without wrappers.
    """
    wanted = root.split(".")[:-1]
    for part in name.split(".")[:-1]:
        if wanted and part == wanted[0]:
            wanted = wanted[1:]
        elif part not in WRAPPERS:
            break
        module = getattr(module, part, None) if not part.isdigit() else module[int(part)]
    return module


def arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy arrays; 8- and 16-bit floats that NumPy does not know become float32, which holds them
    exactly.

    Raises:
      UserError: something that is no array of real numbers; all are listed.
    """
    found, wrong = {}, []
    for name, value in state.items():
        try:
            found[name] = foreign.array(value)
        except foreign.NoArray as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise UserError(
            f"the weights hold what is no array of real numbers: {foreign.some(wrong)}; save plain "
            "tensors of float32 or bfloat16."
        )
    return found


def _leaves(value, path, above):
    if isinstance(value, Mapping):
        inside = list(value.items())
    elif isinstance(value, (list, tuple)) and any(
        isinstance(one, (Mapping, list, tuple)) or foreign.is_array(one) for one in value
    ):
        inside = list(enumerate(value))
    else:
        yield ".".join(path), value
        return
    if len(path) < _DEEPEST and id(value) not in above:
        for name, one in inside:
            yield from _leaves(one, (*path, str(name)), (*above, id(value)))


def _roots(names, recognise, before, depth):
    network = recognise(names) if names else None
    if network is not None:
        yield before, network
        return
    if depth == _DEEPEST:
        return
    parts: dict[str, dict[str, Any]] = {}
    for name, value in names.items():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = value
    for first, part in parts.items():
        yield from _roots(part, recognise, f"{before}{first}.", depth + 1)


def _before(name, part):
    """The parts of a name before each place at which one of them is `part`."""
    parts = name.split(".")
    return [tuple(parts[:i]) for i, one in enumerate(parts) if one == part]


def _is_average(place):
    """Whether a name in a place has a word of averages: "params_ema", "modelEMA", "ema0.999"."""
    for part in place.split("."):
        words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}
        if words & _AVERAGES and _MOMENT not in words:
            return True
    return False


def _different(places, values):
    """The places without those whose arrays are all those of one before."""
    if len(places) == 1:
        return places
    kept: dict[str, dict[str, Any]] = {}
    for place in places:
        inside = {
            name.removeprefix(place): value
            for name, value in values.items()
            if name.startswith(place)
        }
        if not any(_are_same(inside, other) for other in kept.values()):
            kept[place] = inside
    return list(kept)


def _are_same(one, other):
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _is_usual(place):
    return all(part in _NESTS for part in place.split(".")[:-1])


def _same(one, other):
    if one is other:
        return True
    try:
        return bool(np.array_equal(foreign.array(one), foreign.array(other)))
    except foreign.NoArray:
        return False
