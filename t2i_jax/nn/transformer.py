"""A stack of pre-norm transformer layers, scanned over stacked parameters, with a cached step for decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.activation import gelu
from t2i_jax.nn.attention import MultiHeadAttention
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.types import Array

# What the backward pass keeps of a layer: everything, nothing (recompute all), or the results of matrix products.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_UNROLLED = 16  # decoding unrolls up to so many layers: their weights are then sliced once, not at every token


def layer_norm(name: str | None, dtype: str = "float32") -> nn.LayerNorm:
    """Layer norm with scale and shift, epsilon 1e-6, statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        name=name,
    )


class Block(nn.Module):
    """Self-attention, with `cross` also attention to a context, and an MLP; each behind a norm, with a residual.

    Attributes:
      dim, heads, mlp_dim: widths; dim is a multiple of heads. dropout: on each update.
      cross: whether there is cross-attention. causal: whether self-attention sees only the past.
    """

    dim: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    cross: bool = False
    causal: bool = False
    deterministic: bool = True
    dtype: str = "float32"

    def setup(self):
        attention = lambda: MultiHeadAttention(self.dim, self.heads, self.dim // self.heads, self.dtype)
        self.norm_self, self.self_attention = layer_norm(None, self.dtype), attention()
        if self.cross:
            self.norm_cross, self.cross_attention = layer_norm(None, self.dtype), attention()
        self.norm_mlp = layer_norm(None, self.dtype)
        self.wide = Dense(self.mlp_dim, ("embed", "mlp"), dtype=self.dtype)
        self.narrow = Dense(self.dim, ("mlp", "embed"), dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout, deterministic=self.deterministic)

    def __call__(self, x_BNC: Array, mask_BN: Array | None, context_BKC: Array | None, context_mask_BK: Array | None):
        """(x, None): the pair that a scan wants. Masks are True where a position may be seen; None: everywhere."""
        spread = lambda mask: None if mask is None else mask[:, None, None]
        x = x_BNC
        x = x + self.drop(self.self_attention(self.norm_self(x), mask=spread(mask_BN), causal=self.causal))
        if self.cross:
            context = context_BKC.astype(x.dtype)
            x = x + self.drop(self.cross_attention(self.norm_cross(x), context, spread(context_mask_BK)))
        return x + self.drop(self._mlp(x)), None

    def context(self, context_BKC: Array) -> Mapping[str, Array]:
        """What is cached of the context."""
        k_BKHD, v_BKHD = self.cross_attention.keys_values(context_BKC.astype(self.dtype))
        return {"cross_k": k_BKHD, "cross_v": v_BKHD}

    def step(self, x_BC: Array, cache: Mapping[str, Array], position: Array, mask_BK: Array) -> tuple[Array, Any]:
        """One position through the layer: (x, {"k", "v"} of this position, (B, 1, heads, dim_head))."""
        normed = self.norm_self(x_BC)
        k_BHD, v_BHD = self.self_attention.keys_values(normed)
        new = {"k": k_BHD[:, None], "v": v_BHD[:, None]}
        k_BKHD, v_BKHD = (jax.lax.dynamic_update_slice_in_dim(cache[n], new[n], position, axis=1) for n in ("k", "v"))
        past_1K = jnp.arange(k_BKHD.shape[1])[None] <= position
        x = x_BC + self.self_attention.step(normed, k_BKHD, v_BKHD, past_1K)
        if self.cross:
            x = x + self.cross_attention.step(self.norm_cross(x), cache["cross_k"], cache["cross_v"], mask_BK)
        return x + self._mlp(x), new

    def _mlp(self, x):
        return self.narrow(gelu(self.wide(self.norm_mlp(x))))


class Transformer(nn.Module):
    """`depth` blocks and a norm at the output; the parameters of all blocks are stacked under "layers".

    Attributes:
      remat: what the backward pass recomputes, a key of `REMAT`. The rest as in `Block`.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    cross: bool = False
    causal: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x_BNC: Array,
        mask_BN: Array | None = None,
        context_BKC: Array | None = None,
        context_mask_BK: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The transformed sequence, same shape, in `dtype`.

        Args:
          mask_BN: True where a position may be seen; None: everywhere.
          context_BKC, context_mask_BK: what cross-attention looks at, of any width.
          deterministic: False to drop out; needs the rng "dropout".
        """
        fields = self.block_fields() | {"deterministic": deterministic}
        layers = scanned(Block, self.depth, self.remat, inputs=3)(**fields, name="layers")
        x_BNC, _ = layers(x_BNC.astype(self.dtype), mask_BN, context_BKC, context_mask_BK)
        return layer_norm("norm", self.dtype)(x_BNC)

    @nn.nowrap
    def block_fields(self) -> dict[str, Any]:
        """The fields of one block."""
        return {n: getattr(self, n) for n in ("dim", "heads", "mlp_dim", "dropout", "cross", "causal", "dtype")}


def scanned(layer: type[nn.Module], depth: int, remat: str, inputs: int) -> Callable[..., nn.Module]:
    """`depth` copies of a layer as one scan over stacked parameters (leading logical axis "layers").

    Args:
      layer: called as `layer(x, *inputs) -> (x, None)`; the inputs are the same for every copy.
      remat: a key of `REMAT`.
      inputs: how many there are.
    """
    if REMAT[remat] is not None:
        layer = nn.remat(layer, policy=REMAT[remat], prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * inputs,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def decode_layers(
    step: Callable[[Any, Array, Mapping[str, Array]], tuple[Array, Mapping[str, Array]]],
    params: Any,
    x_BC: Array,
    cache: Mapping[str, Array],
    position: Array,
) -> tuple[Array, Mapping[str, Array]]:
    """One position through all layers.

    Args:
      step: `(params, x_BC, cache) -> (x_BC, new)` of one layer; `new` holds this position's (B, 1, ...) cache entries.
      params: stacked over layers. cache: entries (layers, B, positions, ...).
      position: int32 scalar, where `new` belongs.

    Returns:
      x_BC and the cache with the new entries in place.
    """

    def layer(i, carry):
        x, cache = carry
        at = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) if not isinstance(i, int) else leaf[i]
        x, new = step(jax.tree.map(at, params), x, jax.tree.map(at, cache))
        put = lambda old, entry: jax.lax.dynamic_update_slice(
            old, entry[None].astype(old.dtype), (i, 0, position, *(0,) * (old.ndim - 3))
        )
        return x, {**cache, **{name: put(cache[name], entry) for name, entry in new.items()}}

    depth = jax.tree.leaves(params)[0].shape[0]
    if depth > _UNROLLED:
        return jax.lax.fori_loop(0, depth, layer, (x_BC, dict(cache)))
    carry = (x_BC, dict(cache))
    for i in range(depth):
        carry = layer(i, carry)
    return carry
