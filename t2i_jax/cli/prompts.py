"""Files of prompts."""

from __future__ import annotations

import pathlib

from t2i_jax.errors import UserError
from t2i_jax.foreign import text_file
from t2i_jax.paths import shown
from t2i_jax.systems.notices import tell
from t2i_jax.words import counted

_MOST_BYTES = 2**26


def read_prompts(path: pathlib.Path) -> list[str]:
    """The prompts of a file, in its order: a table by its ending (a column caption, text or
    prompt), or any other text, one in each line.

    Lines without a prompt, and the numbers of a captions.txt of `t2i sample`, are left out; a line
    on stderr says so.

    Raises:
      UserError: it can't be read, is not UTF-8, has no such column, or no prompts.
    """
    from t2i_jax.data.table import ENDINGS

    named = f"prompts={shown(path)}"
    found = _of_table(path, named) if path.suffix.lower() in ENDINGS else _of_text(path, named)
    prompts = [prompt for prompt in found if prompt]
    if not prompts:
        raise UserError(f"{named} holds no prompts; write one into each line.")
    if empty := len(found) - len(prompts):
        tell(f"{named} has {counted(empty, 'line')} without a prompt, left out")
    return prompts


def _of_text(path, named):
    from t2i_jax.eval import sample_folder

    lines = text_file.read(path, named, _MOST_BYTES).split("\n")
    lines = [line.strip() for line in (lines[:-1] if not lines[-1] else lines)]
    alone = sample_folder.without_numbers(lines)
    if not alone:
        return lines
    tell(f"{named} has the numbers of t2i sample in front, which are no part of its prompts")
    return alone


def _of_table(path, named):
    from t2i_jax.data.table import read_table
    from t2i_jax.eval.prompt_files import TEXTS

    found = []
    for row in read_table(path, "prompts"):
        if row.reason:
            raise UserError(f"{named} has {row.reason} in line {row.line}; repair the line.")
        column = next((name for name in TEXTS if name in row.values), None)
        if column is None:
            columns = " or ".join(TEXTS)
            raise UserError(f"{named} has no column {columns} in line {row.line}; add one.")
        value = row.values[column]
        if not isinstance(value, str) and value is not None:
            raise UserError(
                f"{named} has no text in line {row.line}; write one prompt in quotes there."
            )
        found.append((value or "").strip())
    return found
