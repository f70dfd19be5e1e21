"""Frozen T5 embeddings as the text of a system, and the one-call encoding that the PyTorch packages
offer.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.terminal import say
from t2i_jax.text import t5_files
from t2i_jax.text.cache import embed_captions
from t2i_jax.text.encoder import FrozenEncoder, told_of_cuts
from t2i_jax.text.t5_encoder import SIZES, T5Encoder
from t2i_jax.text.tokenizer import TextTokenizer, check_size, load
from t2i_jax.types import Array, Key, Params

DEFAULT_NAME = "google/t5-v1_1-base"
_SPELLINGS = {"bf16": "bfloat16", "fp32": "float32", "f32": "float32"}
_LONGEST = 256  # most tokens of a caption that t5_encode_text keeps
_STEP = 32  # it computes at multiples of this length, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class T5Text(FrozenEncoder):
    """A frozen T5 as a text encoder.

    Its weights stay in a folder or on the hub and are an argument of every step.

    >>> text = T5Text.from_directory("google/t5-v1_1-base")                       # doctest: +SKIP
    >>> ids_BL, mask_BL = text.tokenizer()(["a red circle"], text.max_length)     # doctest: +SKIP
    >>> embeds_BLD = text.embed(text.init(key), ids_BL, mask_BL)                  # doctest: +SKIP

    Attributes:
      source: folder with config.json, weights and the tokenizer, or a name on the Hugging Face hub.
        None: weights are drawn at random and there is no tokenizer, for trying things out.
      network: the encoder.
      max_length: tokens of a caption, the end included; what is longer is cut.
    """

    source: str | None
    network: T5Encoder
    max_length: int = 128

    trainable: ClassVar[bool] = False
    entry: ClassVar[str] = "text"  # of the batch: what `embed` takes

    def __post_init__(self):
        if self.max_length < 1:
            raise UserError(
                f"max_length={self.max_length} leaves no token; give 1 or more, for example 128."
            )

    @classmethod
    def from_directory(
        cls, source: str | os.PathLike, max_length: int = 128, dtype: str = "float32"
    ) -> T5Text:
        """The T5 of a folder or of a hub name.

        With a published name, nothing is fetched before the weights are used.

        Args:
          dtype: of the products, "bfloat16" ("bf16") to halve memory and time, else "float32"
            ("fp32").

        Raises:
          UserError: no such folder or name, a folder that holds no T5, or another dtype.
        """
        source, dtype = os.fspath(source), _SPELLINGS.get(str(dtype), dtype)
        if source in SIZES and not os.path.isdir(source):
            network = SIZES[source]
        else:
            network = t5_files.read_config(t5_files.folder_of(source, "config.json"))
        return cls(source, network.clone(dtype=dtype), max_length)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.network.dim

    def init(self, key: Key) -> Params:
        """The weights: read from `source` (NumPy arrays, `key` is not used), or random ones where
        there is none.
        """
        if self.source is None:
            return sharding.unbox(self._random(key))
        folder = t5_files.folder_of(self.source, "config.json", "model*.safetensors*")
        if not t5_files.has_weights(folder):
            folder = t5_files.folder_of(self.source, "config.json", "pytorch_model*.bin*")
        return t5_files.read_weights(folder, self.network, sharding.unbox(self.shapes()))

    def shapes(self) -> Params:
        """The weights' shapes, boxed with their logical axes: to place them on a mesh."""
        return jax.eval_shape(self._random, jax.random.key(0))

    def tokenizer(self, folder: str | os.PathLike | None = None) -> TextTokenizer:
        """T5's own tokenizer, from `source`; `folder` is not used.

        Raises:
          UserError: no vocabulary there, a damaged one, or one of more pieces than the embedding
            has rows.
        """
        if self.source is None:
            raise UserError(
                "text.source=None has no tokenizer; give a folder or a name such as "
                "google/t5-v1_1-base."
            )
        tokenizer = load(t5_files.folder_of(self.source, *t5_files.TOKENIZER_FILES))
        check_size(tokenizer, self.network.vocab_size, f"text={self.source!r}")
        return tokenizer

    def embed(
        self, params: Params, text_BL: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """Embeddings (B, L, dim) float32 of token ids.

        Rows at padding are not zeroed, the mask says where they are.
        """
        embeds_BLD: Any = self.network.apply({"params": params}, text_BL, mask_BL)
        return embeds_BLD

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Does nothing: T5 has its own tokenizer."""

    def _random(self, key):
        text_BL = jnp.zeros((1, 2), jnp.int32)
        return self.network.init(key, text_BL, text_BL == 0)["params"]


def t5_encode_text(
    texts: Sequence[str], name: str | os.PathLike = DEFAULT_NAME, *, dtype: str = "float32"
) -> tuple[Array, Array]:
    """T5 embeddings of captions, as `t5_encode_text` of parti-pytorch 0.2.0 computes them.

    A line on stderr tells what is not read: tokens beyond the 256th, letters that T5 lacks.

    Args:
      name: a folder, or a name on the hub. It is loaded once per process.

    Returns:
      embeds (B, L, dim) float32, with L the tokens of the longest caption (256 at most), rows at
      padding not zeroed; and mask (B, L) bool, True at tokens.
    """
    if isinstance(texts, str) or not len(texts):
        raise UserError(
            f"texts={texts!r} is not a list of captions; give for example ['a red circle']."
        )
    text, params, tokenizer, embed = _loaded(os.fspath(name), dtype)
    if (told := told_of_cuts(tokenizer, list(texts), text.max_length, "text")) is not None:
        say(f"t2i: {told}.")
    ids_BL, mask_BL = tokenizer(list(texts), text.max_length)
    longest = int(mask_BL.sum(axis=1).max())
    padded = min(-(-longest // _STEP) * _STEP, text.max_length)
    embeds_BLD = embed(params, ids_BL[:, :padded], mask_BL[:, :padded])
    return embeds_BLD[:, :longest], jnp.asarray(mask_BL[:, :longest])


def pair_of(text: T5Text, params: Params, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(embeddings (P, max_length, dim) float32, mask (P, max_length) bool) of captions, as a system
    with stored embeddings takes them for prompts.

    Longer captions are cut at `text.max_length`.

    Args:
      params: of `text.init`.
    """
    found = embed_captions(
        text, params, text.tokenizer(), captions, min(len(captions), 64), "float32"
    )
    embeds_PLD = np.zeros((len(captions), text.max_length, text.dim), np.float32)
    mask_PL = np.zeros(embeds_PLD.shape[:2], bool)
    for embeds_LD, row_LD, mask_L in zip(found, embeds_PLD, mask_PL, strict=True):
        row_LD[: len(embeds_LD)] = embeds_LD
        mask_L[: len(embeds_LD)] = True
    return embeds_PLD, mask_PL


def get_encoded_dim(name: str | os.PathLike = DEFAULT_NAME) -> int:
    """Width of the embeddings of a T5, without loading its weights."""
    return T5Text.from_directory(name).dim


@functools.lru_cache(maxsize=2)
def _loaded(name: str, dtype: str) -> tuple[T5Text, Any, TextTokenizer, Any]:
    text = T5Text.from_directory(name, max_length=_LONGEST, dtype=dtype)
    params = jax.tree.map(jnp.asarray, text.init(jax.random.key(0)))
    return text, params, text.tokenizer(), jax.jit(text.embed)
