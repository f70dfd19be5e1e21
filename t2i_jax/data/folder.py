"""A folder of images with their captions: files beside the images, or tables that name them."""

from __future__ import annotations

import collections
import errno
import json
import os
import pathlib
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

from t2i_jax import paths
from t2i_jax.data import caption as captions
from t2i_jax.data.caption import clean_caption
from t2i_jax.data.image_file import ENDINGS, ImageFiles, decode, file_bytes, looks_like_image
from t2i_jax.data.ledger import Ledger, printable
from t2i_jax.data.source import BadSample
from t2i_jax.data.table import FILE_KEYS, read_table, spelled
from t2i_jax.errors import UserError
from t2i_jax.files import open_regular, read_regular

TABLES = (
    *(f"captions{ending}" for ending in (".csv", ".jsonl", ".tsv", ".json")),
    *(f"metadata{ending}" for ending in (".csv", ".jsonl", ".tsv", ".json")),
)
"""Names of the tables that are read, the first of them in a folder."""
_LEFT = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "lost+found")
_NO_ENDING = "file without an ending"  # a file whose bytes are those of no image
_PACKED = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
LEFTOVER = "leftover of another program"
_GENEVAL, _OF_GENEVAL = "metadata.jsonl", "GenEval's line of a prompt"
NO_IMAGES = (
    LEFTOVER,
    _NO_ENDING,
    _OF_GENEVAL,
    *(f"file of {one}" for one in (*captions.ENDINGS, ".csv", ".tsv", ".html", ".npz")),
)
"""Beginnings of the reasons for passing over texts, tables, and files that programs write beside
images; none of these would be missed by a program that measures images."""
_ELSEWHERE = {  # files that hold images too, and the source that reads them
    ".parquet": "hf:FOLDER",
    ".tar": "webdataset:FOLDER/*.tar",
    ".arrayrecord": "arrayrecord:FOLDER",
}


def in_place_of(path: pathlib.Path) -> str:
    """The advice of a message on what to give in place of an archive; "" for a path that names
    none.
    """
    ending = path.suffix.lower()
    if ending == ".tar":
        return "give webdataset:FILE.tar, or unpack it and give its folder"
    return "unpack it and give its folder" if ending in _PACKED else ""


def is_leftover(name: str) -> bool:
    """Whether a file or a folder of this name is hidden, or what another program left."""
    return name.startswith(".") or name in _LEFT


class _Sample(NamedTuple):
    """A record: where its image is, and its caption or the file that holds it.

    One with a reason is there to be counted as bad; one with `several` has further captions.
    """

    image: str
    caption: str | None = None
    caption_file: str | None = None
    reason: str = ""
    several: bool = False


class FolderSource(ImageFiles):
    """Random access to the images below a folder.

    A table (one of `TABLES`) in a folder says which images there are below it, relative to it; of
    nested tables each speaks for its own folder. Where no table speaks every image file counts, in
    the order of the names, and its caption is in a file beside it: a.txt, a.caption or a.json for
    a.png, or a.png.txt and so on. NAME.cond.png (or of another ending) is no image of its own but
    what NAME is conditioned on.

    What other programs left (hidden files, __MACOSX, Thumbs.db) is no data; a file without an
    ending is looked into.

    Args:
      path: the folder; folders in it are searched too, links to folders are not followed.

    Raises:
      UserError: no such folder, no images in it, or a table that can't be read.
    """

    has_cond_images = True

    def __init__(self, path: str):
        self.path = paths.given("folder", path)
        if not self.path.is_dir():
            remedy = in_place_of(self.path) or "give one that holds images"
            raise UserError(f"folder={path!r} is not a folder; {remedy}.")
        self._passed_over = Ledger()
        self._samples = _found(self.path, self._passed_over)
        if not any(not sample.reason for sample in self._samples):
            seen = [f"{sample.image}: {sample.reason}" for sample in self._samples[:3]]
            seen += self._passed_over.names[: 3 - len(seen)]
            said = f" (there are {'; '.join(seen)})" if seen else ""
            raise UserError(
                f"folder={path!r} holds no images{said}; they end in {', '.join(ENDINGS)}."
            )

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def passed_over(self) -> Ledger:
        """Files below the folder that are no images and no captions of any."""
        return self._passed_over

    def file(self, index: int) -> tuple[bytes, str]:
        """The bytes of an image file and its name below the folder; or `BadSample`."""
        sample = self._samples[index]
        if sample.reason:
            raise BadSample(sample.reason, sample.image)
        return file_bytes(self.path / sample.image, sample.image), sample.image

    def image_name(self, index: int) -> str:
        """The name below the folder."""
        return self._samples[index].image

    def image_of(self, index: int) -> Hashable:
        """The file that the rows of a table name, several of them maybe one."""
        sample = self._samples[index]
        return index if sample.reason else sample.image

    @property
    def image_files(self) -> Iterable[pathlib.Path]:
        """A file for each record, whether it can be read or not."""
        return (self.path / sample.image for sample in self._samples)

    def takes(self, path: pathlib.Path) -> bool:
        """Whether it is below the folder, and neither hidden nor below a table, which would not
        name it.
        """
        home, place = os.path.realpath(self.path), pathlib.Path(os.path.realpath(path))
        if not place.is_relative_to(home):
            return False
        below = place.relative_to(home).parts
        folders = [os.path.join(home, *below[:depth]) for depth in range(len(below) + 1)]
        return not any(map(is_leftover, below)) and not any(map(_has_table, folders))

    def cond_image(self, index: int, channels: int = 3) -> np.ndarray:
        """The image that an image is conditioned on, from NAME.cond.png; or `BadSample`."""
        name, _, _, reason, _ = self._samples[index]
        if reason:
            raise BadSample(reason, name)
        places = (self.path / one for one in _cond_names(os.path.splitext(name)[0]))
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise BadSample("no .cond image", name)
        return decode(file_bytes(found, found.name), found.name, channels)

    def caption(self, index: int) -> str:
        """The caption from the table or from a file beside the image; or `BadSample`."""
        name, caption, file, reason, several = self._samples[index]
        if reason:
            raise BadSample(reason, name)
        if several:
            self.read_in_part.note(captions.SEVERAL, name)
        if file is None:
            return clean_caption(caption, name)
        try:
            data = read_regular(self.path / file, captions.MOST_BYTES)
        except OSError as error:
            is_odd = error.errno in (errno.EINVAL, errno.EFBIG)
            reason = "caption in no regular file of a sane size" if is_odd else "unreadable caption"
            raise BadSample(reason, file) from None
        return captions.in_file(data, file, name, self.read_in_part)


def _found(folder, passed_over):
    """The samples below a folder: those of tables, then those without."""
    from_tables: list[_Sample] = []
    by_name: list[_Sample] = []
    unnamed: list[str] = []  # images below a table, which may not name them
    conds: set[str] = set()  # the images to condition on
    ruled: dict[str, bool] = {}  # of each folder, whether a table speaks for it
    for parent, folders, names in os.walk(folder):
        where = os.path.relpath(parent, folder)
        where = "" if where == "." else where
        _pass_over_folders(parent, where, folders, passed_over)
        images, texts, tables, beside = _sorted_out(parent, where, sorted(names), passed_over)
        conds |= {os.path.join(where, name) for name in beside}
        if tables:
            from_tables += _of_table(folder, where, tables[0])
            for name in tables[1:]:
                passed_over.note(f"table beside {tables[0]}", os.path.join(where, name))
        ruled[where] = bool(tables) or ruled.get(os.path.dirname(where), False)
        if ruled[where]:
            unnamed += [os.path.join(where, name) for name in images]
            for name in texts:
                passed_over.note(f"{_kind(name)} below a table", os.path.join(where, name))
            continue
        texts_of = _caption_files(images, texts)
        for name, text in texts_of.items():
            file = None if text is None else os.path.join(where, text)
            by_name.append(_Sample(os.path.join(where, name), caption_file=file))
        for name in sorted(set(texts) - set(texts_of.values())):
            passed_over.note(f"{_kind(name)} that no image takes", os.path.join(where, name))
    from_tables = _respelled(folder, from_tables, unnamed)
    named = {os.path.normpath(sample.image) for sample in from_tables}
    for name in unnamed:
        if name not in named:
            passed_over.note("image that no table names", name)
    found = [*from_tables, *sorted(sample for sample in by_name if sample.image not in named)]
    for name in sorted(conds.difference(_taken(found, conds))) if conds else ():
        passed_over.note("condition image that no image takes", name)
    return found


def _respelled(folder, samples, images):
    """The samples of tables; where there is no image of a name and one that is spelled in another
    way, see `table.spelled`, it is meant.
    """
    unknown = {sample.image for sample in samples if not sample.reason}.difference(images)
    if not unknown:
        return samples
    there = {spelled(name): name for name in images}
    meant = {name: there[spelled(name)] for name in unknown if spelled(name) in there}
    for name in [one for one in meant if os.path.lexists(folder / one)]:
        del meant[name]
    return [one._replace(image=meant.get(one.image, one.image)) for one in samples]


def _taken(samples, conds):
    """The image to condition on that each sample takes; "" where there is none."""
    for sample in samples:
        names = _cond_names(os.path.splitext(sample.image)[0])
        yield next((name for name in names if name in conds), "")


def _cond_names(stem):
    """Names of what an image may be conditioned on, the first that is there counts."""
    return (f"{stem}.cond{ending}" for ending in ENDINGS)


def _pass_over_folders(parent, where, folders, passed_over):
    """Takes those folders out that are not searched."""
    for name in list(folders):
        if is_leftover(name):
            passed_over.note(LEFTOVER, os.path.join(where, name) + "/")
        elif os.path.islink(os.path.join(parent, name)):
            passed_over.note("link to a folder", os.path.join(where, name))
        else:
            continue
        folders.remove(name)
    folders.sort()


def _sorted_out(parent, where, names, passed_over):
    """The images of a folder, the files that may hold captions, its tables, the one that is read
    first, and what images are conditioned on.
    """
    images, texts, tables, conds = [], [], [], []
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if is_leftover(name):
            passed_over.note(LEFTOVER, os.path.join(where, name))
        elif _is_of_geneval(parent, name):
            passed_over.note(_OF_GENEVAL, os.path.join(where, name))
        elif name.lower() in TABLES:
            tables.append(name)
        elif ending in ENDINGS:
            is_cond = os.path.splitext(name)[0].lower().endswith(".cond")
            (conds if is_cond else images).append(name)
        elif ending in captions.ENDINGS:
            texts.append(name)
        elif not ending and _is_image(os.path.join(parent, name)):
            images.append(name)
        else:
            passed_over.note(_kind(name), os.path.join(where, name))
    tables.sort(key=lambda name: TABLES.index(name.lower()))
    return images, texts, tables, conds


def _has_table(folder):
    """Whether a table speaks for a folder; a folder that is not there has none."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(name.lower() in TABLES and not _is_of_geneval(folder, name) for name in names)


def _is_of_geneval(parent, name):
    """Whether a file is the prompt that GenEval's scorer reads beside its images: it has the name
    of a table, and names no image.
    """
    if name != _GENEVAL:
        return False
    try:
        line = json.loads(read_regular(os.path.join(parent, name), captions.MOST_BYTES))
    except (OSError, ValueError, RecursionError):  # a table, of several lines or a large one
        return False
    is_prompt = isinstance(line, dict) and line.keys() >= {"tag", "include", "prompt"}
    return is_prompt and not line.keys() & set(FILE_KEYS)


def _caption_files(images, texts):
    """The file that holds the caption of each image, None without one: of the image's own spelling,
    else with other capital letters, or spelled in another way, one that is no other image's.
    """
    found: dict[str, str | None] = dict.fromkeys(images)
    stems = collections.Counter(os.path.splitext(image)[0] for image in images)
    for spelling in (_small_ending, str.lower, _small_and_spelled):
        taken = set(found.values())
        free = {spelling(name): name for name in texts if name not in taken}
        if not free:
            break
        for image in (name for name, text in found.items() if text is None):
            stem = os.path.splitext(image)[0]
            # that of several images can't be meant for one of them as its whole name is
            names = (image, stem) if stems[stem] > 1 else (stem, image)
            wanted = map(spelling, captions.beside(names))
            found[image] = next((free[name] for name in wanted if name in free), None)
    return found


def _small_ending(name):
    stem, ending = os.path.splitext(name)
    return stem + ending.lower()


def _small_and_spelled(name):
    return spelled(name).lower()


def _of_table(folder, where, name):
    """The samples that a table names."""
    table = os.path.join(where, name)
    path, samples, bad = folder / table, [], []
    rows = read_table(path)
    if not rows:
        raise UserError(
            f"captions={str(path)!r} has no rows; write one for each image, or remove the table."
        )
    for row in rows:
        file = next((row.values[key] for key in FILE_KEYS if row.values.get(key)), None)
        reason = row.reason or _wrong(file)
        if path.suffix.lower() in (".csv", ".tsv") and not row.reason:
            _check_columns(path, row.values)
        if reason:
            bad.append(_Sample(f"{table} line {row.line}", reason=reason))
            continue
        image = _within(folder, os.path.normpath(os.path.join(where, _own(path.parent, file))))
        several = captions.are_several(row.values)
        samples.append(_Sample(image, captions.among(row.values), several=several))
    if bad and not samples:
        raise UserError(
            f"captions={str(path)!r} has no row that can be used ({bad[0].reason} in line "
            f"{bad[0].image.rpartition(' ')[2]}); it needs one of {'/'.join(FILE_KEYS)} and one of "
            f"{'/'.join(captions.KEYS)}."
        )
    return samples + bad


def _within(folder, image):
    """A whole path of an image below the folder as seen from there; others as they are."""
    if not os.path.isabs(image):
        return image
    for home in (os.path.abspath(folder), os.path.realpath(folder)):
        if os.path.commonpath((home, image)) == home:
            return os.path.relpath(image, home)
    return image


def _check_columns(path, values):
    if not set(values) & set(FILE_KEYS) or not set(values) & set(captions.KEYS):
        raise UserError(
            f"captions={str(path)!r} has the columns {_listed(values)}; it needs one "
            f"of {'/'.join(FILE_KEYS)} and one of {'/'.join(captions.KEYS)}."
        )


def _listed(names):
    return ", ".join(printable(name) for name in names) or "none"


def _wrong(file):
    """The reason why a table's entry names no file; "" where it names one."""
    if not isinstance(file, str):
        return "row that names no image"
    try:
        return "row with a name that no file can have" if b"\0" in os.fsencode(file) else ""
    except UnicodeEncodeError:  # halves of letters
        return "row with a name that no file can have"


def _own(folder, file):
    """A name as this system writes it: tables made on Windows have backslashes."""
    if "\\" in file and not os.path.lexists(os.path.join(folder, file)):
        return file.replace("\\", "/")
    return file


def _is_image(path):
    try:
        with open_regular(path) as file:
            return looks_like_image(file.read(32))
    except (OSError, ValueError):
        return False


def _kind(name):
    ending = os.path.splitext(name)[1].lower()
    if ending in _ELSEWHERE:
        return f"file of {ending}; alone in a folder, data.source={_ELSEWHERE[ending]} reads it"
    return f"file of {ending[:20]}" if ending else _NO_ENDING
