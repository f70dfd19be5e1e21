"""The Inception-v3 of TensorFlow's archive of 2015-12-05, whose features are those of FID, KID and
the Inception Score (Szegedy et al. 2015; Heusel et al. 2017).

It differs from torchvision's network: 1008 outputs, average pools that leave the padding out, and a
max pool in the last block. Batch norm is part of the convolutions here: it is frozen, so that
kernel and bias take it up while the program runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array

SIDE = 299  # side of the images in pixels
CLASSES = 1008
EPSILON = 1e-3  # of the batch norms
FEATURES = {
    "pool1": 64, "pool2": 192, "spatial": 2023, "aux": 768, "pool3": 2048,
    "logits_unbiased": CLASSES, "logits": CLASSES,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution without bias, its batch norm and a ReLU.

    Attributes:
      name: in torchvision's naming. inputs, width: channels. kernel: height and width.
      stride: of both axes. padded: zeros around the image, so that stride 1 keeps its size.
    """

    name: str
    inputs: int
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclasses.dataclass(frozen=True)
class Branch:
    """A path of a block.

    Attributes:
      pool: "avg" or "max" of 3x3 before the convolutions; None: no pool.
      convs: one after the other. fork: more of them, each on what the last one gives, side by side.
      stride: of the pool.
    """

    pool: str | None = None
    convs: tuple[Conv, ...] = ()
    fork: tuple[Conv, ...] = ()
    stride: int = 1


def _chain(inputs, *steps):
    """Convolutions one after the other, from (name, width, kernel, what else)."""
    found = []
    for name, width, kernel, *more in steps:
        found.append(Conv(name, inputs, width, kernel, *more))
        inputs = width
    return tuple(found)


_1, _3, _5, _H, _V = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _block_a(inputs, pooled):
    return (
        Branch(None, _chain(inputs, ("branch1x1", 64, _1))),
        Branch(None, _chain(inputs, ("branch5x5_1", 48, _1), ("branch5x5_2", 64, _5))),
        Branch(
            None,
            _chain(
                inputs,
                ("branch3x3dbl_1", 64, _1),
                ("branch3x3dbl_2", 96, _3),
                ("branch3x3dbl_3", 96, _3),
            ),
        ),
        Branch("avg", _chain(inputs, ("branch_pool", pooled, _1))),
    )


def _block_b(inputs):
    return (
        Branch(None, _chain(inputs, ("branch3x3", 384, _3, 2, False))),
        Branch(
            None,
            _chain(
                inputs,
                ("branch3x3dbl_1", 64, _1),
                ("branch3x3dbl_2", 96, _3),
                ("branch3x3dbl_3", 96, _3, 2, False),
            ),
        ),
        Branch("max", stride=2),
    )


def _block_c(inputs, narrow):
    return (
        Branch(None, _chain(inputs, ("branch1x1", 192, _1))),
        Branch(
            None,
            _chain(
                inputs,
                ("branch7x7_1", narrow, _1),
                ("branch7x7_2", narrow, _H),
                ("branch7x7_3", 192, _V),
            ),
        ),
        Branch(
            None,
            _chain(
                inputs,
                ("branch7x7dbl_1", narrow, _1),
                ("branch7x7dbl_2", narrow, _V),
                ("branch7x7dbl_3", narrow, _H),
                ("branch7x7dbl_4", narrow, _V),
                ("branch7x7dbl_5", 192, _H),
            ),
        ),
        Branch("avg", _chain(inputs, ("branch_pool", 192, _1))),
    )


def _block_d(inputs):
    return (
        Branch(None, _chain(inputs, ("branch3x3_1", 192, _1), ("branch3x3_2", 320, _3, 2, False))),
        Branch(
            None,
            _chain(
                inputs,
                ("branch7x7x3_1", 192, _1),
                ("branch7x7x3_2", 192, _H),
                ("branch7x7x3_3", 192, _V),
                ("branch7x7x3_4", 192, _3, 2, False),
            ),
        ),
        Branch("max", stride=2),
    )


def _block_e(inputs, pool):
    def fork(start):
        return Conv(f"{start}a", 384, 384, (1, 3)), Conv(f"{start}b", 384, 384, (3, 1))

    return (
        Branch(None, _chain(inputs, ("branch1x1", 320, _1))),
        Branch(None, _chain(inputs, ("branch3x3_1", 384, _1)), fork("branch3x3_2")),
        Branch(
            None,
            _chain(inputs, ("branch3x3dbl_1", 448, _1), ("branch3x3dbl_2", 384, _3)),
            fork("branch3x3dbl_3"),
        ),
        Branch(pool, _chain(inputs, ("branch_pool", 192, _1))),
    )


# Before the first max pool, and between it and the second.
STEM = (
    _chain(
        3,
        ("Conv2d_1a_3x3", 32, _3, 2, False),
        ("Conv2d_2a_3x3", 32, _3, 1, False),
        ("Conv2d_2b_3x3", 64, _3),
    ),
    _chain(64, ("Conv2d_3b_1x1", 80, _1), ("Conv2d_4a_3x3", 192, _3, 1, False)),
)
BLOCKS: Mapping[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": _block_b(288),
    "Mixed_6b": _block_c(768, 128),
    "Mixed_6c": _block_c(768, 160),
    "Mixed_6d": _block_c(768, 160),
    "Mixed_6e": _block_c(768, 192),
    "Mixed_7a": _block_d(768),
    "Mixed_7b": _block_e(1280, "avg"),
    "Mixed_7c": _block_e(2048, "max"),
}
_AUX = "Mixed_6e"  # the block before which the auxiliary classifier branched off
_SPATIAL = "Mixed_6d", 7  # block and channels of sFID; its first ones are those of branch1x1


def convolutions() -> Iterator[tuple[tuple[str, ...], Conv]]:
    """All convolutions, each with the place of its parameters."""
    for conv in (*STEM[0], *STEM[1]):
        yield (conv.name,), conv
    for block, branches in BLOCKS.items():
        for branch in branches:
            for conv in (*branch.convs, *branch.fork):
                yield (block, conv.name), conv


class Inception(nn.Module):
    """Features of images, in one pass and float32, or float64 of float64 images.

    `image_BHWC`, floats in [-1, 1] of 299 pixels a side, gives "pool1" (B, 64), "pool2" (B, 192)
    and "aux" (B, 768), means over the image after the first and second max pool and after the
    eighth block; "spatial" (B, 2023), 7 channels of the seventh block at its 17 x 17 places, of
    which ADM's evaluator computes sFID (Nash et al. 2021; its `mixed_6/conv`); "pool3" (B, 2048),
    the mean after the last; "logits" (B, 1008), and "logits_unbiased", the same without the bias,
    of which the Inception Score is computed.
    """

    @nn.compact
    def __call__(self, image_BHWC: Array) -> dict[str, Array]:
        """The features by name."""
        found, dtype = {}, jnp.promote_types(image_BHWC.dtype, jnp.float32)
        x = image_BHWC.astype(dtype)
        for i, convs in enumerate(STEM):
            for conv in convs:
                x = _relu(x, conv, *_Folded(conv, name=conv.name)())
            x = _max_pool(x, 2, padded=False)
            found[f"pool{i + 1}"] = jnp.mean(x, (1, 2))
        for name, branches in BLOCKS.items():
            x = _Block(branches, name=name)(x)
            if name == _SPATIAL[0]:
                found["spatial"] = x[..., : _SPATIAL[1]].reshape(x.shape[0], -1)
            if name == _AUX:
                found["aux"] = jnp.mean(x, (1, 2))
        found["pool3"] = pooled_BC = jnp.mean(x, (1, 2))
        kernel_CK = parameter(self, "kernel", nn.initializers.lecun_normal(), (2048, CLASSES))
        bias_K = parameter(self, "bias", nn.initializers.zeros, (CLASSES,))
        found["logits_unbiased"] = logits_BK = jnp.matmul(
            pooled_BC, kernel_CK, precision=jax.lax.Precision.HIGHEST
        )
        found["logits"] = logits_BK + bias_K
        return found


class _Folded(nn.Module):
    """A convolution's kernel (H, W, I, O) and bias (O) with its batch norm taken up."""

    conv: Conv

    @nn.compact
    def __call__(self):
        conv, ones, zeros = self.conv, nn.initializers.ones, nn.initializers.zeros
        kernel = parameter(
            self, "kernel", nn.initializers.he_normal(), (*conv.kernel, conv.inputs, conv.width)
        )
        scale, bias = (
            parameter(self, n, f, (conv.width,)) for n, f in _pairs(scale=ones, bias=zeros)
        )
        mean, var = (parameter(self, n, f, (conv.width,)) for n, f in _pairs(mean=zeros, var=ones))
        factor = scale / jnp.sqrt(var + EPSILON)
        return kernel * factor, bias - mean * factor


def _pairs(**named):
    return named.items()


class _Block(nn.Module):
    """Branches side by side; the convolutions of 1x1 that read the block's input are one product.

    An average pool comes after the convolution of 1x1 that follows it, on fewer channels: both are
    linear.
    """

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x_BHWC):
        starts = [b.convs[0] for b in self.branches if _reads_input(b)]
        folded = [_Folded(conv, name=conv.name)() for conv in starts]
        biases = dict(zip((conv.name for conv in starts), (b for _, b in folded), strict=True))
        y = _convolved(x_BHWC, starts[0], jnp.concatenate([k for k, _ in folded], axis=-1))
        ends = np.cumsum([conv.width for conv in starts])[:-1]
        first = dict(zip(biases, jnp.split(y, ends, axis=-1), strict=True))
        parts = []
        for branch in self.branches:
            parts += self._branch(branch, x_BHWC, first, biases)
        return jnp.concatenate(parts, axis=-1)

    def _branch(self, branch, x, first, biases):
        convs = branch.convs
        if _reads_input(branch):
            x = first[convs[0].name]
            x = _avg_pool(x) if branch.pool else x
            x, convs = nn.relu(x + biases[convs[0].name]), convs[1:]
        elif branch.pool:
            x = _max_pool(x, branch.stride, padded=branch.stride == 1)
        for conv in convs:
            x = _relu(x, conv, *_Folded(conv, name=conv.name)())
        forked = [_relu(x, conv, *_Folded(conv, name=conv.name)()) for conv in branch.fork]
        return forked or [x]


def _reads_input(branch):
    return branch.pool != "max" and branch.convs[0].kernel == (1, 1)


def _relu(x, conv, kernel, bias):
    return nn.relu(_convolved(x, conv, kernel) + bias)


def _convolved(x_BHWC, conv, kernel):
    if conv.kernel == (1, 1):  # a product, for which processors have the quicker programs
        return jnp.matmul(x_BHWC, kernel[0, 0], precision=jax.lax.Precision.HIGHEST)
    sides = [(size // 2, size // 2) if conv.padded else (0, 0) for size in conv.kernel]
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel, (conv.stride, conv.stride), sides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip


def _max_pool(x_BHWC, stride, padded):
    """The largest of 3x3, rows and columns apart: shifted copies are quicker than a window."""
    for axis in (1, 2):
        x_BHWC = _shifted(x_BHWC, axis, stride, padded, jnp.maximum, -jnp.inf)
    return x_BHWC


def _avg_pool(x_BHWC):
    """Average pooling over 3x3, of the pixels that lie in the image."""
    for axis in (1, 2):
        x_BHWC = _shifted(x_BHWC, axis, 1, True, jnp.add, 0.0)
        size = x_BHWC.shape[axis]
        count = np.convolve(np.ones(size, np.float32), np.ones(3, np.float32), "same")
        x_BHWC = x_BHWC / count.reshape([-1 if a == axis else 1 for a in range(4)])
    return x_BHWC


def _shifted(x, axis, stride, padded, join, empty):
    """Three neighbours along an axis, joined."""
    if padded:
        x = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], constant_values=empty)
    end = x.shape[axis] - 2
    a, b, c = (jax.lax.slice_in_dim(x, i, end + i, stride, axis) for i in range(3))
    return join(join(a, b), c)
