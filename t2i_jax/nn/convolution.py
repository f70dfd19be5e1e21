"""A convolution whose gradients of any order are fast on every backend."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.nn import cpu_convolution
from t2i_jax.nn.cpu_convolution import are_few, enlarge_by_taps, strided, whole
from t2i_jax.nn.tiles import as_pixels, padded
from t2i_jax.types import Array


def convolve(x_BHWC: Array, kernel_KKIO: Array, stride: int, padding: int) -> Array:
    """A convolution without a bias, `padding` zeros on each side.

    XLA's own gradients of gradients take up to two hundred times as long on a CPU. Convolution,
    gradient of the input and gradient of the kernel are each linear in two arrays, and the
    derivatives of each are the other two: so gradients of any order are made of these three, and
    none keeps shifted copies of x. On a CPU a stride becomes channels first; the gradient of the
    input then is a convolution with the kernel turned around, or one product, and that of the
    kernel is a convolution over an image with its zeros; all three are made by fewer products where
    that is faster (`winograd`). The compiler for TPUs takes a minute for a wide window over few
    channels, a second where its columns are channels.

    The zeros belong to the convolution itself: XLA on a CPU gives one without any to a library that
    takes up to four times as long.
    """
    return _convolution(stride, padding, x_BHWC, kernel_KKIO)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(stride, padding, x, kernel):

    def of(form):
        return lambda x, kernel: form(x, kernel, stride, padding)

    on_cpu = of(cpu_convolution.convolve)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _to_input(stride, padding, shape, y, kernel):
    """The gradient of the input, of this shape, from that of the result."""
    like = jax.ShapeDtypeStruct(shape, y.dtype)

    def of(form):
        return lambda y, kernel: jax.linear_transpose(
            lambda x: form(x, kernel, stride, padding), like
        )(y)[0]

    on_cpu = functools.partial(cpu_convolution.to_input, like, stride, padding)
    return jax.lax.platform_dependent(y, kernel, cpu=on_cpu, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _to_kernel(stride, padding, shape, swapped, x, y):
    """The gradient of the kernel, of this shape, from that of the result; swapped: (K, K, O, I)."""
    like = jax.ShapeDtypeStruct(shape, x.dtype)

    def ordered(kernel_KKIO):
        return kernel_KKIO.swapaxes(2, 3) if swapped else kernel_KKIO

    def of(form):
        return lambda x, y: ordered(
            jax.linear_transpose(lambda kernel: form(x, kernel, stride, padding), like)(y)[0]
        )

    def on_cpu(x, y):
        return ordered(cpu_convolution.to_kernel(like, stride, padding, swapped, x, y))

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, **_elsewhere(of, shape))


@jax.custom_vjp
def enlarge(x_BHWC: Array, kernel_44CO: Array) -> Array:
    """A transposed convolution with a 4x4 window, stride 2 and padding 1, without a bias: the
    gradient of the input of such a convolution, (B, 2H, 2W, O).

    Each of the four kinds of pixels of the result sees 2x2 pixels of x, so all four are one 2x2
    convolution with four times the channels; nothing is multiplied with the zeros that a dilated
    image has. With few pixels on a CPU, making its kernel takes longer than a product for each tap.
    """
    on_cpu = enlarge_by_taps if are_few(x_BHWC, kernel_44CO.shape[3]) else _by_kinds
    return jax.lax.platform_dependent(x_BHWC, kernel_44CO, cpu=on_cpu, default=_by_kinds)


# The barriers keep XLA from finding the shifted copies of several passes to be the same, and
# keeping them.
def _convolution_back(stride, padding, kept, y):
    x, kernel, y = jax.lax.optimization_barrier((*kept, y))
    return (
        _to_input(stride, padding, x.shape, y, kernel),
        _in_order(_to_kernel(stride, padding, kernel.shape, False, x, y)),
    )


def _to_input_back(stride, padding, shape, kept, x):
    y, kernel, x = jax.lax.optimization_barrier((*kept, x))
    return (
        _convolution(stride, padding, x, kernel),
        _in_order(_to_kernel(stride, padding, kernel.shape, False, x, y)),
    )


def _enlarge_back(kept, y):
    x, kernel, y = jax.lax.optimization_barrier((*kept, y))
    of_strided = kernel.swapaxes(2, 3)
    back = jax.linear_transpose(lambda x: enlarge_by_taps(x, kernel), x)
    on_cpu = {"cpu": lambda y, _: back(y)[0]} if are_few(x, kernel.shape[3]) else {}
    of_input = functools.partial(_convolution, 2, 1)
    return (
        jax.lax.platform_dependent(y, of_strided, default=of_input, **on_cpu),
        _in_order(_to_kernel(2, 1, of_strided.shape, True, y, x)),
    )


def _to_kernel_back(stride, padding, shape, swapped, kept, kernel):
    x, y, kernel = jax.lax.optimization_barrier((*kept, kernel))
    kernel = kernel.swapaxes(2, 3) if swapped else kernel
    return _to_input(stride, padding, x.shape, y, kernel), _convolution(stride, padding, x, kernel)


for _function, _back in (
    (_convolution, _convolution_back),
    (_to_input, _to_input_back),
    (_to_kernel, _to_kernel_back),
    (enlarge, _enlarge_back),
):
    _function.defvjp(
        lambda *arguments, function=_function: (function(*arguments), arguments[-2:]), _back
    )


def _elsewhere(of, shape):
    """The forms for platforms other than the CPU, each wrapped by `of`, as `platform_dependent`
    takes them.
    """
    wide_over_few = shape[0] >= 7 and shape[0] * shape[2] <= 512
    return {"default": of(whole)} | ({"tpu": of(_columns_first)} if wide_over_few else {})


def _columns_first(x_BHWC, kernel_KKIO, stride, padding):
    side, channels, features = kernel_KKIO.shape[1:]
    x_BHWC = padded(x_BHWC, 0, padding)
    last = x_BHWC.shape[2] - side + 1
    columns = jnp.concatenate([x_BHWC[:, :, j : j + last : stride] for j in range(side)], axis=-1)
    kernel = kernel_KKIO.reshape(side, 1, side * channels, features)
    return strided(columns, kernel, (stride, 1), (padding, 0))


def _by_kinds(x_BHWC, kernel_44CO):
    rows, columns, channels = x_BHWC.shape[1:]
    # [tap, parity of the output row, tap, parity of its column, in, out]
    parts = kernel_44CO[::-1, ::-1].reshape(2, 2, 2, 2, channels, -1)
    one = rearrange(parts, "t a u b i o -> t u i (a b o)")
    y = rearrange(whole(x_BHWC, one, 1, 1), "n h w (a b o) -> n h w a b o", a=2, b=2)
    return as_pixels(y[:, a : a + rows, b : b + columns, a, b] for a in range(2) for b in range(2))


def _in_order(gradient):
    """The gradient of a kernel, on a CPU with its last axis innermost, which XLA would make of it
    anew for each use.
    """

    def on_cpu(t):
        return jax.lax.optimization_barrier(t.ravel()).reshape(t.shape)

    return jax.lax.platform_dependent(gradient, cpu=on_cpu, default=lambda t: t)
