"""The values that a field of a configuration may have, by its type: what is wrong with one, and
what a text stands for.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from t2i_jax.errors import UserError
from t2i_jax.words import with_article


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may have, from `low` to `high`, both included; no NaN, and infinity
    only where it is a limit.

    Stands in `Annotated` with the field's type. A plain `int` is from 0 to 2^31 - 1, a plain
    `float` from 0 and finite.

    Attributes:
      above: `low` itself is excluded. below: `high` itself is.
    """

    low: float = 0
    high: float = 2.0**1023
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """The problem with a number and its remedy; None where it is right."""
        if math.isnan(value) or (math.isinf(value) and value not in (self.low, self.high)):
            return f"is not a finite number; give {self}"
        if value < self.low or (self.above and value == self.low):
            return f"is {'not above' if self.above else 'below'} {self.low:g}; give {self}"
        if value > self.high or (self.below and value == self.high):
            problem = "not below" if self.below else "above"
            return f"is {problem} {_plain(self.high)}; give {self._between()}"
        return None

    def __str__(self) -> str:
        if self.low <= -_FAR:
            return "a finite number"
        if self.high >= _FAR:
            return f"a number {self._from()}" if self.above or self.low != 1 else "1 or more"
        return f"{self.low:g} or more" if self.high == _MOST else self._between()

    def _from(self):
        return f"above {self.low:g}" if self.above else f"from {self.low:g}"

    def _between(self):
        return f"a number {self._from()} to {'below ' if self.below else ''}{_plain(self.high)}"


_FAR, _MOST = 2.0**63, 2**31 - 1
_WHOLE, _REAL = Range(0, _MOST), Range(0)
# Types of fields, with their ranges.
Count = Annotated[int, Range(1, _MOST)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, above=True)]
Signed = Annotated[float, Range(-(2.0**1023))]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]


def problem(value: Any, annotation: Any) -> str | None:
    """The problem with a value for a field of this type and its remedy; None where it is right.

    A list counts as a tuple, and a whole number as a float.
    """
    origin, within = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = next((extra for extra in within[1:] if isinstance(extra, Range)), None)
        return _number_problem(value, within[0], limits) if limits else problem(value, within[0])
    if annotation in (int, float):
        return _number_problem(value, annotation, _WHOLE if annotation is int else _REAL)
    if origin in (typing.Union, types.UnionType):
        return _union_problem(value, within)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, annotation):
        return f"is not {_name(annotation)}; give {_example(annotation)}"
    if isinstance(value, tuple) and within:
        any_length = origin is not tuple or within[-1] is Ellipsis
        kinds = within[:1] * len(value) if any_length else within
        if len(kinds) != len(value):
            return f"has {len(value)} values; give {len(kinds)}"
        return next(filter(None, map(problem, value, kinds)), None)
    if isinstance(value, Mapping) and len(within) == 2:
        return next(filter(None, (problem(one, within[1]) for one in value.values())), None)
    return None


def literal(text: str) -> Any:
    """The Python literal of a text, of which true, false, none and null may be small; else the
    text.
    """
    try:
        return ast.literal_eval(text)
    # whatever a text of an unknown hand makes of it
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def parse(text: str, annotation: Any, path: str) -> Any:
    """The value that a text stands for in a field of this type: a Python literal, else the text.

    Raises:
      UserError: it is of another type, or out of the field's range.
    """
    value = literal(text)
    if isinstance(value, str) and text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        value = text if problem(text, annotation) is None else float(text)
    value = tuple(value) if isinstance(value, list) else value
    wrong = problem(value, annotation)
    if wrong and problem(text, annotation) is None:  # a name made of digits
        return text
    if wrong:
        number = isinstance(value, (int, float)) and "give such" not in wrong
        raise UserError(f"{path}={shown(value if number else text)} {wrong}.")
    return _as_declared(value, annotation)


def shown(value: Any) -> str:
    """A value in a message: at most 60 characters."""
    try:
        text = repr(value) if isinstance(value, str) else " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an int of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_declared(value, annotation):
    """A whole number as a float, where floats alone are wanted."""
    if typing.get_origin(annotation) is Annotated:
        return _as_declared(value, typing.get_args(annotation)[0])
    kinds = [annotation, *typing.get_args(annotation)]
    kinds = [typing.get_args(k)[0] if typing.get_origin(k) is Annotated else k for k in kinds]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in kinds and int not in kinds else value


def _number_problem(value, kind, limits):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"is not {_name(kind)}; give {_example(kind)}"
    if kind is int and not isinstance(value, int):
        return f"is not {_name(kind)}; give {_example(kind)}"
    try:
        return limits.problem(float(value))
    except OverflowError:
        return f"is beyond all limits; give {limits}"


def _union_problem(value, kinds):
    wrongs = [problem(value, kind) for kind in kinds]
    if None in wrongs:
        return None
    # a number out of range rather than "not None"
    telling = [wrong for wrong in wrongs if wrong and not wrong.startswith("is not ")]
    telling += [wrong for wrong in wrongs if wrong and wrong.startswith("is not a finite")]
    if telling:
        return telling[0]
    names = " or ".join(dict.fromkeys(_name(kind) for kind in kinds))
    return f"is not {names}; give {_example(kinds[0])}"


_NAMES = {
    int: ("a whole number", "such a value, for example 3"),
    float: ("a number", "such a value, for example 0.5"),
    bool: ("true or false", "one of these"),
    str: ("text", "text"),
    type(None): ("None", "such a value"),
}


def _name(annotation):
    if annotation in _NAMES:
        return _NAMES[annotation][0]
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _name(typing.get_args(annotation)[0])
    if origin in (tuple, Sequence):
        return "several values in parentheses"
    if origin is not None and issubclass(origin, Mapping):
        return "values by name"
    return with_article(annotation.__name__) if isinstance(annotation, type) else str(annotation)


def _example(annotation):
    if annotation in _NAMES:
        return _NAMES[annotation][1]
    origin = typing.get_origin(annotation)
    if origin in (tuple, Sequence):
        return "such a value, as (1,2)"
    if origin is not None and origin is not Annotated and issubclass(origin, Mapping):
        return "such a value, as {'data':2}"
    return "fields of it by name" if dataclasses.is_dataclass(annotation) else "such a value"


def _plain(number):
    return f"{number:g}" if number < 1e6 else str(int(number))


def _fits(value, annotation):
    """Whether a value is of an annotation's outermost type."""
    origin = typing.get_origin(annotation)
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return True
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (tuple, Sequence):
        return isinstance(value, tuple)
    kind = origin or annotation
    return isinstance(value, kind) if isinstance(kind, type) else True
