"""The vocabulary of a run or of an exported system, and digests that tell whether it is still the
one that the weights were trained with.

    RUN/text_tokenizer.json    the SHA-256 of each file in RUN/text_tokenizer
    RUN/vocabulary.json        of what a run that had saved nothing made it
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from t2i_jax.config import differences
from t2i_jax.errors import UserError
from t2i_jax.files import read_object, replacing, sha256
from t2i_jax.foreign import json_file
from t2i_jax.terminal import say

TEXT_TOKENIZER, DIGESTS = "text_tokenizer", "text_tokenizer.json"
MADE_OF = "vocabulary.json"
_RESTORE = f"restore {TEXT_TOKENIZER} from a copy"


def note(run: pathlib.Path) -> None:
    """Writes the digests of a run's vocabulary, where it has one."""
    if found := digests(run):
        with replacing(run / DIGESTS) as path:
            path.write_text(json.dumps(found, indent=1))


def begin(run: pathlib.Path, made_of: Mapping[str, Any]) -> None:
    """Notes of what the vocabulary of a run without a checkpoint is made, before it is; one that an
    earlier start made of something else, and that no weights know, is removed. A vocabulary that no
    start has made stays.

    Args:
      made_of: JSON values: data, encoder and whatever else decides what it is.
    """
    before, made_of = read_object(run / MADE_OF), json.loads(json.dumps(made_of))
    if before == made_of:
        return
    if before is not None and (run / TEXT_TOKENIZER).is_dir():
        changed = "; ".join(differences(before, made_of)[:3])
        say(
            f"{str(run / TEXT_TOKENIZER)!r} is of a start that saved nothing and had other "
            f"settings ({changed}); it is made anew."
        )
        (run / DIGESTS).unlink(missing_ok=True)
        shutil.rmtree(run / TEXT_TOKENIZER)
    if before is not None or not os.path.lexists(run / TEXT_TOKENIZER):
        with replacing(run / MADE_OF) as path:
            path.write_text(json.dumps(made_of, indent=1), encoding="utf-8")


def check(run: pathlib.Path) -> None:
    """Compares a run's vocabulary with its digests, where both are there: runs of before have no
    digests, and a system can do with the vocabulary of a part.

    Raises:
      UserError: a file is missing, has changed, or was added.
    """
    path = run / DIGESTS
    if not path.exists() or not (run / TEXT_TOKENIZER).is_dir():
        return
    where = f"run={str(path)!r}"
    told = json_file.an_object(json_file.read(path, "run", _RESTORE), where, _RESTORE)
    found = digests(run)
    for name in sorted(told.keys() | found.keys()):
        if found.get(name) != told.get(name):
            raise UserError(
                f"run={str(run)!r} has another vocabulary than its weights were trained with "
                f"({TEXT_TOKENIZER}/{name} {'differs' if name in found else 'is missing'}); "
                f"{_RESTORE}."
            )


def check_kept(run: pathlib.Path) -> None:
    """Refuses a run that has trained and whose vocabulary is gone: another one would be made."""
    if not (run / TEXT_TOKENIZER).is_dir():
        raise UserError(
            f"workdir={str(run)!r} has a checkpoint and no {TEXT_TOKENIZER}, the vocabulary that "
            f"its weights were trained with; {_RESTORE}, or train into another workdir."
        )


def load(run: pathlib.Path, encoder: Any) -> Any:
    """The tokenizer of a run's text encoder, from its vocabulary, which is checked.

    Raises:
      UserError: as `check`, or no vocabulary that the encoder reads.
    """
    check(run)
    return encoder.tokenizer(run / TEXT_TOKENIZER)


def digests(run: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file of a run's vocabulary; {} where it has none."""
    folder = run / TEXT_TOKENIZER
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {
        path.name: sha256(path)
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }
