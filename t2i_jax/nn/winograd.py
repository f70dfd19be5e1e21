"""Convolutions with a 3x3 window by fewer products, for CPUs (Lavin and Gray 2016, "Fast algorithms
for convolutional neural networks", section 4.1: Winograd's minimal filtering F(2x2, 3x3)).

The image is cut into tiles of 4x4 pixels that overlap by two. Sums and differences of the pixels of
a tile are multiplied with sums of the places of the window: 16 products for the 2x2 pixels of the
result that a tile gives, where there are 36 otherwise. The error in float32 is up to twice that of
36 products, 1e-6 of the largest number of the result. A pixel that is infinite makes up to 4 x 4
pixels of the result infinite or NaN, where there are 3 x 3 otherwise.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.nn.tiles import as_pixels, filled
from t2i_jax.types import Array

# The matrices of the paper's equation 9: of the pixels of a tile, of the places of the window, and
# of the products.
_OF_TILE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_OF_WINDOW = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OF_PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_TURNED = 3, 1, 2, 0  # the sums of a window that is turned around


def pays(x: Array, kernel_shape: tuple[int, ...], of_kernel: bool = False) -> bool:
    """Whether this form of a convolution of an image, zeros included, is faster than all products,
    or that of the gradient of its kernel.

    Reading and writing the sums has to be little beside the products, and there have to be enough
    of these (`benchmarks/convolutions.py`).
    """
    side, channels, features = kernel_shape[1:]
    if side != 3 or x.dtype != jnp.float32:
        return False
    positions = x.shape[0] * (x.shape[1] - 2) * (x.shape[2] - 2)
    work = channels * features
    wide = work >= (60 if of_kernel else 28) * (channels + features)
    return wide and positions * work >= 2**26 and positions >= (256 if work <= 2**19 else 512)


def convolve(x_BHWC: Array, kernel_33IO: Array, turned: bool = False) -> Array:
    """A convolution without zeros around, with a stride of 1 and without a bias. `turned`: with the
    kernel turned around and its channels for its features, as the gradient of the input of a
    convolution is made.
    """
    # a loop would keep the sums of all its kernels, which take nearly twice their memory
    x_BHWC, kernel_33IO = jax.lax.optimization_barrier((x_BHWC, kernel_33IO))
    kernels = _over_both(_OF_WINDOW, kernel_33IO)
    if turned:
        kernels = [[kernels[i][j] for j in _TURNED] for i in _TURNED]
    contracted = "gto,gio->gti" if turned else "gti,gio->gto"
    products = _products(contracted, _tiles(x_BHWC), kernels)
    rows, columns = (extent - 2 for extent in x_BHWC.shape[1:3])
    shape = x_BHWC.shape[0], -(-rows // 2), -(-columns // 2), -1
    kinds = [kind.reshape(shape) for line in _over_both(_OF_PRODUCTS, products) for kind in line]
    return as_pixels(kinds)[:, :rows, :columns]


def to_kernel(x_BHWC: Array, y_BHWC: Array) -> Array:
    """The gradient of the kernel of such a convolution, (3, 3, C, O), from that of its result."""
    y_BHWC = filled(y_BHWC, (1, 2), 2)
    kinds = [[_rows(y_BHWC[:, a::2, b::2]) for b in range(2)] for a in range(2)]
    sums = _over_both(_OF_PRODUCTS.T, kinds)
    products = _products("gti,gto->gio", _tiles(x_BHWC), sums)
    return jnp.stack([jnp.stack(line) for line in _over_both(_OF_WINDOW.T, products)])


def _tiles(x_BHWC):
    """The sums of the pixels of all tiles, a grid of (tiles, C)."""
    x_BHWC = filled(x_BHWC, (1, 2), 2)
    rows, columns = (extent - 2 for extent in x_BHWC.shape[1:3])
    pixels = [
        [_rows(x_BHWC[:, i : i + rows : 2, j : j + columns : 2]) for j in range(4)]
        for i in range(4)
    ]
    return _over_both(_OF_TILE, pixels)


def _rows(t):
    return t.reshape(-1, t.shape[-1])


def _products(contracted, first, second):
    """The products of the arrays that are at the same place of two grids: a line of them at a time,
    which is faster than one at a time, and than all of them with their memory.
    """
    pairs = zip(first, second, strict=True)
    return [jnp.einsum(contracted, jnp.stack(a), jnp.stack(b)) for a, b in pairs]


def _over_both(sums, grid):
    """Sums, the rows of a matrix, over the columns of a grid of arrays and then over its rows."""
    columns = zip(*(_sums(sums, line) for line in grid), strict=True)
    return list(zip(*(_sums(sums, column) for column in columns), strict=True))


def _sums(factors, arrays):
    def factored(factor, t):
        return t if factor == 1 else -t if factor == -1 else float(factor) * t

    for line in factors:
        terms = [factored(f, t) for f, t in zip(line, arrays, strict=True) if f]
        yield functools.reduce(operator.add, terms)
