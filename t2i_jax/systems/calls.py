"""A call that generates: its options, some of them changed, and its numbers, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.systems import notices
from t2i_jax.values import shown

_FLOAT32 = float(np.finfo(np.float32).max)
Options = TypeVar("Options")


def with_changes(
    kind: type[Options],
    options: Options | None,
    changes: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> Options:
    """The options with some of them changed; None: the defaults of their class.

    Args:
      given: by name the arguments of `generate` on which it depends whether an option has an
        effect, None where they are not given; None: of that nothing is said.

    Raises:
      UserError: options of another system, a name that is none, or a change as of `check_used`.
    """
    if options is None:
        options = kind()
    if not isinstance(options, kind):
        is_other = dataclasses.is_dataclass(options)
        told = f"{type(options).__name__}(...)" if is_other else shown(options)
        raise UserError(f"options={told} are those of another system; give {kind.__name__}(...).")
    known = config.fields_of(kind)
    for name in changes:
        if name not in known:
            raise UserError(f"generate has no option {name!r}; {config.did_you_mean(name, known)}")
    if not changes:
        return options
    changed = dataclasses.replace(options, **changes)  # type: ignore[type-var]
    if given is not None:
        check_used(options, changed, [name for name, one in given.items() if one is not None])
    return changed


def check_used(
    before: Any,
    options: Any,
    given: Iterable[str],
    told: Callable[[str], str] = str,
    beside: Callable[[str], None] | None = None,
) -> None:
    """Refuses options that were changed and have no effect without an argument or another option,
    as `needs` of their class says.

    A line on stderr tells those that have none beside another one (`idle_with`), or for its value
    (`idle_fields`): calls may share their settings, and a sweep comes upon guidance=1.

    Args:
      before: the options that were changed to `options`. given: names of the arguments of
        `generate` that are given. told: spells the name of an argument or an option.
      beside: is given the sentence of an option that does nothing beside another one; None: `tell`.

    Raises:
      UserError: the first of them.
    """
    kind = type(options)
    there = {*given, *(n for n in config.fields_of(kind) if getattr(options, n) is not None)}
    needs, idle_with = (getattr(kind, name, {}) for name in ("needs", "idle_with"))
    idle = getattr(options, "idle_fields", {})
    for name in config.fields_of(kind):
        value = getattr(options, name)
        if value == getattr(before, name):
            continue
        needed = needs.get(name, ())
        if needed and there.isdisjoint(needed):
            raise UserError(
                f"{name}={value!r} is nothing without {' or '.join(map(told, needed))}; leave it "
                "out or give it."
            )
        for other in idle_with.get(name, ()):
            if other in there:
                (beside or notices.tell)(
                    f"{name}={value!r} does nothing beside {told(other)}; leave out one of them"
                )
        if name in idle:
            notices.tell(f"{name}={value!r} has no effect with {idle[name]}")


def plain(options: Any) -> None:
    """Makes Python values of the NumPy and JAX scalars in a frozen dataclass, and tuples of its
    lists.

    Raises:
      UserError: something else than True and False where one of them is meant.
    """
    for name in config.fields_of(type(options)):
        object.__setattr__(options, name, _plain(getattr(options, name)))
    config.check_flags(options)


def _plain(value):
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def check_number(
    name: str,
    value: Any,
    remedy: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Refuses what is no finite number, also as the float32 that a program is given, and what is
    outside of [low, high].

    Args:
      remedy: ends the sentence, "try 1.0".
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        says = "is not a finite number"
    elif abs(value) > _FLOAT32:
        says = f"is beyond what a float32 holds, {_FLOAT32:.4g}"
    elif low <= value <= high:
        return
    else:
        says = f"is outside [{low:g}, {high:g}]" if math.isfinite(high) else f"is below {low:g}"
    raise UserError(f"{name}={shown(value)} {says}; {remedy}.")


def _finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def check_amounts(images_per_prompt: Any, batch_size: Any) -> None:
    """Refuses what are not numbers from 1; the size of a batch may be None."""
    if images_per_prompt is None:
        raise UserError("images_per_prompt=None is not a number from 1; give 1 or more.")
    check_count("images_per_prompt", images_per_prompt)
    check_count("batch_size", batch_size)


def check_count(name: str, value: Any, most: int = 2**31 - 1) -> None:
    """Refuses what is neither None nor a whole number from 1 to `most`."""
    if value is None:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise UserError(f"{name}={shown(value)} is not a number from 1; give 1 or more.")
    if value > most:
        raise UserError(f"{name}={shown(value)} is too many; give {most} at most.")
