"""The interface of text encoders, and base classes for those that read captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.text.tokenizer import TextTokenizer, unknown_letters
from t2i_jax.types import Array, Key, Params
from t2i_jax.words import named

_LETTERS = 20  # most letters that a sentence lists


class TextEncoder(Protocol):
    """An encoder from captions to embeddings. Nobody asks which encoder it is: all that differs is
    said here.

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

    @property
    def trains_vocabulary(self) -> bool:
        """Whether `prepare` trains a vocabulary on the captions, of ids below `vocab_size`."""
        ...

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Writes into `folder` what `tokenizer` reads, from the captions of the data, unless it is
        there already.
        """
        ...

    def check_captions(self, captions: Iterable[str]) -> None:
        """Looks whether all captions of the data can be read, before training does.

        Args:
          captions: read once, or not at all where every text can be read.

        Raises:
          UserError: some can't.
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

    def quiet(self) -> Self:
        """The encoder without dropout, for validation."""
        ...


class CaptionEncoder:
    """The base of encoders that read captions, as token ids or class numbers, and are trained with
    the system or have no weights.
    """

    def spec(self: TextEncoder, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Ids and their mask."""
        shape = (batch_size, self.max_length)
        return {
            "text": jax.ShapeDtypeStruct(shape, jnp.int32),
            "text_mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        }

    def frozen(self) -> Mapping[str, Any]:
        """{}: no weights are frozen."""
        return {}

    def frozen_shapes(self) -> Mapping[str, Any]:
        """{}: no weights are frozen."""
        return {}

    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        """{}: captions are enough."""
        return {}

    @property
    def trains_vocabulary(self) -> bool:
        """False: the vocabulary comes with the weights, or there is none."""
        return False

    def check_captions(self, captions: Iterable[str]) -> None:
        """Accepts all captions: every text can be read."""

    def encode(
        self: TextEncoder, tokenizer: TextTokenizer | None, prompts: Any, field: str
    ) -> dict[str, np.ndarray]:
        """Ids of captions and their mask."""
        return encode_captions(tokenizer, prompts, self.max_length, field)

    def empty(self, count: int) -> list[str]:
        """Empty captions."""
        return [""] * count

    def quiet(self) -> Self:
        """Itself: it drops nothing."""
        return self


class FrozenEncoder(CaptionEncoder):
    """The base of encoders whose weights are never trained: they have `init`, which reads the
    weights, and their `shapes`.
    """

    def frozen(self: Any) -> Mapping[str, Any]:
        """The weights of `init`."""
        return {"text": self.init(jax.random.key(0))}

    def frozen_shapes(self: Any) -> Mapping[str, Any]:
        """The shapes of `shapes`, unboxed."""
        return {"text": sharding.unbox(self.shapes())}


def encode_captions(
    tokenizer: TextTokenizer | None, prompts: Any, max_length: int, field: str
) -> dict[str, np.ndarray]:
    """{"text" (P, L) int32, "text_mask" (P, L) bool} of captions.

    Raises:
      UserError: no captions, or something that is no caption.
    """
    captions = captions_of(prompts, field)
    if tokenizer is None:
        raise UserError(
            "text_tokenizer=None of the system cannot read captions; give the one it was trained "
            "with."
        )
    ids_PL, mask_PL = tokenizer(captions, max_length)
    return {"text": np.asarray(ids_PL, np.int32), "text_mask": np.asarray(mask_PL, bool)}


def captions_of(prompts: Any, field: str) -> list[str]:
    """The captions that a user gives: one string, or a list, tuple or array of strings.

    Raises:
      UserError: no captions, something that is no string, or a string that is no text (of a file
        or a command line that is not UTF-8).
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist() if prompts.ndim == 1 else prompts
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray, memoryview)):
        raise UserError(f"{field} is {named(prompts)}; give a string, or a list of strings.")
    if not len(prompts):
        raise UserError(f"{field}=[] is empty; give at least one caption.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"{field}[{i}] is {named(prompt)} and no caption; give a string.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            bad = prompt[error.start]
            raise UserError(
                f"{field}[{i}] has {bad!r} at character {error.start}, which stands for a byte "
                "that is not UTF-8; save or type the text as UTF-8."
            ) from None
    return [str(prompt) for prompt in prompts]


def are_captions(prompts: Any) -> bool:
    """Whether prompts are text, in an array too, and no array of ids or embeddings."""
    if isinstance(prompts, np.ndarray):
        return prompts.dtype.kind in "OTU"  # objects, and both kinds of strings
    return isinstance(prompts, str) or not hasattr(prompts, "ndim")


def told_of_cuts(
    tokenizer: TextTokenizer, captions: Sequence[str], max_length: int, one: str
) -> str | None:
    """A sentence about what is not read of captions: what is cut of those that are longer than
    `max_length` tokens, "prompt 0 has 53 tokens, the last 41 are cut", and which letters the
    vocabulary lacks. None where all is read.

    Args:
      one: how a caption is called, "prompt".
    """
    cut = told_of_lengths(np.asarray(tokenizer.lengths(captions)), max_length, one)
    unknown = _told_of_letters(unknown_letters(tokenizer, captions), one)
    return "; ".join(told for told in (cut, unknown) if told is not None) or None


def told_of_lengths(lengths: np.ndarray, max_length: int, one: str) -> str | None:
    """A sentence about what is cut, as in `told_of_cuts`, from numbers of tokens."""
    long = np.flatnonzero(lengths > max_length)
    if not len(long):
        return None
    first = int(lengths[long[0]])
    last = f"the last {first - max_length} are" if first - max_length > 1 else "the last one is"
    told = f"{one} {long[0]} has {first} tokens, {last} cut"
    if more := len(long) - 1:
        told += f"; so are {more} others" if more > 1 else "; so is one other"
    return told


def _told_of_letters(letters, one):
    rows = [row for row, lacking in enumerate(letters) if lacking]
    if not rows:
        return None
    first = letters[rows[0]]
    few = " ".join(first[:_LETTERS]) + (" ..." if len(first) > _LETTERS else "")
    told = f"{one} {rows[0]} has letters that the vocabulary lacks ({few}), which all read alike"
    if more := len(rows) - 1:
        told += f"; so have {more} others" if more > 1 else "; so has one other"
    return told
