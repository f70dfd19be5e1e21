"""NumPy arrays from stored weights and from what a user gives: tensors of PyTorch of every kind,
arrays, numbers.

Nothing here imports PyTorch; a tensor is known by what it offers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from t2i_jax.words import named

_NARROW = tuple(
    np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
                 "float8_e4m3", "float8_e3m4", "float8_e4m3b11fnuz")
)  # fmt: skip
_MOST = 2**31  # elements that a tensor with fewer in memory may stand for


class NoArray(ValueError):
    """An error that says why something is no array of numbers, in words that follow its name."""


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor, of whatever kind."""
    return hasattr(type(value), "shape") and hasattr(value, "dtype")


def array(value: Any) -> np.ndarray:
    """The numbers of a tensor or an array as a NumPy array; 8- and 16-bit floats that NumPy does
    not know become float32, which holds them exactly.

    A sparse tensor becomes a dense one. Views, shared memory and gradients make no difference.

    Raises:
      NoArray: no numbers, complex or quantised ones, none in memory (on the device "meta"), or so
        many that they are a mistake.
    """
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        found = _number(value)
    elif hasattr(value, "detach"):
        found = _tensor(value)
    elif is_array(value):  # of JAX and others
        found = np.asarray(value)
    else:
        raise NoArray(f"is {named(value)} and no array")
    if found.dtype in _NARROW:
        return found.astype(np.float32)
    if found.dtype.kind not in "fiub":
        raise NoArray(f"is of the type {found.dtype}, no real numbers")
    return found


def given(value: Any) -> np.ndarray:
    """The numbers that a user gives, as of `array`: one, or nested lists of arrays or of numbers.

    Raises:
      NoArray: as `array`, or lists of no one shape.
    """
    if is_array(value):
        return array(value)
    if isinstance(value, (list, tuple)):
        value = [given(x) if is_array(x) or isinstance(x, (list, tuple)) else x for x in value]
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise NoArray(f"is {named(value)} and no array ({error})") from error
    if found.dtype.kind not in "fiub":
        raise NoArray(f"is {named(value)} of the type {found.dtype}, no real numbers")
    return found


def mask(value: Any) -> np.ndarray:
    """A mask that a user gives, bool, as `given` reads it: of bool, or of 0 and 1.

    Raises:
      NoArray: as `given`, or other numbers, such as those that are added to scores.
    """
    found = given(value)
    odd = found[(found != 0) & (found != 1)]
    if odd.size:
        raise NoArray(f"has {odd.flat[0]:.6g} in it, where 1 is seen and 0 is not")
    return found.astype(bool)


def not_finite(values: np.ndarray) -> str:
    """The number of values that are NaN or infinite, in words; "" where all are finite."""
    if np.dtype(values.dtype).kind not in "fV":
        return ""
    wrong = int(values.size - np.count_nonzero(np.isfinite(values)))
    if not wrong:
        return ""
    return "only values that are not finite" if wrong == values.size else (
        f"{wrong} of {values.size} values that are not finite"
    )  # fmt: skip


def some(names: Iterable[str], most: int = 20) -> str:
    """A list of names or sentences joined, at most `most` of them, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{'; '.join(names[:most])}{more}"


def check_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence for each array that holds NaN or infinite values."""
    found = ((name, not_finite(values)) for name, values in arrays.items())
    return [f"{name} has {wrong}" for name, wrong in found if wrong]


def _number(value):
    try:
        found = np.asarray(value)
    except (OverflowError, ValueError) as error:
        raise NoArray(f"is {named(value)} and no array") from error
    if found.dtype.kind == "O":
        raise NoArray(f"is {named(value)} and no array")
    return found


def _tensor(value):
    try:
        return _dense(value)
    except NoArray:
        raise
    except Exception as error:  # whatever a tensor of an unusual kind makes PyTorch raise
        said = str(error).strip().splitlines()
        raise NoArray(
            f"is a tensor that can't be read ({said[0][:100] if said else type(error).__name__})"
        ) from error


def _dense(value):
    kind = str(value.dtype).removeprefix("torch.")
    if getattr(value, "is_meta", False):
        raise NoArray('is on the device "meta", without numbers')
    if getattr(value, "is_quantized", False):
        raise NoArray(f"is quantised ({kind})")
    if getattr(value, "is_nested", False):
        raise NoArray("is a nested tensor")
    if value.is_complex():
        raise NoArray(f"is of the type {kind}, no real numbers")
    value = value.detach()
    if hasattr(value, "full_tensor"):  # spread over processes
        value = value.full_tensor()
    stored = value
    if str(value.layout) != "torch.strided":
        if value.numel() > _MOST:
            raise NoArray(f"is sparse and stands for {value.numel()} numbers")
        stored = value = value.to_dense()
    elif value.numel() > _MOST and value.untyped_storage().nbytes() < value.numel():
        raise NoArray(f"stands for {value.numel()} numbers and holds fewer")
    value = stored.cpu().resolve_conj().resolve_neg()
    narrow = getattr(ml_dtypes, kind, None)
    return (value.float() if narrow is not None else value).numpy()
