"""State dicts as people save them: inside checkpoints, behind prefixes of what wraps a network, as
an average beside the network itself.
"""

from __future__ import annotations

import functools
import re
import types
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
_NESTS = (
    "state_dict", "model", "model_state_dict", "module", "net", "network", "weights", "params",
)  # fmt: skip
# Words in the name of a place where an average is kept; those that make it a moment of Adam, or say
# that it is none; and those of the weights that an average keeps while it stands in their place.
_AVERAGES = {"ema", "emas", "swa", "avg", "average", "averaged", "averages", "shadow", "polyak"}
_OTHERWISE, _SET_ASIDE = {"exp", "no", "non", "not", "without"}, {"backup", "collected"}
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

    Where an average is kept beside the network that it averages, only the average stays. A name of
    what wraps stays where other entries of a checkpoint are beside it, as DeepSpeed writes
    {"module": ..., "optimizer": ...}.

    Raises:
      UserError: two arrays that get one name and are not equal.
    """
    found: dict[str, str] = {}
    averaged = {place for name in state for place in _before(name, EMA)}
    wrapping = {place for name in state for place in _before(name, WRAPPERS[0])}
    holding = _holding(state)
    for name, value in state.items():
        if averaged.intersection(_before(name, ONLINE)):
            continue
        *place, last = name.split(".")
        if last == _COUNT and tuple(place) in wrapping:
            continue
        kept = ".".join(_bare(name.split("."), holding))
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
    holding = _holding(state)
    return {"".join(f"{part}." for part in _bare(place, holding)) for place in places}


def with_averages(
    names: Mapping[str, str], state: Mapping[str, Any], networks: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The names of a state dict in which averages that have lost their dots stand in the place of
    the weights that they are of, and these places with those of the averages.

    LitEma of latent-diffusion keeps "model.norm.weight" as "model_ema.normweight", and no buffers:
    these stay those of the network, as they do there.

    Args:
      names: of `unwrapped`. state: the state dict. networks: their places, see `roots`.

    Raises:
      UserError: two averages of one network.
    """
    found, taken = dict(names), {}
    for place in _places_of_averages(names):
        if place in networks:
            continue
        own = _squashed({name: name.removeprefix(place) for name in names if _in(name, place)})
        for root in networks:
            pairs = {} if _is_average(root) else _pairs(own, names, root, place)
            shapes = [[np.shape(state[names[one]]) for one in pair] for pair in pairs.items()]
            if pairs and all(one == other for one, other in shapes):
                if root in taken:
                    raise UserError(
                        "the weights hold 2 averages of one network, at "
                        f"{_named([taken[root], place])}; save the one that is meant alone."
                    )
                taken[root] = place
                found |= {name: names[average] for name, average in pairs.items()}
    return {name: was for name, was in found.items() if not _in(name, *taken.values())}, taken


def _pairs(average, names, root, place):
    """The weights of a network that an average has without their dots, with its names of them; {}
    where most of its arrays are others.

    Args:
      average: its names, by themselves without dots. place: its own.
    """
    inside = [name for name in names if name.startswith(root) and not _in(name, place)]
    for above in _above(root):
        known = _squashed({name: name.removeprefix(above) for name in inside})
        shared = average.keys() & known.keys()
        if 2 * len(shared) > len(average):
            return {known[name]: average[name] for name in shared}
    return {}


def main(
    found: list[tuple[str, Any]],
    order: list[Any],
    values: Mapping[str, Any],
    averages: Collection[str] = (),
    replaced: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[str, Any] | None:
    """The network that is meant among those of `roots`; None for none.

    The first in `order` counts. Where there are several, an average counts, then the one where
    training scripts put their weights. The same arrays at several places count once. A line on
    stderr names the others, and averages that are not read: lists without names, and what has but
    some of a network's.

    Args:
      values: the state dict. averages: places of averages, which `averaged` finds; others have a
        name that says so.
      replaced: places of networks in which averages stand, with those of the averages, as
        `with_averages` gives them.

    Raises:
      UserError: several, and nothing that tells which one is meant.
    """
    if not found:
        return None
    first = min((network for _, network in found), key=order.index)
    every = places = [place for place, network in found if network is first]
    averages = {*averages, *replaced}
    for kind in (lambda place: _is_average(place) or place in averages, _is_usual):
        places = [place for place in places if kind(place)] or places
    places = _different(places, values)
    if len(places) > 1:
        raise UserError(
            f"the weights hold {len(places)} networks of one kind, at {_named(places)}; save the "
            "state dict of the one that is meant."
        )
    others = [place for place in every if place != places[0]]
    passed = _different([places[0], *others], values)[1:] + _unread(values, every, places[0])
    taken = places
    if places[0] in replaced:
        taken, passed = [replaced[places[0]]], [places[0], *passed]
    if passed:
        say(
            f"t2i: of the weights those at {_named(taken)} are taken and those at "
            f"{_named(passed)} are not; for these save their state dict alone."
        )
    return places[0], first


def _named(places):
    return ", ".join(place.rstrip(".") or "the top" for place in places)


def _unread(values, places, root):
    """The places of averages that are not read: lists of arrays, which tell no names, and what has
    arrays of the network at a root, by their names or without the dots in these, and is no such
    network.
    """
    found = {}
    for name in values:
        place, _, last = name.rpartition(".")
        if last.isdecimal() and _is_average(place) and not _in(name, *places):
            found[place] = None
    wanted = {
        _short(name.removeprefix(above))
        for name in values
        if name.startswith(root)
        for above in _above(root)
    }
    for place in _places_of_averages(values):
        inside = [name for name in values if _in(name, place)]
        known = [name for name in inside if _short(name.removeprefix(place)) in wanted]
        if known and not any(_in(name, *filter(None, places)) for name in inside):
            found[place] = None
    return list(found)


def _places_of_averages(names):
    """The outermost places whose names say that averages are kept there."""
    found = {}
    for name in names:
        parts = name.split(".")[:-1]
        here = (i for i in range(1, len(parts) + 1) if _is_average(".".join(parts[:i])))
        if end := next(here, 0):
            found["".join(f"{part}." for part in parts[:end])] = None
    return list(found)


def _squashed(names):
    """Names by those of their short forms without dots and underscores; {} where two have one."""
    found = {_short(short): name for name, short in names.items()}
    return found if len(found) == len(names) else {}


def _short(name):
    return re.sub("[._]", "", name)


def _above(root):
    """The places above a network's, and its own: "", "model.", "model.net." of the last."""
    parts = root.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts), -1, -1)]


def _in(name, *places):
    return name.startswith(places)


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


def _holding(state):
    """The places at which a name of `WRAPPERS` is that of an entry of a checkpoint: others stand
    beside it, and none of them is an array in it too.
    """
    within: dict[tuple[str, ...], set] = {}
    beside: dict[tuple[str, ...], set] = {}
    paths = [tuple(name.split(".")) for name in state]
    for path in paths:
        for i, part in enumerate(path):
            if part in WRAPPERS:
                within.setdefault(path[:i], set()).add(_path(path[i:]))
    for path in paths:
        for i, part in enumerate(path):
            if path[:i] in within and part not in (*WRAPPERS, _COUNT):
                beside.setdefault(path[:i], set()).add(_path(path[i:]))
    return {place for place, names in beside.items() if not names & within[place]}


def _path(parts):
    return tuple(part for part in parts if part not in WRAPPERS)


def _bare(parts, holding):
    """The parts of a name without those that wrap a network."""
    return [
        part for i, part in enumerate(parts) if part not in WRAPPERS or tuple(parts[:i]) in holding
    ]


def _before(name, part):
    """The parts of a name before each place at which one of them is `part`."""
    parts = name.split(".")
    return [tuple(parts[:i]) for i, one in enumerate(parts) if one == part]


@functools.lru_cache(2**12)
def _is_average(place):
    """Whether a name in a place has a word of averages: "params_ema", "modelEMA", "ema0.999"; and
    none says otherwise, as "non_ema" and "ema.backup" do.
    """
    parts = [
        {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)}
        for part in place.split(".")
    ]
    is_average = any(words & _AVERAGES and not words & _OTHERWISE for words in parts)
    return is_average and not any(words & _SET_ASIDE for words in parts)


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
