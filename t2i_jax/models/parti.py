"""The Parti of parti-pytorch 0.2.0, weight for weight: a decoder over image tokens that attends to
frozen text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.models import token_decoder
from t2i_jax.nn import embed, limits
from t2i_jax.nn.activation import gelu
from t2i_jax.nn.attention import MultiQueryAttention
from t2i_jax.nn.conv import Dense, boxed, channel_norm, few_rows, is_few
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import REMAT, decode_layers, layer_fields, scanned, start_decoding
from t2i_jax.types import Array

COMPAT = ("misaligned_bias", "unit_init", "output_norm")
# Initializers of the relative position bias, from the scale of the other vectors.
_BIAS_INIT = {"normal": nn.initializers.normal, "conv": lambda scale: embed.conv_like}


class PartiLayer(nn.Module):
    """Self-attention with a relative position bias, cross-attention to text, feed-forward; fields
    as in `Parti`.
    """

    dim: int
    dim_head: int
    heads: int
    ff_mult: int
    fmap_size: int
    dropout: float = 0.0
    compat: tuple[str, ...] = ()
    dtype: str = "float32"
    rel_pos_init: str = "normal"

    def setup(self):
        """Makes the layers and parameters."""
        scale = _init_scale(self.compat)
        sizes, out_norm = (self.dim, self.heads, self.dim_head), "output_norm" in self.compat
        self.self_attention = MultiQueryAttention(*sizes, self.dropout, scale, out_norm, self.dtype)
        self.cross_attention = MultiQueryAttention(
            *sizes, self.dropout, scale, out_norm, self.dtype
        )
        table = ((2 * self.fmap_size - 1) ** 2, self.heads)
        start = _BIAS_INIT[self.rel_pos_init](scale)
        self.bias = parameter(self, "bias", boxed(start, None, "heads"), table)
        hidden = int(self.dim * self.ff_mult)
        self.ff_norm, self.ff_inner_norm = (
            channel_norm(None, self.dtype),
            channel_norm(None, self.dtype),
        )
        self.wide = Dense(hidden, ("embed", "mlp"), bias=False, dtype=self.dtype)
        self.narrow = Dense(self.dim, ("mlp", "embed"), bias=False, dtype=self.dtype)

    def __call__(
        self, x_BNC: Array, text_BLD: Array, mask_BL: Array, deterministic: bool
    ) -> tuple[Array, None]:
        """(x, None): the pair that a scan over layers takes."""
        x, length = x_BNC, x_BNC.shape[1]
        causal_1QK = jnp.tril(jnp.ones((1, length, length), bool))
        bias_QHK = _shifted(embed.relative_bias(self.bias, self.fmap_size), length, self.compat)
        x = x + self.self_attention(
            x, mask=causal_1QK, bias_QHK=bias_QHK, deterministic=deterministic
        )
        x = x + self.cross_attention(x, text_BLD, mask_BL[:, None], deterministic=deterministic)
        return x + self._feed_forward(x), None

    def text_keys(self, text_BLD: Array) -> Array:
        """The KV cache of the text."""
        return self.cross_attention.keys(text_BLD)

    def step(
        self, x_BC: Array, cache: Mapping[str, Array], position: Array, mask_BL: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Takes one position through the layer; returns it and the KV cache ("kv": (B, positions,
        dim_head)) that holds it too.
        """
        new_BD = self.self_attention.keys(x_BC, normalised=True)
        kv_BKD = jax.lax.dynamic_update_slice_in_dim(cache["kv"], new_BD[:, None], position, axis=1)
        past_1K = jnp.arange(kv_BKD.shape[1])[None] <= position
        x = x_BC + self.self_attention.step(
            x_BC, kv_BKD, past_1K, self._bias_row(position)[:, : kv_BKD.shape[1]]
        )
        x = x + self.cross_attention.step(x, cache["text_kv"], mask_BL)
        return x + self._feed_forward(x), {**cache, "kv": kv_BKD}

    def _bias_row(self, position):
        if "misaligned_bias" in self.compat:
            return embed.relative_bias_row(self.bias, self.fmap_size, position)
        row_HK = embed.relative_bias_row(self.bias, self.fmap_size, jnp.maximum(position - 1, 0))
        row_HK = jnp.pad(row_HK[:, :-1], ((0, 0), (1, 0)))
        return jnp.where(position == 0, 0.0, row_HK)

    def _feed_forward(self, x):
        return self.narrow(self.ff_inner_norm(gelu(self.wide(self.ff_norm(x)))))


class Parti(token_decoder.TokenDecoder):
    """A decoder from text embeddings to image tokens, as in parti-pytorch 0.2.0.

        Parti(dim=512, depth=8, fmap_size=16, codebook_size=8192, text_embed_dim=1024)

    Attributes:
      dim, depth, dim_head, heads, ff_mult: sizes. dropout: on the inputs of queries and keys.
      fmap_size: tokens per side of an image. codebook_size: number of image tokens. text_embed_dim:
        width of the text embeddings. These three may be None where a `PartiTask` knows them.
      max_text_len: text beyond it is cut off.
      compat: what to keep of the package where it is wrong or an older one differed:
        "misaligned_bias", the relative bias counts the start token as the first cell, so offsets
        are wrong across row ends (weights of the package need it); "unit_init", embeddings start
        from N(0, 1), with a first loss in the hundreds; "output_norm", a norm after each attention,
        as up to version 0.1.
      remat: remat policy: "none", "full" or "attention" (recompute all), or "dots" (keeps only
        matrix products: half the memory, and on a CPU faster).
      dtype: of the computation; norms, softmax and logits are float32.
      rel_pos_init: how the relative position bias of self-attention begins: "normal", small and
        random as in the package; or "conv", each head centred on one of the nearest cells
        (`embed.conv_like`).
    """

    dim: int
    depth: int
    dim_head: int = 64
    heads: int = 8
    dropout: float = 0.0
    ff_mult: int | float = 4
    fmap_size: int | None = None
    codebook_size: int | None = None
    text_embed_dim: int | None = None
    max_text_len: int = 128
    compat: tuple[str, ...] = ()
    remat: str = "dots"
    dtype: str = "float32"
    rel_pos_init: str = "normal"

    past_names = ("kv",)

    def __post_init__(self):
        limits.check(self)
        token_decoder.check_sizes(self, "dim", "depth", "dim_head", "heads", "max_text_len")
        config.some_of("compat", self.compat, COMPAT)
        config.one_of("remat", self.remat, REMAT)
        config.one_of("rel_pos_init", self.rel_pos_init, _BIAS_INIT)
        super().__post_init__()

    def setup(self):
        """Makes the layers and parameters."""
        token_decoder.check_complete(self)
        normal = nn.initializers.normal(_init_scale(self.compat))
        vectors = (self.fmap_size, self.dim)
        self.start_token = parameter(self, "start_token", boxed(normal, "embed"), (self.dim,))
        self.height_pos = parameter(self, "height_pos", boxed(normal, None, "embed"), vectors)
        self.width_pos = parameter(self, "width_pos", boxed(normal, None, "embed"), vectors)
        self.embedding = parameter(
            self, "embedding", boxed(normal, "vocab", "embed"), (self.codebook_size, self.dim)
        )
        self.init_norm, self.final_norm = (
            channel_norm(None, self.dtype),
            channel_norm(None, self.dtype),
        )
        self.layers = scanned(PartiLayer, self.depth, self.remat, inputs=3)(
            **layer_fields(self, PartiLayer)
        )

    def __call__(
        self,
        ids_BN: Array,
        text_embeds_BLD: Array,
        text_mask_BL: Array,
        keep_B: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Float32 logits (B, n + 1, codebook_size): position t predicts token t from the n given
        tokens.

        Args:
          ids_BN: at most num_tokens - 1 tokens, row by row.
          text_embeds_BLD, text_mask_BL: text, and True where it is no padding.
          keep_B: conditioning mask, False in rows whose text is dropped (classifier-free guidance).
            None: all True.
          deterministic: False to drop out; needs the rng "dropout".
        """
        text_BLD, mask_BL = self._text(text_embeds_BLD, text_mask_BL, keep_B)
        positions_NC = embed.axial(self.height_pos, self.width_pos)[: ids_BN.shape[1]]
        start_B1C = jnp.broadcast_to(self.start_token, (ids_BN.shape[0], 1, self.dim))
        x_BNC = jnp.concatenate([start_B1C, self.embedding[ids_BN] + positions_NC], axis=1)
        x_BNC, _ = self.layers(self.init_norm(x_BNC), text_BLD, mask_BL, deterministic)
        return self._logits(x_BNC)

    def decode(
        self, ids_B: Array, position: Array, cache: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        """Logits (B, codebook_size) of token `position`, given the previous one; and the KV cache
        with it.

        Args:
          ids_B: token `position - 1`; not looked at where position is 0.
          position: int32 scalar, one more than at the last call.
        """
        previous, side = jnp.maximum(position - 1, 0), self.grid[1]
        vector_C = self.height_pos[previous // side] + self.width_pos[previous % side]
        x_BC = jnp.where(position == 0, self.start_token, self.embedding[ids_B] + vector_C)
        layer = self._layer()

        def step(params, x, entries):
            return layer.apply(
                {"params": params}, x, entries, position, cache["text_mask"], method="step"
            )

        x_BC, layers = decode_layers(step, self.init_norm(x_BC), cache["layers"], position)
        return self._logits(x_BC), {**cache, "layers": layers}

    def _text(self, embeds_BLD, mask_BL, keep_B):
        token_decoder.check_text(self, embeds_BLD)
        embeds_BLD, mask_BL = embeds_BLD[:, : self.max_text_len], mask_BL[:, : self.max_text_len]
        return embeds_BLD, mask_BL if keep_B is None else mask_BL & keep_B[:, None]

    def _layer_cache(self, text_BLD, length):
        stacked, layer = self.variables["params"]["layers"], self._layer()
        text_kv = jax.lax.map(
            lambda params: layer.apply({"params": params}, text_BLD, method="text_keys"), stacked
        )
        past = jnp.zeros((self.depth, text_BLD.shape[0], length, self.dim_head), self.dtype)
        return start_decoding(stacked, {"kv": past, "text_kv": text_kv}, self.dtype)

    def _logits(self, x):
        x, table = self.final_norm(x), self.embedding.astype(self.dtype)
        if x.ndim == 2 and is_few(len(x), table.size):
            return few_rows(x, table, preferred_element_type=jnp.float32)
        flat = jax.lax.dot_general(
            x.reshape(-1, self.dim),
            table,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return flat.reshape(*x.shape[:-1], self.codebook_size)

    @nn.nowrap
    def _layer(self):
        return PartiLayer(**layer_fields(self, PartiLayer), parent=None)


@dataclasses.dataclass(frozen=True)
class PartiAndTokenizer:
    """A Parti and the image tokenizer that was saved along with it, as parti-pytorch saves them.

    Their parameters are {"parti": params, "tokenizer": weights of the tokenizer}.

    Attributes:
      parti: the network over tokens.
      tokenizer: the image tokenizer's network.
    """

    parti: Parti
    tokenizer: Any


def _init_scale(compat):
    return 1.0 if "unit_init" in compat else 0.02


def _shifted(bias_QHK, length, compat):
    """The bias between sequence positions, of which the first is the start token and no cell; it
    gets no bias.
    """
    if "misaligned_bias" in compat:
        # Reference quirk: position p is taken for cell p though it holds the token of cell p - 1.
        return bias_QHK[:length, :, :length]
    return jnp.pad(bias_QHK[: length - 1, :, : length - 1], ((1, 0), (0, 0), (1, 0)))
