"""The arithmetic of a function, counted from its trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def flops_of(function: Callable[..., Any], *shapes: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of one call (multiply-add = 2).

    Args:
      shapes: of the arguments, as `jax.ShapeDtypeStruct`; nothing is computed.
    """
    return _of(jax.make_jaxpr(function)(*shapes).jaxpr)


def _of(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * per_output
    if name == "cond":
        return max(_of(_jaxpr_of(branch)) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(_of(_jaxpr_of(value)) for value in params.values() if _jaxpr_of(value) is not None)


def _jaxpr_of(value):
    """The trace that a parameter of an operation is, or None."""
    if hasattr(value, "eqns"):
        return value
    return getattr(value, "jaxpr", None) if hasattr(getattr(value, "jaxpr", None), "eqns") else None
