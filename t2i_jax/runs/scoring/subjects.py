"""The images that are measured: those of a run, generated now, or those of a folder."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i_jax import paths
from t2i_jax.config import to_dict
from t2i_jax.data.ledger import printable
from t2i_jax.data.table import ENDINGS, FILE_KEYS, read_table
from t2i_jax.errors import UserError
from t2i_jax.eval import layout
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_to_dict
from t2i_jax.runs.scoring import generate, plan
from t2i_jax.runs.scoring.score import Images
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.sources import SourceImages, split_of
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.systems.base import System
from t2i_jax.train.stored import last_step
from t2i_jax.words import counted


def of_run(
    run: pathlib.Path,
    recipe: Recipe,
    system: System,
    step: int | str | None,
    prompts: PromptSet,
    options: Any,
    *,
    seed: int,
    batch_size: int,
    mesh: Mapping[str, int] | None,
    shard_size: int,
    out: pathlib.Path,
    share: Share,
    progress: Callable[[Any], Any] = iter,
) -> Images:
    """Images of a trained run for prompts, generated into OUT/images where they are not whole.

    Every process calls it.

    Args:
      recipe: that of the run, for results. step: of the checkpoint; None: the newest.
      options: of the run's system. seed: of all images, see `generate`. mesh: see
        `generate.loaded`.

    Raises:
      UserError: the run makes no images from captions, or OUT was begun with another plan.
    """
    system = generate.checked(system)
    if prompts.kind in layout.LAYOUTS:
        layout.check(out / prompts.kind, prompts)
    split = Split(len(prompts) * prompts.images_per_prompt, shard_size)
    about = {
        "prompts": prompts.about(),
        "run": {
            "step": last_step(run) if step is None else step,
            "weights": folders.fingerprint(system.weights),
            "ema": True,
            "recipe": recipe_to_dict(recipe),
        },
        "sampling": {
            "options": to_dict(options),
            "seed": seed,
            "seed_rule": "of each image SHA-256 of [seed, id of the prompt, its number]",
            "batch_size": batch_size,
            "mesh": None if mesh is None else dict(mesh),
        },
    }
    pictures = {"count": split.count, "shard_size": shard_size, "encoding": "png"}
    plan.settle(out, {**about, "images": pictures, "software": plan.software()})
    shards = ImageShards(out / "images", split)
    generate.generate(system, options, prompts, seed, shards, share, batch_size, progress)
    if prompts.kind in layout.LAYOUTS and share.process == 0:
        _lay_out(out / prompts.kind, prompts, shards)
    each = prompts.images_per_prompt
    return Images(
        shards,
        lambda: {**about, "images": shards.about()},
        [prompt.text for prompt in prompts.prompts for _ in range(each)],
        [(prompt.id, number) for prompt in prompts.prompts for number in range(each)],
        [prompt.category for prompt in prompts.prompts for _ in range(each)],
    )


def of_source(
    spec: str, captions: PromptSet | None, shard_size: int, split: str | None = None
) -> Images:
    """Images that are there already.

    Args:
      captions: of a table one for each image, by the names of their files; of a text one in each
        line, in the order of the names; of a benchmark's set by its names or in its order, one for
        each image or for each group of `images_per_prompt`. None: those beside the images, where
        there are such.
      split: of a source with splits; None: "heldout".

    Raises:
      UserError: fewer than 2 images, captions that do not fit them, or a split of what has none.
    """
    files = SourceImages(
        spec, "images", split=split_of(spec, split, "split"), shard_size=shard_size
    )
    count, no_captions = files.split.count, ""
    if captions is None:
        texts, no_captions = _own_captions(files)
        keys, categories = _keys(files), [""] * count
    else:
        chosen = _matched(files, captions, spec)
        texts = [prompt.text for prompt, _ in chosen]
        keys = [(prompt.id, number) for prompt, number in chosen]
        categories = [prompt.category for prompt, _ in chosen]
    about = {
        "prompts": None if captions is None else captions.about(),
        "run": None,
        "sampling": None,
        "images": {**files.about(), "count": count},
    }
    return Images(
        files,
        lambda: about,
        texts,
        keys,
        categories,
        no_captions,
    )


def _own_captions(files) -> tuple[Sequence[str] | None, str]:
    """Those beside the images; None where one has none, and which that is."""
    try:
        return files.captions(), ""
    except UserError as error:
        return None, str(error)


def _keys(files):
    """(name, how many before it have the same) of each image, so that it is compared with its
    namesake in other results; its number for a name where images have none.
    """
    seen, found = collections.Counter(), []
    for row in range(files.split.count):
        name = files.source.image_name(row) or f"{row:06d}"
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def _matched(files, captions, spec):
    """(prompt, number) of each image, in the order of the images."""
    names = [_file_of(one) for one in captions.prompts]
    is_table = captions.kind == "file" and captions.source.lower().endswith(ENDINGS)
    if is_table and None in names:
        raise _without_names(captions, names.index(None))
    own = None if None in names else _names(files)
    if own is not None:
        return _by_name(dict(zip(names, captions.prompts)), own, captions, spec)
    if is_table:
        raise UserError(
            f"captions={paths.shown(captions.source)} names files, and images={paths.shown(spec)} "
            "have no names; give a .txt with one caption in each line, in their order."
        )
    return _in_order(files.split.count, captions, spec)


def _by_name(by_name, own, captions, spec):
    lost = [name for name in own if name not in by_name]
    if lost or not len(own) == len(by_name) == len(captions):
        first = printable(lost[0]) if lost else "some files"
        raise UserError(
            f"captions={paths.shown(captions.source)} has no caption for {first} of "
            f"images={paths.shown(spec)}, or several for one ({counted(len(captions), 'caption')} "
            f"of {counted(len(by_name), 'name')} for {counted(len(own), 'image')}); give one for "
            "each."
        )
    return [(by_name[name], 0) for name in own]


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


def _file_of(prompt) -> str | None:
    """The file that a row of a table names."""
    return next((str(prompt.labels[key]) for key in FILE_KEYS if prompt.labels.get(key)), None)


def _names(files) -> list[str] | None:
    """The names of the files of images; None where they are no files."""
    found = []
    for row in range(files.split.count):
        name = files.source.image_name(row)
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


def _lay_out(home, prompts, shards):
    """The folder that the benchmark's own scorer reads."""
    import numpy as np

    each = prompts.images_per_prompt
    layout.write(
        home,
        prompts,
        lambda place: np.stack([shards.read(place * each + n) for n in range(each)]),
    )
