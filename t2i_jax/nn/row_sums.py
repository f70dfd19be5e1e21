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


FEW = 4  # columns for which a sum for each is faster than a product over rows


@jax.custom_vjp
def to_few(x_NI, kernel_IO):
    """x kernel; the gradient of the kernel goes by `product_of_rows`."""
    return x_NI @ kernel_IO


def _to_few_backward(kept, y_NO):
    x_NI, kernel_IO = kept
    return y_NO @ kernel_IO.T, product_of_rows(x_NI, y_NO)


to_few.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _to_few_backward)


def product_of_rows(x_NI: Array, y_NO: Array) -> Array:
    """The sum of x_n y_n over the rows n, (I, O): x transposed times y.

    For up to four columns of y XLA on a CPU takes three times as long for the product as for a sum
    for each of them.
    """

    def sums(x, y):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        columns = [jnp.sum(x * y[:, o, None], axis=0) for o in range(y.shape[1])]
        return jnp.stack(columns, axis=1).astype(y_NO.dtype)

    few = y_NO.shape[1] <= FEW
    on_cpu = {"cpu": sums} if few else {}
    return jax.lax.platform_dependent(x_NI, y_NO, default=lambda x, y: x.T @ y, **on_cpu)
