"""The one reader of tables: CSV, TSV, JSON lines and JSON.

CSV is read by the standard library, from the open file. A row ends at a line feed (with a carriage
return before it or not) and nowhere else, so that a cell may hold any text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import pathlib
import re
import sys
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from t2i_jax.data.caption import LONGEST
from t2i_jax.data.ledger import printable
from t2i_jax.errors import UserError
from t2i_jax.files import open_regular
from t2i_jax.foreign.file import check, refusing
from t2i_jax.words import counted

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
FILE_KEYS = ("file", "file_name", "filename", "image", "image_path", "path", "img")
"""Columns in which a table names an image, the first that a row has."""
_COLUMNS = (*FILE_KEYS, "columns")  # names in a .json file that isn't by the names of images
_MOST_BYTES, _MOST_JSON = 2**32, 2**28  # most bytes of a table, and of one that is read whole
_MOST_DIGITS = 100  # most digits of a number
_LONGEST_LINE = 2**24  # most characters of a line
_RETURN = "\ud800"  # stands for a carriage return by itself; no decoder makes it
_ODD = "t2i_jax.lone_surrogate"  # error handler: stands in place of what is no UTF-16
codecs.register_error(_ODD, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
_LIMIT = threading.Lock()  # guards the csv module's limit, which all threads share
_SEPARATOR = re.compile(r"sep=([,;|\t])", re.IGNORECASE)
_QUOTE_AFTER_SPACE = re.compile(r' +"')
_SPACE_AFTER_QUOTE = re.compile(r'((?:^|(?<=[,;|\t ]))"(?:[^"]|"")*+") +(?=[,;|\t\r\n]|$)')
_NO_OBJECT = "row that is no JSON object"
_MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      line: number of the line where it begins, from 1; of a .json file the number of its entry.
      values: by the names of the columns, in small letters, None where a row ends before; {} where
        the row can't be used.
      reason: why not, in few words; "" where it can.
    """

    line: int
    values: Mapping[str, Any]
    reason: str = ""


def spelled(name: str) -> str:
    """The one spelling of a file's name, below a folder, for names that others wrote: the letters
    composed, which macOS writes apart; slashes for those of Windows; without spaces around a name.
    """
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return os.path.normpath("/".join(part.strip() for part in parts))


def read_table(path: pathlib.Path, field: str = "captions") -> list[Row]:
    """The rows of a table, by its ending: .csv, .tsv (cells apart by tabs), .jsonl or .ndjson (an
    object a line), .json (a list of objects, or an object of names with what belongs to each, which
    gets the column "file").

    UTF-8, or UTF-16 with its mark. A CSV file whose first line has semicolons and no comma has its
    cells apart by semicolons; a line "sep=;" before it, as spreadsheets write it, says so too.
    Spaces around a quoted cell are none of it. Blank lines are no rows. A row that can't be used
    (broken quotes or JSON, a column twice, a cell of more than 131,072 characters) is told with its
    reason, the others are read. A .json file may also be a list of texts, in the column "caption".

    Args:
      field: its name in messages.

    Raises:
      UserError: no regular file or one that can't be read, no column names, a name twice, a row
        with more cells than there are columns, or a .json file that is no such thing.
    """
    named, ending = f"{field}={str(path)!r}", path.suffix.lower()
    if ending == ".json":
        return _json(path, field)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise UserError(f"{named} has {size} bytes; give tables below {_MOST_BYTES}.")
            lines = _Lines(file)
            if ending in (".jsonl", ".ndjson"):
                return list(_json_lines(lines))
            with _LIMIT:
                before = csv.field_size_limit(sys.maxsize)  # its own limit would end the table
                try:
                    return list(_csv_rows(lines, ending == ".tsv", named))
                finally:
                    csv.field_size_limit(before)
    except (OSError, UnicodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{named} can't be read ({said}); save it as UTF-8 text.") from None


class _Lines:
    """The lines of an open file with their ends, which can be given back.

    A carriage return by itself ends no line; it comes as `_RETURN`. Bytes that are no text come as
    lone surrogates, to be seen in their cell. Of a line that is too long the beginning comes.

    Attributes:
      number: of the line that comes next, from 1.
    """

    def __init__(self, file):
        wide = file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        encoding, errors = ("utf-16", _ODD) if wide else ("utf-8-sig", "surrogateescape")
        self._text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="\n")
        self._waiting: list[str] = []
        self.number = 1

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        if self._waiting:
            return self._waiting.pop()
        line = self._text.readline(_LONGEST_LINE)
        if not line:
            self.number -= 1
            raise StopIteration
        rest = line
        while len(rest) >= _LONGEST_LINE and not rest.endswith("\n"):
            rest = self._text.readline(_LONGEST_LINE)
        return re.sub("\r(?!\n)", _RETURN, line)

    def give_back(self, lines: list[str]) -> None:
        """Puts lines back: they are read again."""
        self._waiting += reversed(lines)
        self.number -= len(lines)


def _csv_rows(lines, tabs, named) -> Iterator[Row]:
    first = next(lines, "").lstrip("\ufeff")  # a mark that was written twice
    told = _SEPARATOR.fullmatch(first.rstrip("\r\n "))
    if told is None:
        lines.give_back([first])
    if first.count(_RETURN) > 1 and not first.endswith("\n"):
        raise UserError(f"{named} ends its lines with carriage returns alone; save it with \\n.")
    likely = next((mark for mark in _MARKS if mark in first), ",")
    delimiter = told[1] if told else "\t" if tabs else likely
    cells, reason = _parsed(lines, delimiter)
    columns = _columns(cells, reason, named)
    while True:
        number = lines.number
        cells, reason = _parsed(lines, delimiter)
        if lines.number == number:
            return
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise UserError(
                f"{named} has {counted(len(cells), 'cell')} for "
                f"{counted(len(columns), 'column')} in line {number}; put a "
                f"caption that holds {_MARKS[delimiter]} in quotes."
            )
        if reason or any(cell.strip() for cell in cells):
            cells += [None] * (len(columns) - len(cells))
            yield _checked(number, dict(zip(columns, cells)), reason)


def _columns(cells, reason, named) -> list[str]:
    """The names of a table's columns, from its first line."""
    columns: list[str] = [cell.strip().lower() for cell in cells]
    while columns and not columns[-1]:  # as spreadsheets leave them: what stands there has no name
        columns.pop()
    if any("\0" in name for name in columns):  # UTF-16 without its mark, UTF-32
        raise UserError(f"{named} can't be read as UTF-8 text; save it as such.")
    if reason or not columns:
        raise UserError(f"{named} has no names of columns in line 1; write them there.")
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{named} has the column {twice!r} twice; leave one.")
    return columns


def _parsed(lines, delimiter) -> tuple[list[Any], str]:
    """The cells of the next row, and the reason where they can't be read.

    After broken quotes the next line begins a row, so that they cost no other one.
    """
    cells, used = _row(lines, delimiter)
    if cells is None and (without := _SPACE_AFTER_QUOTE.sub(r"\1", used[0])) != used[0]:
        lines.give_back([without, *used[1:]])
        cells, used = _row(lines, delimiter)
    if cells is not None and any(_QUOTE_AFTER_SPACE.match(cell) for cell in cells):
        lines.give_back(used)
        freely, used = _row(lines, delimiter, skipinitialspace=True)
        cells = None if freely is None else _without_spaces(cells, freely)
    if cells is None:
        lines.give_back(used[1:])
        return [], "row with broken quotes"
    return [cell.replace(_RETURN, "\r") for cell in cells], ""


def _row(lines, delimiter, **how) -> tuple[list[str] | None, list[str]]:
    """The cells of the next row, None where its quotes are broken, and its lines."""
    used: list[str] = []

    def feed():
        for line in lines:
            used.append(line)
            yield line

    try:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True, **how), []), used
    except csv.Error:
        return None, used


def _without_spaces(strictly, freely):
    """The cells of a row in which spaces stand before quotes; those of no other cell are lost."""
    if len(strictly) != len(freely):
        return freely
    return [
        one if one.lstrip(" ") == other else other
        for one, other in zip(strictly, freely, strict=True)
    ]


def _json_lines(lines) -> Iterator[Row]:
    while True:
        number = lines.number
        line = next(lines, None)
        if line is None:
            return
        if line.strip():
            yield _object(number, line.replace(_RETURN, "\r"))


def _object(number, line):
    names: list[str] = []

    def outermost(pairs):  # comes last
        names[:] = [name for name, _ in pairs]
        return dict(pairs)

    try:
        # control characters may stand in a text; numbers are not used
        row = json.loads(
            line, strict=False, parse_int=str, parse_float=str, object_pairs_hook=outermost
        )
    except (ValueError, RecursionError):
        return Row(number, {}, _NO_OBJECT)
    if not isinstance(row, dict):
        return Row(number, {}, _NO_OBJECT)
    return _by_column(number, row, names)


def _by_column(number, row, names):
    twice = len({name.lower() for name in names}) < len(names)
    values = {name.lower(): value for name, value in row.items()}
    return _checked(number, values, "row with a column twice" if twice else "")


class _Object(dict):
    """An object of a .json file, in which a name may come twice."""

    __slots__ = ("_written",)

    def __init__(self, pairs):
        super().__init__(pairs)
        self._written = pairs if len(pairs) > len(self) else None

    @property
    def pairs(self):
        """Names and values as they were written."""
        return self._written or list(self.items())


def _json(path, field):
    found = _json_of(path, field)
    column = next((one for one in _COLUMNS if isinstance(found, dict) and one in found), None)
    if column is not None:
        raise UserError(
            f"{field}={str(path)!r} is an object of columns (with {column!r}) or of one row; write "
            "a list of objects, one for each row, as to_json(orient='records') of pandas does."
        )
    if isinstance(found, dict) and any(_are_objects(one) for one in found.values()):
        lists = ", ".join(printable(name) for name, one in found.items() if _are_objects(one))
        raise UserError(
            f"{field}={str(path)!r} is an object of lists ({lists}), as COCO has them; write one "
            "list of objects, each with the name of an image and its caption."
        )
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        found = [_Object([("caption", one)]) for one in found]
    if isinstance(found, dict):  # of names
        found = [
            _Object([*([] if "file" in one else [("file", name)]), *one.pairs])
            if isinstance(one, dict)
            else _Object([("file", name), ("caption", one)])
            for name, one in found.pairs
        ]
    if not isinstance(found, list) or (found and not any(isinstance(one, dict) for one in found)):
        raise UserError(
            f"{field}={str(path)!r} is no list of objects with the names of images and their "
            "captions; write it as such, or as JSON lines."
        )
    return [
        _by_column(number, one, [name for name, _ in one.pairs])
        if isinstance(one, dict)
        else Row(number, {}, _NO_OBJECT)
        for number, one in enumerate(found, 1)
    ]


def _json_of(path, field):
    """The content of a .json file, read so that what is odd in one entry costs no other one: a
    number that is NaN or infinite, a name twice, bytes that are no UTF-8.
    """
    check(path, field, _MOST_JSON)
    with refusing(path, field, "JSON", "write it again"):
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data), "surrogateescape")
        try:
            return json.loads(
                text, strict=False, parse_constant=str, parse_int=_whole, object_pairs_hook=_Object
            )
        except (ValueError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError)
            why = "values within values too deep" if is_deep else error
            raise UserError(f"{field}={str(path)!r} is no JSON ({why}); write it again.") from error


def _whole(digits):
    """A whole number; of more digits than a number has in a table, the text."""
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


def _are_objects(value):
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _checked(line, values, reason=""):
    long = any(isinstance(cell, str) and len(cell) > LONGEST for cell in values.values())
    if long and not reason:
        reason = f"row with a cell of more than {LONGEST} characters"
    return Row(line, {} if reason else values, reason)
