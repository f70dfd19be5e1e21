"""Convolutions on NHWC feature maps: dense ones, depthwise 3x3 ones that are fast on every backend,
patches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from t2i_jax import sharding
from t2i_jax.nn.convolution import convolve, enlarge
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.row_sums import FEW, to_few
from t2i_jax.types import Array

# U(+-1/sqrt(fan in)): the initialisation of the PyTorch packages, so that training runs compare.
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
POINTWISE = ("conv_in", "conv_out")  # logical axes of the kernel of a 1x1 convolution


def depthwise_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`uniform_fan_in` for the kernel of a 3x3 depthwise convolution: U(-1/3, 1/3), since 9 numbers
    come in.
    """
    return jax.random.uniform(key, shape, dtype, -1 / 3, 1 / 3)


def boxed(init: Callable, *names: str | None) -> Callable:
    """An initialiser whose array carries logical axis names."""
    return nn.with_logical_partitioning(init, names)


BY_OUTPUT = "kernel_by_output"
"""The name of a kernel that lies (features, in), for few rows at a time: see `few_rows`."""


_LARGE, _FEW = 2**18, 32  # numbers of a kernel and rows for which reading it takes longest


def is_few(rows: int, size: int) -> bool:
    """Whether `few_rows` is the faster way for `rows` rows and a kernel of `size` numbers: few
    rows, a large kernel, one CPU. Without a mesh that is JAX's default device.
    """
    if rows > _FEW or size < _LARGE:
        return False
    return sharding.on_one_cpu() or (
        jax.sharding.get_abstract_mesh().empty and jax.default_backend() == "cpu"
    )


def few_rows(rows_BI: Array, kernel_OI: Array, **options: Any) -> Array:
    """The product rows kernel^T, (B, O), where there are few rows and reading the kernel takes
    longest.

    XLA on a CPU reads a kernel on the left of a product, whose rows lie one after the other, two to
    four times as fast as one on the right; the barrier keeps it from turning the product around.
    `options` are those of `jax.lax.dot_general`.
    """
    y_OB = jax.lax.dot_general(kernel_OI, rows_BI, (((1,), (1,)), ((), ())), **options)
    return jax.lax.optimization_barrier(y_OB).T


class Dense(nn.Module):
    """A linear layer over the last axis, computed as one matrix product.

    XLA on a CPU takes up to four times as long for the gradients of a product that keeps several
    leading axes. Where the parameters hold the kernel as `BY_OUTPUT`, there are few rows.

    Attributes:
      features: output width. axes: logical names of the input and output widths.
      bias: whether one is added. init: of the kernel; None for `uniform_fan_in`.
    """

    features: int
    axes: tuple[str | None, str | None]
    bias: bool = True
    dtype: str = "float32"
    init: Callable | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., in) to (..., features)."""
        rows = x.astype(self.dtype)
        if sharding.ways("sequence") == 1:  # a length that is split over devices stays an axis
            rows = rows.reshape(-1, x.shape[-1])
        if self.has_variable("params", BY_OUTPUT):
            y = few_rows(rows, self.get_variable("params", BY_OUTPUT))
        else:
            kernel = parameter(
                self,
                "kernel",
                boxed(self.init or uniform_fan_in, *self.axes),
                (x.shape[-1], self.features),
                jnp.float32,
            )
            product = to_few if self.features <= FEW and rows.ndim == 2 else jnp.matmul
            y = product(rows, kernel.astype(self.dtype))
        if self.bias:
            bias = parameter(
                self,
                "bias",
                boxed(nn.initializers.zeros, self.axes[1]),
                (self.features,),
                jnp.float32,
            )
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class Conv(nn.Module):
    """A square convolution.

    Attributes:
      features: output channels. kernel: side of the window. stride: of the window. padding: pixels
        per side.
      bias: whether one is added. init: of the kernel; None: uniform by the fan-in.
    """

    features: int
    kernel: int
    stride: int
    padding: int
    bias: bool = True
    dtype: str = "float32"
    init: Callable | None = None

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, rows, columns, features)."""
        kernel = parameter(
            self,
            "kernel",
            boxed(self.init or uniform_fan_in, None, None, *POINTWISE),
            (self.kernel, self.kernel, x_BHWC.shape[-1], self.features),
            jnp.float32,
        )
        y = convolve(
            x_BHWC.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding
        )
        if self.bias:
            bias = parameter(
                self,
                "bias",
                boxed(nn.initializers.zeros, "conv_out"),
                (self.features,),
                jnp.float32,
            )
            y = y + bias.astype(self.dtype)
        return y


def conv(
    features: int,
    kernel: int,
    name: str,
    *,
    stride: int = 1,
    padding=None,
    bias: bool = True,
    dtype="float32",
):
    """A square convolution; `padding` in pixels per side, None for (kernel - stride) // 2, rounded
    down.
    """
    pad = (kernel - stride) // 2 if padding is None else padding
    return Conv(features, kernel, stride, pad, bias, dtype, name=name)


class Upconv(nn.Module):
    """A transposed convolution with a 4x4 window, stride 2 and padding 1: twice as many rows and
    columns (`torch.nn.ConvTranspose2d(in, out, 4, 2, 1)`).

    Attributes:
      features: output channels.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """(B, 2 rows, 2 columns, features)."""
        init = boxed(_uniform_transposed, None, None, "conv_in", "conv_out")
        shape = (4, 4, x_BHWC.shape[-1], self.features)
        kernel = parameter(self, "kernel", init, shape, jnp.float32)
        bias = parameter(
            self, "bias", boxed(nn.initializers.zeros, "conv_out"), (self.features,), jnp.float32
        )
        y = enlarge(x_BHWC.astype(self.dtype), kernel.astype(self.dtype))
        return y + bias.astype(self.dtype)


def _uniform_transposed(key, shape, dtype=jnp.float32):
    """U(+-1/sqrt(16 out)), as PyTorch starts transposed convolutions: their kernel's second axis
    is the output.
    """
    limit = (shape[0] * shape[1] * shape[3]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def channel_norm(name: str, dtype="float32") -> nn.LayerNorm:
    """Layer norm over channels with a scale and no shift, epsilon 1e-5, statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-5,
        use_bias=False,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        name=name,
    )


@jax.custom_vjp
def depthwise(x_BHWC: Array, kernel_KKC: Array, bias_C: Array) -> Array:
    """A depthwise convolution with zero padding that keeps the size (K odd), as a sum of shifted
    products.

    One product per tap fuses into a single pass; XLA's grouped convolution takes many times as long
    on a CPU. The gradient of x is the same sum with the kernel turned around. Left to itself JAX
    would keep every shifted copy of x for the backward pass.
    """
    size, padded = kernel_KKC.shape[0], _padded(x_BHWC, kernel_KKC.shape[0])
    return (
        sum(
            _shift(padded, x_BHWC, i, j) * kernel_KKC[i, j]
            for i in range(size)
            for j in range(size)
        )
        + bias_C
    )


def _padded(x_BHWC, size):
    pad = size // 2
    return jnp.pad(x_BHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def _shift(padded, x_BHWC, i, j):
    return padded[:, i : i + x_BHWC.shape[1], j : j + x_BHWC.shape[2]]


def _depthwise_forward(x_BHWC, kernel_KKC, bias_C):
    return depthwise(x_BHWC, kernel_KKC, bias_C), (x_BHWC, kernel_KKC)


def _depthwise_backward(residuals, gradient_BHWC):
    # Without the barrier XLA finds the shifted copies of both passes to be the same and keeps them
    # all.
    x_BHWC, kernel_KKC = jax.lax.optimization_barrier(residuals)
    bias_C = jnp.sum(gradient_BHWC, axis=(0, 1, 2))
    taps = functools.partial(jax.lax.platform_dependent, cpu=_taps_by_image, default=_taps)
    back_BHWC = depthwise(gradient_BHWC, kernel_KKC[::-1, ::-1], jnp.zeros_like(bias_C))
    padded = jax.lax.optimization_barrier(_padded(x_BHWC, kernel_KKC.shape[0]))
    return back_BHWC, taps(padded, gradient_BHWC).astype(kernel_KKC.dtype), bias_C


def _taps(padded, gradient_BHWC):
    """The gradient of the kernel (K, K, C)."""
    size = padded.shape[1] - gradient_BHWC.shape[1] + 1

    def one(i, j):
        return jnp.sum(_shift(padded, gradient_BHWC, i, j) * gradient_BHWC, axis=(0, 1, 2))

    return jnp.stack([jnp.stack([one(i, j) for j in range(size)]) for i in range(size)])


def _taps_by_image(padded, gradient_BHWC):
    """`_taps` with rows of one image summed before its columns: one sum over all places takes XLA
    ten times as long.
    """
    height = gradient_BHWC.shape[1]
    size, rows = padded.shape[1] - height + 1, max(r for r in range(1, 17) if height % r == 0)
    places = [(i, j) for i in range(size) for j in range(size)]

    def add(n, sums):
        image, block = n // (height // rows), n % (height // rows) * rows

        def at(t, extent):
            return jax.lax.dynamic_slice(t, (image, block, 0, 0), (1, extent, *t.shape[2:]))[0]

        x, gradient = at(padded, rows + size - 1), at(gradient_BHWC, rows)

        def products(i, j):
            return sum(x[i + r, j : j + gradient.shape[1]] * gradient[r] for r in range(rows))

        return tuple(total + products(i, j) for total, (i, j) in zip(sums, places, strict=True))

    start = tuple(jnp.zeros(gradient_BHWC.shape[2:], gradient_BHWC.dtype) for _ in places)
    sums = jax.lax.fori_loop(0, gradient_BHWC.shape[0] * (height // rows), add, start)
    return jnp.stack([jnp.sum(total, axis=0) for total in sums]).reshape(size, size, -1)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Depthwise(nn.Module):
    """A 3x3 depthwise convolution with a bias, as in positional encoding generators (Chu et al.
    2021) and in Primer.
    """

    channels: int
    axis: str | None = "embed"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """The convolved feature map, of the same shape."""
        init = boxed(depthwise_init, None, None, self.axis)
        kernel = parameter(self, "kernel", init, (3, 3, self.channels), jnp.float32)
        bias = parameter(
            self, "bias", boxed(nn.initializers.zeros, self.axis), (self.channels,), jnp.float32
        )
        dtype = jnp.dtype(self.dtype)
        return depthwise(x_BHWC.astype(dtype), kernel.astype(dtype), bias.astype(dtype))


def neighbours(x_BHWC: Array) -> Array:
    """(B, H, W, 9 C): the 3x3 neighbourhood of every place, row by row, zeros outside.

    A 3x3 convolution is then one matrix product with its kernel as (9 C, out): on a CPU nearly
    twice as fast as XLA's.
    """
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, H, W, _ = x_BHWC.shape
    return jnp.concatenate(
        [padded[:, i : i + H, j : j + W] for i in range(3) for j in range(3)], axis=-1
    )


def patchify(image_BHWC: Array, patch: int) -> Array:
    """(B, rows, columns, patch * patch * C): the pixels of each patch, row by row, channels
    fastest.
    """
    return rearrange(image_BHWC, "b (h i) (w j) c -> b h w (i j c)", i=patch, j=patch)


def unpatchify(patches_BHWP: Array, patch: int) -> Array:
    """The inverse of `patchify`: an image (B, rows * patch, columns * patch, C)."""
    return rearrange(patches_BHWP, "b h w (i j c) -> b (h i) (w j) c", i=patch, j=patch)


def sincos_grid(rows: int, columns: int, dim: int, *, columns_first: bool) -> Array:
    """Fixed positions of a grid (rows, columns, dim): sines and cosines of the raw integer row and
    column.

    Args:
      columns_first: which coordinate the first half of `dim` encodes.
    """
    quarter = dim // 4
    rates = jnp.exp(-jnp.arange(quarter) * (math.log(10_000.0) / quarter))
    row, column = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    angles = [coordinate[..., None] * rates for coordinate in (row, column)]
    halves = [jnp.concatenate([jnp.sin(a), jnp.cos(a)], axis=-1) for a in angles]
    return jnp.concatenate(halves[::-1] if columns_first else halves, axis=-1)
