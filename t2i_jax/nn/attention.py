"""Attention over sequences: multi-head, and multi-query with one vector as the key and value of all
heads.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.cpu_attention import MASKED
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.fused_attention import attend, attend_to
from t2i_jax.nn.grid_window import GridWindow
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.row_sums import add_to_all
from t2i_jax.sharding import constrain
from t2i_jax.types import Array


def attend_where(
    q_BNHD: Array, k_BNHD: Array, v_BNHD: Array, mask_BN: Array | None, causal: bool
) -> Array:
    """Attention of a sequence to itself, (B, N, heads, D), heads and length split over the mesh.

    Args:
      mask_BN: True where a position may be seen; None: everywhere, by the fused path where there
        is one.
    """
    q, k, v = (constrain(t, "batch", "length", "heads", None) for t in (q_BNHD, k_BNHD, v_BNHD))
    if mask_BN is None:
        return attend(q, k, v, causal)
    length = q.shape[1]
    return attention(q, k, v, _seen(mask_BN[:, None, None], causal, length, length))


def _seen(mask, causal, queries, keys):
    """What a query sees: a mask, broadcastable to (B, heads, Q, K), or None for all; `causal`: of
    that the positions up to its own.
    """
    if not causal:
        return mask
    before_QK = jnp.tril(jnp.ones((queries, keys), bool))[None, None]
    return before_QK if mask is None else mask & before_QK


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017), no bias anywhere.

    Attributes:
      dim: width of what comes in and goes out. heads, dim_head: heads and their width.
      dtype: of the matrix products; the softmax is float32.
    """

    dim: int
    heads: int
    dim_head: int
    dtype: str = "float32"

    def setup(self):
        """Makes the layers and parameters."""
        inner = self.heads * self.dim_head
        self.q = Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype)
        self.k = Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype)
        self.v = Dense(inner, ("embed", "heads"), bias=False, dtype=self.dtype)
        self.out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype)

    def __call__(
        self,
        x_BQC: Array,
        context_BKC: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
        window: GridWindow | None = None,
    ) -> Array:
        """The update of x.

        Args:
          context_BKC: sequence that is attended to; None: x itself.
          mask: bool, broadcastable to (B, heads, Q, K), True where a key may be seen; None:
            everywhere.
          causal: whether position i sees only positions up to i.
          window: what a position sees of x itself, in place of `mask` and `causal`; None: as these
            say.
        """
        k_BKHD, v_BKHD = self.keys_values(x_BQC if context_BKC is None else context_BKC)
        k_BKHD, v_BKHD = (constrain(t, "batch", None, "heads", None) for t in (k_BKHD, v_BKHD))
        q_BQHD = constrain(self._heads(self.q(x_BQC)), "batch", "length", "heads", None)
        if window is not None:
            out_BQHD = window.attend(q_BQHD, k_BKHD, v_BKHD)
        elif context_BKC is None and mask is None:
            out_BQHD = attend(q_BQHD, k_BKHD, v_BKHD, causal)
        elif mask is not None and mask.shape[1:3] == (1, 1) and not causal:
            out_BQHD = attend_to(q_BQHD, k_BKHD, v_BKHD, mask[:, 0, 0], scale=None)
        else:
            seen = _seen(mask, causal, q_BQHD.shape[1], k_BKHD.shape[1])
            out_BQHD = attention(q_BQHD, k_BKHD, v_BKHD, seen)
        out_BQHD = constrain(out_BQHD, "batch", "length", "heads", None)
        return self.out(out_BQHD.reshape(*x_BQC.shape[:-1], -1))

    def keys_values(self, context_BKC: Array) -> tuple[Array, Array]:
        """Keys and values (B, K, heads, dim_head) of a context, as a KV cache keeps them."""
        return self._heads(self.k(context_BKC)), self._heads(self.v(context_BKC))

    def step(self, x_BC: Array, k_BKHD: Array, v_BKHD: Array, mask_BK: Array) -> Array:
        """The update of one position from the KV cache; `mask_BK` is True where a key may be seen,
        broadcast over B.
        """
        q_BHD = self._heads(self.q(x_BC)) * self.dim_head**-0.5
        scores_BHK = jnp.einsum("BHD,BKHD->BHK", q_BHD, k_BKHD, preferred_element_type=jnp.float32)
        weights_BHK = nn.softmax(jnp.where(mask_BK[:, None], scores_BHK, MASKED)).astype(
            v_BKHD.dtype
        )
        return self.out(jnp.einsum("BHK,BKHD->BHD", weights_BHK, v_BKHD).reshape(x_BC.shape[0], -1))

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.heads, self.dim_head)


def _null_first(q_BQHD, kv_BKD, null_D, seen, bias):
    """softmax(q k + bias) k, (B, Q, H, D), of which the first of K + 1 keys is always seen."""
    null_B1D = jnp.broadcast_to(null_D, (len(kv_BKD), 1, null_D.shape[-1]))
    kv_BK1D = jnp.concatenate([null_B1D, kv_BKD], axis=1)[:, :, None]
    first = [(0, 0), (0, 0), (1, 0)]
    if seen is not None:
        seen = jnp.pad(seen, first, constant_values=True)[:, None]
    if bias is not None:
        bias = jnp.pad(bias, first).swapaxes(0, 1)
    return attention(q_BQHD, kv_BK1D, kv_BK1D, seen, bias, scale=1.0)


def _null_apart(q_BQHD, kv_BKD, null_D, seen, bias):
    """The same without an array of K + 1 keys, a number that no tile of an accelerator divides."""
    wide = {"preferred_element_type": jnp.float32}
    scores_BQHK = jnp.einsum("BQHD,BKD->BQHK", q_BQHD, kv_BKD, **wide)
    null_BQH1 = jnp.einsum("BQHD,D->BQH", q_BQHD, null_D, **wide)[..., None]
    if bias is not None:
        scores_BQHK = add_to_all(scores_BQHK, bias)
    if seen is not None:
        scores_BQHK = jnp.where(seen[:, :, None], scores_BQHK, MASKED)
    top = jax.lax.stop_gradient(
        jnp.maximum(jnp.max(scores_BQHK, axis=-1, keepdims=True), null_BQH1)
    )
    e_BQHK, e_null = jnp.exp(scores_BQHK - top), jnp.exp(null_BQH1 - top)
    total = jnp.sum(e_BQHK, axis=-1, keepdims=True) + e_null
    out_BQHD = jnp.einsum("BQHK,BKD->BQHD", (e_BQHK / total).astype(kv_BKD.dtype), kv_BKD)
    return out_BQHD + (e_null / total).astype(kv_BKD.dtype) * null_D


class MultiQueryAttention(nn.Module):
    """Attention of parti-pytorch: every head shares one vector per position, which is its key and
    its value too.

    A learnt vector, always visible, comes before the keys; a row whose text is dropped sees nothing
    else. The input is normalised, the context of cross-attention is not. (Shazeer 2019 shares keys
    and values among heads.)

    Attributes:
      dim: width of input and output. heads, dim_head: heads and their width. dropout: on the inputs
        of the projections to queries and keys.
      null_scale: standard deviation of the first learnt vector. out_norm: whether the output is
        normalised.
    """

    dim: int
    heads: int
    dim_head: int
    dropout: float = 0.0
    null_scale: float = 0.02
    out_norm: bool = False
    dtype: str = "float32"

    def setup(self):
        """Makes the layers and parameters."""
        self.norm = channel_norm(None, self.dtype)
        self.to_q = Dense(
            self.heads * self.dim_head, ("embed", "heads"), bias=False, dtype=self.dtype
        )
        self.to_kv = Dense(self.dim_head, ("embed", "kv"), bias=False, dtype=self.dtype)
        self.to_out = Dense(self.dim, ("heads", "embed"), bias=False, dtype=self.dtype)
        if self.out_norm:
            self.after_out = channel_norm(None, self.dtype)
        self.null_kv = parameter(
            self, "null_kv", boxed(nn.initializers.normal(self.null_scale), "kv"), (self.dim_head,)
        )
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        x_BQC: Array,
        context_BKC: Array | None = None,
        mask: Array | None = None,
        bias_QHK: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The update of x.

        Args:
          context_BKC: sequence that is attended to; None: x, normalised.
          mask: bool, broadcastable to (B, Q, K), True where a key may be seen.
          bias_QHK: added to the scores in float32.
        """
        x_BQC = self.norm(x_BQC)
        q_BQHD = self._queries(self.drop(x_BQC, deterministic=deterministic))
        context = x_BQC if context_BKC is None else context_BKC
        kv_BKD = self.to_kv(self.drop(context.astype(self.dtype), deterministic=deterministic))
        null_D = self.null_kv.astype(self.dtype)
        out_BQHD = jax.lax.platform_dependent(
            q_BQHD, kv_BKD, null_D, mask, bias_QHK, cpu=_null_first, default=_null_apart
        )
        return self._project(out_BQHD)

    def keys(self, context_BKC: Array, normalised: bool = False) -> Array:
        """Vectors (B, K, dim_head) of a context for the KV cache; `normalised` when it is x
        itself.
        """
        return self.to_kv(self.norm(context_BKC) if normalised else context_BKC.astype(self.dtype))

    def step(
        self, x_BC: Array, kv_BKD: Array, mask_BK: Array, bias_HK: Array | None = None
    ) -> Array:
        """The update of one position from the KV cache; `mask_BK` is True where a key may be seen,
        broadcast over B.
        """
        q_BHD, null_D = self._queries(self.norm(x_BC)), self.null_kv.astype(self.dtype)
        scores_BHK = jnp.einsum("BHD,BKD->BHK", q_BHD, kv_BKD, preferred_element_type=jnp.float32)
        scores_BHK = scores_BHK if bias_HK is None else scores_BHK + bias_HK
        scores_BHK = jnp.where(mask_BK[:, None], scores_BHK, MASKED)
        null_BH1 = jnp.einsum("BHD,D->BH", q_BHD, null_D, preferred_element_type=jnp.float32)[
            ..., None
        ]
        weights_BHK = nn.softmax(jnp.concatenate([null_BH1, scores_BHK], axis=-1)).astype(
            self.dtype
        )
        out_BHD = (
            jnp.einsum("BHK,BKD->BHD", weights_BHK[..., 1:], kv_BKD) + weights_BHK[..., :1] * null_D
        )
        return self._project(out_BHD)

    def _queries(self, x):
        return self.to_q(x).reshape(*x.shape[:-1], self.heads, self.dim_head) * self.dim_head**-0.5

    def _project(self, out):
        x = self.to_out(out.reshape(*out.shape[:-2], -1))
        return self.after_out(x) if self.out_norm else x
