"""A text encoder that is trained with the system, as in the Parti paper."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax.config import fields_of, one_of
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.nn import limits
from t2i_jax.nn.conv import boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import REMAT, Transformer
from t2i_jax.sharding import constrain
from t2i_jax.text.encoder import CaptionEncoder
from t2i_jax.text.tokenizer import TextTokenizer, check_size, load, train_bpe
from t2i_jax.types import Array, Key, Params

_CAPTIONS_FOR_VOCABULARY = 50_000


class TextTransformer(nn.Module):
    """Token and learnt position embeddings, a transformer, a norm; fields as in `LearnedText`."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_length: int
    causal: bool
    dropout: float
    remat: str
    dtype: str

    @nn.compact
    def __call__(self, text_BL: Array, mask_BL: Array, deterministic: bool = True) -> Array:
        """Embeddings (B, L, dim) float32 of token ids, L at most `max_length`."""
        # with 0.02 what tells two words apart drowns in what both are soon given
        init = nn.initializers.normal(1.0)
        table_VC = parameter(
            self,
            "embedding",
            boxed(init, "vocab", "embed"),
            (self.vocab_size, self.dim),
            jnp.float32,
        )
        # whole for the look-up, whose rows are those of the batch
        table_VC = constrain(table_VC, None, None)
        positions_LC = parameter(
            self, "positions", boxed(init, None, "embed"), (self.max_length, self.dim), jnp.float32
        )
        x_BLC = table_VC[text_BL] + positions_LC[: text_BL.shape[1]]
        x_BLC = nn.Dropout(self.dropout)(x_BLC, deterministic=deterministic)
        shared = ("dim", "depth", "heads", "mlp_dim", "causal", "dropout", "remat", "dtype")
        blocks = Transformer(**{name: getattr(self, name) for name in shared}, name="transformer")
        return blocks(x_BLC, mask_BL, deterministic=deterministic).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LearnedText(CaptionEncoder):
    """The encoder of Parti (Yu et al. 2022, section 2.2): a transformer over the tokens, norm at
    its output.

    Embeddings of tokens and positions start with a standard deviation of 1, as those of T5 do.

    Attributes:
      dim, depth, heads, mlp_dim: widths and numbers; dim is a multiple of heads.
      vocab_size: ids are below it. max_length: tokens of a caption; what is longer is cut.
      causal: whether a token sees only itself and those before it, as in CLIP's encoder (Radford et
        al. 2021, section 2.4). What comes first is then plain to see: a diffusion model with it
        learns in far fewer steps which of two things stands above the other.
      dropout: on embeddings and updates, where `embed` is given a key; the paper has 0.1.
      remat: remat policy: "none", "dots", "attention" or "full".
      dtype: of the products; norms and softmax are float32.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int
    max_length: int = 128
    causal: bool = False
    dropout: float = 0.0
    remat: str = "none"
    dtype: str = "float32"

    trainable: ClassVar[bool] = True
    entry: ClassVar[str] = "text"  # of the batch: what `embed` takes

    def __post_init__(self):
        limits.check(self)
        for field in ("dim", "depth", "heads", "mlp_dim", "vocab_size", "max_length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")
        if self.dim % self.heads:
            larger = -(-self.dim // self.heads) * self.heads
            raise UserError(
                f"dim={self.dim} is not a multiple of heads={self.heads}; try dim={larger}."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} is outside [0, 1); try 0.1.")
        one_of("remat", self.remat, REMAT)

    @property
    def network(self) -> TextTransformer:
        """The Flax module."""
        return TextTransformer(**{name: getattr(self, name) for name in fields_of(TextTransformer)})

    def init(self, key: Key) -> Params:
        """Fresh parameters, boxed with their logical axes."""
        text_BL = jnp.zeros((1, min(2, self.max_length)), jnp.int32)
        return self.network.init(key, text_BL, text_BL == 0)["params"]

    def embed(
        self, params: Params, text_BL: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """Embeddings (B, L, dim) float32 of token ids (L at most `max_length`).

        Args:
          mask_BL: True at tokens; padding is not attended to, and rows there mean nothing.
          key: for dropout; None: nothing is dropped.
        """
        if text_BL.shape[1] > self.max_length:
            raise UserError(
                f"text has {text_BL.shape[1]} tokens, more than max_length={self.max_length}; cut "
                "it."
            )
        rngs = {} if key is None else {"dropout": key}
        embeds_BLD: Any = self.network.apply(
            {"params": params}, text_BL, mask_BL, deterministic=key is None, rngs=rngs
        )
        return embeds_BLD

    def quiet(self) -> LearnedText:
        """The encoder without dropout, for validation."""
        return dataclasses.replace(self, dropout=0.0)

    @property
    def trains_vocabulary(self) -> bool:
        """True: the vocabulary is trained on the captions."""
        return True

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Trains a vocabulary on the first 50,000 captions and writes it into `folder`, unless
        there is one.
        """
        folder = pathlib.Path(folder)
        if not folder.is_dir():
            first = list(itertools.islice(captions(), _CAPTIONS_FOR_VOCABULARY))
            with replacing(folder) as temporary:
                train_bpe(first, self.vocab_size).save(temporary)

    def tokenizer(self, folder: str | os.PathLike | None = None) -> TextTokenizer:
        """The vocabulary that `prepare` wrote into `folder`."""
        if folder is None:
            raise UserError(
                "folder=None: a LearnedText reads its vocabulary from RUN/text_tokenizer; name "
                "that folder."
            )
        tokenizer = load(folder)
        check_size(tokenizer, self.vocab_size, f"tokenizer={os.fspath(folder)!r}")
        return tokenizer
