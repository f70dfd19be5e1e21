"""Cubic resizing with antialiasing, as the ResizeRight of dalle2-pytorch does it."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from t2i_jax.types import Array

_EPSILON = float(np.finfo(np.float32).eps)


def resize_cubic(x_BHWC: Array, size: tuple[int, int]) -> Array:
    """Feature maps (B, *size, C) by Keys' cubic kernel (a = -0.5), widened where they shrink.

    Beyond its edges a feature map counts as zeros, so that what lies at an edge is a little darker
    than by other cubic resizing (resize_right.py, `resize` with its default padding).
    """
    for axis, new in ((1, size[0]), (2, size[1])):
        old = x_BHWC.shape[axis]
        if old != new:
            weights = jnp.asarray(_weights(old, new), x_BHWC.dtype)
            x_BHWC = jnp.moveaxis(
                jnp.tensordot(x_BHWC, weights, (axis, 1), precision="highest"), -1, axis
            )
    return x_BHWC


def _weights(old, new):
    """The share (new, old) of each input element in each output element."""
    scale = new / old
    width = min(scale, 1.0)  # the kernel is as wide as an output element where it is larger
    weights = np.zeros((new, old))
    for i in range(new):
        centre = i / scale + (old - 1) / 2 - (new - 1) / (2 * scale)
        first = math.ceil(centre - 2 / width - _EPSILON)
        taps = range(first, first + math.ceil(4 / width))
        shares = [_keys((centre - tap) * width) for tap in taps]
        for tap, share in zip(taps, shares, strict=True):
            if 0 <= tap < old:
                weights[i, tap] = share / sum(shares)
    return weights


def _keys(distance):
    distance = abs(distance)
    if distance <= 1:
        return 1.5 * distance**3 - 2.5 * distance**2 + 1
    return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2 if distance <= 2 else 0.0
