"""Batches of a source: shuffled, cropped, shared among processes, read ahead, and resumable at any
batch.

Grain does the order, the threads and the worker processes. A sample depends only on the seeds and
on its position in the order, so neither threads nor workers change a batch, several processes put
together the batches of one, and what must be saved is how far each has come.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from absl import flags

from t2i_jax.config import check_types, one_of
from t2i_jax.data.collate import TOKENS, VECTORS, Collate, Tokenize
from t2i_jax.data.crop import CROPS
from t2i_jax.data.heldout import PARTS, Division, divide, indices_of
from t2i_jax.data.ledger import Ledger
from t2i_jax.data.sample import HELD_OUT, Prepare
from t2i_jax.data.share import Share, deal
from t2i_jax.data.source import EMBEDDED, BadSample, Record, Source, open_source
from t2i_jax.errors import ReaderKilled, UserError
from t2i_jax.terminal import say
from t2i_jax.values import Fraction, Range, Seed

ENTRIES = (
    "image", "cond_image", "caption", "text", "text_mask", "text_embeds", *TOKENS, *VECTORS
)  # fmt: skip


# how Grain says that a signal has ended one of its processes
_KILLED = re.compile(r"terminated unexpectedly with exit code -\d")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data that a run is trained on: where images and captions come from and how they are cut.

    Attributes:
      source: "shapes", "digits", "compositions", "folder:PATH", "webdataset:GLOB",
        "arrayrecord:DIR", "tfds:NAME" or "hf:NAME".
      image_size: side of the square images of a batch, in pixels.
      crop: "center" or "random": the largest square, from the middle or anywhere; "resize": all of
        it, squeezed.
      flip: mirror half of the images, by chance. Not for captions that speak of left and right.
      split: "train" or "heldout" of a built-in dataset, a split's name for tfds and hf; other
        sources have no splits.
      max_bad_rate: fraction of samples that may be unusable before the run stops, from 0 to 1.
      workers: processes that read; 0: this one does.
      threads: threads that read, in each of those processes; 0: none, a batch is read when it is
        asked for.
      seed: of the images of `shapes` and `compositions`, and of the words of `digits`; order, crops
        and flips go by `train.seed`.
      heldout: share of the captions that training never sees, from 0 to below 1: the run is
        validated and evaluated on their records. It is told by a hash of the caption, so all images
        of a caption are on the same side, in every source alike; where captions are names of
        classes (each comes 20 times or more) every image is divided by itself, by its number, as
        are images without captions: such a part is this source's alone. An image that a table names
        with several captions may be held out with one and trained on with another. Built-in data
        sets have a held-out part of their own and ignore it. 0: nothing is held out.
    """

    source: str = "shapes"
    image_size: Annotated[int, Range(1, 65_536)] = 32
    crop: str = "center"
    flip: bool = False
    split: str = "train"
    max_bad_rate: Fraction = 0.05
    workers: Annotated[int, Range(0, 256)] = 0
    threads: Annotated[int, Range(0, 256)] = 2
    seed: Seed = 0
    heldout: Fraction = 0.0

    def __post_init__(self):
        check_types(self, "data")
        if not 0 <= self.heldout < 1:
            raise UserError(
                f"data.heldout={self.heldout} is no share; give one from 0 to below 1, such as "
                "0.05."
            )
        one_of("data.crop", self.crop, CROPS)
        for name in ("workers", "threads", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name}={getattr(self, name)} is negative; give 0 or more.")
        if self.image_size < 1:
            raise UserError(f"data.image_size={self.image_size} is no size; give 1 or more pixels.")
        if not 0 <= self.max_bad_rate <= 1:
            raise UserError(
                f"data.max_bad_rate={self.max_bad_rate} is no fraction; give one from 0 to 1."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found, source = {}, f"source={self.source!r}"
        if self.source in EMBEDDED:
            found["heldout"] = f"{source}, which has a held-out part of its own"
            found["max_bad_rate"] = source
        else:
            found["seed"] = f"{source}, whose order train.seed decides"
        return found


class NothingHeldOut(UserError):
    """A share so small that it holds nothing of this source out."""


def source_of(config: DataConfig, channels: int = 3) -> Source:
    """The source that a configuration names.

    Args:
      channels: of its images.
    """
    return open_source(
        config.source,
        image_size=config.image_size,
        split=config.split,
        seed=config.seed,
        channels=channels,
    )


def batches(
    config: DataConfig,
    batch_size: int,
    seed: int,
    *,
    tokenize: Tokenize | None = None,
    wants: Sequence[str] = ("image", "text", "text_mask"),
    text_length: int | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    process: int = 0,
    repeat: bool = True,
    channels: Mapping[str, int] | None = None,
    part: str = "train",
    most: int | None = None,
    distinct: bool = False,
) -> Batches:
    """Batches, or one process's rows of them.

    Args:
      batch_size: samples of a batch, those of all processes.
      seed: of order, crops and flips.
      tokenize: makes "text" and "text_mask" of captions; needed where "text" is wanted.
      wants: entries of a batch, from "image" (B, image_size, image_size, C) uint8, "caption" list
        of str, "text" and "text_mask" (B, L), "text_embeds" (B, L, width) float32 with its
        "text_mask", "tokens", "superres_tokens" and "cond_tokens" (B, N) int32, "image_embeds" and
        "caption_embeds" (B, width) float32; "cond_image" like "image", cut and mirrored as it is,
        where the source has images to condition on.
      text_length: L of "text_embeds", which are padded or cut; None: the longest of the batch.
      rows: of a batch, for every process those that it reads, ascending; None: one process reads
        them all.
      process: which of those processes this is.
      repeat: for ever, shuffled afresh for every epoch, every batch full, across epochs too; False:
        once, unshuffled, nothing left out, the last batch may be smaller.
      channels: of "image" and "cond_image": 1 (gray), 3 (RGB) or 4 (RGB and alpha); 3 where it does
        not say.
      part: "train": without what `config.heldout` holds out; "heldout": that alone, always in the
        same order.
      most: records that are looked for where the part is held out, after which they come again;
        None: all of them.
      distinct: of an image that is held out with several captions one record is read.

    Raises:
      UserError: an unknown source or entry, no samples, or (while it runs) too many that cannot be
        used.
    """
    import grain  # a run that is loaded has a `DataConfig`, and reads no data

    for name in wants:
        one_of("wants", name, ENTRIES)
    if "text" in wants and tokenize is None:
        raise UserError("wants='text' needs tokenize: give a text tokenizer, or want 'caption'.")
    if "text_mask" in wants and not {"text", "text_embeds"} & set(wants):
        raise UserError(
            "wants='text_mask' is the mask of 'text' or 'text_embeds'; want one of them too."
        )
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is no size; give 1 or more.")
    if config.flip and config.source in EMBEDDED and {"caption", "text"} & set(wants):
        raise UserError(
            f"data.flip={config.flip} makes captions of {config.source} untrue; set it to False."
        )
    channels = {"image": 3, "cond_image": 3, **(channels or {})}
    source = source_of(config, channels["image"])
    if "cond_image" in wants and not source.has_cond_images:
        remedy = "give a folder: with NAME.cond.png beside each image"
        raise UserError(f"data.source={config.source!r} has no images to condition on; {remedy}.")
    one_of("part", part, PARTS)
    division = division_of(config, source)
    order = grain.MapDataset.range(len(source))
    if part == "heldout":
        if division is None:
            raise UserError(
                f"data.heldout={config.heldout} of data.source={config.source!r} holds nothing "
                "out; give a share such as 0.05."
            )
        found, division = held_out(config, source, division, seed, most, distinct), None
        order = grain.MapDataset.source(found)
        order = order.repeat() if repeat else order
    elif repeat:
        order = order.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0])).repeat()
    kept = {"caption" if name == "text" else name for name in wants} - {"text_mask"}
    prepare = Prepare(source, order, config, kept, seed, channels, division)
    shares = [Share(tuple(of), batch_size) for of in (rows or [range(batch_size)])]
    return Batches(prepare, config, shares, process, Collate(tuple(wants), tokenize, text_length))


def division_of(config: DataConfig, source: Source) -> Division | None:
    """The division of a source into what is trained on and what is held out; None: nothing is held
    out.
    """
    if not config.heldout or config.source in EMBEDDED:
        return None
    return divide(source, config.heldout)


def held_out(
    config: DataConfig,
    source: Source,
    division: Division,
    seed: int,
    most: int | None,
    distinct: bool = False,
) -> list[int]:
    """The numbers of the records that are held out, in the order in which `batches` reads them.

    Args:
      seed, most, distinct: see `batches`.

    Raises:
      NothingHeldOut: there are none.
    """
    import grain

    shuffled = grain.MapDataset.range(len(source)).shuffle(seed)
    order = (int(shuffled[i]) for i in range(len(source)))  # pyright: ignore[reportArgumentType]
    most = len(source) if most is None else most
    found = indices_of(division, source, order, most, distinct)
    if not found:
        raise NothingHeldOut(
            f"data.heldout={config.heldout} holds out none of the {len(source)} records of "
            f"data.source={config.source!r}; give a larger share."
        )
    return found


class Batches:
    """An iterator of batches (dicts of arrays) whose position can be saved.

    Attributes:
      bad: what could not be used so far. cut: stored texts that were too long for `text_length`.
      source: the source of the samples.
    """

    def __init__(self, prepare, config, shares, process, collate):
        self._prepare, self._config, self._collate = prepare, config, collate
        self._shares, self._process = shares, process  # of all processes, before anything is read
        self._share = shares[process]
        self._reader: Any = None  # Grain's iterator
        self._read = 0  # samples of the share, the unusable ones included
        self._seen = 0  # the same, since this object was made
        self.bad, self.cut, self.source = Ledger(), collate.cut, prepare.source

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._reader is None:
            self._reader = iter(_reader(self._share, self._prepare, self._config))
        good: list[Record] = []
        unusable, held_out = 0, 0  # since the last usable one, and since the last one of training
        while len(good) < len(self._share.rows):
            try:
                sample = next(self._reader)
            except RuntimeError as error:
                if not _KILLED.search(str(error)):
                    raise
                self._reader.close()
                raise ReaderKilled(_told_of_killed(self._config)) from None
            except StopIteration:
                self.bad.check(self._seen, self._config.max_bad_rate, done=True)
                break
            self._read += 1
            if sample == HELD_OUT:
                held_out += 1
                self._check_trained_on(held_out)
                continue
            held_out = 0
            self._seen += 1
            if isinstance(sample, BadSample):
                unusable += 1
                self._leave_out(sample, unusable)
            else:
                good.append(sample)
                unusable = 0
        if not good:
            raise StopIteration
        return self._collate(good)

    def get_state(self) -> Mapping[str, Any]:
        """The samples that this process has still to read after its last batch, as JSON; threads
        and workers make no difference.
        """
        share = self._share.after(self._read)
        return {
            **vars(share),
            "rows": list(share.rows),
            "left": list(share.left),
            "records": self._prepare.records,
        }

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Resumes after the batch after which every process called `get_state`.

        With the same rows for each process as then, all go on where they were. With others, what is
        still to be read is dealt out anew: no sample comes again in its epoch, none is lost.

        Args:
          states: of all processes of that time, in their order.

        Raises:
          UserError: the source held another number of records then, so its order is another; or the
            state is of several processes and older than such states.
        """
        for state in states:
            if state["records"] != self._prepare.records:
                raise UserError(
                    f"data.source={self._config.source!r} has {self._prepare.records} records and "
                    f"had {state['records']} when the run was saved; give it the same data, or "
                    "start another run, to which init= may give this one's weights."
                )
        mine, before = self._shares[self._process], [self._share_of(state) for state in states]
        dealt = [(share.rows, share.batch_size) for share in before]
        if dealt == [(share.rows, share.batch_size) for share in self._shares]:
            # once, for all that read the same rows: they go on with the same samples
            self._share = next(share for share in before if share.rows == mine.rows)
        else:
            self._share = deal(before, mine.rows, mine.batch_size)
        self._read = 0
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _share_of(self, state):
        if "position" not in state:
            fields = {name: value for name, value in state.items() if name != "records"}
            return Share(**{**fields, "rows": tuple(state["rows"]), "left": tuple(state["left"])})
        if state["processes"] > 1:
            raise UserError(
                f"the run was saved by {state['processes']} processes in an older way that shared "
                "out samples differently, so its data can't go on; start another run."
            )
        size = self._shares[self._process].batch_size
        return Share(tuple(range(size)), size, base=state["position"])

    def _check_trained_on(self, in_a_row):
        """Refuses data of which nothing is left to train on: else it would be looked for without
        end.
        """
        records = self._prepare.records
        if in_a_row >= 2 * records * len(self._shares):  # all of an epoch, wherever it began
            raise UserError(
                f"data.heldout={self._config.heldout} holds out all of the {records} records of "
                f"data.source={self._config.source!r}; give a smaller share."
            )

    def _leave_out(self, sample, in_a_row):
        if len(self.bad.names) < 5:
            say(f"left out {sample}")
        self.bad.add(sample)
        self.bad.check(self._seen, self._config.max_bad_rate)
        if in_a_row >= self._prepare.records:
            raise UserError(
                f"data.source={self._config.source!r} has no sample that can be used: {sample}; "
                "repair the data, or name others."
            )


def _told_of_killed(config):
    return (
        f"a reader process of data.source={config.source!r} was killed, most often because memory "
        f"ran out; lower data.workers={config.workers} or data.threads={config.threads}, or give "
        "the machine more memory, and start the same command again: it goes on from the last "
        "checkpoint."
    )


def _reader(share, prepare, config):
    import grain

    positions = grain.MapDataset.range(share.count_below(prepare.positions)).map(share.position)
    ahead = grain.ReadOptions(
        num_threads=config.threads, prefetch_buffer_size=64 if config.threads else 0
    )
    samples = positions.map(prepare).to_iter_dataset(ahead)
    if config.workers:
        # Grain looks at absl's flags, which only programs built on absl parse
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # of a reader that was killed: Python removes its shared memory by itself, and warns of that
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        options = grain.MultiprocessingOptions(num_workers=config.workers)
        samples = samples.mp_prefetch(options, worker_init_fn=_end_with_parent)
    return samples


def _end_with_parent(worker, count):
    """Lets a worker end when the process that it reads for was killed.

    By itself it would stay for ever.
    """
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
