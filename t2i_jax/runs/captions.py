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
from typing import Any

from t2i_jax.config import to_dict
from t2i_jax.data.pipeline import batches, source_of
from t2i_jax.files import replacing
from t2i_jax.runs.recipe import Recipe
from t2i_jax.terminal import say
from t2i_jax.words import counted

FILE = "captions.json"
_OF_CAPTIONS = ("source", "split", "seed")  # fields of the data that change them
_AT_ONCE = 256


def captions_of(recipe: Recipe, **data: Any) -> Iterator[str]:
    """The captions of the data, some of whose fields may be others than the recipe's."""
    stream = batches(
        dataclasses.replace(recipe.data, **data), _AT_ONCE, recipe.train.seed,
        tokenize=None, wants=("caption",), repeat=False,
    )  # fmt: skip
    for batch in stream:
        yield from batch["caption"]


def check(recipe: Recipe, workdir: pathlib.Path) -> None:
    """Has the text encoder look at all captions, held out or not, where it can't read every text. A
    line tells of it, and RUN/captions.json keeps that it was done: with the same encoder and data,
    as far as their name, version and number tell, it is not done again.

    Raises:
      UserError: it can't read one.
    """
    path, looked = workdir / FILE, []

    def read():
        source = source_of(recipe.data)
        looked.append(True)
        say(
            f"reading the captions of {counted(len(source), 'record')} once, to see whether all fit"
        )
        yield from captions_of(recipe, heldout=0.0)

    if path.exists() and _known(path) == _asked(recipe):
        return
    recipe.task.text_encoder.check_captions(read())
    if looked:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(_asked(recipe)), encoding="utf-8")


def _asked(recipe):
    encoder = json.dumps(to_dict(recipe.task.text_encoder), sort_keys=True, default=str)
    source, data = source_of(recipe.data), to_dict(recipe.data)
    return {
        "data": {name: data[name] for name in _OF_CAPTIONS},
        "records": len(source),
        "version": source.version,
        "encoder": hashlib.sha256(encoder.encode()).hexdigest(),
    }


def _known(path):
    """What was asked before; None where nothing tells."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
