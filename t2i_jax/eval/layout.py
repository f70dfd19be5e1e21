"""Folders of images as the scorers of GenEval, DPG-Bench and T2I-CompBench read them.

The scorers pass over what they can't read, or what is not there, and score the rest: `write` leaves
out no file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from t2i_jax import config, files
from t2i_jax.data.ledger import printable
from t2i_jax.errors import UserError
from t2i_jax.eval.prompt_files import natural
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.pixels import png_bytes
from t2i_jax.words import counted

GRIDS = (1, 4)
"""The numbers of images that a file may hold."""

_LONGEST_NAME = 255  # bytes


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of one scorer's folder.

    Attributes:
      kind: of prompt set, as in `PromptSet.kind`.
      names: prompts -> for each the files of its images, in order, below the folder; a scorer that
        wants a grid has one file.
      images_per_file: 1, or 4 in a grid of two rows.
      forbidden: characters that a name can't hold, because the scorer takes names apart there.
      scorer: what reads the folder.
      before_number: the character before an image's number, behind what the images of a prompt have
        in common; "": a prompt has one file.
    """

    kind: str
    names: Callable[[PromptSet], list[list[str]]]
    images_per_file: int
    forbidden: str
    scorer: str
    before_number: str


def _geneval(prompts):
    return [
        [f"{place:05d}/samples/{n:04d}.png" for n in range(prompts.images_per_prompt)]
        for place in range(len(prompts))
    ]


def _dpg(prompts):
    return [[f"{prompt.id}.png"] for prompt in prompts.prompts]


def _compbench(prompts):
    """The number is that of the image in its category: the scorers sort by it, and read the prompt
    from what is before the first underscore.
    """
    found, counts = [], dict.fromkeys(prompts.by_category(), 0)
    for prompt in prompts.prompts:
        first = counts[prompt.category]
        counts[prompt.category] += prompts.images_per_prompt
        home = f"{prompt.category}/samples/{prompt.text}"
        numbers = range(first, counts[prompt.category])
        found.append([f"{home}_{number:06d}.png" for number in numbers])
    return found


LAYOUTS = {
    one.kind: one
    for one in (
        Layout(
            "geneval", _geneval, 1, "", "GenEval's evaluation/evaluate_images.py FOLDER", "/",
        ),
        Layout(
            "dpg", _dpg, 4, "/.",
            "DPG-Bench's compute_dpg_bench.py --image-root-path FOLDER --pic-num 4 --resolution "
            "SIDE",
            "",
        ),
        Layout(
            "t2i-compbench", _compbench, 1, "/_",
            "T2I-CompBench's scorers with --out_dir FOLDER/CATEGORY",
            "_",
        ),
    )
}  # fmt: skip


def write(
    folder: pathlib.Path, prompts: PromptSet, images_of: Callable[[int], np.ndarray]
) -> list[pathlib.Path]:
    """Writes the images of all prompts as PNG; what is there whole is kept.

    Each file appears whole or not at all, so that a call that was stopped goes on.

    Args:
      folder: a new one, or that of an earlier call.
      prompts: of kind "geneval", "dpg" or "t2i-compbench".
      images_of: place of a prompt -> its images, uint8 (images_per_prompt, H, W, 3); called only
        for prompts of which a file is missing.

    Returns:
      The files that were written now.

    Raises:
      UserError: a set without a layout, a prompt that can't be the name of a file, or another
        number of images.
    """
    layout, written = _layout(prompts), []
    names = _names(layout, prompts)
    for place, wanted in enumerate(names):
        todo = [i for i, name in enumerate(wanted) if not (folder / name).is_file()]
        if layout.kind == "geneval":
            written += _write_metadata(folder, prompts, place)
        if not todo:
            continue
        images = np.asarray(images_of(place))
        _check(images, prompts, place)
        groups = images.reshape(len(wanted), layout.images_per_file, *images.shape[1:])
        for i in todo:
            path = folder / wanted[i]
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as temporary:
                temporary.write_bytes(png_bytes(grid_of(groups[i])))
            written.append(path)
    return written


def check(folder: pathlib.Path, prompts: PromptSet) -> None:
    """Refuses what `write` could not write, before images are there.

    Raises:
      UserError: as `write`, or a file is where a folder belongs, or the other way round.
    """
    checked = set[pathlib.Path]()
    for name in map(pathlib.PurePath, _wanted(prompts)):
        if (folder / name).is_dir():
            raise UserError(_in_place(folder / name, "file"))
        for home in {folder / one for one in name.parents} - checked:
            if home.exists() and not home.is_dir():
                raise UserError(_in_place(home, "folder"))
            checked.add(home)


def pairs(names: Sequence[str], prompts: PromptSet, named: str) -> list[tuple[int, int]] | None:
    """The place of each image's prompt, and the image's number among those of that, from the names
    of files as `write` gives them; None where no image has such a name.

    Endings and numbers may be others, and a folder that all files would lie in may be left out.

    Args:
      names: below their folder. prompts: of a kind with a layout. named: the images, for sentences.

    Raises:
      UserError: some images have other names, or some prompts fewer images.
    """
    layout = LAYOUTS[prompts.kind]
    there = [_apart(layout, name) for name in names]
    for wanted in _below_common([_apart(layout, of[0])[0] for of in layout.names(prompts)]):
        places: dict[str, list[int]] = {}
        for place, shared in enumerate(wanted):
            places.setdefault(shared, []).append(place)
        if any(shared in places for shared, _ in there):
            return _paired(names, there, places, prompts, named)
    return None


def grid_of(images_NHWC: np.ndarray) -> np.ndarray:
    """The grid of 1 image, that image, or of 4 images in two rows without a gap: first row the
    first two.
    """
    if len(images_NHWC) == 1:
        return images_NHWC[0]
    count, height, width, channels = images_NHWC.shape
    rows = images_NHWC.reshape(2, count // 2, height, width, channels).swapaxes(1, 2)
    return rows.reshape(2 * height, count // 2 * width, channels)


def cells_of(grid_HWC: np.ndarray, count: int) -> np.ndarray:
    """The `count` images, 4, of which `grid_of` makes a grid with even sides, (N, H, W, C)."""
    height, width, channels = grid_HWC.shape
    rows = grid_HWC.reshape(2, height // 2, count // 2, 2 * width // count, channels).swapaxes(1, 2)
    return rows.reshape(count, height // 2, 2 * width // count, channels)


def _apart(layout, name):
    """The two parts of an image's name: the one that all images of its prompt share, and its
    number.
    """
    stem = os.path.splitext(name)[0]
    shared, _, number = (
        stem.rpartition(layout.before_number) if layout.before_number else (stem, "", "")
    )
    return shared, number


def _below_common(shared):
    """The names as they are, then without one more of the folders that all of them lie in, step by
    step.
    """
    common = os.path.commonpath([os.path.dirname(one) for one in shared])
    for depth in range(len(common.split("/")) + 1 if common else 1):
        yield [one.split("/", depth)[depth] for one in shared]


def _paired(names, there, places, prompts, named):
    rows_of: dict[str, list[int]] = {shared: [] for shared in places}
    for row, (shared, _) in enumerate(there):
        if shared not in rows_of:
            raise UserError(
                f"{named} has {printable(names[row])!r}, which is of no prompt of {prompts.kind}, "
                "among images that are; remove it, or give the captions of these images."
            )
        rows_of[shared].append(row)
    each = max(-(-len(rows) // len(places[shared])) for shared, rows in rows_of.items())
    found: list[tuple[int, int]] = [(0, 0)] * len(names)
    for shared, rows in rows_of.items():
        if len(rows) != each * len(places[shared]):
            first = prompts.prompts[places[shared][0]].id
            raise UserError(
                f"{named} has {counted(len(rows), 'image')} of prompt {first!r} of {prompts.kind}, "
                f"and {each} of others; give as many of each."
            )
        rows.sort(key=lambda row: natural(there[row][1]))  # stands for one prompt after the other
        for i, row in enumerate(rows):
            found[row] = places[shared][i // each], i % each
    return found


def _wanted(prompts):
    """The names of all files, below the folder."""
    layout = _layout(prompts)
    wanted = [name for names in _names(layout, prompts) for name in names]
    if layout.kind == "geneval":
        wanted += [f"{place:05d}/metadata.jsonl" for place in range(len(prompts))]
    return wanted


def _in_place(path, kind):
    return f"{str(path)!r} is not a {kind}; remove it, or name a new folder."


def _layout(prompts):
    config.one_of("layout", prompts.kind, LAYOUTS)
    layout = LAYOUTS[prompts.kind]
    if prompts.images_per_prompt % layout.images_per_file:
        raise UserError(
            f"images_per_prompt={prompts.images_per_prompt} does not fill a grid of "
            f"{layout.images_per_file}; give a multiple of it."
        )
    return layout


def _names(layout, prompts):
    """The files of every prompt, each with a name that scorer and file system take."""
    found = layout.names(prompts)
    for prompt, names in zip(prompts.prompts, found):
        told = prompt.id if layout.kind == "dpg" else prompt.text
        if bad := [mark for mark in layout.forbidden if mark in told]:
            raise UserError(
                f"prompt {prompt.id!r} holds {bad[0]!r}, where the scorer of {layout.kind} takes "
                "the names of files apart; reword it."
            )
        if (length := len(os.fsencode(names[-1].rsplit("/", 1)[-1]))) > _LONGEST_NAME:
            raise UserError(
                f"prompt {prompt.id!r} makes a file name of {length} bytes, and file systems "
                f"allow {_LONGEST_NAME}; shorten it."
            )
    return found


def _write_metadata(folder, prompts, place):
    path = folder / f"{place:05d}/metadata.jsonl"
    line = json.dumps(dict(prompts.prompts[place].labels))
    if path.is_file() and path.read_text() == line:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        temporary.write_text(line)
    return [path]


def _check(images, prompts, place):
    wanted = prompts.images_per_prompt
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != wanted:
        raise UserError(
            f"prompt {prompts.prompts[place].id} has images {images.dtype}{images.shape}; give "
            f"{counted(wanted, 'image')} as uint8 (N, H, W, 3)."
        )
