"""Shapes of networks, found by tracing, which takes seconds, and kept for the next use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

_KEPT = 128  # networks whose shapes are kept; they are small


def traced_once(shapes: Callable[..., Any]) -> Callable[..., Any]:
    """A function that finds shapes by tracing a network: one that traces equal networks once.

    Checks before a training, the training itself, loading and conversion all ask for the same.

    Args:
      shapes: a tree of shapes, whose leaves nobody changes, from positional arguments. Those that
        can't be hashed are traced each time.
    """

    @functools.lru_cache(_KEPT)
    def kept(_around, *arguments):
        return shapes(*arguments)

    @functools.wraps(shapes)
    def once(*arguments):
        try:
            hash(arguments)
        except TypeError:
            return shapes(*arguments)
        # of shapes, JAX keeps the mesh around and the width of numbers
        around = jax.sharding.get_abstract_mesh(), jax.config.values["jax_enable_x64"]
        found = kept(around, *arguments)
        return jax.tree.map(lambda leaf: leaf, found)  # dicts that a caller may change

    return once
