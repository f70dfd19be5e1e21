"""The vocabulary of a run or of an exported system, and digests that tell whether it is still the
one that the weights were trained with.

    RUN/text_tokenizer.json    the SHA-256 of each file in RUN/text_tokenizer
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.files import replacing, sha256
from t2i_jax.foreign import json_file

TEXT_TOKENIZER, DIGESTS = "text_tokenizer", "text_tokenizer.json"
_RESTORE = f"restore {TEXT_TOKENIZER} from a copy"


def note(run: pathlib.Path) -> None:
    """Writes the digests of a run's vocabulary, where it has one."""
    if found := _digests(run):
        with replacing(run / DIGESTS) as path:
            path.write_text(json.dumps(found, indent=1))


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
    found = _digests(run)
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


def _digests(run):
    folder = run / TEXT_TOKENIZER
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {
        path.name: sha256(path)
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }
