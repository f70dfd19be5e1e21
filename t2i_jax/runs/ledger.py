"""Counts of the data that a run leaves out or cuts, told at its start and at its end."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax.cluster import processes
from t2i_jax.data.ledger import Ledger, together
from t2i_jax.data.overview import look, note_cut, note_unknown
from t2i_jax.data.pipeline import Batches
from t2i_jax.data.source import EMBEDDED, Source
from t2i_jax.files import read_object, replacing
from t2i_jax.terminal import say
from t2i_jax.text.tokenizer import TextTokenizer, unknown_letters
from t2i_jax.train.log import add_metrics
from t2i_jax.train.stored import last_step

_SECONDS, _SAMPLES = 3.0, 1000  # of the look before a training
_KEPT = "left_out.{}.json"  # the file of a process
_DAMAGED = (OverflowError, ValueError, KeyError, TypeError, AttributeError)


class DataLedger:
    """The ledger of one training.

    Args:
      tokenizer: of the text encoder; None where captions are not tokenized. max_length: its tokens.
    """

    def __init__(self, tokenizer: TextTokenizer | None, max_length: int):
        self._tokenizer, self._max_length = tokenizer, max_length
        self.cut = Ledger()

    def tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids and mask of captions; those that are cut, or hold unknown letters, are
        counted.
        """
        assert self._tokenizer is not None
        ids_BL, mask_BL = self._tokenizer(captions, self._max_length)
        full = [captions[row] for row in np.flatnonzero(np.asarray(mask_BL).all(axis=1))]
        note_cut(self.cut, full, self._tokenizer.lengths, self._max_length)
        unknown = getattr(self._tokenizer, "unknown", -1)
        unread = [captions[row] for row in np.flatnonzero((ids_BL == unknown).any(axis=1))]
        note_unknown(self.cut, unread, unknown_letters(self._tokenizer, unread))
        return ids_BL, mask_BL

    def uncounted(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids and mask of captions that are not trained on."""
        assert self._tokenizer is not None
        return self._tokenizer(captions, self._max_length)

    def begin(self, name: str, source: Source, wants: Sequence[str]) -> None:
        """Tells what a short look at the data finds; nothing where all is well."""
        if not processes.is_first() or name in EMBEDDED:
            return
        found = look(source, _SAMPLES, wants=wants, seconds=_SECONDS)
        lines = found.images_bad.lines("images that can't be used")
        lines += found.captions_bad.lines("captions that can't be used")
        lines += found.read_in_part.lines("read in part")
        if self._tokenizer is not None:
            cut = note_cut(Ledger(), found.captions, self._tokenizer.lengths, self._max_length)
            note_unknown(cut, found.captions, unknown_letters(self._tokenizer, found.captions))
            lines += cut.lines("captions that are not read whole")
        lines = [f"among {found.looked_at} of {found.records} records:", *lines] if lines else []
        longest = source.stored.get("text", {}).get("max_length", 0)
        if self._tokenizer is None and 0 < self._max_length < longest:
            lines.append(
                f"its text was stored with up to {longest} tokens; it is cut to {self._max_length}"
            )
        _tell(name, lines + found.passed_over.lines("passed over"))

    @contextlib.contextmanager
    def kept(self, stream: Batches, workdir: pathlib.Path) -> Iterator[None]:
        """A context in which a training adds to the counts of earlier starts, and writes its own to
        WORKDIR when it ends, is stopped or fails.

        Each process has a file of its own, and waits for no other one.
        """
        ledgers = {"left out": stream.bad, "captions cut": self.cut, "texts cut": stream.cut}
        own, gone = workdir / _KEPT.format(jax.process_index()), _of_gone_processes(workdir)
        # a run that begins anew counts anew
        for path in (own, *gone) if last_step(workdir) is not None else ():
            with contextlib.suppress(*_DAMAGED):  # it is not there, or no count
                stored = read_object(path) or {}
                for kind, ledger in ledgers.items():
                    ledger.go_on(stored[kind])
        try:
            yield
        finally:
            found = {kind: ledger.stored() for kind, ledger in ledgers.items()}
            if any(one["different"] for one in found.values()):
                with contextlib.suppress(OSError):  # the log tells of a full disk
                    with replacing(own) as temporary:
                        temporary.write_text(json.dumps(found), encoding="utf-8")
                    for path in gone:
                        path.unlink()

    def end(self, name: str, stream: Batches, workdir: Any) -> None:
        """Tells what the training left out and cut, over all of its starts, and adds it to
        WORKDIR/metrics.json.
        """
        lines = stream.bad.lines("left out") + self.cut.lines("captions that were not read whole")
        lines += stream.cut.lines("texts that were cut")
        mine = stream.bad.metrics("data/left_out/") | self.cut.metrics("data/cut/")
        mine |= stream.cut.metrics("data/cut/")
        counted = processes.gather(mine)
        if processes.is_first():
            _tell(name, lines)
            passed_over = stream.source.passed_over.metrics("data/passed_over/")
            add_metrics(workdir, {**together(counted), **passed_over})


def _of_gone_processes(workdir):
    """The counts of processes that there are no more, which the first one takes."""
    numbered = {path.name.split(".")[1]: path for path in workdir.glob(_KEPT.format("*"))}
    here = map(str, range(jax.process_count()))
    return [numbered[number] for number in numbered.keys() - here] if processes.is_first() else []


def image_channels(spec: Mapping[str, Any]) -> Mapping[str, int]:
    """The channels of the images of a batch, by their entry."""
    return {k: spec[k].shape[-1] for k in ("image", "cond_image") if k in spec}


def _tell(name, lines):
    if lines:
        say(f"data.source={name!r}: " + "\n  ".join(lines))
