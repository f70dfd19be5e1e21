"""Captions that are given beside images, each with the images that it is of."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from t2i_jax import paths
from t2i_jax.data.ledger import printable
from t2i_jax.data.table import ENDINGS, FILE_KEYS, read_table, spelled
from t2i_jax.errors import UserError
from t2i_jax.eval import layout, sample_folder
from t2i_jax.eval.prompt_files import Prompt
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.runs.scoring.sources import SourceImages
from t2i_jax.systems.notices import tell
from t2i_jax.words import counted

_NUMBER = re.compile(r"[0-9]+")


class Paired(NamedTuple):
    """The captions of images.

    Attributes:
      of_images: of each image, in their order, its prompt and its number among those of that.
      rule: how they were found, where that is not the order of the images; "" where it is, and of a
        table that names the images.
    """

    of_images: list[tuple[Prompt, int]]
    rule: str = ""


def unnumbered(captions: PromptSet, field: str = "captions") -> PromptSet:
    """The captions without the numbers that `t2i sample` has written in front of them.

    Args:
      field: what they are called in the line on stderr that tells of it.
    """
    if captions.kind != "file" or captions.source.lower().endswith(ENDINGS):
        return captions
    texts = sample_folder.without_numbers(captions.texts)
    if texts is None:
        return captions
    tell(
        f"{field}={paths.shown(captions.source)} have the numbers of t2i sample in front, which "
        "are no part of them"
    )
    pairs = zip(captions.prompts, texts, strict=True)
    prompts = tuple(dataclasses.replace(prompt, text=text) for prompt, text in pairs)
    rule = f"{captions.rule}, without the numbers of t2i sample"
    return dataclasses.replace(captions, prompts=prompts, rule=rule)


def paired(files: SourceImages, captions: PromptSet, spec: str) -> Paired:
    """The captions of images: of a table by the names of their files; of others by the names that
    the scorer of a benchmark reads or that `t2i sample` gives, or by their ids, where files are
    named so; else by their order.

    That is the order of the records; of a folder whose files are numbered it is that of the
    numbers, 9 before 10.

    Args:
      spec: of the images, for sentences.

    Raises:
      UserError: captions that do not fit the images.
    """
    by_file = [_file_of(one) for one in captions.prompts]
    is_table = captions.kind == "file" and captions.source.lower().endswith(ENDINGS)
    if is_table and None in by_file:
        raise _without_names(captions, by_file.index(None))
    own = _names(files)
    if own is not None and None not in by_file:
        return Paired(_by_name(by_file, own, captions, files, spec))
    if is_table:
        raise UserError(
            f"captions={paths.shown(captions.source)} names files, and images={paths.shown(spec)} "
            "have no names; give a .txt with one caption in each line, in their order."
        )
    if own is not None and (found := _by_set(own, captions, spec)) is not None:
        return found
    plain = _in_order(files.split.count, captions, spec)
    if own is None or files.about()["kind"] != "folder":
        return Paired(plain)
    order = _order(own, captions, spec)
    if order == list(range(len(own))):
        return Paired(plain)
    places = {row: place for place, row in enumerate(order)}
    return Paired([plain[places[row]] for row in range(len(own))], "in the order of their numbers")


def _by_name(by_file, own, captions, files, spec):
    """The prompts of images by the names that a table has for their files: as they are below the
    folder of the images, in another spelling, or as paths.
    """
    for spell in (str, spelled, *_readings(captions, files)):
        by_name = {spell(name): prompt for name, prompt in zip(by_file, captions.prompts)}
        places = own if spell is str else [spelled(name) for name in own]
        if all(place in by_name for place in places):
            break
    lost = [name for name, place in zip(own, places, strict=True) if place not in by_name]
    if lost or not len(own) == len(by_name) == len(captions):
        first = printable(lost[0]) if lost else "some files"
        raise UserError(
            f"captions={paths.shown(captions.source)} has no caption for {first} of "
            f"images={paths.shown(spec)}, or several for one ({counted(len(captions), 'caption')} "
            f"of {counted(len(by_name), 'name')} for {counted(len(own), 'image')}"
            f"{_odd_name(by_file, own)}); give one for each, with the name of its file there."
        )
    return [(by_name[place], 0) for place in places]


def _odd_name(by_file, own):
    """What is told of the first name of a table that no image has, or of the first that comes
    twice.
    """
    known, seen = {spelled(name) for name in own}, set()
    for name in by_file:
        place = spelled(name)
        if place not in known or place in seen:
            return f"; {printable(name)} {'comes twice' if place in known else 'is of none'}"
        seen.add(place)
    return ""


def _readings(captions, files):
    """The ways to read the names of a table as paths, whole or from the table's folder or the
    current one: each gives the name of that file below the folder of the images.
    """
    about = files.about()
    if about["kind"] != "folder":
        return []
    home = os.path.realpath(paths.given("images", about["path"]))

    def below(name, start):
        folder, file = os.path.split(os.path.join(start, spelled(name)))
        return spelled(os.path.relpath(os.path.join(os.path.realpath(folder), file), home))

    table = os.path.dirname(paths.given("captions", captions.source))
    return [functools.partial(below, start=start) for start in (table, os.curdir)]


def _by_set(own, captions, spec) -> Paired | None:
    """The images paired with captions by the names that a scorer reads or that `t2i sample` gives,
    or by ids; None where files are not named so.
    """
    found, by = None, "their ids"
    if captions.kind in layout.LAYOUTS:
        found = layout.pairs(own, captions, f"images={paths.shown(spec)}")
        by = f"the names that the scorer of {captions.kind} reads"
    elif captions.kind == "file" and len(own) != len(captions):
        found, by = _of_samples(own, len(captions)), "the names that t2i sample gives"
    if found is None:
        place_of = {one.id: place for place, one in enumerate(captions.prompts)}
        stems = [pathlib.PurePath(name).stem for name in own]
        if len(stems) != len(place_of) or set(stems) != place_of.keys():
            return None
        found, by = [(place_of[stem], 0) for stem in stems], "their ids"
    rule = "" if found == sorted(found) else f"by {by}"
    return Paired([(captions.prompts[place], number) for place, number in found], rule)


def _of_samples(own, count):
    """The numbers of prompt and image in the names that `t2i sample` gives for `count` captions;
    None of other names.
    """
    numbers = [sample_folder.numbers_of(name) for name in own]
    found = [one for one in numbers if one is not None]
    is_whole = len(set(found)) == len(own) and {prompt for prompt, _ in found} == set(range(count))
    return found if is_whole else None


def _in_order(count, captions, spec):
    known, each = len(captions), captions.images_per_prompt
    if count not in (known, known * each):
        several = f", or {each} for each caption" if each > 1 else ""
        raise UserError(
            f"captions={paths.shown(captions.source)} has {counted(known, 'caption')} for "
            f"{counted(count, 'image')} of images={paths.shown(spec)}; give one for each "
            f"image{several}."
        )
    return [(one, number) for one in captions.prompts for number in range(count // known)]


def _order(names: Sequence[str], captions, spec) -> list[int]:
    """The rows of images in the order in which captions without names are theirs.

    Raises:
      UserError: captions of a benchmark, and names that tell no order.
    """
    rows = list(range(len(names)))
    if list(names) != sorted(names):  # a table in the folder has an order of its own
        return rows
    if not (is_numbered := _are_numbered(names)) and captions.kind != "file":
        raise UserError(
            f"captions={paths.shown(captions.source)} are in the order of {captions.kind}, and the "
            f"files of images={paths.shown(spec)} are not numbered ({printable(names[0])!r}); give "
            "a table with the columns file and caption."
        )
    width = max((len(one) for name in names for one in _NUMBER.findall(name)), default=0)
    padded = [_NUMBER.sub(lambda one: one[0].zfill(width), name) for name in names]
    by_number = sorted(rows, key=lambda row: (padded[row], names[row]))
    if by_number != rows:
        place = next(place for place in rows if by_number[place] != place)
        first, other = printable(names[by_number[place]]), printable(names[place])
        how, pair = "numbers in", (first, other)
        if not is_numbered:
            how, pair = "letters of", (other, first)
        tell(
            f"captions={paths.shown(captions.source)} are taken in the order of the {how} the "
            f"names of images={paths.shown(spec)}, {pair[0]!r} before {pair[1]!r}"
        )
    return by_number if is_numbered else rows


def _are_numbered(names):
    """Whether all names are the same up to their first number."""
    numbers = [_NUMBER.search(name) for name in names]
    before = {name[: one.start()] if one else None for name, one in zip(names, numbers)}
    return len(before) == 1 and None not in before


def _file_of(prompt) -> str | None:
    """The file that a row of a table names."""
    return next((str(prompt.labels[key]) for key in FILE_KEYS if prompt.labels.get(key)), None)


def _names(files) -> list[str] | None:
    """The names of the files of images; None where they are no files."""
    found = []
    for row in range(files.split.count):
        name = files.name(row)
        if name is None:
            return None
        found.append(name)
    return found


def _without_names(captions, place):
    row = read_table(paths.given("captions", captions.source))[place]
    return UserError(
        f"captions={paths.shown(captions.source)} names no image in line {row.line}, which has the "
        f"columns {', '.join(map(printable, row.values))}; it needs one of {'/'.join(FILE_KEYS)}, "
        "or give a .txt with one caption in each line, in the order of the images."
    )
