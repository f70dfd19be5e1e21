"""The network of DALL-E 2's diffusion prior (Ramesh et al. 2022, section 2.2), weight for weight
that of dalle2-pytorch 1.15.6: a causal transformer from a caption and a noised image embedding to
the network's prediction.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.cpu_attention import MASKED
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import unit
from t2i_jax.nn.transformer import REMAT, layer_fields, scanned
from t2i_jax.sharding import constrain
from t2i_jax.types import Array

BUCKETS, _EXACT, _FARTHEST = 32, 16, 128  # buckets of the bias by distance, as T5 has them
_SCALE = 16.0  # factor of the cosines of queries and keys
_ROTATED = 32  # channels of a head that are rotated, at most


class Attention(nn.Module):
    """Causal attention between unit queries and unit keys, with one key and value for all heads; a
    learnt key and value, always visible, come first.

    Attributes:
      dim: width of input and output. heads, dim_head: heads and their width. rotary: whether
        queries and keys are rotated by their positions. dropout: of the weights of attention.
    """

    dim: int
    heads: int
    dim_head: int
    rotary: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array, bias_HNK: Array, deterministic: bool) -> Array:
        """The update of x.

        Args:
          bias_HNK: added to the scores of the K = N + 1 keys, the learnt one first; `MASKED` where
            a key may not be seen.
        """
        B, N, _ = x_BNC.shape
        inner, D = self.heads * self.dim_head, self.dim_head
        x_BNC = channel_norm("norm", self.dtype)(x_BNC)
        q = Dense(inner, ("embed", "heads"), False, self.dtype, name="to_q")(x_BNC)
        k, v = jnp.split(
            Dense(2 * D, ("embed", "kv"), False, self.dtype, name="to_kv")(x_BNC), 2, axis=-1
        )
        q, k, v = q.reshape(B, N, self.heads, D), k[:, :, None], v[:, :, None]
        if self.rotary:
            q, k = rotated(q), rotated(k)
        null = parameter(
            self, "null_kv", boxed(nn.initializers.normal(1.0), None, "kv"), (2, D), jnp.float32
        )
        k, v = (
            jnp.concatenate([jnp.broadcast_to(one.astype(self.dtype), (B, 1, 1, D)), t], axis=1)
            for one, t in zip(null, (k, v), strict=True)
        )
        q, k = (
            (unit(t) * math.sqrt(_SCALE)).astype(self.dtype)
            for t in (constrain(q, "batch", "length", "heads", None), k)
        )
        if self.dropout and not deterministic:
            out = self._dropped_out(q, k[:, :, 0], v[:, :, 0], bias_HNK)
        else:
            out = attention(q, k, v, bias_HQK=bias_HNK, scale=1.0)
        out = Dense(self.dim, ("heads", "embed"), False, self.dtype, name="to_out")(
            out.reshape(B, N, inner)
        )
        return channel_norm("out_norm", self.dtype)(out)

    def _dropped_out(self, q_BNHD, k_BKD, v_BKD, bias_HNK):
        scores = jnp.einsum("BNHD,BKD->BHNK", q_BNHD, k_BKD, preferred_element_type=jnp.float32)
        weights = nn.softmax(scores + bias_HNK).astype(self.dtype)
        weights = nn.Dropout(self.dropout, deterministic=False)(weights)
        return jnp.einsum("BHNK,BKD->BNHD", weights, v_BKD)


class FeedForward(nn.Module):
    """Norm, SwiGLU (half of the channels times the SiLU of the other half, Shazeer 2020), and back.

    Attributes:
      mult: the inner width in multiples of `dim`. normformer: whether the inner vectors are
        normalised (Shleifer et al. 2021). dropout: of the inner vectors.
    """

    dim: int
    mult: int | float = 4
    normformer: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BNC: Array, deterministic: bool) -> Array:
        """The update of x."""
        hidden = int(self.mult * self.dim)
        x = channel_norm("norm", self.dtype)(x_BNC)
        x = Dense(2 * hidden, ("embed", "mlp"), False, self.dtype, name="wide")(x)
        value, gate = jnp.split(constrain(x, "batch", "length", "mlp"), 2, axis=-1)
        x = value * nn.silu(gate)
        x = channel_norm("inner_norm", self.dtype)(x) if self.normformer else x
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        return Dense(self.dim, ("mlp", "embed"), False, self.dtype, name="narrow")(x)


class Layer(nn.Module):
    """Attention and feed-forward, each added; fields as in `DiffusionPriorNetwork`."""

    dim: int
    dim_head: int
    heads: int
    ff_mult: int | float
    attn_dropout: float
    ff_dropout: float
    normformer: bool
    rotary_emb: bool
    dtype: str

    @nn.compact
    def __call__(self, x_BNC: Array, bias_HNK: Array, deterministic: bool) -> tuple[Array, None]:
        """(x, None): the pair that a scan over layers takes."""
        attention = Attention(
            self.dim, self.heads, self.dim_head, self.rotary_emb, self.attn_dropout, self.dtype,
            name="attention",
        )  # fmt: skip
        x = x_BNC + attention(x_BNC, bias_HNK, deterministic)
        mlp = FeedForward(
            self.dim, self.ff_mult, self.normformer, self.ff_dropout, self.dtype, name="mlp"
        )
        x = x + mlp(x, deterministic)
        return constrain(x, "batch", "length", None), None


class DiffusionPriorNetwork(nn.Module):
    """The network of dalle2-pytorch 1.15.6's diffusion prior.

        DiffusionPriorNetwork(dim=512, depth=6, dim_head=64, heads=8)

    Its sequence is: the encodings of the caption's tokens, the caption's embedding, the timestep,
    the noised image embedding, its own last estimate where it is self-conditioned, and a learnt
    query, at which the prediction is read.

    Attributes:
      dim, depth, dim_head, heads, ff_mult: sizes.
      num_timesteps: timesteps, each with a learnt vector; None: the condition is any number, by
        sines and an MLP.
      num_time_embeds, num_image_embeds, num_text_embeds: tokens that stand for the timestep, the
        noised image embedding and the caption's embedding.
      max_text_len: tokens of the caption; longer ones are cut, and shorter ones are filled up with
        learnt vectors, of which every position has its own.
      self_cond: whether it also sees its own last estimate (Chen et al. 2022).
      embed_dim: width of the embeddings of captions and images; None: `dim`.
      text_dim: width of the tokens' encodings; None: `dim`.
      norm_in, norm_out: whether the sequence is normalised before the first and after the last
        layer. final_proj: whether the prediction goes through a linear layer.
      attn_dropout, ff_dropout: of the weights of attention and inside the feed-forwards.
      normformer: whether the feed-forwards normalise inside.
      rotary_emb: whether queries and keys are rotated by their positions (Su et al. 2021), beside
        the learnt bias by distance.
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      dtype: of the computation; norms, softmax and the prediction are float32.
    """

    dim: int
    depth: int
    dim_head: int = 64
    heads: int = 8
    ff_mult: int | float = 4
    num_timesteps: int | None = None
    num_time_embeds: int = 1
    num_image_embeds: int = 1
    num_text_embeds: int = 1
    max_text_len: int = 256
    self_cond: bool = False
    embed_dim: int | None = None
    text_dim: int | None = None
    norm_in: bool = False
    norm_out: bool = True
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    final_proj: bool = True
    normformer: bool = False
    rotary_emb: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        limits.check(self)
        for name in _COUNTED:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is not positive; give 1 or more.")
        for name in ("attn_dropout", "ff_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is outside [0, 1); try 0.05.")
        if self.rotary_emb and self.dim_head % 2:
            raise UserError(
                f"dim_head={self.dim_head} is odd, and rotary_emb rotates pairs of channels; give "
                f"{self.dim_head + 1}."
            )
        if self.num_timesteps is None and (self.dim % 2 or self.dim < 4):
            raise UserError(
                f"dim={self.dim} makes no sines and cosines of a timestep; give an even number "
                "from 4, or num_timesteps."
            )
        if not self.final_proj and self.width != self.dim:
            raise UserError(
                f"final_proj=False gives predictions of dim={self.dim}, and embeddings are "
                f"embed_dim={self.embed_dim} wide; give final_proj=True."
            )
        config.one_of("remat", self.remat, REMAT)
        super().__post_init__()

    @property
    def width(self) -> int:
        """Width of the embeddings of captions and images."""
        return self.embed_dim or self.dim

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        of_embeddings = self.num_text_embeds + self.num_time_embeds + self.num_image_embeds
        return self.max_text_len + of_embeddings + self.self_cond + 1

    @nn.compact
    def __call__(
        self,
        x_BD: Array,
        condition_B: Array,
        text_embed_BD: Array,
        encodings_BLE: Array | None = None,
        mask_BL: Array | None = None,
        keep_text_B: Array | None = None,
        keep_image_B: Array | None = None,
        last_BD: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """The prediction (B, embed_dim), float32.

        Args:
          x_BD: noised image embeddings, scaled as the diffusion has them.
          condition_B: timesteps, or any numbers where `num_timesteps` is None.
          text_embed_BD: embeddings of the captions, of length 1.
          encodings_BLE: of the captions' tokens; None: none. mask_BL: True where there is a token;
            None: where an encoding is not all zeros, as the package has it.
          keep_text_B: False in rows that lose their caption; None: all True.
          keep_image_B: False in rows that lose the noised image embedding; None: all True.
          last_BD: the last estimate, of a self-conditioned network; None: zeros.
          deterministic: False for dropout; needs the rng "dropout".
        """
        B = x_BD.shape[0]
        tokens = [
            self._text_tokens(B, encodings_BLE, mask_BL, keep_text_B),
            self._or_null(
                self._spread("text_embeds", text_embed_BD, self.num_text_embeds), keep_text_B,
                "null_text_embeds", (self.num_text_embeds, self.dim),
            ),
            self._time_tokens(condition_B),
            self._or_null(
                self._spread("image_embeds", x_BD, self.num_image_embeds), keep_image_B,
                "null_image_embed", (self.dim,),
            ),
        ]  # fmt: skip
        if self.self_cond:
            last_BD = jnp.zeros_like(x_BD) if last_BD is None else last_BD
            tokens.append(self._spread("self_cond_in", last_BD, 1))
        query = self._normal("learned_query", "embed", shape=(self.dim,))
        tokens.append(jnp.broadcast_to(query, (B, 1, self.dim)))
        x = jnp.concatenate([t.astype(self.dtype) for t in tokens], axis=1)
        return self._project(self._transformed(x, deterministic)[:, -1])

    def _transformed(self, x_BNC, deterministic):
        x = constrain(x_BNC, "batch", "length", None)
        x = channel_norm("norm_in", self.dtype)(x) if self.norm_in else x
        table_WH = self._normal("relative_bias", None, "heads", shape=(BUCKETS, self.heads))
        bias_HNK = causal_bias(table_WH, x.shape[1])
        layers = scanned(Layer, self.depth, self.remat, inputs=2)
        x, _ = layers(**layer_fields(self, Layer), name="layers")(x, bias_HNK, deterministic)
        return x

    def _project(self, x_BC):
        if self.norm_out:
            # The package divides by the largest number, so that halves do not overflow, and so
            # turns the sign of vectors without a positive one; here the sign stays.
            most = jnp.abs(jnp.max(x_BC, axis=-1, keepdims=True))
            x_BC = x_BC / jax.lax.stop_gradient(jnp.maximum(most, 1e-6))
            x_BC = channel_norm("norm", self.dtype)(x_BC)
        if self.final_proj:
            x_BC = Dense(self.width, ("embed", None), False, self.dtype, name="project_out")(x_BC)
        return x_BC.astype(jnp.float32)

    def _text_tokens(self, rows, encodings_BLE, mask_BL, keep_B):
        """(B, max_text_len, dim): encodings, and learnt vectors where there is no token."""
        L, nulls = self.max_text_len, (self.max_text_len, self.dim)
        if encodings_BLE is None:
            null_LC = self._normal("null_text_encodings", None, "embed", shape=nulls)
            return jnp.broadcast_to(null_LC, (rows, *nulls))
        if mask_BL is None:
            mask_BL = jnp.any(encodings_BLE != 0, axis=-1)
        short = max(L - encodings_BLE.shape[1], 0)
        x = jnp.pad(encodings_BLE[:, :L], ((0, 0), (0, short), (0, 0)))
        keep_BL = jnp.pad(mask_BL[:, :L].astype(bool), ((0, 0), (0, short)))
        if self.text_dim not in (None, self.dim):
            x = Dense(self.dim, ("text", "embed"), True, self.dtype, name="text_encodings")(x)
        keep_BL = keep_BL if keep_B is None else keep_BL & keep_B[:, None]
        return self._or_null(x, keep_BL, "null_text_encodings", nulls)

    def _time_tokens(self, condition_B):
        wide = self.num_time_embeds * self.dim
        if self.num_timesteps is not None:
            table = self._normal("time_embedding", None, "embed", shape=(self.num_timesteps, wide))
            x = table[condition_B.astype(jnp.int32)]
        else:
            x = sines(condition_B.astype(jnp.float32), self.dim)
            for name in ("time_hidden", "time_hidden_2"):
                x = nn.silu(Dense(2 * wide, ("embed", "mlp"), name=name)(x))
            x = Dense(wide, ("mlp", "embed"), name="time_out")(x)
        return x.reshape(-1, self.num_time_embeds, self.dim)

    def _spread(self, name, x_BD, count):
        """An embedding as `count` tokens (B, count, dim); as it is where it is one already."""
        if count > 1 or x_BD.shape[-1] != self.dim:
            x_BD = Dense(count * self.dim, (None, "embed"), True, self.dtype, name=name)(x_BD)
        return x_BD.reshape(-1, count, self.dim)

    def _or_null(self, x, keep, name, shape):
        """The tokens, and learnt ones in the rows (B,) or at the places (B, L) that lose them."""
        axes = (None,) * (len(shape) - 1)
        null = self._normal(name, *axes, "embed", shape=shape)
        if keep is None:
            return x
        keep = keep.reshape(*keep.shape, *(1,) * (x.ndim - keep.ndim))
        return jnp.where(keep, x.astype(self.dtype), null.astype(self.dtype))

    def _normal(self, name, *axes, shape):
        return parameter(self, name, boxed(nn.initializers.normal(1.0), *axes), shape, jnp.float32)


_COUNTED = (
    "dim", "depth", "dim_head", "heads", "num_timesteps", "num_time_embeds", "num_image_embeds",
    "num_text_embeds", "max_text_len", "embed_dim", "text_dim",
)  # fmt: skip


def sines(condition_B: Array, dim: int) -> Array:
    """(B, dim) sines and cosines of a number at wave lengths from 2 pi to 20000 pi."""
    half = dim // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(1e4) / (half - 1)))
    angles = condition_B[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rates(dim_head: int) -> np.ndarray:
    """The angles per position, float32, by which the pairs of a head's first channels are turned.

    At most 32 channels are turned.
    """
    turned = min(_ROTATED, dim_head)
    exponents = np.arange(0, turned, 2)[: turned // 2].astype(np.float32) / turned
    powers = (10000.0 ** exponents.astype(np.float64)).astype(np.float32)  # as PyTorch rounds
    return np.float32(1) / powers


def rotated(x_BNHD: Array) -> Array:
    """Heads whose neighbouring channels are turned by their positions (Su et al. 2021, eq. 34)."""
    each = rates(x_BNHD.shape[-1])
    angles_NR = np.outer(np.arange(x_BNHD.shape[1], dtype=np.float32), each)
    cos, sin = (f(angles_NR)[None, :, None].astype(np.float32) for f in (np.cos, np.sin))
    turned, rest = jnp.split(x_BNHD.astype(jnp.float32), [2 * len(each)], axis=-1)
    even, odd = turned[..., ::2], turned[..., 1::2]
    pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([pairs.reshape(turned.shape), rest], axis=-1).astype(x_BNHD.dtype)


def causal_bias(table_WH: Array, length: int) -> Array:
    """Bias (heads, N, N + 1) of N queries to the learnt key and N keys: a learnt number by bucket
    of the distance, `MASKED` at later positions.

    Reference quirk: queries are counted from 0 and keys with the learnt one from 0, so that a token
    and the one before it share bucket 0. Weights of the package are trained so.
    """
    ahead_NK = np.arange(length)[:, None] - np.arange(length + 1)[None]  # query - key
    hot_NKW = jax.nn.one_hot(_bucket(np.maximum(ahead_NK, 0)), BUCKETS, dtype=table_WH.dtype)
    bias_HNK = jnp.einsum("NKW,WH->HNK", hot_NKW, table_WH, precision="highest")
    return jnp.where(ahead_NK >= -1, bias_HNK, MASKED)


def _bucket(distance):
    """T5's buckets: one for each distance up to 16, and wider ones up to 128."""
    far = np.log(np.maximum(distance, _EXACT) / _EXACT) / math.log(_FARTHEST / _EXACT)
    wide = _EXACT + (far * (BUCKETS - _EXACT)).astype(int)
    return np.where(distance < _EXACT, distance, np.minimum(wide, BUCKETS - 1))


def init(network: DiffusionPriorNetwork, key: Any, *, encodings: bool = True) -> Any:
    """First parameters (boxed).

    Args:
      encodings: whether captions come with encodings of their tokens.
    """
    embed = jnp.zeros((1, network.width))
    text = jnp.zeros((1, 1, network.text_dim or network.dim)) if encodings else None
    return network.init(key, embed, jnp.zeros((1,)), embed, text)["params"]


# The prior of DALL-E 2 (Ramesh et al. 2022, table 3): 24 blocks, 2048 wide; of CLIP's ViT-L/14.
DALLE2_PRIOR = DiffusionPriorNetwork(
    dim=2048, depth=24, dim_head=64, heads=32, embed_dim=768, text_dim=768, max_text_len=77
)
