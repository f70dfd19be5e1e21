"""The layers of muse-maskgit-pytorch 0.3.5, weight for weight: attention of unit queries and unit
keys, a feed-forward with a norm inside, and what a transformer of masked tokens stacks of them.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.fused_attention import attend_to
from t2i_jax.nn.multi_axis import MultiAxis
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import unit
from t2i_jax.sharding import constrain
from t2i_jax.types import Array

_SCALE = 8.0  # factor of the cosines of queries and keys


class Attention(nn.Module):
    """Attention between unit queries and unit keys, each with a learnt scale per channel; a learnt
    key and value per head, always visible, come first.

    The input is normalised, the context of cross-attention is not.

    Attributes:
      dim: width of input and output. heads, dim_head: heads and their width. null_scale: standard
        deviation of the first learnt key and value.
      axes: the groups in which the tokens of a grid see each other, in self-attention; None: all of
        them do.
    """

    dim: int
    heads: int
    dim_head: int
    null_scale: float = 0.02
    dtype: str = "float32"
    axes: MultiAxis | None = None

    @nn.compact
    def __call__(
        self, x_BQC: Array, context_BKC: Array | None = None, mask_BK: Array | None = None
    ) -> Array:
        """The update of x.

        Args:
          context_BKC: sequence that is attended to; None: x, normalised. mask_BK: True where it may
            be seen; None: everywhere.
        """
        inner = self.heads * self.dim_head
        x_BQC = channel_norm("norm", self.dtype)(x_BQC)
        context = x_BQC if context_BKC is None else context_BKC
        q_BQHD = self._heads(self._dense(inner, "to_q")(x_BQC))
        k_BKHD, v_BKHD = (
            self._heads(t) for t in jnp.split(self._dense(2 * inner, "to_kv")(context), 2, axis=-1)
        )
        null = parameter(
            self,
            "null_kv",
            boxed(nn.initializers.normal(self.null_scale), None, "heads", None),
            (2, self.heads, self.dim_head),
        ).astype(self.dtype)
        null_k, null_v = (jnp.broadcast_to(t, (x_BQC.shape[0], 1, *t.shape)) for t in null)
        k_BKHD = jnp.concatenate([null_k, k_BKHD], axis=1)
        v_BKHD = jnp.concatenate([null_v, v_BKHD], axis=1)
        q_BQHD, k_BKHD = self._unit("q_scale", q_BQHD, _SCALE), self._unit("k_scale", k_BKHD)
        q_BQHD = constrain(q_BQHD, "batch", "length", "heads", None)
        attend = _attend if self.axes is None else functools.partial(_along, self.axes)
        out = attend(q_BQHD, k_BKHD, v_BKHD, mask_BK).reshape(*x_BQC.shape[:2], inner)
        return Dense(self.dim, ("heads", "embed"), False, self.dtype, name="to_out")(out)

    def _dense(self, width, name):
        return Dense(width, ("embed", "heads"), bias=False, dtype=self.dtype, name=name)

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.heads, self.dim_head)

    def _unit(self, name, x, factor=1.0):
        scale = parameter(
            self, name, boxed(nn.initializers.ones, None), (self.dim_head,), jnp.float32
        )
        return (unit(x) * (scale * factor)).astype(self.dtype)


def _attend(q_BQHD, k_BKHD, v_BKHD, mask_BK):
    """softmax(q k) v; the first key is always seen, the others where the mask is True (None:
    everywhere).
    """
    if mask_BK is not None:
        mask_BK = jnp.pad(mask_BK, ((0, 0), (1, 0)), constant_values=True)
    return attend_to(q_BQHD, k_BKHD, v_BKHD, mask_BK)


def _along(axes, q_BNHD, k_BKHD, v_BKHD, mask_BK):
    """`_attend` in blocks and over grids; every group has the first key and value."""
    halves = zip(axes.parted(q_BNHD), _parted_keys(axes, k_BKHD), _parted_keys(axes, v_BKHD),
                 strict=True)  # fmt: skip
    return axes.joined(*(_attend(*half, mask_BK) for half in halves))


def _parted_keys(axes, x_BKHD):
    first = jnp.split(x_BKHD[:1, :1], 2, axis=2)  # the same in every row
    for null, group in zip(first, axes.parted(x_BKHD[:, 1:]), strict=True):
        null = jnp.broadcast_to(null, (len(group), *null.shape[1:]))
        yield jnp.concatenate([null, group], axis=1)


class FeedForward(nn.Module):
    """Norm, GEGLU (half of the channels times the GELU of the other half, Shazeer 2020), norm, and
    back.

    Attributes:
      mult: how many times as wide as `dim`, before the factor 2/3 that the gate's weights make up
        for.
    """

    dim: int
    mult: int | float = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array) -> Array:
        """The update of x."""
        hidden = inner_width(self.dim, self.mult)
        x = channel_norm("norm", self.dtype)(x_BNC)
        x = Dense(2 * hidden, ("embed", "mlp"), bias=False, dtype=self.dtype, name="wide")(x)
        value, gate = jnp.split(x, 2, axis=-1)
        x = channel_norm("inner_norm", self.dtype)(gate * gelu(value))
        return Dense(self.dim, ("mlp", "embed"), bias=False, dtype=self.dtype, name="narrow")(x)


def inner_width(dim: int, mult: float) -> int:
    """Channels inside a `FeedForward`."""
    return int(dim * mult * 2 / 3)


class Layer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added; fields as in
    `models.maskgit.MaskGitTransformer`.
    """

    dim: int
    dim_head: int
    heads: int
    ff_mult: int | float
    compat: tuple[str, ...]
    dtype: str
    fmap_size: int
    multi_axis: int | None

    @nn.compact
    def __call__(
        self, x_BNC: Array, context_BKC: Array, mask_BK: Array, deterministic: bool
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan over layers takes."""
        sizes = (self.dim, self.heads, self.dim_head, init_scale(self.compat), self.dtype)
        axes = None if self.multi_axis is None else MultiAxis(self.fmap_size, self.multi_axis)
        x = x_BNC + Attention(*sizes, axes, name="self_attention")(x_BNC)
        x = x + Attention(*sizes, name="cross_attention")(x, context_BKC, mask_BK)
        return x + FeedForward(self.dim, self.ff_mult, self.dtype, name="feed_forward")(x), None


class CondLayer(nn.Module):
    """Self-attention among the tokens of the conditioning image and feed-forward, each added;
    fields as in `models.maskgit.MaskGitTransformer`.
    """

    dim: int
    dim_head: int
    heads: int
    ff_mult: int | float
    compat: tuple[str, ...]
    dtype: str

    @nn.compact
    def __call__(self, x_BMC: Array, deterministic: bool) -> tuple[Array, None]:
        """(x, None): the pair that a scan over layers takes."""
        sizes = (self.dim, self.heads, self.dim_head, init_scale(self.compat), self.dtype)
        x = x_BMC + Attention(*sizes, name="self_attention")(x_BMC)
        return x + FeedForward(self.dim, self.ff_mult, self.dtype, name="feed_forward")(x), None


def init_scale(compat: tuple[str, ...]) -> float:
    """Standard deviation of the first embeddings."""
    return 1.0 if "unit_init" in compat else 0.02
