"""Texts that a user wrote."""

from __future__ import annotations

import pathlib

from t2i_jax.errors import UserError
from t2i_jax.files import read_regular


def read(path: pathlib.Path, named: str, most: int) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
      named: the file in a sentence, "prompts=..." for example. most: bytes that it may have.

    Raises:
      UserError: it can't be read, is no regular file, is larger, is not UTF-8 (with a NUL
        neither; with the line), or ends its lines with carriage returns alone.
    """
    try:
        data = read_regular(path, most)
    except OSError as error:
        raise UserError(f"{named} can't be read ({error.strerror}); give a text file.") from None
    wrong = data.find(b"\0")  # as in UTF-16 without its mark
    if wrong < 0:
        try:
            text = data.decode("utf-8-sig")
            if "\r" in text.strip() and "\n" not in text:
                raise UserError(
                    f"{named} ends its lines with carriage returns alone; save it with \\n."
                )
            return text
        except UnicodeDecodeError as error:
            wrong = error.start
    line = data.count(b"\n", 0, wrong) + 1
    raise UserError(f"{named} is not UTF-8 in line {line}; save it as UTF-8 text.")
