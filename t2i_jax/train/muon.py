"""Muon (Jordan 2024) as in optax, with its state and its numbers.

On a single CPU the program of a step has Muon's iteration once per shape of a matrix. Optax writes
it out five times for every matrix, which is most of what a CPU's compiler has to do for a small
network. Where devices split the matrices, or are fast enough to mind a loop, it stays so.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from t2i_jax import sharding
from t2i_jax.types import Array

_BETA, _EPS, _ITERATIONS = 0.95, 1e-8, 5


def muon(
    matrix_rate: optax.Schedule,
    rate: optax.Schedule,
    *,
    b1: float,
    b2: float,
    weight_decay: float,
    matrices: Any,
) -> optax.GradientTransformation:
    """Moves matrices by their orthogonalised momentum, and the rest by Adam with Nesterov's.

    Args:
      matrix_rate, rate: learning rates of the two. b1, b2: of Adam. weight_decay: of the matrices.
      matrices: per parameter the axes of its matrix or None; or a function of the parameters that
        says so.
    """
    of_optax = contrib.muon(
        matrix_rate,
        beta=_BETA,
        eps=_EPS,
        ns_steps=_ITERATIONS,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=matrices,
    )
    by_shape = optax.partition(
        {
            "muon": optax.chain(
                _scale_by_muon(matrices),
                _scale_by_shape(matrices),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(matrix_rate),
            ),
            "adam": optax.adamw(rate, b1=b1, b2=b2, eps=_EPS, weight_decay=0.0, nesterov=True),
        },
        lambda params: _of_each(
            matrices, params, lambda axes, leaf: "adam" if axes is None else "muon"
        ),
    )

    def update(updates, state, params=None, **extra):
        rule = by_shape if sharding.on_one_cpu() else of_optax
        return rule.update(updates, state, params, **extra)

    return optax.GradientTransformation(of_optax.init, update)


def _scale_by_muon(matrices):
    """The orthogonalised momentum of every matrix."""

    def update(grads, state, params=None):
        mu = optax.tree.update_moment(grads, state.mu, _BETA, 1)
        count = optax.safe_increment(state.count)
        ahead = jax.tree.map(
            lambda m, g: _BETA * m + (1 - _BETA) * g,
            optax.tree.bias_correction(mu, _BETA, optax.safe_increment(count)),
            optax.tree.bias_correction(grads, _BETA, count),
        )
        pairs = jax.tree.leaves(
            _of_each(matrices, ahead, lambda axes, leaf: _Pair(axes, leaf)),
            is_leaf=lambda node: isinstance(node, _Pair),
        )
        moved = jax.tree.unflatten(jax.tree.structure(ahead), _orthogonal(pairs, state.ns_coeffs))
        return moved, contrib.MuonState(count, mu, state.ns_coeffs)

    return optax.GradientTransformation(_none, update)


class _Pair:
    """An array and the axes of its matrix, as a leaf of a tree."""

    def __init__(self, axes, array):
        def of(places):
            places = places if isinstance(places, tuple) else (places,)
            return tuple(place % array.ndim for place in places)

        def size(places):
            return math.prod(array.shape[place] for place in places)

        rows, columns = of(axes.reduction_axis), of(axes.output_axis)
        rest = tuple(place for place in range(array.ndim) if place not in rows + columns)
        self.array, self.order = array, rest + rows + columns
        self.rows, self.columns = size(rows), size(columns)

    def matrices(self) -> Array:
        """The matrices of a pair, (matrices, rows, columns), no more rows than columns."""
        made = self.array.transpose(self.order).reshape(-1, self.rows, self.columns)
        return made.swapaxes(1, 2) if self.rows > self.columns else made

    def back(self, made: Array) -> Array:
        """The array of these matrices."""
        made = made.swapaxes(1, 2) if self.rows > self.columns else made
        made = made.reshape([self.array.shape[axis] for axis in self.order])
        return made.transpose(sorted(range(made.ndim), key=lambda axis: self.order[axis]))


def _orthogonal(pairs: Sequence[_Pair], coefficients: Array) -> list[Array]:
    """The arrays with their matrices orthogonalised, those of one shape in one loop."""

    def iterate(x):
        x /= jnp.linalg.norm(x, ord="fro") + _EPS

        def once(_, x):
            a = x @ x.T
            b = coefficients[1] * a + coefficients[2] * a @ a
            return coefficients[0] * x + b @ x

        return jax.lax.fori_loop(0, _ITERATIONS, once, x)

    groups: dict[Any, list[int]] = collections.defaultdict(list)
    made = [pair.matrices() for pair in pairs]
    for number, matrices in enumerate(made):
        groups[matrices.shape[1:]].append(number)
    for numbers in groups.values():
        together = jnp.concatenate([made[number] for number in numbers])
        done = iterate(together[0])[None] if len(together) == 1 else jax.lax.map(iterate, together)
        begin = 0
        for number in numbers:
            end = begin + len(made[number])
            made[number], begin = done[begin:end], end
    return [pair.back(matrices) for pair, matrices in zip(pairs, made, strict=True)]


def _scale_by_shape(matrices):
    """A wider output moves further: times the root of its width over that of the input."""

    def scale(axes, leaf):
        pair = _Pair(axes, leaf)
        return jnp.sqrt(jnp.maximum(1, pair.columns / pair.rows)) * leaf

    def update(updates, state, params=None):
        return _of_each(matrices, updates, scale), state

    return optax.GradientTransformation(_none, update)


def _of_each(matrices, params, what):
    """The results of `what(axes, leaf)` for each parameter; masked leaves stay as they are."""
    axes = matrices(params) if callable(matrices) else matrices

    def is_leaf(node):
        return node is None or isinstance(node, contrib.MuonDimensionNumbers)

    return jax.tree.map(
        lambda axes, part: jax.tree.map(lambda leaf: what(axes, leaf), part),
        axes,
        params,
        is_leaf=is_leaf,
    )


def _none(params):
    raise AssertionError("the state is made by optax's own")
