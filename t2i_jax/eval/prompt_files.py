"""Readers of files of prompts, each in the form in which its benchmark publishes it.

Each takes (path, count, seed) and returns the prompts and the rule by which they were chosen. An
error in a file is one sentence with the file, the line, the field and the remedy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import files, paths
from t2i_jax.data.ledger import printable
from t2i_jax.data.table import ENDINGS, FILE_KEYS, read_table
from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file, text_file
from t2i_jax.values import shown
from t2i_jax.words import counted

TEXTS = ("caption", "text", "prompt", "prompts")  # the first that is there; "Prompts" of DrawBench
IDS = ("id", "uid")
_MOST_BYTES = 2**28
_PARTI = ("Prompt", "Category", "Challenge")
_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark or a file.

    Attributes:
      text: the prompt itself, on one line.
      id: names it in its set, and with a seed its images.
      category: as its benchmark has it; "" where it has none.
      labels: what else the file says of it, by column.
    """

    text: str
    id: str
    category: str = ""
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def coco(path: pathlib.Path, count: int | None, seed: int | None) -> tuple[list[Prompt], str]:
    """Captions of MS-COCO: of each drawn image the one with the lowest annotation id.

    The images are those of the file that have captions, ascending by id; each gets the next 64-bit
    word of PCG64(seed), and they come in the order of their words; where the seed is None, in that
    of their ids. A smaller count is a beginning of a larger one. NumPy keeps that stream for all
    its versions. A .csv or .tsv is a list that others drew (columns caption, text or prompt, and
    uid or id), taken in its order.
    """
    if path.suffix.lower() != ".json":
        found, _ = plain(path, count, seed)
        return found, "the file's order, a caption for each row"
    named = f"prompts={paths.shown(path)}"
    held = json_file.an_object(json_file.read(path, "prompts"), named, _NO_COCO)
    first = _first_captions(held, named)
    names = {
        _of_type(int, one, "id", f"{named}: images[{i}]"): one.get("file_name")
        for i, one in enumerate(_list(held, "images", named))
    }
    if lost := sorted(set(first) - set(names)):
        raise UserError(
            f"{named} has captions of image {lost[0]} and no entry for it in images; fetch the "
            "file again."
        )
    ids = sorted(first)
    words = range(len(ids)) if seed is None else np.random.PCG64(seed).random_raw(len(ids))
    order = np.argsort(words, kind="stable")[:count]
    prompts = []
    for place in order:
        image, (annotation, text) = ids[place], first[ids[place]]
        labels = {"annotation": annotation, "file_name": names[image]}
        prompts.append(Prompt(text, str(image), labels=labels))
    return prompts, rule_of_coco(seed)


def rule_of_coco(seed: int | None) -> str:
    """The rule by which `coco` takes captions from a .json, in words."""
    order = "" if seed is None else f", in the order of the words of PCG64({seed})"
    return f"image ids ascending{order}; of each image the caption with the lowest annotation id"


def parti(path: pathlib.Path, count: int | None, seed: int) -> tuple[list[Prompt], str]:
    """PartiPrompts: a table with tabs in which quotes are ordinary characters (22 prompts hold
    them).
    """
    del count, seed
    named, lines = f"prompts={paths.shown(path)}", _lines(path)
    columns = lines[0].split("\t")
    if missing := [name for name in _PARTI if name not in columns]:
        raise UserError(
            f"{named} has no column {missing[0]} in line 1; give PartiPrompts.tsv as it is."
        )
    prompts = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = dict(zip(columns, line.split("\t")))
        if len(line.split("\t")) > len(columns) or not all(cells.get(c) for c in _PARTI):
            raise UserError(
                f"{named} has {counted(len(line.split(chr(9))), 'cell')} for "
                f"{counted(len(columns), 'column')} in line {number}, or an empty "
                "one; put tabs between cells."
            )
        labels = {"challenge": cells["Challenge"], "note": cells.get("Note", "")}
        prompts.append(
            Prompt(_one_line(cells["Prompt"]), f"{number - 2:05d}", cells["Category"], labels)
        )
    return prompts, "all, in the file's order"


def geneval(path: pathlib.Path, count: int | None, seed: int) -> tuple[list[Prompt], str]:
    """GenEval: a JSON object in each line, with "tag", "include" and "prompt"; the labels of a
    prompt are its whole line, which GenEval's scorer wants back.
    """
    del count, seed
    prompts = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"prompts={paths.shown(path)} line {number}"
        row = json_file.an_object(json_file.parse(line, where), where)
        tag, text = _of_type(str, row, "tag", where), _of_type(str, row, "prompt", where)
        if tag not in _TAGS:
            raise UserError(
                f"{where}: tag={tag!r} is no task of GenEval; give one of {', '.join(_TAGS)}."
            )
        if not isinstance(row.get("include"), list) or not text.strip():
            raise UserError(
                f"{where} has no list include or no prompt; give GenEval's "
                "evaluation_metadata.jsonl as it is."
            )
        prompts.append(Prompt(_one_line(text), f"{len(prompts):05d}", tag, row))
    return prompts, "all, in the file's order"


def compbench(path: pathlib.Path, count: int | None, seed: int) -> tuple[list[Prompt], str]:
    """T2I-CompBench: a prompt in each line of CATEGORY_val.txt; of a folder all such files, by
    name.

    Text after a tab in a line is not part of the prompt.
    """
    del count, seed
    files = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"prompts={paths.shown(path)} has no file *_val.txt; give the folder "
            "examples/dataset of T2I-CompBench."
        )
    prompts = []
    for file in files:
        category, held = file.stem.removesuffix("_val"), 0
        for number, line in enumerate(_lines(file), 1):
            text = _one_line(line.split("\t")[0])
            if not text:
                if line.strip():
                    raise UserError(
                        f"prompts={paths.shown(file)} has no prompt before the tab in line "
                        f"{number}; write one, or remove the line."
                    )
                continue
            prompts.append(Prompt(text, f"{category}/{held:05d}", category))
            held += 1
    return prompts, "all, by category and in the file's order"


def dpg(path: pathlib.Path, count: int | None, seed: int) -> tuple[list[Prompt], str]:
    """DPG-Bench: a folder of texts, one prompt in each .txt; its name is the prompt's id."""
    del count, seed
    if not path.is_dir():
        raise UserError(
            f"prompts={paths.shown(path)} is a file; give the folder with a .txt for each prompt."
        )
    prompts = []
    for file in sorted(path.glob("*.txt"), key=lambda file: natural(file.stem)):
        text = _one_line(" ".join(_lines(file)))
        if not text:
            raise UserError(f"prompts={paths.shown(file)} is empty; write its prompt into it.")
        prompts.append(Prompt(text, file.stem))
    if not prompts:
        raise UserError(f"prompts={paths.shown(path)} has no .txt in it; give dpg_bench/prompts.")
    return prompts, "all, by the names of their files"


def plain(path: pathlib.Path, count: int | None, seed: int | None) -> tuple[list[Prompt], str]:
    """A text with a prompt in each line, a JSON list of them (HPSv2's), or a table with a column
    caption, text or prompt (DrawBench's: Prompts); the columns id (or uid) and category are read,
    and all others become labels. Where every row names a file, ids that come twice are labels too.
    """
    del count, seed
    texts = _json_list(path) if path.suffix.lower() == ".json" else None
    if texts is None and path.suffix.lower() in ENDINGS:
        return _of_table(path), "all, in the file's order"
    texts = [_one_line(line) for line in (_lines(path) if texts is None else texts)]
    kept = [(number, text) for number, text in enumerate(texts) if text]
    return [Prompt(text, f"{number:05d}") for number, text in kept], "all, in the file's order"


def sha256_of(path: pathlib.Path) -> str:
    """The hash of a file's bytes; of a folder, that of the texts in it with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(os.fsencode(file.name) + b"\0")
        files.hash_into(digest, file)
    return digest.hexdigest()


def natural(name: str) -> tuple[int, int, str]:
    """The sort key of a name: numbers by their value, before other names."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


_OF_COCO = ("images", "annotations")
_NO_COCO = "give MS-COCO's captions_val2014.json"


def _first_captions(held, named):
    """The lowest annotation of each image: {image id: (annotation id, caption)}."""
    first: dict[int, tuple[int, str]] = {}
    for i, one in enumerate(_list(held, "annotations", named)):
        where = f"{named}: annotations[{i}]"
        image = _of_type(int, json_file.an_object(one, where, _NO_COCO), "image_id", where)
        number = _of_type(int, one, "id", where)
        text = _one_line(_of_type(str, one, "caption", where))
        if text and (image not in first or number < first[image][0]):
            first[image] = number, text
    return first


def _list(held, name, named):
    if not isinstance(held.get(name), list):
        raise UserError(f"{named} has no list {name!r}; {_NO_COCO}.")
    return held[name]


def _of_type(kind, row, name, where):
    if not isinstance(row, dict) or name not in row:
        raise UserError(f"{where} has no {name!r}; fetch the file again.")
    return json_file.a(kind, row[name], f"{where}.{name}", "fetch the file again")


def _of_table(path):
    named, prompts, rows = f"prompts={paths.shown(path)}", [], read_table(path, "prompts")
    keys = _columns_of_ids(rows)
    for row in rows:
        where = f"{named} line {row.line}"
        if row.reason:
            remedy = "repair the line, or read PartiPrompts as parti:FILE"
            raise UserError(f"{where} is a {row.reason}; {remedy}.")
        column = next((name for name in TEXTS if name in row.values), None)
        if column is None:
            raise UserError(f"{where} has no column {' or '.join(TEXTS)}; add one.")
        text = row.values[column]
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{where}: {column}={shown(text)} is no prompt; write one, or remove the line."
            )
        key = next((name for name in keys if row.values.get(name) not in (None, "")), None)
        name = f"{len(prompts):05d}" if key is None else str(row.values[key])
        labels = {k: v for k, v in row.values.items() if k not in (column, key, "category")}
        prompts.append(Prompt(_one_line(text), name, str(row.values.get("category") or ""), labels))
    return prompts


def _columns_of_ids(rows):
    """The columns whose values name prompts: `IDS`, without those in which a value comes twice
    where every row names a file, as numbers of classes do.
    """
    if not all(any(row.values.get(key) for key in FILE_KEYS) for row in rows):
        return IDS
    values = {name: [str(row.values.get(name)) for row in rows] for name in IDS}
    return tuple(name for name in IDS if len(set(values[name])) == len(rows))


def _json_list(path):
    """The strings of a JSON list of nothing else; None: it is something else, a table maybe.

    Raises:
      UserError: it has the form of COCO's captions.
    """
    try:
        found = json_file.read(path, "prompts")
    except UserError:
        return None  # the reader of tables says what is wrong
    if isinstance(found, dict) and all(isinstance(found.get(one), list) for one in _OF_COCO):
        raise UserError(
            f"prompts={paths.shown(path)} has the lists {' and '.join(_OF_COCO)}, as the captions "
            f"of COCO; give it as coco:{printable(str(path))}."
        )
    is_list = isinstance(found, list) and found and all(isinstance(one, str) for one in found)
    return found if is_list else None


def _lines(path):
    """The lines of a UTF-8 text, without their ends."""
    text = text_file.read(path, f"prompts={paths.shown(path)}", _MOST_BYTES)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _one_line(text):
    return " ".join(text.split())
