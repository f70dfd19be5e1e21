"""The decoder of the Parti paper (Yu et al. 2022, arXiv 2206.10789): image tokens from a text
encoder's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import token_decoder
from t2i_jax.nn import embed, limits
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.grid_window import GridWindow
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import REMAT, Transformer
from t2i_jax.sharding import constrain
from t2i_jax.text.learned import LearnedText
from t2i_jax.types import Array

_POSITIONS = ("axial", "learned")


class PartiTransformer(token_decoder.TokenDecoder):
    """The decoder of the Parti paper: causal self-attention, cross-attention to text, MLP, a norm
    at the output.

        PartiTransformer(dim=1024, depth=12, heads=16, mlp_dim=4096)

    The start token is not one of the image tokens; a text that is dropped, or has no token, is
    replaced by a learnt vector. Each position has the positional embedding of the token that it
    predicts.

    Attributes:
      dim, depth, heads, mlp_dim: sizes; dim is a multiple of heads. dropout: on each update of a
        layer.
      fmap_size: tokens per side of an image. codebook_size: number of image tokens. text_embed_dim:
        width of the text embeddings. These three may be None where a `PartiTask` knows them.
      positions: "axial", a vector per row and one per column; or "learned", a vector per token.
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      dtype: of the computation; norms, softmax and logits are float32.
      window: side, odd, of the square of cells around a token from which it is predicted, as in a
        masked convolution (the paper's sparse attention, `GridWindow`); the text is seen by
        cross-attention as ever. None: all tokens before it. Weights are the same with and without.
        It takes no fused kernel, and a mesh cannot split its sequence.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    fmap_size: int | None = None
    codebook_size: int | None = None
    text_embed_dim: int | None = None
    positions: str = "axial"
    remat: str = "none"
    dtype: str = "float32"
    window: int | None = None

    past_names = ("k", "v")

    def __post_init__(self):
        limits.check(self)
        token_decoder.check_sizes(self, "dim", "depth", "heads", "mlp_dim")
        if self.dim % self.heads:
            near = max(self.dim // self.heads, 1) * self.heads
            raise UserError(
                f"dim={self.dim} is not a multiple of heads={self.heads}; try dim={near}."
            )
        config.one_of("positions", self.positions, _POSITIONS)
        config.one_of("remat", self.remat, REMAT)
        if self.window is not None:
            GridWindow(1, self.window)  # refuses a size that is none
        super().__post_init__()

    def setup(self):
        """Makes the layers and parameters."""
        token_decoder.check_complete(self)
        normal = nn.initializers.normal(0.02)

        def vector(name, *shape):
            return parameter(self, name, boxed(normal, *[None] * (len(shape) - 1), "embed"), shape)

        self.start_token = vector("start_token", self.dim)
        if self.positions == "axial":
            self.height_pos = vector("height_pos", self.fmap_size, self.dim)
            self.width_pos = vector("width_pos", self.fmap_size, self.dim)
        else:
            self.pos = vector("pos", self.num_tokens, self.dim)
        self.null_text = parameter(self, "null_text", boxed(normal, "text"), (self.text_embed_dim,))
        self.embedding = parameter(
            self, "embedding", boxed(normal, "vocab", "embed"), (self.codebook_size, self.dim)
        )
        shape = {
            n: getattr(self, n)
            for n in ("dim", "depth", "heads", "mlp_dim", "dropout", "remat", "dtype")
        }
        window = None if self.window is None else GridWindow(self.fmap_size, self.window)
        self.decoder = Transformer(cross=True, causal=True, window=window, **shape)
        self.to_logits = Dense(self.codebook_size, ("embed", "vocab"), init=normal)

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
          text_embeds_BLD, text_mask_BL: text, and True where it is no padding. A row without a
            token has the learnt null vector.
          keep_B: conditioning mask, False in rows whose text is replaced by the learnt null vector.
            None: all True.
          deterministic: False to drop out; needs the rng "dropout".
        """
        text_BLD, mask_BL = self._text(text_embeds_BLD, text_mask_BL, keep_B)
        start_B1C = jnp.broadcast_to(self.start_token, (ids_BN.shape[0], 1, self.dim))
        x_BNC = jnp.concatenate([start_B1C, self._look_up(ids_BN)], axis=1)
        x_BNC = x_BNC + self._positions()[: x_BNC.shape[1]]
        x_BNC = self.decoder(x_BNC, None, text_BLD, mask_BL, deterministic)
        return constrain(self.to_logits(x_BNC), "batch", "length", "vocab").astype(jnp.float32)

    def decode(
        self, ids_B: Array, position: Array, cache: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        """Logits (B, codebook_size) of token `position`, given the previous one; and the KV cache
        with it.

        Args:
          ids_B: token `position - 1`; not looked at where position is 0.
          position: int32 scalar, one more than at the last call.
        """
        x_BC = (
            jnp.where(position == 0, self.start_token, self.embedding[ids_B])
            + self._positions()[position]
        )
        x_BC, layers = self.decoder.decode(x_BC, position, cache["layers"], cache["text_mask"])
        return self.to_logits(x_BC).astype(jnp.float32), {**cache, "layers": layers}

    def _text(self, embeds_BLD, mask_BL, keep_B):
        token_decoder.check_text(self, embeds_BLD)
        told_B = mask_BL.any(axis=1)  # one without a token would attend to what is masked
        keep_B = told_B if keep_B is None else keep_B & told_B
        first_L = jnp.arange(mask_BL.shape[1]) == 0
        embeds_BLD = jnp.where(keep_B[:, None, None], embeds_BLD, self.null_text)
        return embeds_BLD, jnp.where(keep_B[:, None], mask_BL, first_L)

    def _layer_cache(self, text_BLD, length):
        return self.decoder.init_cache(text_BLD, length)

    def _look_up(self, ids):
        # The whole table, since the rows are those of the batch.
        return constrain(self.embedding, None, None)[ids]

    def _positions(self):
        return (
            embed.axial(self.height_pos, self.width_pos) if self.positions == "axial" else self.pos
        )


def _preset(
    encoder_depth: int, depth: int, dim: int, heads: int
) -> tuple[LearnedText, PartiTransformer]:
    """A preset, from a row of the paper's table 1: the MLP is 4 times as wide, 128 text tokens of
    16,000, 32 x 32 image tokens.
    """
    shared = {"dim": dim, "heads": heads, "mlp_dim": 4 * dim, "dropout": 0.1}
    text = LearnedText(depth=encoder_depth, vocab_size=16_000, max_length=128, **shared)
    return text, PartiTransformer(
        depth=depth, fmap_size=32, codebook_size=8192, text_embed_dim=dim, **shared
    )


# (text encoder, decoder) of the paper; 386 million, 789 million, 3.09 and 20.5 billion parameters.
PARTI_350M = _preset(12, 12, 1024, 16)
PARTI_750M = _preset(12, 36, 1024, 16)
PARTI_3B = _preset(12, 36, 2048, 32)
PARTI_20B = _preset(16, 64, 4096, 64)
