"""Configurations are frozen dataclasses (Flax modules included): to and from JSON, overrides, clear
refusals.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from t2i_jax.errors import UserError, first_line
from t2i_jax.values import parse, problem, shown

_LARGEST = 2**64  # no number of a configuration reaches it
_LINEN_FIELDS = ("parent", "name")  # every Flax module has these two; they are no configuration


def fields_of(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a configuration class that a user sets, by name, in order."""
    is_linen = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    hidden = _LINEN_FIELDS if is_linen else ()
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in hidden}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}."


def leaves(config: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields of a configuration that hold no further ones, as overrides name
    them.
    """
    for name, value in _entries(config):
        inner = f"{path}.{name}" if path else name
        below = list(leaves(value, inner))
        yield from below or [inner]


def nearest_field(path: str, config: Any) -> str | None:
    """The field of a configuration that a misspelt path may mean; None where nothing is near.

    Words, their beginnings and their initials count ("train.lr" is near to
    "train.optim.learning_rate"), and so do a field's name in another place and a misspelt place.
    """
    found = list(leaves(config))
    *parents, last = path.split(".")
    places = {place for known in found for place in known.split(".")[:-1]}
    parents = [(difflib.get_close_matches(one, places, 1) or [one])[0] for one in parents]

    def score(known):
        *places, name = known.split(".")
        words = name.split("_")
        initials = "".join(word[:1] for word in words)
        same = difflib.SequenceMatcher(None, last, name).ratio()
        if last == name:
            same = 1.5
        elif len(last) > 1 and last == initials:
            same = 1.2
        elif len(last) > 2 and any(word.startswith(last) for word in words):
            same = max(same, 0.9 - 0.02 * len(words))
        shared = len(set(parents) & set(places)) - 0.2 * (places[:1] != parents[:1])
        return same + 0.1 * shared - 0.02 * len(places), same

    best = max(found, key=lambda known: score(known)[0], default=None)
    return best if best is not None and score(best)[1] >= 0.6 else None


def one_of(field: str, value: Any, known: Iterable[str]) -> None:
    """Refuses a value that is not among the known ones."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{field}={shown(value)} is not known; {did_you_mean(str(value), known)}")


def some_of(field: str, values: Sequence[str], known: Iterable[str]) -> None:
    """Refuses values that are not among the known ones, and one string where several are meant."""
    if isinstance(values, str):
        raise UserError(f"{field}={values!r} is a string; give a tuple such as ({values!r},).")
    known = list(known)
    for value in values:
        one_of(field, value, known)


def take_aliases(cls: type, given: dict[str, Any], aliases: Mapping[str, str]) -> None:
    """Renames what was given under another name of a field; for the constructor of a class that
    keeps the names of a package.

    Args:
      given: keyword arguments, changed in place. aliases: by other name the field.

    Raises:
      UserError: an unknown field, or one that is given under two names.
    """
    known = fields_of(cls)
    for alias, name in aliases.items():
        if alias in given:
            if name in given:
                raise UserError(
                    f"{alias}={given[alias]!r} and {name}={given[name]!r} are one field; give one."
                )
            given[name] = given.pop(alias)
    for name in given:
        if name not in known and name not in _LINEN_FIELDS:
            raise UserError(
                f"{cls.__name__} has no field {name!r}; {did_you_mean(name, [*known, *aliases])}"
            )


def to_dict(config: Any) -> Any:
    """Plain JSON values with a "type" tag per dataclass.

    A field that is equal to its default is written too.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        plain = {"type": type(config).__name__}
        return plain | {name: to_dict(getattr(config, name)) for name in fields_of(type(config))}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise UserError(
        f"a configuration holds {config!r}, which JSON has no form for; use numbers, strings or "
        "tuples."
    )


def from_dict(data: Any, known: Mapping[str, type], path: str = "config") -> Any:
    """The inverse of `to_dict`; lists come back as tuples.

    Args:
      data: what `to_dict` returned, possibly through JSON.
      known: the classes that a "type" tag may name.
      path: where `data` stands, for the message of an error.

    Raises:
      UserError: an unknown type or field, with the nearest known name; a value of another type than
        its field's, or one that the class refuses. The place in `data` is named.
    """
    if isinstance(data, Mapping) and "type" in data:
        cls = _class_of(data["type"], known, path)
        given = {
            key: from_dict(value, known, f"{path}.{key}")
            for key, value in data.items()
            if key != "type"
        }
        for name, value in given.items():
            _check_field(cls, name, path)
            check(cls, name, value, f"{path}.{name}")
        return _made(cls, given, path)
    if isinstance(data, Mapping):
        return {key: from_dict(value, known, f"{path}.{key}") for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return tuple(from_dict(value, known, f"{path}[{i}]") for i, value in enumerate(data))
    if isinstance(data, int) and abs(data) >= _LARGEST:
        raise UserError(f"{path}={shown(data)} has more than 64 bits; give a smaller number.")
    if isinstance(data, float) and not math.isfinite(data):
        raise UserError(f"{path}={data} is not a finite number; give one.")
    return data


def check(cls: type, name: str, value: Any, path: str | None = None) -> None:
    """Refuses a value of another type than the field `name` of a class has, or out of its range; an
    int is a float too.

    Args:
      path: the field's name in the message; None: `name`.
    """
    wrong = problem(value, _annotation(cls, name))
    if wrong:
        raise UserError(f"{path or name}={shown(value)} {wrong}.")


def check_types(config: Any, path: str) -> None:
    """Refuses values that are of another type than their fields, before a class compares them with
    numbers; of the range of a number the class has its own words.

    Args:
      path: of the configuration in the message.
    """
    for name in fields_of(type(config)):
        value = getattr(config, name)
        if not isinstance(value, numbers.Real):
            check(type(config), name, value, f"{path}.{name}")


def check_flags(config: Any) -> None:
    """Refuses what is neither True nor False in a field that is one of these, or None where its
    type says so: a text such as "no" would count as True.
    """
    kind = type(config)
    for name in fields_of(kind):
        annotation = _annotation(kind, name)
        if bool in (annotation, *typing.get_args(annotation)):
            check(kind, name, getattr(config, name))


def _made(cls, given, path):
    """A value of a class, whose own refusals get the path."""
    if needed := _needed(cls, given):
        raise UserError(f"{path}: {cls.__name__} has no {needed[0]!r}; add it.")
    try:
        return cls(**given)
    except Exception as error:  # whatever values that do not go together make a class raise
        said = str(error)
        if not isinstance(error, UserError):
            said = f"these values make no {cls.__name__} ({first_line(error)}); check them."
        raise UserError(f"{path}: {said}") from error


def override(config: Any, assignments: Sequence[str]) -> Any:
    """A copy of `config` with all of the `a.b.c=value` applied at once.

    Values are Python literals, else strings.

    What the fields of one object say together is checked once, so the order of the assignments
    makes no difference; where two are for the same field, the later one counts.

    Raises:
      UserError: no "=" or no field, an unknown field (with the nearest known name), or a value of
        another type than the field's.
    """
    tree: dict = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip().lstrip("-")
        if not equals or not path:
            missing = "field before its '='" if equals else "'='"
            raise UserError(
                f"override {assignment!r} has no {missing}; write it as field.subfield=value."
            )
        if not path.isprintable():
            raise UserError(
                f"override {assignment!r} names no field; write it as field.subfield=value."
            )
        *parents, last = path.split(".")
        branch: Any = tree
        for key in parents:
            branch = branch.setdefault(key, {}) if isinstance(branch, dict) else None
        if not isinstance(branch, dict) or isinstance(branch.get(last), dict):
            raise UserError(
                f"{path} overlaps with another override, of its parent or of a field in it; give "
                "one."
            )
        branch[last] = _Leaf(path, text.strip())
    try:
        return _assign(config, tree)
    except _Unknown as unknown:
        near = nearest_field(unknown.path, config)
        remedy = f"did you mean {near!r}?" if near else unknown.remedy
        raise UserError(f"{unknown.path}: {unknown.what}; {remedy}") from None


class _Unknown(Exception):
    """A path that names no field; `remedy` is for where no other field is near."""

    def __init__(self, path, what, remedy):
        super().__init__(path, what, remedy)
        self.path, self.what, self.remedy = path, what, remedy


def check_all(config: Any, path: str = "") -> None:
    """Refuses values that are not of their fields' types, or out of their ranges, anywhere in a
    configuration.

    Raises:
      UserError: one sentence with all of them.
    """
    found = list(_problems(config, path))
    if found:
        more = "" if len(found) <= 8 else f" and {len(found) - 8} more"
        raise UserError("; ".join(found[:8]) + more + ".")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One override: the path of a field, and the text of its value."""

    path: str
    text: str


def idle(config: Any, path: str = "", without: Sequence[str] = ()) -> Iterator[str]:
    """Sentences about fields that were set and have no effect beside others, anywhere in a
    configuration.

    A class says by a property `idle_fields` which of its fields those are: by name, as overrides
    write it from there on, what leaves it without an effect. Nobody has set a field that is at its
    default, so that is not told.

    Args:
      path: of the configuration itself. without: fields of it that are not looked at.
    """
    prefix = f"{path}." if path else ""
    for place, reason in getattr(config, "idle_fields", {}).items():
        holder, name = _held(config, place)
        value = getattr(holder, name)
        if value != default_of(fields_of(type(holder))[name]):
            yield f"{prefix}{place}={shown(value)} has no effect with {reason}."
    for name, value in _entries(config):
        if name not in without:
            yield from idle(value, prefix + name)


def default_of(field: dataclasses.Field, missing: Any = None) -> Any:
    """The value of a field that is not given; `missing` where it has to be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return missing if field.default is dataclasses.MISSING else field.default


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The places where two `to_dict` results differ, as "field: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            d
            for k in keys
            for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    old, new = (list(v) if isinstance(v, (list, tuple)) else v for v in (old, new))
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _assign(config, tree):
    """The configuration `config` with the values of a tree of fields, branches mappings and leaves
    of `_Leaf`.
    """
    if not tree:
        return config
    if isinstance(config, tuple) and all(re.fullmatch("[0-9]+", key) for key in tree):
        return _assign_entries(config, tree)
    if isinstance(config, Mapping):
        return _assign_items(config, tree)
    if not dataclasses.is_dataclass(config):
        leaf = _first(tree)
        config = shown(config)
        raise UserError(
            f"{leaf.path}={leaf.text!r} reaches into {config}, which has no fields; shorten the "
            "path."
        )
    given = {name: getattr(config, name) for name in fields_of(type(config))}
    for name, branch in tree.items():
        known = fields_of(type(config))
        if name not in known:
            what = f"{type(config).__name__} has no field {name!r}"
            raise _Unknown(_first(branch).path, what, did_you_mean(name, known))
        annotation = _annotation(type(config), name)
        if isinstance(branch, _Leaf):
            value = parse(branch.text, annotation, branch.path)
            given[name] = _replaced(given[name], value, branch)
        elif given[name] is None and (made := _begun(annotation, branch)) is not None:
            given[name] = made
        else:
            given[name] = _assign(given[name], branch)
    try:
        return type(config)(**given)
    except UserError:
        raise
    except Exception as error:  # a class may do anything with values that it did not expect
        told = ", ".join(f"{leaf.path}={shown(leaf.text)}" for leaf in _all(tree))
        raise UserError(
            f"{told} can't be set ({first_line(error)[:120]}); give such a value as is there now."
        ) from error


def _replaced(old, new, leaf):
    """The new value; a number or a text can't take the place of an object that has fields, where
    the field's type does not say that it may.
    """
    if new is None or isinstance(new, Mapping) or not dataclasses.is_dataclass(old):
        return new
    fields = fields_of(type(old))
    if not fields:
        return new
    kind, first = type(old).__name__, next(iter(fields))
    raise UserError(
        f"{leaf.path}={shown(leaf.text)} can't take the place of {kind}; set its fields, as "
        f"{leaf.path}.{first}=..., or None."
    )


def _begun(annotation, branch):
    """The value of a field that is None and into which overrides reach: its class, with what they
    say.
    """
    kinds = [annotation, *typing.get_args(annotation)]
    classes = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    if len(classes) != 1 or any(not isinstance(leaf, _Leaf) for leaf in branch.values()):
        return None
    cls, fields = classes[0], fields_of(classes[0])
    for name, leaf in branch.items():
        if name not in fields:
            what = f"{cls.__name__} has no field {name!r}"
            raise _Unknown(leaf.path, what, did_you_mean(name, fields))
    if missing := _needed(cls, branch):
        leaf = _first(branch)
        parent = leaf.path.rpartition(".")[0]
        raise UserError(f"{parent}=None has no fields; give {parent}.{missing[0]} too.")
    return cls(
        **{
            name: parse(leaf.text, _annotation(cls, name), leaf.path)
            for name, leaf in branch.items()
        }
    )


def _all(tree):
    for branch in tree.values():
        yield from [branch] if isinstance(branch, _Leaf) else _all(branch)


def _assign_entries(entries, tree):
    entries = list(entries)
    for key, branch in tree.items():
        if len(key) > 9 or int(key) >= len(entries) or isinstance(branch, _Leaf):
            leaf = _first(branch)
            raise UserError(
                f"{leaf.path}={leaf.text!r} names entry {key} of {len(entries)}; name a field of "
                "one from 0."
            )
        entries[int(key)] = _assign(entries[int(key)], branch)
    return tuple(entries)


def _assign_items(items, tree):
    """A mapping with values by name: a new name may be given a value, a field of a value needs that
    value.
    """
    items = dict(items)
    for key, branch in tree.items():
        if isinstance(branch, _Leaf):
            items[key] = parse(branch.text, Any, branch.path)
        elif key in items:
            items[key] = _assign(items[key], branch)
        else:
            leaf = _first(branch)
            there_is_no = f"there is no {key!r}"
            raise _Unknown(leaf.path, there_is_no, did_you_mean(key, items))
    return items


def _first(branch):
    while not isinstance(branch, _Leaf):
        branch = next(iter(branch.values()))
    return branch


def _needed(cls, given):
    """The fields without a default that are not given."""
    return [
        name
        for name, field in fields_of(cls).items()
        if field.default is field.default_factory is dataclasses.MISSING and name not in given
    ]


def _class_of(name, known, path):
    """The class of this name; no other one is imported for it."""
    found = known.get(name) if isinstance(name, str) else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        classes = [one for one in known if dataclasses.is_dataclass(known[one])]
        one_of(f"{path}.type", name, classes)
    return found


def _check_field(cls, name, path):
    known = fields_of(cls)
    if name not in known:
        raise UserError(
            f"{path}: {cls.__name__} has no field {name!r}; {did_you_mean(name, known)}"
        )


def _entries(config):
    """The entries of a configuration, (name, value) of each, as overrides name it."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return [(name, getattr(config, name)) for name in fields_of(type(config))]
    if isinstance(config, Mapping):
        return [(str(key), value) for key, value in config.items()]
    if isinstance(config, tuple) and any(map(dataclasses.is_dataclass, config)):
        return [(str(i), value) for i, value in enumerate(config)]
    return []


def _held(config, place):
    """The object that has the field at a place below a configuration, and the field's name."""
    *parents, name = place.split(".")
    for parent in parents:
        config = dict(_entries(config))[parent]
    return config, name


def _problems(config, path):
    is_object = dataclasses.is_dataclass(config) and not isinstance(config, type)
    for name, value in _entries(config):
        inner = f"{path}.{name}" if path else name
        wrong = problem(value, _annotation(type(config), name)) if is_object else None
        if wrong:
            yield f"{inner}={shown(value)} {wrong}"
        else:
            yield from _problems(value, inner)


def _annotation(cls, name):
    return _annotations(cls).get(name, Any)


@functools.cache
def _annotations(cls):
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:  # an annotation that only a type checker can see
        return {}
