"""FLOPs of a function, counted from its trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def flops_of(function: Callable[..., Any], *shapes: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of one call.

    A multiply-add counts as 2. The function is traced with abstract arguments and nothing is
    computed, so that a network of any size can be counted. All else (norms, activations, softmax)
    is left out, as is usual for MFU.

    - A scan and a loop of a known number of steps count that often; a loop whose length depends
      on the data counts as one step.
    - A branch on data counts as its largest branch, a branch on the platform as the one for
      platforms without a form of their own: the plain form, so that the count is the same
      everywhere.
    - What is recomputed by `jax.checkpoint` in a traced gradient is counted, since it is computed.
    - A convolution counts the zeros of its padding, as published numbers do, but not those that a
      dilation of its input puts in: a transposed convolution with stride 2 takes a quarter of the
      products of a plain one of its size.
    - What runs on each device of a mesh (`jax.shard_map`) counts once per device.

    Args:
      shapes: the arguments: trees of `jax.ShapeDtypeStruct` or of arrays.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def _of_jaxpr(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            return _of_product(equation)
        case "conv_general_dilated":
            return _of_convolution(equation)
        case "cond":
            platforms = params.get("branches_platforms")
            if platforms is not None and None in platforms:
                return _of_inside(params["branches"][platforms.index(None)])
            return max(_of_inside(branch) for branch in params["branches"])
        case "while":
            return _steps(equation) * (
                _of_inside(params["cond_jaxpr"]) + _of_inside(params["body_jaxpr"])
            )
        case "scan":
            return params["length"] * _of_inside(params["jaxpr"])
        case "dot_product_attention_fwd_wrapper":  # cuDNN's kernels have no trace inside
            return 2 * _of_scores(equation)
        case "dot_product_attention_bwd_wrapper":
            return 4 * _of_scores(equation)
        case "shard_map":
            axes = (
                params["newly_manual_axes"]
                if "newly_manual_axes" in params
                else params["manual_axes"]
            )
            devices = math.prod(params["mesh"].shape[axis] for axis in axes)
            return devices * _of_inside(params["jaxpr"])
    return sum(_of_inside(value) for value in params.values())


def _of_inside(value):
    """FLOPs of a parameter of an operation that is a trace, open or closed; 0 of any other
    value.
    """
    jaxpr = getattr(value, "jaxpr", value)
    return _of_jaxpr(jaxpr) if hasattr(jaxpr, "eqns") else 0.0


def _of_product(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(shape[axis] for axis in contracted)


def _of_convolution(equation):
    """FLOPs of a convolution: for each element of the result, the kernel's window times the input
    channels of one group, without the holes.
    """
    params, kernel = equation.params, equation.invars[1].aval.shape
    per_output = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return (
        2.0
        * math.prod(equation.outvars[0].aval.shape)
        * per_output
        / math.prod(params["lhs_dilation"])
    )


def _of_scores(equation):
    """The FLOPs of the product of queries (B, Q, H, D) and keys (B, K, H, D), the first inputs."""
    (batch, queries, heads, width), keys = (
        equation.invars[0].aval.shape,
        equation.invars[1].aval.shape[1],
    )
    return 2.0 * batch * heads * queries * keys * width


def _steps(equation):
    """Steps of a while loop that counts a carried integer up by one to a bound, both known at trace
    time; 1 for others.

    That is the form of `jax.lax.fori_loop`; one whose bounds are Python integers is a scan already.
    """
    params = equation.params
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond_consts, first = equation.invars[: split[0]], equation.invars[split[1] :]
    cond, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    if (
        len(cond.eqns) != 1
        or cond.eqns[0].primitive.name != "lt"
        or cond.outvars[0] is not cond.eqns[0].outvars[0]
    ):
        return 1
    known = dict(zip(cond.invars, [*cond_consts, *first], strict=True))
    counter, bound = cond.eqns[0].invars
    place = next((i for i, var in enumerate(cond.invars[split[0] :]) if var is counter), None)
    if place is None:
        return 1
    carried = body.invars[params["body_nconsts"] :]
    adds = [
        e for e in body.eqns if e.outvars[0] is body.outvars[place] and e.primitive.name == "add"
    ]
    if not adds or adds[0].invars[0] is not carried[place] or _literal(adds[0].invars[1]) != 1:
        return 1
    if not _literal_like(bound):
        kept = next((i for i, var in enumerate(cond.invars[split[0] :]) if var is bound), None)
        if kept is not None and body.outvars[kept] is not carried[kept]:
            return 1  # the bound itself changes
        bound = known[bound]
    low, high = _literal(known[counter]), _literal(bound)
    return 1 if low is None or high is None else max(int(high) - int(low), 0)


def _literal_like(atom):
    return hasattr(atom, "val")


def _literal(atom):
    """The value of an atom of a trace that is known; None: it is computed."""
    return atom.val if _literal_like(atom) else None
