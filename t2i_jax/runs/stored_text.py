"""Records of the encoder that made the stored text of a run, and of the CLIP that made its stored
embeddings: kept with the run, so that another one is not taken for it.

    RUN/stored_text.json    what the packed set says of its column "text": of a T5 "t5" (folder or
                            hub name) and "weights", of a CLIP "clip" and "run", where "weights" and
                            "clip" are fingerprints; sets of earlier releases know no "weights"
    RUN/stored_clip.json    what it says of its column "clip"; runs of earlier releases have none
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from t2i_jax.cluster import processes
from t2i_jax.data.columns import made_with
from t2i_jax.data.source import Source
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.base import Given
from t2i_jax.values import shown

_HELD = {"text": "text", "clip": "embeddings"}  # what a column is called


def note(workdir: pathlib.Path, recipe: Recipe, parts: Mapping[str, Given], source: Source) -> None:
    """Writes which networks made the stored text and embeddings that a recipe reads of its source,
    where it reads some.

    Raises:
      UserError: a run that was begun with those of another encoder.
    """
    if recipe.data is None:
        return
    known, read = folders.made_with(workdir), recipe.task.columns(parts)
    for column in (one for one in _HELD if one in read):
        now, before = made_with(source.stored.get(column, {})), known.get(column)
        was, is_now = (_fingerprint(about or {}) for about in (before, now))
        if before is not None and was and is_now and was != is_now:
            raise UserError(
                f"data.source={recipe.data.source!r} holds {_HELD[column]} of {_told(now)}, and "
                f"this run was begun with that of {_told(before)}; give the same, or train into a "
                "new folder."
            )
        is_new = now and now != before and not (was and not is_now)
        # only the first says whether it is: the others may have read what that has written
        about = now if is_new else None
        processes.once(functools.partial(_write, workdir / folders.STORED[column], about))


def check_t5(run: pathlib.Path, t5: str, weights: Any) -> None:
    """Refuses a T5 that did not make the stored text of a run or of its parts, where that is known.

    Args:
      t5: as it was named. weights: its weights.

    Raises:
      UserError: another T5 made it, or a CLIP.
    """
    for about in _of_all(run):
        if "clip" in about:
            raise UserError(
                f"t5={t5!r}: the stored text that this run was trained on was made by "
                f"{_told(about)}; in Python, give generate(...) the encodings of that CLIP's "
                "encode_text(captions) and their mask."
            )
        made_by = _fingerprint(about)
        if made_by and made_by != (found := folders.fingerprint(weights)):
            raise UserError(
                f"t5={t5!r} has other weights (fingerprint {found}) than what made the stored text "
                f"that this run was trained on, {_told(about)}; give that one."
            )


def _of_all(run) -> Iterator[Mapping[str, Any]]:
    found = folders.made_with(run)
    if "text" in found:
        yield found["text"]
    for part in folders.part_folders(run, folders.load_run_recipe(run)).values():
        yield from _of_all(part)


def _fingerprint(about):
    return about.get("clip") or about.get("weights")


def _told(about):
    kind, name = ("a CLIP", "run") if "clip" in about else ("a T5", "t5")
    return f"{kind} ({name}={shown(about.get(name))}, fingerprint {_fingerprint(about)})"


def _write(home, about):
    if about is None:
        return
    with replacing(home) as path:
        path.write_text(json.dumps(about, indent=1))
