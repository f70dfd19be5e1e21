"""Configurations are frozen dataclasses (Flax modules included): to and from JSON, overrides, clear
refusals.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t2i_jax.errors import UserError

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


def one_of(field: str, value: Any, known: Iterable[str]) -> None:
    """Refuses a value that is not among the known ones."""
    known = list(known)
    if value not in known:
        raise UserError(f"{field}={value!r} is not known; {did_you_mean(str(value), known)}")


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
        classes = [name for name in known if dataclasses.is_dataclass(known[name])]
        one_of(f"{path}.type", data["type"], classes)
        cls = known[data["type"]]
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
    return data


def check(cls: type, name: str, value: Any, path: str | None = None) -> None:
    """Refuses a value of another type than the field `name` of a class has; an int is a float too.

    Args:
      path: the field's name in the message; None: `name`.
    """
    annotation = _annotation(cls, name)
    if not _fits(value, annotation, inside=True):
        raise UserError(
            f"{path or name}={shown(value)} is not {_wanted(annotation)}; give such a value."
        )


def shown(value: Any) -> str:
    """A value in a message: at most 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _made(cls, given, path):
    """A value of a class, whose own refusals get the path."""
    needed = [
        name
        for name, field in fields_of(cls).items()
        if field.default is field.default_factory is dataclasses.MISSING and name not in given
    ]
    if needed:
        raise UserError(f"{path}: {cls.__name__} has no {needed[0]!r}; add it.")
    try:
        return cls(**given)
    except Exception as error:  # whatever values that do not go together make a class raise
        said = str(error) or type(error).__name__
        if not isinstance(error, UserError):
            said = (
                f"these values make no {cls.__name__} ({said.splitlines()[0][:200]}); check them."
            )
        raise UserError(f"{path}: {said}") from error


def override(config: Any, assignments: Sequence[str]) -> Any:
    """A copy of `config` with all of the `a.b.c=value` applied at once.

    Values are Python literals, else strings.

    What the fields of one object say together is checked once, so the order of the assignments
    makes no difference; of two for the same field the later one counts.

    Raises:
      UserError: no "=", an unknown field (with the nearest known name), or a value of another type
        than the field's.
    """
    tree: dict = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"override {assignment!r} has no '='; write it as field.subfield=value."
            )
        path = path.strip().lstrip("-")
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
    return _assign(config, tree)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What one override says: the text of the value that the field at `path` gets."""

    path: str
    text: str


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
    """`config` with the values of a tree of fields, branches mappings and leaves of `_Leaf`."""
    if not tree:
        return config
    if isinstance(config, tuple) and all(key.isdigit() for key in tree):
        return _assign_entries(config, tree)
    if isinstance(config, Mapping):
        return _assign_items(config, tree)
    if not dataclasses.is_dataclass(config):
        leaf = _first(tree)
        raise UserError(
            f"{leaf.path}={leaf.text!r} reaches into {config!r}, which has no fields; shorten the "
            "path."
        )
    given = {name: getattr(config, name) for name in fields_of(type(config))}
    for name, branch in tree.items():
        _check_field(type(config), name, _first(branch).path)
        if isinstance(branch, _Leaf):
            given[name] = _parse(branch.text, _annotation(type(config), name), branch.path)
        else:
            given[name] = _assign(given[name], branch)
    return type(config)(**given)


def _assign_entries(entries, tree):
    entries = list(entries)
    for key, branch in tree.items():
        if int(key) >= len(entries) or isinstance(branch, _Leaf):
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
            items[key] = _parse(branch.text, Any, branch.path)
        elif key in items:
            items[key] = _assign(items[key], branch)
        else:
            leaf = _first(branch)
            raise UserError(
                f"{leaf.path}={leaf.text!r}: there is no {key!r}; {did_you_mean(key, items)}"
            )
    return items


def _first(branch):
    while not isinstance(branch, _Leaf):
        branch = next(iter(branch.values()))
    return branch


def _check_field(cls, name, path):
    known = fields_of(cls)
    if name not in known:
        raise UserError(
            f"{path}: {cls.__name__} has no field {name!r}; {did_you_mean(name, known)}"
        )


def _annotation(cls, name):
    return _annotations(cls).get(name, Any)


@functools.cache
def _annotations(cls):
    try:
        return typing.get_type_hints(cls)
    except NameError:  # an annotation that only a type checker can see
        return {}


def _parse(text, annotation, path):
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    if _fits(value, annotation):
        return value
    if _fits(text, annotation):  # a name made of digits
        return text
    if isinstance(value, int) and not isinstance(value, bool) and _fits(float(value), annotation):
        return float(value)
    raise UserError(f"{path}={text!r} is not {_wanted(annotation)}; give such a value.")


def _wanted(annotation):
    """An annotation as a message says it."""
    name = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    return name or re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotation))


def _fits(value, annotation, inside=False):
    """Whether a value is of an annotation's type, what it holds included.

    Args:
      inside: take an int for a float, as what a value holds.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one, inside) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (tuple, Sequence):
        if not isinstance(value, tuple):
            return False
        if origin is tuple and arguments[-1:] != (...,):
            return len(value) == len(arguments) and all(
                _fits(one, kind, inside=True) for one, kind in zip(value, arguments)
            )
        return all(_fits(one, arguments[0], inside=True) for one in value)
    if origin is not None and isinstance(value, Mapping) and issubclass(Mapping, origin):
        return all(_fits(one, arguments[-1], inside=True) for one in value.values())
    if origin is not None:
        return isinstance(value, origin)
    if annotation in (int, float):
        return type(value) is annotation or (inside and annotation is float and type(value) is int)
    return isinstance(value, annotation) if isinstance(annotation, type) else True
