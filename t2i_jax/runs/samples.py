"""What a run is looked at with: samples that training did not see, where some are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax.data.heldout import indices_of
from t2i_jax.data.pipeline import Batches, batches, division_of, source_of
from t2i_jax.data.source import EMBEDDED
from t2i_jax.errors import UserError
from t2i_jax.runs.ledger import image_channels
from t2i_jax.runs.recipe import Recipe


def held_out(recipe: Recipe) -> Samples:
    """`(count, entries) -> samples` that training did not see: of the split "heldout" of a built-in
    data set, else of the part that `data.heldout` holds out.

    Where nothing is held out they are the first of a shuffled epoch of the training data, and
    `is_held_out` says so.
    """
    if recipe.data is None:
        raise UserError("data=None of the recipe leaves nothing to evaluate on; give a DataConfig.")
    return Samples(recipe)


class Samples:
    """Samples to look at a run with, always the same ones.

    Attributes:
      data: where they are read, images cut in the middle and as they are. part: of that.
      is_held_out: whether training did not see them. name: of the part, in file names and metrics.
    """

    def __init__(self, recipe: Recipe):
        data, encoder = recipe.data, recipe.task.text_encoder
        assert data is not None
        is_built_in = data.source in EMBEDDED
        self.is_held_out = is_built_in or data.heldout > 0
        self.part = "heldout" if data.heldout > 0 and not is_built_in else "train"
        self.name = "heldout" if self.is_held_out else "training"
        self.data = dataclasses.replace(
            data,
            split="heldout" if is_built_in else data.split,
            crop="center" if data.crop == "random" else data.crop,
            flip=False,
            # of a small part one bad image may be much; training has looked at the rate
            max_bad_rate=1.0 if self.part == "heldout" else data.max_bad_rate,
        )
        self._length = None if encoder is None else encoder.max_length
        self._channels = image_channels(recipe.task.batch_spec(1))

    def __call__(self, count: int, wants: Sequence[str]) -> Mapping[str, Any]:
        """A batch of `count` samples with these entries; of a smaller part some come again."""
        return next(self.batches(count, count, wants))

    def batches(self, count: int, size: int, wants: Sequence[str]) -> Batches:
        """The same samples in batches of `size`, one after the other; `set_state([get_state()])`
        brings an earlier place back. After `count` samples it goes on.
        """
        return batches(
            self.data, size, 0, wants=wants, text_length=self._length, channels=self._channels,
            part=self.part, most=count,
        )  # fmt: skip

    def available(self, most: int) -> int:
        """How many different samples there are, `most` at most; of many that are held out by their
        captions these are read, until there are so many.
        """
        source = source_of(self.data)
        division = division_of(self.data, source)
        if division is None or self.part == "train":
            return min(len(source), most)
        return len(indices_of(division, source, range(len(source)), most))
