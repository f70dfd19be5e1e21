"""A stack of pre-norm transformer layers, scanned over stacked parameters, with a cached step for
decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.config import fields_of
from t2i_jax.nn.activation import gelu
from t2i_jax.nn.attention import MultiHeadAttention
from t2i_jax.nn.conv import BY_OUTPUT, Dense, boxed, is_few
from t2i_jax.nn.fused_attention import KEPT
from t2i_jax.nn.grid_window import GridWindow
from t2i_jax.sharding import constrain
from t2i_jax.types import Array

# Remat policies: the activations of a layer that are kept for the backward pass. Everything,
# nothing (recompute all), the results of a TPU's fused attention (elsewhere nothing), or these and
# matrix products.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(KEPT),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
}
_UNROLLED = 64  # layers up to which decoding is unrolled: all of Parti 20B
# Layers up to which training is unrolled: a scan would copy all their activations to large arrays.
_STRAIGHT = 4


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
    """Self-attention, with `cross` also attention to a context, and an MLP; each behind a norm,
    with a residual.

    Attributes:
      dim, heads, mlp_dim: widths; dim is a multiple of heads. dropout: on each update.
      cross: whether there is cross-attention. causal: whether a position sees only those up to
        itself.
      window: the part of these that it sees, of tokens on a grid; None: all of them.
    """

    dim: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    cross: bool = False
    causal: bool = False
    dtype: str = "float32"
    window: GridWindow | None = None

    def setup(self):
        """Makes the layers and parameters."""

        def attention():
            return MultiHeadAttention(self.dim, self.heads, self.dim // self.heads, self.dtype)

        self.norm_self, self.self_attention = layer_norm(None, self.dtype), attention()
        if self.cross:
            self.norm_cross, self.cross_attention = layer_norm(None, self.dtype), attention()
        self.norm_mlp = layer_norm(None, self.dtype)
        self.wide = Dense(self.mlp_dim, ("embed", "mlp"), dtype=self.dtype)
        self.narrow = Dense(self.dim, ("mlp", "embed"), dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        x_BNC: Array,
        mask_BN: Array | None = None,
        context_BKC: Array | None = None,
        context_mask_BK: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan wants. Masks are True where a position may be seen; None:
        everywhere.
        """

        def spread(mask):
            return None if mask is None else mask[:, None, None]

        def add(x, y):
            return constrain(x + self.drop(y, deterministic=deterministic), "batch", "length", None)

        x = add(
            x_BNC,
            self.self_attention(
                self.norm_self(x_BNC),
                mask=spread(mask_BN),
                causal=self.causal,
                window=self.window,
            ),
        )
        if self.cross:
            context = context_BKC.astype(x.dtype)  # pyright: ignore[reportOptionalMemberAccess]
            x = add(x, self.cross_attention(self.norm_cross(x), context, spread(context_mask_BK)))
        hidden = constrain(self.wide(self.norm_mlp(x)), "batch", "length", "mlp")
        return add(x, self.narrow(gelu(hidden))), None

    def context(self, context_BKC: Array) -> Mapping[str, Array]:
        """The KV cache of the context."""
        k_BKHD, v_BKHD = self.cross_attention.keys_values(context_BKC.astype(self.dtype))
        return {"cross_k": k_BKHD, "cross_v": v_BKHD}

    def step(
        self,
        x_BC: Array,
        cache: Mapping[str, Array],
        position: Array,
        context_mask_BK: Array | None,
    ) -> tuple[Array, dict[str, Array]]:
        """Takes one position through the layer; returns it and the KV cache ("k", "v": (B,
        positions, heads, dim_head)) that holds it too.
        """
        normed = self.norm_self(x_BC)
        k_BHD, v_BHD = self.self_attention.keys_values(normed)

        def put(old, new):
            return jax.lax.dynamic_update_slice_in_dim(old, new[:, None], position, axis=1)

        cache = {**cache, "k": put(cache["k"], k_BHD), "v": put(cache["v"], v_BHD)}
        past_1K, past = self._past(cache["k"], cache["v"], position)
        x = x_BC + self.self_attention.step(normed, *past, past_1K)
        if self.cross:
            x = x + self.cross_attention.step(
                self.norm_cross(x), cache["cross_k"], cache["cross_v"], context_mask_BK
            )
        return x + self.narrow(gelu(self.wide(self.norm_mlp(x)))), cache

    def _past(self, k_BKHD, v_BKHD, position):
        if self.window is not None:
            return self.window.past(position, k_BKHD, v_BKHD)
        return jnp.arange(k_BKHD.shape[1])[None] <= position, [k_BKHD, v_BKHD]


class Transformer(nn.Module):
    """`depth` blocks and a norm at the output; the parameters of all blocks are stacked under
    "layers".

    Attributes:
      remat: remat policy, a key of `REMAT`. The other fields are those of `Block`.
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
    window: GridWindow | None = None

    def setup(self):
        """Makes the layers and parameters."""
        self.layers = scanned(Block, self.depth, self.remat, inputs=4)(**layer_fields(self, Block))
        self.norm = layer_norm(None, self.dtype)

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
          context_BKC, context_mask_BK: the context of cross-attention, of any width, and True where
            it may be seen.
          deterministic: False to drop out; needs the rng "dropout".
        """
        x_BNC = constrain(x_BNC.astype(self.dtype), "batch", "length", None)
        x_BNC, _ = self.layers(x_BNC, mask_BN, context_BKC, context_mask_BK, deterministic)
        return self.norm(x_BNC)

    def init_cache(self, context_BKC: Array, positions: int) -> dict[str, Any]:
        """The KV cache of `decode`: keys and values of `positions` positions (none yet) and of the
        context, per layer.
        """
        stacked, block = self.variables["params"]["layers"], self._block()
        cross = jax.lax.map(
            lambda params: block.apply({"params": params}, context_BKC, method="context"), stacked
        )
        shape = (self.depth, context_BKC.shape[0], positions, self.heads, self.dim // self.heads)
        cache = {name: jnp.zeros(shape, self.dtype) for name in ("k", "v")} | cross
        cache = {
            name: constrain(entry, None, "batch", None, "heads", None)
            for name, entry in cache.items()
        }
        return start_decoding(stacked, cache, self.dtype)

    def decode(
        self, x_BC: Array, position: Array, cache: Mapping[str, Any], context_mask_BK: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Takes one position through a causal stack with cross-attention; returns it, (B, dim), and
        the KV cache that holds it too.
        """
        block = self._block()

        def step(params, x, entries):
            return block.apply(
                {"params": params}, x, entries, position, context_mask_BK, method="step"
            )

        x_BC = constrain(x_BC.astype(self.dtype), "batch", None)
        x_BC, cache = decode_layers(step, x_BC, cache, position)
        return self.norm(x_BC), cache

    @nn.nowrap
    def _block(self):
        return Block(**layer_fields(self, Block), parent=None)


def layer_fields(network: nn.Module, layer: type[nn.Module]) -> dict[str, Any]:
    """The fields of a network that its layer has too, as arguments of the layer."""
    return {name: getattr(network, name) for name in fields_of(layer)}


def scanned(
    layer: type[nn.Module], depth: int, remat: str, inputs: int
) -> Callable[..., nn.Module]:
    """`depth` copies of a layer as one scan over stacked parameters (leading logical axis
    "layers").

    Args:
      layer: called as `layer(x, *inputs) -> (x, None)`; the inputs are the same for every copy, the
        last one is the bool `deterministic`.
      remat: remat policy, a key of `REMAT`.
      inputs: number of inputs.
    """
    if REMAT[remat] is not None:
        layer = nn.remat(
            layer, policy=REMAT[remat], prevent_cse=False, static_argnums=(inputs + 1,)
        )
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * inputs,  # pyright: ignore[reportArgumentType]
        length=depth,
        unroll=depth if depth <= _STRAIGHT else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def start_decoding(params: Any, cache: Mapping[str, Array], dtype: str) -> dict[str, Any]:
    """The state of `decode_layers`: the layers' parameters and the KV cache, one entry per layer or
    stacked.

    Up to 64 layers are taken apart, once: slicing the stacked weights and cache at every token
    would cost more than the products with them. A deeper stack stays whole, and is run by a loop.
    Kernels are brought to `dtype` once, not at every token: on an H200 that was more than a quarter
    of the time of Parti 350M (`benchmarks/accelerator.py --profile parti_350m`). On one CPU large
    ones are also laid as `nn.conv.few_rows` reads them.

    Args:
      params: parameters of all layers, stacked. cache: entries (layers, B, positions, ...).
      dtype: of the computation of all `Dense` layers in them.
    """
    params = _laid(nn.meta.unbox(params), dtype, jax.tree.leaves(cache)[0].shape[1])
    depth = jax.tree.leaves(params)[0].shape[0]
    if depth > _UNROLLED:
        return {"params": params, "cache": dict(cache)}

    def layer(tree, i):
        return jax.tree.map(lambda leaf: leaf[i], tree)

    layers = range(depth)
    apart = {"params": params, "cache": dict(cache)}
    return {name: tuple(layer(tree, i) for i in layers) for name, tree in apart.items()}


def _laid(params, dtype, rows):
    """The parameters with each kernel in the layout that decoding reads; all others as they are."""
    found = {}
    for name, entry in params.items():
        if isinstance(entry, Mapping):
            found[name] = _laid(entry, dtype, rows)
        elif name != "kernel":
            found[name] = entry
        elif is_few(rows, entry[0].size):
            found[BY_OUTPUT] = entry.astype(dtype).swapaxes(-1, -2)
        else:
            found[name] = entry.astype(dtype)
    return found


def grow(state: Mapping[str, Any], names: Sequence[str], positions: int) -> dict[str, Any]:
    """The state of `decode_layers` with the cache entries of these names `positions` long."""

    def longer(entries, axis):
        def padding(entry):
            return [(0, positions - entry.shape[i] if i == axis else 0) for i in range(entry.ndim)]

        return {
            name: jnp.pad(entry, padding(entry)) if name in names else entry
            for name, entry in entries.items()
        }

    cache = state["cache"]
    cache = tuple(longer(one, 1) for one in cache) if isinstance(cache, tuple) else longer(cache, 2)
    return {**state, "cache": cache}


def decode_layers(
    step: Callable[[Any, Array, Mapping[str, Array]], tuple[Array, Mapping[str, Array]]],
    x_BC: Array,
    state: Mapping[str, Any],
    position: Array,
) -> tuple[Array, dict[str, Any]]:
    """Takes one position through all layers.

    Args:
      step: `(params, x_BC, cache) -> (x_BC, cache)` of one layer.
      state: from `start_decoding` or the last call.
      position: int32 scalar, the position that x belongs to.

    Returns:
      x_BC and the state with this position in its cache.
    """
    params, cache = state["params"], state["cache"]
    if isinstance(params, tuple):
        changed = []
        for of_layer, entries in zip(params, cache, strict=True):
            x_BC, entries = step(of_layer, x_BC, entries)
            changed.append(entries)
        return x_BC, {**state, "cache": tuple(changed)}

    def layer(i, carry):
        x, cache = carry

        def at(leaf):
            return jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)

        old = jax.tree.map(at, cache)
        x, new = step(jax.tree.map(at, params), x, old)
        written = {
            name: whole if new[name] is old[name] else _put(whole, new[name], i, position)
            for name, whole in cache.items()
        }
        return x, written

    depth = jax.tree.leaves(params)[0].shape[0]
    x_BC, cache = jax.lax.fori_loop(0, depth, layer, (x_BC, cache))
    return x_BC, {**state, "cache": cache}


def _put(whole, entries, layer, position):
    """The stacked cache with the one position that a step wrote in one layer."""
    new = jax.lax.dynamic_slice_in_dim(entries, position, 1, axis=1)
    return jax.lax.dynamic_update_slice(
        whole, new[None], (layer, 0, position, *(0,) * (whole.ndim - 3))
    )
