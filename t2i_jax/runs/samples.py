"""Samples for previews and measurements of a run: ones that training did not see, where some are
held out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.data.heldout import Division, indices_of
from t2i_jax.data.pipeline import (
    Batches,
    DataConfig,
    NothingHeldOut,
    batches,
    division_of,
    source_of,
)
from t2i_jax.data.pipeline import held_out as records_held_out
from t2i_jax.data.source import EMBEDDED, has_splits
from t2i_jax.errors import UserError
from t2i_jax.runs.ledger import image_channels
from t2i_jax.runs.recipe import Recipe

_TRIED = 64  # records that are held out, of which one must be usable
_SPARE = 64  # beside a quarter more, for those that can't be read


def held_out(
    recipe: Recipe, trained_on: DataConfig | None = None, division: Division | None = None
) -> Samples:
    """The samples that training did not see, as a function `(count, entries) -> samples`: of the
    split "heldout" of a built-in data set, else of the part that `data.heldout` holds out.

    Where nothing is held out, or nothing of it can be used, they are the first of a shuffled epoch
    of the training data, and `is_held_out` says so. Every process calls it: where one of several
    can use nothing of what is held out, none does.

    Args:
      trained_on: the data that the run was trained on, where `recipe.data` may be others; None:
        they are those of the recipe, as they were.
      division: of the data that the run was trained on; None: it isn't known.

    Raises:
      UserError: the recipe has no data, or holds out more of what was trained on than training did.
    """
    return Samples(recipe, trained_on, division, processes.gather)


class Samples:
    """Samples to look at a run with, always the same ones; see `held_out`.

    Args:
      gather: of a JSON value, those of all processes that look at the run together; None: this one
        looks alone.

    Attributes:
      data: where they are read, images cut in the middle and as they are. part: of that.
      is_held_out: whether training did not see them. name: of the part, in file names and metrics.
      none: why nothing is held out; "" where something is.
      is_other: whether they are of another set than what was trained on. Only the part that the
        same share or a smaller one holds out there is known to be held out, and only where it goes
        by captions, which are on the same side in every set.
      changed: how a set of the same name became another one; "" where it didn't.
    """

    def __init__(
        self,
        recipe: Recipe,
        trained_on: DataConfig | None = None,
        division: Division | None = None,
        gather: Callable[[Any], Sequence[Any]] | None = None,
    ):
        data, encoder = recipe.data, recipe.task.text_encoder
        if data is None:
            raise UserError(
                "data=None of the recipe leaves nothing to evaluate on; give a DataConfig."
            )
        is_as_it_was, trained_on = trained_on is None, trained_on or data
        self.is_other = _set_of(data) != _set_of(trained_on)
        _check_share(data, trained_on, self.is_other)
        is_built_in = data.source in EMBEDDED
        self._length = None if encoder is None else encoder.max_length
        self._channels = image_channels(recipe.task.batch_spec(1))
        none = "" if is_built_in else self._none(recipe, data)
        # with other samples than the others one process would wait elsewhere than they
        self.none = none if gather is None else next(filter(None, gather(none)), "")
        is_known = not self.is_other or is_built_in or data.heldout <= trained_on.heldout
        self.changed = ""
        if is_known and not (self.none or is_built_in or is_as_it_was):
            now = division_of(data, source_of(data))
            is_known = now is not None and now.is_within(division, not self.is_other)
            if now and division and not is_known and not self.is_other:
                self.is_other = True
                self.changed = f"{division.records} records then, {now.records} now"
        self.is_held_out = not self.none and is_known
        self.part = "train" if self.none or is_built_in else "heldout"
        self._bad_rate = data.max_bad_rate
        unseen = "other" if self.is_other else "training"
        self.name = "heldout" if self.is_held_out else unseen
        self.data = dataclasses.replace(
            data,
            split="heldout" if is_built_in else data.split,
            crop="center" if data.crop == "random" else data.crop,
            flip=False,
            # of a small part one bad image may be much; training has looked at the rate
            max_bad_rate=1.0 if self.part == "heldout" else data.max_bad_rate,
        )

    def _none(self, recipe, data):
        if not data.heldout:
            return f"data.heldout={data.heldout} holds nothing of {data.source!r} out"
        spec = recipe.task.batch_spec(1)
        wants = ("caption" if name == "text" else name for name in spec)
        wants = tuple(name for name in wants if name != "text_mask" or "text_embeds" in spec)
        return _nothing_of(data, wants, self._length, tuple(self._channels.items()))

    def __call__(self, count: int, wants: Sequence[str]) -> Mapping[str, Any]:
        """A batch of `count` samples with these entries; of a smaller part some come again."""
        return next(self.batches(count, count, wants))

    def batches(
        self, count: int, size: int, wants: Sequence[str], distinct: bool = False
    ) -> Batches:
        """Samples in batches of `size`, one after the other, the same as those of a call;
        `set_state([get_state()])` brings an earlier place back. After `count` samples it goes on.

        Args:
          distinct: no image comes twice. Others follow in place of those that can't be read, and
            the batches may end before there are `count` samples, or after them.
        """
        once = distinct and self.part == "heldout"  # a built-in set has no image twice
        most = _with_spare(count, self._bad_rate) if once else count
        return batches(
            self.data, size, 0, wants=wants, text_length=self._length, channels=self._channels,
            part=self.part, most=most, repeat=not once, distinct=once,
        )  # fmt: skip

    def available(self, most: int, distinct: bool = False) -> int:
        """The number of different samples, `most` at most; of many that are held out by their
        captions these are read, until there are that many.

        Args:
          distinct: how many different images, whether they can be read or not.
        """
        source = source_of(self.data)
        division = division_of(self.data, source)
        if division is None or self.part == "train":
            return min(len(source), most)
        return len(indices_of(division, source, range(len(source)), most, distinct))

    def have_copies(self, count: int) -> bool:
        """Whether several of the first `count` held-out records are of one image."""
        source = source_of(self.data)
        division = division_of(self.data, source)
        if division is None or self.part == "train":
            return False
        found = records_held_out(self.data, source, division, 0, count)
        return len({source.image_of(index) for index in found}) < len(found)


def _with_spare(count, bad_rate):
    """The number of records of which `count` can be used, unless more are broken than training
    allows; None: all that there are.
    """
    if bad_rate >= 1:
        return None
    return max(count + count // 4, math.ceil(count / (1 - bad_rate))) + _SPARE


def _set_of(data):
    """The identity of the set that is read, as far as its name tells it from others."""
    kind, _, place = data.source.partition(":")
    if data.source in EMBEDDED:
        return kind
    if has_splits(data.source):
        return kind, place, data.split
    return kind, os.path.realpath(os.path.expanduser(place))


def _check_share(data, trained_on, is_other):
    """Refuses to call images held out that were trained on."""
    if is_other or data.source in EMBEDDED or data.heldout <= trained_on.heldout:
        return
    raise UserError(
        f"data.heldout={data.heldout} of data.source={data.source!r} would call images held out "
        f"that this run was trained on, with data.heldout={trained_on.heldout}; leave it at that, "
        "or train a new run with it."
    )


@functools.lru_cache(maxsize=64)  # a run asks several times
def _nothing_of(data, wants, text_length, channels):
    """The reason why the part that `data.heldout` holds out has no sample that can be used; ""
    where it has one.
    """
    data = dataclasses.replace(data, max_bad_rate=1.0, workers=0, threads=0)
    try:
        stream = batches(
            data, 1, 0, wants=wants, text_length=text_length, channels=dict(channels),
            part="heldout", most=_TRIED, repeat=False,
        )  # fmt: skip
    except NothingHeldOut as error:
        return str(error).partition(";")[0]
    if next(stream, None) is None:
        return (
            f"nothing that data.heldout={data.heldout} holds out of {data.source!r} can be used "
            f"({'; '.join(stream.bad.names)})"
        )
    return ""
