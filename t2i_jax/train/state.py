"""The state of a run before its first step, and where each of its arrays lies."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from t2i_jax import on_host, sharding
from t2i_jax.errors import UserError
from t2i_jax.seeds import key_of
from t2i_jax.train import optim
from t2i_jax.train.background import compile_in_background
from t2i_jax.train.config import TrainConfig
from t2i_jax.types import Key, Task, TrainState

_BY_GROUP = ("params", "opt_state", "ema")  # of a state, what there is for each group


def init_state(
    key: Key,
    *,
    task: Task,
    optimisers: Mapping[str, optax.GradientTransformation],
    ema_decay: float,
) -> TrainState:
    """The state before the first step; pure, so that it can be traced."""
    for_params, for_run = jax.random.split(key)
    averaged = task.ema_groups if ema_decay else ()
    params, stats = sharding.unbox(sharding.init_of(task)(for_params))
    return _before(params, stats, for_run, optimisers, averaged)


def _before(params, stats, key, optimisers, averaged):
    return TrainState(
        step=jnp.int32(0),
        params=dict(params),
        opt_state={group: optimisers[group].init(params[group]) for group in params},
        ema={group: jax.tree.map(jnp.copy, params[group]) for group in averaged},
        stats=stats,
        skipped=jnp.zeros((2,), jnp.int32),
        key=key,
    )


def start_of(
    task: Task, optimisers: Mapping[str, optax.GradientTransformation], ema_decay: float
) -> Callable[[Key], TrainState]:
    """The function that computes `init_state` from a key alone."""
    return functools.partial(init_state, task=task, optimisers=optimisers, ema_decay=ema_decay)


def first(start: Callable[[Key], TrainState], abstract: TrainState, seed: int) -> TrainState:
    """The state before the first step as arrays, the same bits on all ways.

    Args:
      abstract: its shapes, with the shardings of its arrays.
    """
    key = key_of("train.seed", seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if on_host.is_quicker(abstract):
        with contextlib.suppress(on_host.Unable):
            # memory of their own: the step gives it away
            return jax.device_put(on_host.evaluate(start, key), shardings, may_alias=False)
    program = compile_in_background(jax.jit(start, out_shardings=shardings).lower(key))
    assert program is not None  # nobody gave it up
    return program(key)


def optimisers_of(task: Task, config: TrainConfig) -> Mapping[str, optax.GradientTransformation]:
    """An optimiser per group; weight decay leaves biases and gains alone, Muon all but matrices
    between two widths.

    A stack of layers is one array per kind of parameter: its axis "layers" does not make a bias a
    matrix.
    """
    params = sharding.parameters_of(task)

    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    def axes(leaf):
        return (
            [name for name in leaf.names if name != "layers"]
            if is_box(leaf)
            else [None] * leaf.ndim
        )

    def of_all(what):
        return jax.tree.map(lambda leaf: what(axes(leaf)), params, is_leaf=is_box)

    decayed = of_all(lambda names: len(names) > 1)
    matrices = of_all(_matrix)
    settings = config.optim_of(params)
    made = {g: optim.make(settings[g], config.steps, decayed[g], matrices[g]) for g in params}
    for group, names in task.held.items():
        made[group] = optim.holding(made[group], params[group], names)
    return made


def laid(
    task: Task, config: TrainConfig, mesh: Mesh
) -> tuple[Mapping[str, optax.GradientTransformation], TrainState]:
    """The optimisers of a training, and the shapes of its state as they lie on a mesh.

    Raises:
      UserError: as of `check_mesh`.
    """
    optimisers = optimisers_of(task, config)
    state = abstract(task, optimisers, config.ema_decay, mesh, config.preset)
    check_mesh(state, task, mesh, config.preset)
    return optimisers, state


def abstract(
    task: Task,
    optimisers: Mapping[str, optax.GradientTransformation],
    ema_decay: float,
    mesh: Mesh,
    rules: str,
) -> TrainState:
    """The shapes of what `init_state` makes, each with its sharding (`on_mesh`); nothing is
    computed.
    """
    # of the parameters' shapes, which are known: tracing their initialisation takes longest
    averaged = task.ema_groups if ema_decay else ()
    before = functools.partial(_before, optimisers=optimisers, averaged=averaged)
    shapes = jax.eval_shape(before, *sharding.unbox(sharding.initial(task)), jax.random.key(0))
    return on_mesh(shapes, task, mesh, rules)


def on_mesh(shapes: TrainState, task: Task, mesh: Mesh, rules: str) -> TrainState:
    """The shapes of a state, laid on this mesh.

    Parameters lie as their logical axes say, and what mirrors a parameter (moments, EMA: same path
    below the group, same shape) lies like it. Everything else is on every device. The arrays of the
    task's idle groups lie in the host's memory.
    """
    boxed = sharding.parameters_of(task)
    places = jax.tree_util.tree_leaves_with_path(sharding.shardings(boxed, mesh, rules))
    leaves = jax.tree.leaves(sharding.unbox(boxed))
    by_path = {
        (_keys(path), leaf.shape): place for (path, place), leaf in zip(places, leaves, strict=True)
    }
    whole = sharding.replicated(mesh)

    def of(path, leaf):
        mirrors = path[0].name in _BY_GROUP
        place = by_path.get((_keys(path), leaf.shape), whole) if mirrors else whole
        if mirrors and path[1].key in task.idle_groups:
            place = sharding.on_host(place)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree_util.tree_map_with_path(of, shapes)


def apart(state: TrainState, groups: Sequence[str]) -> tuple[TrainState, TrainState]:
    """The state without the arrays of these groups, and a state with those alone; works on any
    leaves.
    """
    return _of(state, lambda group: group not in groups), _of(state, lambda group: group in groups)


def together(state: TrainState, others: TrainState) -> TrainState:
    """The state with what belongs to the groups of another one."""
    both = {name: {**getattr(state, name), **getattr(others, name)} for name in _BY_GROUP}
    return dataclasses.replace(state, **both)


def _of(state, wanted):
    parts = {
        name: {group: tree for group, tree in getattr(state, name).items() if wanted(group)}
        for name in _BY_GROUP
    }
    return dataclasses.replace(state, **parts)


def check_mesh(state: TrainState, task: Task, mesh: Mesh, rules: str) -> None:
    """Refuses a mesh with devices that would all do the same.

    Args:
      state: of `abstract`.

    Raises:
      UserError: the axis "tensor" splits no parameter, or "sequence" no sequence of tokens.
    """
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.params)]
    ways = mesh.shape["tensor"]
    if ways > 1 and not any("tensor" in spec for spec in specs):
        remedy = (
            "set train.rules=fsdp_tp"
            if rules != "fsdp_tp"
            else "give one that divides heads and widths, or 1"
        )
        raise UserError(
            f"mesh tensor={ways} splits no parameter of {type(task).__name__} (rules {rules}); "
            f"{remedy}."
        )
    length, ways = task.sequence_length, mesh.shape["sequence"]
    if ways > 1 and (length is None or length % ways):
        has = (
            "no sequence that can be split" if length is None else f"a sequence of {length} tokens"
        )
        raise UserError(
            f"mesh sequence={ways} does not fit {type(task).__name__}, which has {has}; leave it "
            "at 1."
        )


def _matrix(names):
    """The form in which Muon sees a parameter with these axes: a matrix, the kernel of a
    convolution, or None.
    """
    if names[-2:] == ["conv_in", "conv_out"] and len(names) == 4:
        return optim.KERNEL
    return optim.MATRIX if len(names) == 2 and not {None, "vocab", "code"} & set(names) else None


def _keys(path):
    """A leaf's place among dicts: group and names, without what an optimiser wraps around them."""
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
