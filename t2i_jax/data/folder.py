"""A folder of images with captions beside them: .txt files of the same name, a captions.csv or a
captions.jsonl.
"""

from __future__ import annotations

import csv
import json
import os

import numpy as np

from t2i_jax import paths
from t2i_jax.data.image_file import ENDINGS, ImageFiles, decode, file_bytes
from t2i_jax.data.source import BadSample, clean_caption
from t2i_jax.errors import UserError

_FILE, _CAPTION = ("file", "file_name", "filename", "image"), ("caption", "text")


class FolderSource(ImageFiles):
    """Random access to the images below a folder, in the order of their names.

    A table (captions.csv or captions.jsonl, columns file/file_name/image and caption/text) says
    which images there are; without one every image file counts, and its caption is in the .txt file
    of the same name. NAME.cond.png (or of another ending) is no image of its own but what NAME is
    conditioned on.

    Args:
      path: the folder; folders in it are searched too, links to folders are not followed.

    Raises:
      UserError: no such folder, no images in it, or a table that can't be read.
    """

    has_cond_images = True

    def __init__(self, path: str):
        self.path = paths.given("folder", path)
        if not self.path.is_dir():
            raise UserError(f"folder={path!r} is not a folder; give one that holds images.")
        table = next(
            (
                self.path / n
                for n in ("captions.csv", "captions.jsonl")
                if (self.path / n).is_file()
            ),
            None,
        )
        self._samples = _from_table(table) if table is not None else _from_names(self.path)
        if not self._samples:
            raise UserError(f"folder={path!r} holds no images; they end in {', '.join(ENDINGS)}.")

    def __len__(self) -> int:
        return len(self._samples)

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image file and its name below the folder; or `BadSample`."""
        name, _ = self._samples[index]
        return file_bytes(self.path / name, name), name

    def cond_image(self, index: int, channels: int = 3) -> np.ndarray:
        """The image that an image is conditioned on, from NAME.cond.png; or `BadSample`."""
        name, _ = self._samples[index]
        stem = (self.path / name).with_suffix("")
        found = [
            path
            for ending in ENDINGS
            if (path := stem.with_name(f"{stem.name}.cond{ending}")).is_file()
        ]
        if not found:
            raise BadSample("no .cond image", name)
        return decode(file_bytes(found[0], found[0].name), found[0].name, channels)

    def caption(self, index: int) -> str:
        """The caption from the table or from the .txt file; or `BadSample`."""
        name, caption = self._samples[index]
        if caption is None:
            try:
                caption = (self.path / name).with_suffix(".txt").read_bytes()
            except OSError:
                raise BadSample("no caption", name) from None
        return clean_caption(caption, name)


def _from_names(folder):
    found = []
    for parent, _, names in os.walk(folder):
        found += [
            os.path.relpath(os.path.join(parent, n), folder) for n in names if _is_image(n.lower())
        ]
    return [(name, None) for name in sorted(found)]


def _is_image(name):
    return name.endswith(ENDINGS) and not os.path.splitext(name)[0].endswith(".cond")


def _from_table(table):
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"captions={str(table)!r} can't be read ({error}); save it as UTF-8 text."
        ) from None
    rows = _csv_rows(table, text) if table.suffix == ".csv" else _jsonl_rows(table, text)
    samples = []
    for number, row in rows:
        name = next((row[key] for key in _FILE if row.get(key)), None)
        if not isinstance(name, str):
            raise UserError(
                f"captions={str(table)!r} names no image in line {number}; add a column "
                f"{' or '.join(_FILE)}."
            )
        caption = next((row[key] for key in _CAPTION if isinstance(row.get(key), str)), "")
        samples.append((name, caption))
    return samples


def _csv_rows(table, text):
    try:
        reader = csv.DictReader(text.splitlines(), strict=True)
        header = reader.fieldnames or ()
        if not set(header) & set(_FILE) or not set(header) & set(_CAPTION):
            raise UserError(
                f"captions={str(table)!r} has the columns {', '.join(header) or 'none'}; it needs "
                f"one of {'/'.join(_FILE)} and one of {'/'.join(_CAPTION)}."
            )
        return list(enumerate(reader, 2))
    except csv.Error as error:
        raise UserError(f"captions={str(table)!r} is no CSV table ({error}); repair it.") from None


def _jsonl_rows(table, text):
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"captions={str(table)!r} has no JSON object in line {number}; repair the line."
            )
        rows.append((number, row))
    return rows
