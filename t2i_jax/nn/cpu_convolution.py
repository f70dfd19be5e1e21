"""A convolution and its gradients in the forms that are fast on a CPU.

XLA makes convolutions there as fast as products of matrices, but neither with a dilated image nor
with a stride in their gradients. So all of them are made of convolutions without either, whose
operands lie as XLA takes them, and of products where few positions meet many features.
"""

from __future__ import annotations

import math

import jax
from einops import rearrange

from t2i_jax.nn import winograd
from t2i_jax.nn.row_sums import product_of_rows
from t2i_jax.nn.tiles import as_pixels, filled, padded, widened
from t2i_jax.types import Array


def convolve(x_BHWC: Array, kernel_KKIO: Array, stride: int, padding: int) -> Array:
    """The convolution itself: by fewer products where there are enough of them."""
    x = padded(x_BHWC, padding, padding)
    if stride == 1 and winograd.pays(x, kernel_KKIO.shape):
        return winograd.convolve(x, kernel_KKIO)
    return whole(x_BHWC, kernel_KKIO, stride, padding)


def to_input(like, stride: int, padding: int, y_BHWC: Array, kernel_KKIO: Array) -> Array:
    """The gradient of the input, which is `like` that array, from that of the result."""
    if stride == 1:
        return _input_in_turn(y_BHWC, kernel_KKIO, padding)
    blocks = _input_in_turn(y_BHWC, _kernel_blocks(kernel_KKIO, stride), 0)
    side = kernel_KKIO.shape[0]
    back = jax.linear_transpose(
        lambda x: _image_blocks(padded(x, padding, padding), side, stride), like
    )
    return back(blocks)[0]


def to_kernel(
    like, stride: int, padding: int, channels_last: bool, x_BHWC: Array, y_BHWC: Array
) -> Array:
    """The gradient of the kernel (K, K, I, O), which is `like` that array, from that of the result.
    `channels_last`: its channels lie innermost.
    """
    x_BHWC = padded(x_BHWC, padding, padding)
    if stride == 1:
        return _kernel_in_turn(x_BHWC, y_BHWC, channels_last)
    x_BHWC = _image_blocks(x_BHWC, like.shape[0], stride)
    blocks = _kernel_in_turn(x_BHWC, y_BHWC, channels_last)
    return jax.linear_transpose(lambda kernel: _kernel_blocks(kernel, stride), like)(blocks)[0]


def enlarge_by_taps(x_BHWC: Array, kernel_44CO: Array) -> Array:
    """As `convolution.enlarge`, by a product for each tap."""
    seen = ((1, 0), (3, 1)), ((2, 0), (0, -1))  # for each parity: the taps, and where they move x

    def pixels(a, b):
        return sum(
            widened(x_BHWC @ kernel_44CO[i, j], {1: (down, -down), 2: (right, -right)})
            for i, down in seen[a]
            for j, right in seen[b]
        )

    return as_pixels(pixels(a, b) for a in range(2) for b in range(2))


def are_few(x_BHWC: Array, features: int) -> bool:
    """Whether there are so few positions that making another kernel of one takes long."""
    return math.prod(x_BHWC.shape[:3]) <= 8 * features


def whole(x_BHWC: Array, kernel_KKIO: Array, stride: int, padding: int) -> Array:
    """XLA's convolution."""
    return strided(x_BHWC, kernel_KKIO, (stride, stride), (padding, padding))


def strided(x_BHWC: Array, kernel_KKIO: Array, strides, padding) -> Array:
    """XLA's convolution with a stride and zeros for rows and for columns."""
    around = [(each, each) for each in padding]
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel_KKIO, strides, around, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _input_in_turn(y_BHWC, kernel_KKIO, padding):
    """The gradient of the input without a stride: by fewer products, or by one where turning the
    kernel around takes longer than the convolution with it, since there are few positions for its
    features, and where the channels do not fill a vector.
    """
    around = kernel_KKIO.shape[0] - 1 - padding
    whole_BHWC = padded(y_BHWC, around, around)
    if winograd.pays(whole_BHWC, kernel_KKIO.shape):
        return winograd.convolve(whole_BHWC, kernel_KKIO, turned=True)
    if kernel_KKIO.shape[2] < 16:
        form = _taps_of_channels
    else:
        form = _all_taps if are_few(y_BHWC, y_BHWC.shape[3]) else _turned_around
    return form(y_BHWC, kernel_KKIO, padding)


def _turned_around(y_BHWC, kernel_KKIO, padding):
    kernel = kernel_KKIO[::-1, ::-1].swapaxes(2, 3)
    return whole(y_BHWC, kernel, 1, kernel.shape[0] - 1 - padding)


def _all_taps(y_BHWC, kernel_KKIO, padding):
    """One product for all places of the window, which are added where they belong."""
    side, _, channels, features = kernel_KKIO.shape
    taps = y_BHWC.reshape(-1, features) @ kernel_KKIO.reshape(-1, features).T
    taps = taps.reshape(*y_BHWC.shape[:3], side, side, channels)
    x = sum(
        widened(taps[:, :, :, i, j], {1: (i, side - 1 - i), 2: (j, side - 1 - j)})
        for i in range(side)
        for j in range(side)
    )
    return padded(x, -padding, -padding)


def _taps_of_channels(y_BHWC, kernel_KKIO, padding):
    """The same with pixels innermost, columns first: a few channels would not fill a vector."""
    side, _, channels, features = kernel_KKIO.shape
    columns_first = kernel_KKIO.swapaxes(0, 1).reshape(-1, features)
    taps = columns_first @ y_BHWC.reshape(-1, features).T
    taps_KKCBHW = taps.reshape(side, side, channels, *y_BHWC.shape[:3])

    def added(taps, axis):
        ends = [(k - padding, side - 1 - k - padding) for k in range(side)]
        return sum(widened(t, {axis: each}) for t, each in zip(taps, ends, strict=True))

    return added(added(taps_KKCBHW, 4), 2).transpose(1, 2, 3, 0)


def _kernel_in_turn(x_BHWC, y_BHWC, channels_last):
    """The gradient of the kernel without a stride and zeros."""
    if x_BHWC.shape[:3] == y_BHWC.shape[:3]:  # a window of one pixel
        return product_of_rows(*(t.reshape(-1, t.shape[3]) for t in (x_BHWC, y_BHWC)))[None, None]
    side = x_BHWC.shape[1] - y_BHWC.shape[1] + 1
    if winograd.pays(x_BHWC, (side, side, x_BHWC.shape[3], y_BHWC.shape[3]), of_kernel=True):
        return winograd.to_kernel(x_BHWC, y_BHWC)
    return _by_convolution(x_BHWC, y_BHWC, channels_last)


def _by_convolution(x_BHWC, y_BHWC, channels_last):
    """The gradient of the kernel as a convolution, over the channels of x or over those of y."""
    channels, features = x_BHWC.shape[3], y_BHWC.shape[3]
    large = math.prod(y_BHWC.shape[1:3]) >= 4096  # beside which more zeros are few
    fewer = features < min(16, channels) or (large and channels >= 2 * features)
    if fewer or channels_last:
        zeros = x_BHWC.shape[1] - y_BHWC.shape[1], x_BHWC.shape[2] - y_BHWC.shape[2]
        turned = _over_channels(padded(y_BHWC, *zeros), x_BHWC)
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
    return whole(x_CHWB, y_HWBO, 1, 0)


# With the stride x stride blocks of image and kernel as channels a convolution has a stride of 1.
def _image_blocks(x_BHWC, side, stride):
    def used(extent):  # pixels that the windows reach
        return extent - (extent - side) % stride

    x_BHWC = filled(x_BHWC[:, : used(x_BHWC.shape[1]), : used(x_BHWC.shape[2])], (1, 2), stride)
    return rearrange(x_BHWC, "b (h i) (w j) c -> b h w (i j c)", i=stride, j=stride)


def _kernel_blocks(kernel_KKIO, stride):
    kernel_KKIO = filled(kernel_KKIO, (0, 1), stride)
    return rearrange(kernel_KKIO, "(h i) (w j) c o -> h w (i j c) o", i=stride, j=stride)
