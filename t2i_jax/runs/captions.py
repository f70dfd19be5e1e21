"""The captions of a run's data, and whether its text encoder can read all of them: a run asks once,
before it trains.

    RUN/captions.json    the data and the encoder of which that was asked
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

from t2i_jax.config import to_dict
from t2i_jax.data.pipeline import DataConfig, batches, source_of
from t2i_jax.files import read_object, replacing
from t2i_jax.terminal import say
from t2i_jax.text.encoder import TextEncoder
from t2i_jax.words import counted

FILE = "captions.json"
_OF_CAPTIONS = ("source", "split", "seed")  # fields of the data that change them
_AT_ONCE = 256


def captions_of(data: DataConfig, seed: int) -> Iterator[str]:
    """The captions of the data, but for those that are held out.

    Args:
      seed: of their order.
    """
    for batch in batches(data, _AT_ONCE, seed, tokenize=None, wants=("caption",), repeat=False):
        yield from batch["caption"]


def check(data: DataConfig, seed: int, encoder: TextEncoder, workdir: pathlib.Path) -> None:
    """Has a text encoder look at all captions, held out or not, where it can't read every text. A
    line tells of it, and RUN/captions.json keeps that it was done: with the same encoder and data,
    as far as their name, version and number tell, it is not done again.

    Args:
      seed: of the order in which they are read.

    Raises:
      UserError: it can't read one.
    """
    path, looked_at = workdir / FILE, []
    known = read_object(path)
    if known is not None and known == _asked(data, encoder):
        return

    def read():
        looked_at.append(_asked(data, encoder))
        records = counted(looked_at[0]["records"], "record")
        say(f"reading the captions of {records} once, to see whether all fit")
        yield from captions_of(dataclasses.replace(data, heldout=0.0), seed)

    encoder.check_captions(read())
    for asked in looked_at:  # none of an encoder that reads every text
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asked), encoding="utf-8")


def _asked(data, encoder):
    told, source = json.dumps(to_dict(encoder), sort_keys=True, default=str), source_of(data)
    return {
        "data": {name: getattr(data, name) for name in _OF_CAPTIONS},
        "records": len(source),
        "version": source.version,
        "encoder": hashlib.sha256(told.encode()).hexdigest(),
    }
