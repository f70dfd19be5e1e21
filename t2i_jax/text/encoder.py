"""What every text encoder offers, and what those that read captions share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.text.tokenizer import TextTokenizer
from t2i_jax.types import Array, Key, Params


class TextEncoder(Protocol):
    """From captions to embeddings. Nobody asks which encoder it is: all that differs is said here.

    Attributes:
      dim: width of the embeddings. max_length: tokens of a caption; longer captions are cut.
      trainable: whether its parameters are trained with the system (`init` makes them); if not,
        `frozen` reads them.
      entry: of a batch, what `embed` takes: "text" (token ids) or "text_embeds".
    """

    dim: int
    max_length: int
    trainable: ClassVar[bool]
    entry: ClassVar[str]

    def init(self, key: Key) -> Params:
        """Parameters of an encoder that is trained with the system, boxed with their logical axes.

        Else the weights.
        """
        ...

    def embed(self, params: Params, texts: Array, mask_BL: Array, key: Key | None = None) -> Array:
        """Embeddings (B, L, dim) float32; with a key dropout is on."""
        ...

    def spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The entries of a batch that hold the text: `entry` and "text_mask"."""
        ...

    def frozen(self) -> Mapping[str, Any]:
        """{"text": weights} of an encoder that is not trained, read from where they are.

        {} for any other.
        """
        ...

    def frozen_shapes(self) -> Mapping[str, Any]:
        """{"text": shapes of the weights, boxed} of an encoder that is not trained.

        {} for any other.
        """
        ...

    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        """{name of a column of packed data: what it must have been made with}; {} where captions
        are enough.
        """
        ...

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Writes into `folder` what `tokenizer` reads, from the captions of the data, unless it is
        there already.
        """
        ...

    def tokenizer(self, folder: str | os.PathLike | None = None) -> TextTokenizer | None:
        """The tokenizer: of `folder`, or the encoder's own; None where prompts are embeddings."""
        ...

    def encode(
        self, tokenizer: TextTokenizer | None, prompts: Any, field: str
    ) -> dict[str, np.ndarray]:
        """{`entry`, "text_mask"} of what a user gives as prompts.

        Args:
          field: the argument's name, for messages.

        Raises:
          UserError: no prompts, or something that is none.
        """
        ...

    def empty(self, count: int) -> Any:
        """Prompts without any text, as `encode` takes them."""
        ...


def ids_spec(max_length: int, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
    """{"text", "text_mask"} of a batch whose captions come as token ids."""
    shape = (batch_size, max_length)
    return {
        "text": jax.ShapeDtypeStruct(shape, jnp.int32),
        "text_mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
    }


def encode_captions(
    tokenizer: TextTokenizer | None, prompts: Any, max_length: int, field: str
) -> dict[str, np.ndarray]:
    """{"text" (P, L) int32, "text_mask" (P, L) bool} of captions.

    Raises:
      UserError: no captions, or something that is no caption.
    """
    if isinstance(prompts, str):
        raise UserError(
            f"{field}={prompts!r} is one string; give a list of captions, [{prompts!r}]."
        )
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"{field} holds something that is no caption; give a list of strings.")
    if not prompts:
        raise UserError(f"{field}=[] is empty; give at least one caption.")
    if tokenizer is None:
        raise UserError(
            "text_tokenizer=None of the system cannot read captions; give the one it was trained "
            "with."
        )
    ids_PL, mask_PL = tokenizer(list(prompts), max_length)
    return {"text": np.asarray(ids_PL, np.int32), "text_mask": np.asarray(mask_PL, bool)}
