"""Configurations are frozen dataclasses (Flax modules included): to and from JSON, overrides, clear refusals."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t2i_jax.errors import UserError

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
    """Plain JSON values with a "type" tag per dataclass; a field that is equal to its default is written too."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        plain = {"type": type(config).__name__}
        return plain | {name: to_dict(getattr(config, name)) for name in fields_of(type(config))}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise UserError(f"a configuration holds {config!r}, which JSON has no form for; use numbers, strings or tuples.")


def from_dict(data: Any, known: Mapping[str, type], path: str = "config") -> Any:
    """The inverse of `to_dict`; lists come back as tuples.

    Args:
      data: what `to_dict` returned, possibly through JSON.
      known: the classes that a "type" tag may name.
      path: where `data` stands, for the message of an error.

    Raises:
      UserError: an unknown type or field, with the nearest known name.
    """
    if isinstance(data, Mapping) and "type" in data:
        one_of(f"{path}.type", data["type"], known)
        cls = known[data["type"]]
        given = {key: from_dict(value, known, f"{path}.{key}") for key, value in data.items() if key != "type"}
        for name in given:
            _check_field(cls, name, path)
        return cls(**given)
    if isinstance(data, Mapping):
        return {key: from_dict(value, known, f"{path}.{key}") for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return tuple(from_dict(value, known, f"{path}[{i}]") for i, value in enumerate(data))
    return data


def override(config: Any, assignments: Sequence[str]) -> Any:
    """A copy of `config` with `a.b.c=value` assignments applied; values are Python literals, else strings.

    Raises:
      UserError: no "=", an unknown field (with the nearest known name), or a value of another type than the field's.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"override {assignment!r} has no '='; write it as field.subfield=value.")
        config = _assign(config, path.strip().lstrip("-").split("."), text.strip(), path.strip())
    return config


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The places where two `to_dict` results differ, as "field: old -> new"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    old, new = (list(v) if isinstance(v, (list, tuple)) else v for v in (old, new))
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _assign(config, keys, text, path):
    if isinstance(config, tuple) and keys[0].isdigit():
        index = int(keys[0])
        if index >= len(config) or not keys[1:]:
            raise UserError(f"{path}={text!r} names entry {index} of {len(config)}; name a field of one from 0.")
        return (*config[:index], _assign(config[index], keys[1:], text, path), *config[index + 1 :])
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{path}={text!r} reaches into {config!r}, which has no fields; shorten the path.")
    name, rest = keys[0], keys[1:]
    _check_field(type(config), name, path)
    if rest:
        value = _assign(getattr(config, name), rest, text, path)
    else:
        value = _parse(text, _annotation(type(config), name), path)
    given = {key: getattr(config, key) for key in fields_of(type(config))}
    return type(config)(**(given | {name: value}))


def _check_field(cls, name, path):
    known = fields_of(cls)
    if name not in known:
        raise UserError(f"{path}: {cls.__name__} has no field {name!r}; {did_you_mean(name, known)}")


def _annotation(cls, name):
    try:
        return typing.get_type_hints(cls).get(name, Any)
    except NameError:  # an annotation that only a type checker can see
        return Any


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
    wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    raise UserError(f"{path}={text!r} is not {wanted or str(annotation).replace('typing.', '')}; give such a value.")


def _fits(value, annotation):
    origin = typing.get_origin(annotation)
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin is not None:
        return isinstance(value, tuple) if origin in (tuple, Sequence) else isinstance(value, origin)
    if annotation in (int, float):
        return type(value) is annotation
    return isinstance(value, annotation) if isinstance(annotation, type) else True
