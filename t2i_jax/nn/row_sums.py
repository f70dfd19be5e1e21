"""Sums over the rows of a batch, which XLA on a CPU is slow at."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t2i_jax.types import Array


@jax.custom_vjp
def add_to_all(x, bias):
    """x + bias, where bias has all axes of x but the first (the batch), whose rows it is added to;
    its gradient goes by `sum_of_rows`.
    """
    return x + bias


def _add_forward(x, bias):
    return x + bias, None


def _add_backward(_, gradient):
    return gradient, sum_of_rows(gradient)


add_to_all.defvjp(_add_forward, _add_backward)


def sum_of_rows(x: Array) -> Array:
    """The sum over the first axis, as a product, for which XLA on a CPU takes a twentieth of the
    time of the sum.
    """
    ones_1B = jnp.ones((1, x.shape[0]), x.dtype)
    total = jnp.matmul(ones_1B, x.reshape(x.shape[0], -1), precision="highest")
    return total.reshape(x.shape[1:])
