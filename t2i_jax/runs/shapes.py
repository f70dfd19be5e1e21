"""Checks that the arrays of a run are those of its recipe: names, shapes, kinds of numbers, and all
of them finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.errors import UserError, first_line
from t2i_jax.foreign.arrays import not_finite, some

Arrays = Mapping[str, Any]  # NumPy's or JAX's, nested


def check(task: Any, params: Arrays, ema: Arrays, stats: Arrays, where: str) -> None:
    """Refuses arrays that the task's networks do not have, and those with NaN or infinite values.

    Args:
      params, ema, stats: what a folder holds. Groups that sampling does not need may be
        missing, and stats.
      where: the folder, for messages.

    Raises:
      UserError: a network that can't be built, or arrays that do not fit; they are listed.
    """
    params, ema, stats = flat(params), flat(ema), flat(stats)
    try:
        wanted, wanted_stats = map(flat, sharding.unbox(sharding.initial(task)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # whatever fields that do not go together make a network raise
        raise UserError(
            f"{where}: its recipe describes a network that can't be built ({first_line(error)}); "
            "restore the recipe from a copy."
        ) from error
    wrong = _differences(params, wanted, tuple(task.ema_groups)) + _differences(ema, wanted, ())
    wrong += _differences(stats, wanted_stats, ())
    if wrong:
        raise UserError(
            f"{where}: the weights do not fit the recipe beside them: {some(wrong)}; restore both "
            "from one copy."
        )
    wrong = _not_finite({**params, **{f"{name} (EMA)": value for name, value in ema.items()}})
    wrong += _not_finite(stats)
    if wrong:
        raise UserError(
            f"{where}: {some(wrong)}; restore the folder from a copy, or take an earlier "
            "checkpoint."
        )


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a nested dict by their names joined with slashes."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(entry, "key", entry)) for entry in path): leaf for path, leaf in leaves
    }


def _differences(found, wanted, needed):
    groups = {name.split("/")[0] for name in found}
    missing = [group for group in needed if group not in groups]
    wrong = [f"{group} is missing" for group in missing]
    for name in wanted:
        if name.split("/")[0] in groups and "/" in name and name not in found:
            wrong.append(f"{name} is missing")
    for name, value in found.items():
        if name not in wanted:
            wrong.append(f"{name} is not known here")
        elif tuple(value.shape) != tuple(wanted[name].shape):
            wrong.append(f"{name} has shape {value.shape} instead of {wanted[name].shape}")
        elif _is_float(value) != _is_float(wanted[name]):
            wrong.append(f"{name} is of the type {value.dtype} instead of {wanted[name].dtype}")
    return wrong


def _not_finite(arrays):
    near = {name: np.asarray(value) for name, value in arrays.items() if not _is_spread(value)}
    wrong = [f"{name} has {unfit}" for name, one in near.items() if (unfit := not_finite(one))]
    far = {name: value for name, value in arrays.items() if _is_spread(value) and _is_float(value)}
    finite = _all_finite(list(far.values())) if far else []
    return wrong + [
        f"{name} has values that are not finite"
        for name, good in zip(far, map(bool, finite), strict=True)
        if not good
    ]


@jax.jit
def _all_finite(arrays):
    return [jnp.isfinite(one).all() for one in arrays]


def _is_spread(value):
    return isinstance(value, jax.Array) and len(value.sharding.device_set) > 1


def _is_float(value):
    return jnp.issubdtype(value.dtype, jnp.floating)
