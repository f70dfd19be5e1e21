"""The first state of a run, bit for bit what its compiled program gives, and almost without a
compiler.

Nearly all of that program is random bits, a copy of the generator for every parameter, and a
compiler for CPUs takes longer over it than over the training step. Here integers, and floats where
rounding leaves no choice, are computed by NumPy; what is left (the inverse error function of normal
numbers, and products that a compiler may fuse with a sum) is compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from t2i_jax import sharding

_KEY = "key<fry>"  # the default generator, whose bits depend on a key and a number each
_MOST = 2**27  # numbers; more of them are worth a compiler
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def evaluate(function: Callable[[Any], Any], key: Any) -> Any:
    """The result of `jax.jit(function)(key)`, with NumPy arrays where no compiler was needed.

    Args:
      key: a single one.

    Raises:
      Unable: it is another generator, or a program with a step that is not known here.
    """
    if not jax.config.values["jax_threefry_partitionable"] or str(key.dtype) != _KEY:
        raise Unable
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(key)
    program, given = closed.jaxpr, _packed(np.asarray(jax.random.key_data(key)))
    found = _outputs(program, closed.consts, [given], [True] * len(program.outvars))
    values = [
        _as_key(value) if _is_key(variable) else value
        for value, variable in zip(_compiled([*map(_plain, found)]), program.outvars, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), values)


def initialise(init: Callable[[Any], Any], key: Any) -> Any:
    """The parameters of `jax.jit(init)(key)` without the names of their axes.

    On a CPU it takes almost no compiling, where `evaluate` can; called as it is, a network would
    run once, operation by operation, each compiled for itself.
    """
    made, init = None, jax.jit(init)  # traced once, for all of what follows
    if is_quicker(jax.eval_shape(init, key)):
        with contextlib.suppress(Unable):
            made = evaluate(init, key)
    if made is None:
        made = init(key)
    return jax.tree.map(jnp.asarray, sharding.unbox(made))


def is_quicker(shapes: Any) -> bool:
    """Whether `evaluate` takes less time than a compiler for arrays of these shapes: on a CPU of a
    single process, up to 2^27 numbers.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return False
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) <= _MOST


class Unable(Exception):
    """The program is not one that can be evaluated on the host."""


@dataclasses.dataclass(eq=False)
class _Later:
    """An operation that is left to the compiler, and which of its results this is.

    `bind` gives all of them for arrays in place of the inputs.
    """

    bind: Callable[..., Sequence[Any]]
    inputs: Sequence[Any]
    which: int
    made: list  # the same for all results of the operation


@dataclasses.dataclass(eq=False)
class _Computed:
    """A sum, a difference or a product of floats, perhaps of another shape by now.

    A compiler may compute what follows from it otherwise: a sum with a product that was not rounded
    before, a factor of a factor as one.
    """

    value: np.ndarray
    name: str
    operands: tuple[np.ndarray, np.ndarray]
    equation: Any
    inputs: Sequence[Any]

    def matters(self, name: str) -> bool:
        """Whether the rounding may matter for what is computed from the value by this operation."""
        if name in ("add", "sub") and self.name == "mul":
            a, b = self.operands
            exact = np.asarray(a, np.float64) * np.asarray(b, np.float64)
            return not np.array_equal(exact, np.multiply(a, b))
        return _ALIKE.get(name) == _ALIKE[self.name]

    def later(self) -> _Later:
        """The value as a computation that is left to the compiler."""
        return _later(self.equation, self.inputs)[0]


_ALIKE = {"add": "sum", "sub": "sum", "mul": "product", "div": "product"}


def _outputs(program, constants, inputs, wanted):
    """The results that are wanted, each an array, `_Computed` or `_Later`; None for the others."""
    equations, _ = _needed(program, wanted)
    known = dict(zip(program.constvars, map(np.asarray, constants), strict=True))
    known |= dict(zip(program.invars, inputs, strict=True))

    def value(variable):
        if isinstance(variable, core.Literal):
            return np.asarray(variable.val)
        return known.get(variable)

    for eqn, of_it in equations:
        made = _apply(eqn, [value(variable) for variable in eqn.invars], of_it)
        known.update(zip(eqn.outvars, made, strict=True))
    return [value(v) if is_wanted else None for v, is_wanted in zip(program.outvars, wanted)]


def _needed(program, wanted):
    """The equations that the wanted results need, each with which of its own results are, and
    which inputs of the program are needed.
    """
    needed = {v for v, is_wanted in zip(program.outvars, wanted) if is_wanted and _is_variable(v)}
    equations = []
    for eqn in reversed(program.eqns):
        of_it = [v in needed for v in eqn.outvars]
        if any(of_it):
            reads = _reads(eqn, of_it)
            needed |= {v for v, is_read in zip(eqn.invars, reads) if is_read and _is_variable(v)}
            equations.append((eqn, of_it))
    return equations[::-1], [v in needed for v in program.invars]


def _reads(eqn, wanted):
    """The inputs of an equation on which the wanted ones of its results depend."""
    if (inner := _called(eqn)) is not None:
        return _needed(inner.jaxpr, wanted)[1]
    if eqn.primitive.name == "scan":
        return _of_scan(eqn, wanted)[1]
    return [True] * len(eqn.invars)


def _of_scan(eqn, wanted):
    """The results of a loop's body that are needed, and the inputs of it that they depend on."""
    params, wanted = eqn.params, list(wanted)
    consts, carries = params["num_consts"], params["num_carry"]
    while True:
        reads = _needed(params["jaxpr"].jaxpr, wanted)[1]
        more = [a or b for a, b in zip(wanted[:carries], reads[consts : consts + carries])]
        if more == wanted[:carries]:
            return wanted, reads
        wanted[:carries] = more


def _called(eqn):
    """The program that an equation calls; None for others."""
    name = _CALLS.get(eqn.primitive.name)
    called = eqn.params.get(name) if name else None
    return core.ClosedJaxpr(called, ()) if isinstance(called, core.Jaxpr) else called


def _apply(eqn, inputs, wanted):
    """The results of an equation, those that are wanted."""
    name, params = eqn.primitive.name, eqn.params
    if (inner := _called(eqn)) is not None:
        return _outputs(inner.jaxpr, inner.consts, inputs, wanted)
    if name == "scan":
        return _scan(eqn, inputs, wanted)
    if name.startswith("random_"):
        return [_random(name, eqn, [_plain(each) for each in inputs])]
    if any(isinstance(each, _Later) for each in inputs):
        return _later(eqn, inputs)
    arrays = [np.asarray(_plain(each)) for each in inputs]
    if name in _SHAPING:
        made = _SHAPING[name](*arrays, **params)
        before = inputs[0] if inputs else None
        if isinstance(before, _Computed):
            return [_Computed(made, before.name, before.operands, eqn, inputs)]
        return [made]
    whole = all(each.dtype.kind in "iub" for each in arrays)
    floats = all(each.dtype == np.float32 for each in arrays)
    if name not in (_OF_INTEGERS if whole else _OF_FLOATS if floats else ()):
        return _later(eqn, inputs)
    constant = all(map(_is_constant, arrays))
    if floats and not constant:
        for one, other in ((0, 1), (1, 0)):
            nothing = {"mul": 1, "add": 0}.get(name)
            if nothing is not None and _is_constant(arrays[one]) and np.all(arrays[one] == nothing):
                return [inputs[other]]
        computed = [each for each in inputs if isinstance(each, _Computed)]
        # what is divided by a constant is perhaps multiplied by its inverse
        if name == "div" or any(each.matters(name) for each in computed):
            return _later(eqn, inputs)
    with np.errstate(all="ignore"):
        made = np.asarray((_OF_INTEGERS if whole else _OF_FLOATS)[name](*arrays))
    if floats and not constant and name in _ALIKE:
        return [_Computed(made, name, (arrays[0], arrays[1]), eqn, inputs)]
    return [made]


def _is_constant(array):
    """Whether a value is one number, which a compiler knows."""
    return array.size == 1 or not any(array.strides)


def _scan(eqn, inputs, wanted):
    """A loop, step by step."""
    params = eqn.params
    body, length = params["jaxpr"], params["length"]
    consts, carries = params["num_consts"], params["num_carry"]
    of_body, _ = _of_scan(eqn, wanted)
    shared, carried, over = (
        inputs[:consts],
        inputs[consts : consts + carries],
        [_plain(each) for each in inputs[consts + carries :]],
    )
    if not length or any(isinstance(each, _Later) for each in over):
        raise Unable
    rows: list = [None] * length
    for step in range(length)[:: -1 if params["reverse"] else 1]:
        now = [None if each is None else each[step] for each in over]
        made = _outputs(body.jaxpr, body.consts, [*shared, *carried, *now], of_body)
        carried, rows[step] = made[:carries], [_plain(each) for each in made[carries:]]
    stacked = [
        _stacked(column) if is_wanted else None
        for column, is_wanted in zip(zip(*rows, strict=True), wanted[carries:])
    ]
    return [*carried, *stacked]


def _stacked(rows):
    """The results of a loop's steps, stacked into one array; left to the compiler where one of them
    is.
    """
    if any(isinstance(each, _Later) for each in rows):
        return _Later(lambda *arrays: [jnp.stack(arrays)], rows, 0, [])
    return np.stack(rows)


def _later(eqn, inputs):
    if any("jaxpr" in name or callable(value) for name, value in eqn.params.items()):
        raise Unable(f"{eqn.primitive.name} calls another program")
    made: list = []
    inputs = [each.later() if isinstance(each, _Computed) else each for each in inputs]

    def bind(*arrays):
        results = eqn.primitive.bind(*arrays, **eqn.params)
        return results if eqn.primitive.multiple_results else [results]

    return [_Later(bind, inputs, which, made) for which in range(len(eqn.outvars))]


def _plain(value):
    return value.value if isinstance(value, _Computed) else value


def _compiled(values):
    """The values, with what was left to the compiler compiled as one program."""
    left = [value for value in values if isinstance(value, _Later)]
    if not left:
        return values
    order: list = []  # operations, each after those that it reads
    seen, stack = set(), [(each, False) for each in left]
    while stack:
        each, ready = stack.pop()
        if ready:
            order.append(each)
        elif id(each.made) not in seen:
            seen.add(id(each.made))
            stack.append((each, True))
            stack += [(one, False) for one in each.inputs if isinstance(one, _Later)]

    read = [one for each in order for one in each.inputs]
    given = {id(one): one for one in read if not isinstance(one, _Later) and not _is_constant(one)}

    def program(given):
        results: dict = {}

        def value(one):
            if isinstance(one, _Later):
                return results[id(one.made)][one.which]
            if id(one) in given:
                return given[id(one)]
            return jnp.broadcast_to(one.reshape(-1)[0], one.shape)  # the compiler knows it

        for each in order:
            results[id(each.made)] = each.bind(*map(value, each.inputs))
        return [results[id(each.made)][each.which] for each in left]

    made = iter(jax.jit(program)(given))
    return [next(made) if isinstance(value, _Later) else value for value in values]


def _random(name, eqn, inputs):
    """An operation of the generator."""
    params, given = eqn.params, eqn.invars[0] if name != "random_wrap" else eqn.outvars[0]
    if not _is_key(given) or any(isinstance(each, _Later) for each in inputs):
        raise Unable
    if name == "random_wrap":
        return _packed(inputs[0])
    pairs = _unpacked(inputs[0])
    if name == "random_unwrap":
        return pairs
    if name == "random_clone":
        return inputs[0]
    if name == "random_fold_in":
        numbers = np.asarray(inputs[1]).astype(np.uint32)
        made = _threefry(pairs[..., 0], pairs[..., 1], np.uint32(0), numbers)
        return _packed(np.stack(made, axis=-1))
    if name not in ("random_split", "random_bits") or params.get("bit_width", 32) != 32:
        raise Unable(f"{name} {dict(params)}")
    shape = params["shape"]
    numbers = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    halves = (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)
    over = tuple(range(pairs.ndim - 1, pairs.ndim - 1 + len(shape)))
    high, low = _threefry(*(np.expand_dims(pairs[..., i], over) for i in (0, 1)), *halves)
    return _packed(np.stack([high, low], axis=-1)) if name == "random_split" else high ^ low


def _is_variable(value):
    return not isinstance(value, core.Literal)


def _is_key(variable):
    return str(variable.aval.dtype) == _KEY


def _packed(pairs):
    """The keys as one number each, so that they have the shape that the program gives them."""
    return np.asarray(np.asarray(pairs, np.uint32, order="C").view(np.uint64)[..., 0])


def _unpacked(keys):
    return np.asarray(keys[..., None], order="C").view(np.uint32)


def _as_key(value):
    if isinstance(value, jax.Array):
        return value
    return jax.random.wrap_key_data(_unpacked(value))


def _threefry(key0, key1, x0, x1):
    """The random bits of Threefry-2x32 with 20 rounds (Salmon et al. 2011)."""
    with np.errstate(over="ignore"):
        keys = [key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA)]
        shape = np.broadcast_shapes(*map(np.shape, (key0, key1, x0, x1)))
        x0, x1 = np.broadcast_to(x0 + key0, shape).copy(), np.broadcast_to(x1 + key1, shape).copy()
        for group in range(5):
            for rotation in _ROTATIONS[group % 2]:
                x0 += x1
                x1[...] = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
                x1 ^= x0
            x0 += keys[(group + 1) % 3]
            x1 += keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def _broadcast_in_dim(x, *, shape, broadcast_dimensions, **_):
    of = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        of[place] = x.shape[axis]
    return np.broadcast_to(x.reshape(of), shape)


def _iota(*, dtype, shape, dimension, **_):
    of = [1] * len(shape)
    of[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension]).astype(dtype).reshape(of), shape)


def _slice(x, *, start_indices, limit_indices, strides, **_):
    steps = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _same_width(x, *, new_dtype, **_):
    if x.dtype.itemsize != np.dtype(new_dtype).itemsize:
        raise Unable
    return np.asarray(x, order="C").view(new_dtype)


# Operations that only call a program, and their parameter that holds it.
_CALLS = dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2"), "jaxpr")
_CALLS |= dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
# Operations that only move or rename values: exact for all types.
_SHAPING: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "iota": _iota,
    "slice": _slice,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "bitcast_convert_type": _same_width,
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "copy": lambda x, **_: x,
    "copy_p": lambda x, **_: x,
}
_OF_ALL = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum}
_OF_ALL |= {"min": np.minimum}
_OF_INTEGERS: dict[str, Callable[..., np.ndarray]] = {
    **_OF_ALL,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
# Rounded as IEEE 754 demands.
_OF_FLOATS: dict[str, Callable[..., np.ndarray]] = {
    **_OF_ALL,
    "div": np.divide,
    "sqrt": np.sqrt,
    "neg": np.negative,
}
_OF_INTEGERS["shift_right_logical"] = lambda x, by: _unsigned(x) >> by
_OF_INTEGERS["shift_left"] = lambda x, by: _unsigned(x) << by


def _unsigned(x):
    if x.dtype.kind != "u":
        raise Unable
    return x
