"""Samples put together into a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from t2i_jax.data.ledger import Ledger
from t2i_jax.data.source import Record

VECTORS = ("image_embeds", "caption_embeds")
"""Entries of a batch that hold one vector for a whole image, and for a whole caption."""

TOKENS = ("tokens", "superres_tokens", "cond_tokens")
"""Entries of a batch that hold the tokens of an image; of super-resolution those of the image, and
those of the smaller one that it is made from."""

Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
"""Captions -> ids (B, L) int32, mask (B, L) bool."""


@dataclasses.dataclass(frozen=True)
class Collate:
    """Puts samples together into a batch.

    Attributes:
      wants: entries of a batch, in their order.
      tokenize: captions to ids; None where text is stored or not wanted.
      text_length: tokens of a stored text; None: those of the longest in the batch.
      cut: stored texts that were longer, counted as batches are made.
    """

    wants: tuple[str, ...]
    tokenize: Tokenize | None
    text_length: int | None
    cut: Ledger = dataclasses.field(default_factory=Ledger)

    def __call__(self, samples: list[Record]) -> dict[str, Any]:
        """Arrays of all samples, (B, ...), and captions as a list."""
        made: dict[str, Any] = {}
        if "text" in self.wants and self.tokenize is not None:
            made["text"], made["text_mask"] = self.tokenize(
                [sample["caption"] for sample in samples]
            )
        elif "text_embeds" in self.wants:
            made["text_embeds"], made["text_mask"] = self._padded(samples)
        if "image" in self.wants:
            made["image"] = np.stack([sample["image"] for sample in samples])
        if "cond_image" in self.wants:
            made["cond_image"] = np.stack([sample["cond_image"] for sample in samples])
        for name in {*TOKENS} & {*self.wants}:
            ids = [np.asarray(sample[name], np.int32).reshape(-1) for sample in samples]
            made[name] = np.stack(ids)
        for name in {*VECTORS} & {*self.wants}:
            vectors = [np.asarray(sample[name], np.float32).reshape(-1) for sample in samples]
            made[name] = np.stack(vectors)
        if "caption" in self.wants:
            made["caption"] = [sample["caption"] for sample in samples]
        return {name: made[name] for name in self.wants}

    def _padded(self, samples):
        embeds = [np.asarray(sample["text_embeds"], np.float32) for sample in samples]
        length = self.text_length or max(len(e_LD) for e_LD in embeds)
        embeds_BLD = np.zeros((len(embeds), length, embeds[0].shape[-1]), np.float32)
        mask_BL = np.zeros((len(embeds), length), bool)
        for row, (sample, e_LD) in enumerate(zip(samples, embeds)):
            used = min(len(e_LD), length)
            mask_L = np.asarray(sample.get("text_mask", np.ones(len(e_LD), bool)))
            embeds_BLD[row, :used], mask_BL[row, :used] = e_LD[:used], mask_L[:used]
            if mask_L[used:].any():
                last_D = e_LD[np.flatnonzero(mask_L)[-1]]  # that of the end has seen the whole text
                reason, name = f"stored text of more than {length} tokens", f"{mask_L.sum()} tokens"
                self.cut.note(reason, name, which=last_D.tobytes())
        return embeds_BLD, mask_BL
