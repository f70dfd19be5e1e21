"""A convolution whose gradients of any order are fast on every backend."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax.nn.row_sums import product_of_rows
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


def enlarge(x_BHWC: Array, kernel_44CO: Array) -> Array:
    """A transposed convolution with a 4x4 window, stride 2 and padding 1, without a bias: the
    gradient of the input of such a convolution, (B, 2H, 2W, O).

    Each of the four kinds of pixels of the result sees 2x2 pixels of x, so all four are one 2x2
    convolution with four times the channels; nothing is multiplied with the zeros that a dilated
    image has. With few pixels on a CPU, making its kernel takes longer than a product for each tap.
    """
    return _enlarged(x_BHWC, kernel_44CO)


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
        x = _padded(x, padding, padding)
        if stride == 1:
            return ordered(_kernel_in_turn(x, y, swapped))
        blocks = _kernel_in_turn(_image_blocks(x, shape[0], stride), y, swapped)
        back = jax.linear_transpose(lambda kernel: _kernel_blocks(kernel, stride), like)
        return ordered(back(blocks)[0])

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, **_elsewhere(of, shape))


@jax.custom_vjp
def _enlarged(x, kernel):
    on_cpu = _by_taps if _are_few(x, kernel.shape[3]) else _by_kinds
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_by_kinds)


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


def _enlarged_back(kept, y):
    x, kernel, y = jax.lax.optimization_barrier((*kept, y))
    strided = kernel.swapaxes(2, 3)
    back = jax.linear_transpose(lambda x: _by_taps(x, kernel), x)
    on_cpu = {"cpu": lambda y, _: back(y)[0]} if _are_few(x, kernel.shape[3]) else {}
    of_input = functools.partial(_convolution, 2, 1)
    return (
        jax.lax.platform_dependent(y, strided, default=of_input, **on_cpu),
        _in_order(_to_kernel(2, 1, strided.shape, True, y, x)),
    )


def _to_kernel_back(stride, padding, shape, swapped, kept, kernel):
    x, y, kernel = jax.lax.optimization_barrier((*kept, kernel))
    kernel = kernel.swapaxes(2, 3) if swapped else kernel
    return _to_input(stride, padding, x.shape, y, kernel), _convolution(stride, padding, x, kernel)


for _function, _back in (
    (_convolution, _convolution_back),
    (_to_input, _to_input_back),
    (_to_kernel, _to_kernel_back),
    (_enlarged, _enlarged_back),
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
    return _widened(x_BHWC, {1: (rows, rows), 2: (columns, columns)})


def _widened(t, ends):
    """With zeros before and after each of these axes; without what lies there where a number is
    negative.
    """
    around = [(*ends.get(axis, (0, 0)), 0) for axis in range(t.ndim)]
    return jax.lax.pad(t, jnp.zeros((), t.dtype), around)


def _by_kinds(x_BHWC, kernel_44CO):
    rows, columns, channels = x_BHWC.shape[1:]
    # [tap, parity of the output row, tap, parity of its column, in, out]
    parts = kernel_44CO[::-1, ::-1].reshape(2, 2, 2, 2, channels, -1)
    one = rearrange(parts, "t a u b i o -> t u i (a b o)")
    y = rearrange(_whole(x_BHWC, one, 1, 1), "n h w (a b o) -> n h w a b o", a=2, b=2)
    return _as_pixels(y[:, a : a + rows, b : b + columns, a, b] for a in range(2) for b in range(2))


def _by_taps(x_BHWC, kernel_44CO):
    seen = ((1, 0), (3, 1)), ((2, 0), (0, -1))  # for each parity: the taps, and where they move x

    def pixels(a, b):
        return sum(
            _widened(x_BHWC @ kernel_44CO[i, j], {1: (down, -down), 2: (right, -right)})
            for i, down in seen[a]
            for j, right in seen[b]
        )

    return _as_pixels(pixels(a, b) for a in range(2) for b in range(2))


def _as_pixels(kinds):
    return rearrange(list(kinds), "(a b) n h w o -> n (h a) (w b) o", a=2)


def _input_in_turn(y_BHWC, kernel_KKIO, padding):
    """The gradient of the input without a stride, on a CPU: one product where turning the kernel
    around takes longer than the convolution with it, since there are few positions for its
    features, and where the channels do not fill a vector.
    """
    if kernel_KKIO.shape[2] < 16:
        form = _taps_of_channels
    else:
        form = _all_taps if _are_few(y_BHWC, y_BHWC.shape[3]) else _turned_around
    return form(y_BHWC, kernel_KKIO, padding)


def _are_few(x_BHWC, features):
    """Whether there are so few positions that making another kernel of one takes long."""
    return math.prod(x_BHWC.shape[:3]) <= 8 * features


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


def _taps_of_channels(y_BHWC, kernel_KKIO, padding):
    """The same with pixels innermost, columns first: a few channels would not fill a vector."""
    side, _, channels, features = kernel_KKIO.shape
    columns_first = kernel_KKIO.swapaxes(0, 1).reshape(-1, features)
    taps = columns_first @ y_BHWC.reshape(-1, features).T
    taps_KKCBHW = taps.reshape(side, side, channels, *y_BHWC.shape[:3])

    def added(taps, axis):
        ends = [(k - padding, side - 1 - k - padding) for k in range(side)]
        return sum(_widened(t, {axis: each}) for t, each in zip(taps, ends, strict=True))

    return added(added(taps_KKCBHW, 4), 2).transpose(1, 2, 3, 0)


def _kernel_in_turn(x_BHWC, y_BHWC, channels_last):
    """The gradient of the kernel without a stride and zeros, on a CPU. `channels_last`: its
    channels lie innermost.
    """
    if x_BHWC.shape[:3] == y_BHWC.shape[:3]:  # a window of one pixel
        return product_of_rows(*(t.reshape(-1, t.shape[3]) for t in (x_BHWC, y_BHWC)))[None, None]
    channels, features = x_BHWC.shape[3], y_BHWC.shape[3]
    large = math.prod(y_BHWC.shape[1:3]) >= 4096  # beside which more zeros are few
    fewer = features < min(16, channels) or (large and channels >= 2 * features)
    if fewer or channels_last:
        zeros = x_BHWC.shape[1] - y_BHWC.shape[1], x_BHWC.shape[2] - y_BHWC.shape[2]
        turned = _over_channels(_padded(y_BHWC, *zeros), x_BHWC)
        return turned[:, ::-1, ::-1].transpose(1, 2, 3, 0)
    return _over_channels(x_BHWC, y_BHWC).transpose(1, 2, 0, 3)


def _over_channels(x_BHWC, y_BHWO):
    """A convolution over the channels of x with the images as features and y as its window,
    (C, rows, columns, O): the gradient of a kernel, or with y in place of x, surrounded by zeros,
    the same turned around. The channels are best those that are fewer.
    """
    # The window would be larger than the image if the zeros were the convolution's, and without the
    # barrier XLA makes them so, or takes the axes in another order; both cost up to two hundred
    # times as much.
    x_CHWB, y_HWBO = jax.lax.optimization_barrier(
        (x_BHWC.transpose(3, 1, 2, 0), y_BHWO.transpose(1, 2, 0, 3))
    )
    return _whole(x_CHWB, y_HWBO, 1, 0)


def _in_order(gradient):
    """The gradient of a kernel, on a CPU with its last axis innermost, which XLA would make of it
    anew for each use.
    """

    def on_cpu(t):
        return jax.lax.optimization_barrier(t.ravel()).reshape(t.shape)

    return jax.lax.platform_dependent(gradient, cpu=on_cpu, default=lambda t: t)


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
