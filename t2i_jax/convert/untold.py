"""What a state dict does not tell of its network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from t2i_jax.config import fields_of
from t2i_jax.convert.engine import Network, State
from t2i_jax.errors import UserError

# Of a computation, and not of the network; and what the table of a network makes of its weights.
_NOT_TOLD = ("dtype", "remat", "compat")


def fields(network: Network, model: Any, state: State) -> dict[str, Any]:
    """The fewest fields that `from_torch` has to be given beside a state dict that was made of a
    network, for it to be that network again.

    Args:
      network: the table that made the state dict. model: the network. state: the state dict.
    """
    state = network.upgrade(state)
    told = whole = _readable(network, model, state)
    differs = _differing(network, model, state, whole)
    for name in whole:
        fewer = _without(told, name)
        if _differing(network, model, state, fewer) == differs:
            told = fewer
    return told


def _readable(network, model, state):
    """The fields that may be told: those that the arrays do not contradict, as they do where a
    table writes weights for what the network does not have.
    """
    own = _own(model)
    for told in (own, *(_without(own, name) for name in own)):
        if _differing(network, model, state, told) is not None:
            return told
    told = {}
    for name, value in own.items():
        if _differing(network, model, state, {**told, name: value}) is not None:
            told[name] = value
    return told


def _without(told, name):
    return {other: value for other, value in told.items() if other != name}


def as_overrides(found: Mapping[str, Any]) -> str:
    """The fields as arguments of `t2i convert from-torch`."""
    return " ".join(map(_override, found.items()))


def _override(item):
    name, value = item
    text = f"{name}={value if isinstance(value, str) else repr(value).replace(' ', '')}"
    return text if shlex.quote(text) == text else f'"{text}"'


def _own(model):
    return {name: getattr(model, name) for name in fields_of(type(model)) if name not in _NOT_TOLD}


def _differing(network, model, state, told):
    """The fields that are read otherwise where these are told; None: it can't be read."""
    try:
        read = network.fields(state, told)
    except UserError:
        return None
    given = {name: field.default for name, field in fields_of(type(model)).items()} | dict(told)
    return {
        name
        for name, value in _own(model).items()
        if not (network.same(name, read, value) if name in read else given[name] == value)
    }
