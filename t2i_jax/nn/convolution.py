"""A convolution whose gradients of any order are fast on every backend."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.types import Array


def convolve(x_BHWC: Array, kernel_KKIO: Array, stride: int, padding: int) -> Array:
    """A convolution without a bias, `padding` zeros on each side.

    XLA's own gradients of gradients take up to two hundred times as long on a CPU. Convolution,
    gradient of the input and gradient of the kernel are each linear in two arrays, and the
    derivatives of each are the other two: so gradients of any order are made of these three, and
    none keeps shifted copies of x. On a CPU a stride becomes channels first; the gradient of the
    input then is a convolution with the kernel turned around, or one product, and that of the
    kernel is a convolution over an image with its zeros. The compiler for TPUs takes a minute for a
    wide window over few channels, a second where its columns are channels.

    The zeros belong to the convolution itself: XLA on a CPU gives one without any to a library that
    takes up to four times as long.
    """
    return _convolution(stride, padding, x_BHWC, kernel_KKIO)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(stride, padding, x, kernel):

    def of(form):
        return lambda x, kernel: form(x, kernel, stride, padding)

    return jax.lax.platform_dependent(x, kernel, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _to_input(stride, padding, shape, y, kernel):
    """The gradient of the input, of this shape, from that of the result."""
    like = jax.ShapeDtypeStruct(shape, y.dtype)

    def of(form):
        return lambda y, kernel: jax.linear_transpose(
            lambda x: form(x, kernel, stride, padding), like
        )(y)[0]

    def on_cpu(y, kernel):
        if stride == 1:
            return _input_in_turn(y, kernel, padding)
        x = _input_in_turn(y, _kernel_blocks(kernel, stride), 0)
        side = kernel.shape[0]
        return jax.linear_transpose(
            lambda x: _image_blocks(_padded(x, padding, padding), side, stride), like
        )(x)[0]

    return jax.lax.platform_dependent(y, kernel, cpu=on_cpu, **_elsewhere(of, kernel.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _to_kernel(stride, padding, shape, x, y):
    """The gradient of the kernel, of this shape, from that of the result."""
    like = jax.ShapeDtypeStruct(shape, x.dtype)

    def of(form):
        return lambda x, y: jax.linear_transpose(
            lambda kernel: form(x, kernel, stride, padding), like
        )(y)[0]

    def on_cpu(x, y):
        x = _padded(x, padding, padding)
        if stride == 1:
            return _kernel_in_turn(x, y)
        blocks = _kernel_in_turn(_image_blocks(x, shape[0], stride), y)
        return jax.linear_transpose(lambda kernel: _kernel_blocks(kernel, stride), like)(blocks)[0]

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, **_elsewhere(of, shape))


# The barriers keep XLA from finding the shifted copies of several passes to be the same, and
# keeping them.
def _convolution_back(stride, padding, kept, y):
    x, kernel, y = jax.lax.optimization_barrier((*kept, y))
    return (
        _to_input(stride, padding, x.shape, y, kernel),
        _to_kernel(stride, padding, kernel.shape, x, y),
    )


def _to_input_back(stride, padding, shape, kept, x):
    y, kernel, x = jax.lax.optimization_barrier((*kept, x))
    return (
        _convolution(stride, padding, x, kernel),
        _to_kernel(stride, padding, kernel.shape, x, y),
    )


def _to_kernel_back(stride, padding, shape, kept, kernel):
    x, y, kernel = jax.lax.optimization_barrier((*kept, kernel))
    return _to_input(stride, padding, x.shape, y, kernel), _convolution(stride, padding, x, kernel)


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


def _whole(x_BHWC, kernel_KKIO, stride, padding):
    return _strided(x_BHWC, kernel_KKIO, (stride, stride), (padding, padding))


def _columns_first(x_BHWC, kernel_KKIO, stride, padding):
    side, channels, features = kernel_KKIO.shape[1:]
    x_BHWC = _padded(x_BHWC, 0, padding)
    last = x_BHWC.shape[2] - side + 1
    columns = jnp.concatenate([x_BHWC[:, :, j : j + last : stride] for j in range(side)], axis=-1)
    kernel = kernel_KKIO.reshape(side, 1, side * channels, features)
    return _strided(columns, kernel, (stride, 1), (padding, 0))


def _strided(x_BHWC, kernel_KKIO, strides, padding):
    around = [(each, each) for each in padding]
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel_KKIO, strides, around, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _padded(x_BHWC, rows, columns):
    """With zeros around; without the outermost rows and columns where a number is negative."""
    around = [(0, 0, 0), (rows, rows, 0), (columns, columns, 0), (0, 0, 0)]
    return jax.lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), around)


def _input_in_turn(y_BHWC, kernel_KKIO, padding):
    """The gradient of the input without a stride, on a CPU: one product where turning the kernel
    around takes longer than the convolution with it, since there are few positions for its
    features, and where the channels do not fill a vector.
    """
    features = y_BHWC.shape[3]
    few = math.prod(y_BHWC.shape[:3]) <= 8 * features or kernel_KKIO.shape[2] < 16
    return (_all_taps if few else _turned_around)(y_BHWC, kernel_KKIO, padding)


def _turned_around(y_BHWC, kernel_KKIO, padding):
    kernel = kernel_KKIO[::-1, ::-1].swapaxes(2, 3)
    return _whole(y_BHWC, kernel, 1, kernel.shape[0] - 1 - padding)


def _all_taps(y_BHWC, kernel_KKIO, padding):
    """One product for all places of the window, which are added where they belong."""
    side, _, channels, features = kernel_KKIO.shape
    taps = y_BHWC.reshape(-1, features) @ kernel_KKIO.reshape(-1, features).T
    taps = taps.reshape(*y_BHWC.shape[:3], side, side, channels)
    x = sum(
        jnp.pad(taps[:, :, :, i, j], ((0, 0), (i, side - 1 - i), (j, side - 1 - j), (0, 0)))
        for i in range(side)
        for j in range(side)
    )
    return _padded(x, -padding, -padding)


def _kernel_in_turn(x_BHWC, y_BHWC):
    """The gradient of the kernel without a stride and zeros, on a CPU."""
    if x_BHWC.shape[:3] == y_BHWC.shape[:3]:  # a window of one pixel
        return jnp.einsum("bhwi,bhwo->io", x_BHWC, y_BHWC)[None, None]
    # A convolution over the channels with the images as features: its window, which is y, would be
    # larger than the image if the zeros were the convolution's, and without the barrier XLA makes
    # them so, or takes the axes in another order; both cost up to two hundred times as much.
    x_CHWB, y_HWBO = jax.lax.optimization_barrier(
        (x_BHWC.transpose(3, 1, 2, 0), y_BHWC.transpose(1, 2, 0, 3))
    )
    return _whole(x_CHWB, y_HWBO, 1, 0).transpose(1, 2, 0, 3)


# With the stride x stride blocks of image and kernel as channels a convolution has a stride of 1.
def _image_blocks(x_BHWC, side, stride):
    def used(extent):  # pixels that the windows reach
        return extent - (extent - side) % stride

    x_BHWC = _filled(x_BHWC[:, : used(x_BHWC.shape[1]), : used(x_BHWC.shape[2])], (1, 2), stride)
    return rearrange(x_BHWC, "b (h i) (w j) c -> b h w (i j c)", i=stride, j=stride)


def _kernel_blocks(kernel_KKIO, stride):
    kernel_KKIO = _filled(kernel_KKIO, (0, 1), stride)
    return rearrange(kernel_KKIO, "(h i) (w j) c o -> h w (i j c) o", i=stride, j=stride)


def _filled(t, axes, stride):
    return jnp.pad(t, [(0, -t.shape[a] % stride if a in axes else 0) for a in range(t.ndim)])
