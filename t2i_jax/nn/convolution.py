"""A convolution whose gradients of any order are fast on every backend."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.types import Array


def convolve(x_BHWC: Array, kernel_KKIO: Array, stride: int, padding: int) -> Array:
    """A convolution without a bias, `padding` zeros on each side.

    XLA's own gradients take up to five times as long on a CPU, and gradients of gradients up to two
    hundred times. Convolution, gradient of the input and gradient of the kernel are each linear in
    two arrays, and the derivatives of each are the other two: so gradients of any order are made of
    these three, and none keeps shifted copies of x. On a CPU the gradient of the input is a
    convolution with the kernel turned around, or with a stride a sum of matrix products, and that
    of the kernel is made of matrix products. The compiler for TPUs takes a minute for a wide window
    over few channels, a second where its columns are channels.
    """
    return _convolution(
        stride,
        jnp.pad(x_BHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0))),
        kernel_KKIO,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(stride, x, kernel):

    def of(form):
        return lambda x, kernel: form(x, kernel, stride)

    return jax.lax.platform_dependent(x, kernel, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _to_input(stride, shape, y, kernel):
    """The gradient of the input, of this shape, from that of the result."""
    like = jax.ShapeDtypeStruct(shape, y.dtype)

    def of(form):
        return lambda y, kernel: jax.linear_transpose(lambda x: form(x, kernel, stride), like)(y)[0]

    on_cpu = _turned_around if stride == 1 else of(_as_products)
    return jax.lax.platform_dependent(y, kernel, cpu=on_cpu, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _to_kernel(stride, shape, x, y):
    """The gradient of the kernel, of this shape, from that of the result."""
    like = jax.ShapeDtypeStruct(shape, x.dtype)

    def of(form):
        return lambda x, y: jax.linear_transpose(lambda kernel: form(x, kernel, stride), like)(y)[0]

    return jax.lax.platform_dependent(x, y, cpu=of(_as_products), **_elsewhere(of, shape))


# The barriers keep XLA from finding the shifted copies of several passes to be the same, and
# keeping them.
def _convolution_back(stride, kept, y):
    x, kernel, y = jax.lax.optimization_barrier((*kept, y))
    return _to_input(stride, x.shape, y, kernel), _to_kernel(stride, kernel.shape, x, y)


def _to_input_back(stride, shape, kept, x):
    y, kernel, x = jax.lax.optimization_barrier((*kept, x))
    return _convolution(stride, x, kernel), _to_kernel(stride, kernel.shape, x, y)


def _to_kernel_back(stride, shape, kept, kernel):
    x, y, kernel = jax.lax.optimization_barrier((*kept, kernel))
    return _to_input(stride, x.shape, y, kernel), _convolution(stride, x, kernel)


for _function, _back in (
    (_convolution, _convolution_back),
    (_to_input, _to_input_back),
    (_to_kernel, _to_kernel_back),
):
    _function.defvjp(
        lambda *arguments, function=_function: (function(*arguments), arguments[-2:]), _back
    )


def _elsewhere(of, shape):
    """The forms for platforms other than the CPU, each wrapped by `of`, as `platform_dependent`
    takes them.
    """
    wide_over_few = shape[0] >= 7 and shape[0] * shape[2] <= 512
    return {"default": of(_whole)} | ({"tpu": of(_columns_first)} if wide_over_few else {})


def _whole(x_BHWC, kernel_KKIO, stride):
    return _strided(x_BHWC, kernel_KKIO, (stride, stride))


def _columns_first(x_BHWC, kernel_KKIO, stride):
    side, channels, features = kernel_KKIO.shape[1:]
    last = x_BHWC.shape[2] - side + 1
    columns = jnp.concatenate([x_BHWC[:, :, j : j + last : stride] for j in range(side)], axis=-1)
    return _strided(columns, kernel_KKIO.reshape(side, 1, side * channels, features), (stride, 1))


def _strided(x_BHWC, kernel_KKIO, strides):
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel_KKIO, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _turned_around(y_BHWC, kernel_KKIO):
    edge = kernel_KKIO.shape[0] - 1
    padded = jnp.pad(y_BHWC, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return _whole(padded, kernel_KKIO[::-1, ::-1].swapaxes(2, 3), 1)


def _as_products(x_BHWC, kernel_KKIO, stride):
    if stride > 1:
        x_BHWC, kernel_KKIO = _blocks(x_BHWC, kernel_KKIO, stride)
    side, channels, features = kernel_KKIO.shape[1:]
    rows, columns = (extent - side + 1 for extent in x_BHWC.shape[1:3])
    # Thin products of few channels become one for all columns.
    together = side if side * channels <= 512 else 1
    if together > 1:
        x_BHWC = jnp.concatenate([x_BHWC[:, :, j : j + columns] for j in range(side)], axis=-1)
    taps = [(i, j) for i in range(side) for j in range(0, side, together)]
    kernels = jnp.split(kernel_KKIO.reshape(-1, features), len(taps))
    inputs = [
        x_BHWC[:, i : i + rows, j : j + columns].reshape(-1, together * channels) for i, j in taps
    ]
    y = sum(x_NI @ kernel_IO for x_NI, kernel_IO in zip(inputs, kernels, strict=True))
    return y.reshape(-1, rows, columns, features)


def _blocks(x_BHWC, kernel_KKIO, stride):
    """Image and kernel with their stride x stride blocks as channels: the convolution then has a
    stride of 1.
    """

    def fill(t, axes):
        return jnp.pad(t, [(0, -t.shape[a] % stride if a in axes else 0) for a in range(t.ndim)])

    def used(extent):  # pixels that the windows reach
        return extent - (extent - kernel_KKIO.shape[0]) % stride

    x = fill(x_BHWC[:, : used(x_BHWC.shape[1]), : used(x_BHWC.shape[2])], (1, 2))
    kernel = fill(kernel_KKIO, (0, 1))
    blocks = rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=stride, j=stride)
    return blocks, rearrange(kernel, "(h i) (w j) c o -> h w (i j c) o", i=stride, j=stride)
