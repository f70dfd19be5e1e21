"""Whether parts that a task joins were trained with each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given


def same_weights(one: Any, other: Any) -> bool:
    """Whether two trees of arrays are equal, number for number."""
    same = jax.tree.structure(one) == jax.tree.structure(other)
    return same and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def is_other(one: Given, part: Given) -> bool:
    """Whether what a run was trained with is known to be another part than `part`: one of other
    weights, or one that is still to be trained.
    """
    if one.fingerprint and part.fingerprint:
        return one.fingerprint != part.fingerprint
    return bool(one.fingerprint) and part.planned is not None and part.home is None


def refuse_unread(name: str, stages: Sequence[str], parts: Mapping[str, Given]) -> None:
    """Refuses a part that none of the stages was trained with, as nothing would read it.

    Args:
      stages: the names of those that may have been trained with it. parts: of the task that joins
        them, by name.

    Raises:
      UserError: each of the stages that has such a part has another one.
    """
    reading = [stage for stage in stages if name not in parts[stage].task.unread_parts]
    own = {stage: parts[stage].parts[name] for stage in reading if name in parts[stage].parts}
    if name in parts and own and all(is_other(one, parts[name]) for one in own.values()):
        homes = (one.home for one in own.values() if one.home is not None)
        theirs = next((f"give {name}={os.path.normpath(home)}" for home in homes), "give theirs")
        listed = " and ".join(f"parts.{stage}" for stage in own)
        raise UserError(
            f"{listed} came with another {name} than parts.{name}, which nothing would read; "
            f"{theirs}, or leave it out."
        )
