"""Text that comes as embeddings: computed once, stored with the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays
from t2i_jax.types import Array, Key, Params


def is_stored(encoder: Any) -> bool:
    """Whether a text encoder reads stored embeddings; None, no encoder, does not."""
    return encoder is not None and encoder.entry == StoredText.entry


@dataclasses.dataclass(frozen=True)
class StoredText:
    """Stored embeddings in place of an encoder: the batch brings "text_embeds" and "text_mask".

    Attributes:
      dim: width of the embeddings, for example 768 for google/t5-v1_1-base.
      max_length: rows of a caption, padding included.
    """

    dim: int
    max_length: int = 128

    trainable: ClassVar[bool] = False
    entry: ClassVar[str] = "text_embeds"  # of the batch: what `embed` takes

    def __post_init__(self):
        for field in ("dim", "max_length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")

    def init(self, key: Key) -> Params:
        """{}: there are no parameters."""
        return {}

    def embed(
        self, params: Params, text_BLD: Array, mask_BL: Array, key: Key | None = None
    ) -> Array:
        """The batch's own embeddings, float32."""
        if text_BLD.shape[-1] != self.dim:
            raise UserError(
                f"text_embeds are {text_BLD.shape[-1]} wide, not text.dim={self.dim}; make them "
                "equal."
            )
        return jnp.asarray(text_BLD, jnp.float32)

    def spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Embeddings and their mask."""
        return {
            "text_embeds": jax.ShapeDtypeStruct(
                (batch_size, self.max_length, self.dim), jnp.float32
            ),
            "text_mask": jax.ShapeDtypeStruct((batch_size, self.max_length), jnp.bool_),
        }

    def frozen(self) -> Mapping[str, Any]:
        """{}: there are no weights."""
        return {}

    def frozen_shapes(self) -> Mapping[str, Any]:
        """{}: there are no weights."""
        return {}

    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        """Embeddings of this width in the column "text"."""
        return {"text": {"dim": self.dim}}

    @property
    def trains_vocabulary(self) -> bool:
        """False: there is none."""
        return False

    def check_captions(self, captions: Iterable[str]) -> None:
        """Does nothing: no caption is read."""

    def prepare(self, folder: str | os.PathLike, captions: Callable[[], Iterable[str]]) -> None:
        """Does nothing: there is no vocabulary."""

    def tokenizer(self, folder: str | os.PathLike | None = None) -> None:
        """None: prompts are embeddings."""

    def encode(self, tokenizer: Any, prompts: Any, field: str) -> dict[str, np.ndarray]:
        """{"text_embeds", "text_mask"} of a pair (embeddings (P, L, dim), mask (P, L)), padded to
        `max_length`. A row of the mask that sees nothing is a prompt without text.
        """
        if not is_pair(prompts):
            raise UserError(
                f"{field}: this run needs stored text embeddings; give the pair (embeddings, "
                "mask), for example t5_encode_text(captions), or t2i sample its --t5."
            )
        embeds_PLD = self._read(arrays.given, prompts[0], f"{field}: what is given as embeddings")
        mask_PL = self._read(arrays.mask, prompts[1], f"{field}: what is given as their mask")
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused
            embeds_PLD = embeds_PLD.astype(np.float32)
        if (
            embeds_PLD.ndim != 3
            or embeds_PLD.shape[2] != self.dim
            or mask_PL.shape != embeds_PLD.shape[:2]
        ):
            found = f"embeddings {embeds_PLD.shape} and mask {mask_PL.shape}"
            raise UserError(f"{field} has {found}; give (P, L, {self.dim}) and (P, L).")
        if not len(embeds_PLD) or embeds_PLD.shape[1] > self.max_length:
            limit = f"P is at least 1 and L at most {self.max_length}"
            raise UserError(f"{field} has embeddings {embeds_PLD.shape}; {limit}.")
        if unfit := arrays.not_finite(embeds_PLD):
            raise UserError(f"{field} have embeddings with {unfit}; compute them again.")
        missing = self.max_length - embeds_PLD.shape[1]
        return {
            "text_embeds": np.pad(embeds_PLD, ((0, 0), (0, missing), (0, 0))),
            "text_mask": np.pad(mask_PL, ((0, 0), (0, missing))),
        }

    def _read(self, reader, given, named):
        try:
            return reader(given)
        except arrays.NoArray as error:
            shapes = f"(P, L, {self.dim}) and bool (P, L), True at tokens"
            raise UserError(f"{named} {error}; give {shapes}.") from error

    def empty(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of zeros with an empty mask."""
        return np.zeros((count, self.max_length, self.dim), np.float32), np.zeros(
            (count, self.max_length), bool
        )

    def quiet(self) -> StoredText:
        """Itself: it drops nothing."""
        return self


def is_pair(prompts: Any) -> bool:
    """Whether prompts are two things that are no captions: embeddings and their mask."""
    pair = isinstance(prompts, (tuple, list)) and len(prompts) == 2
    return pair and not any(isinstance(part, (str, bytes)) for part in prompts)
