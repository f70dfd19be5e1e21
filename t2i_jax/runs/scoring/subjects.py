"""The images that are measured: those of a run, generated now, or those of a folder."""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i_jax import paths
from t2i_jax.config import to_dict
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from t2i_jax.eval import layout
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_to_dict
from t2i_jax.runs.scoring import generate, pairing, plan, score, streaming
from t2i_jax.runs.scoring.score import Images, Measures, digest
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.sources import SourceImages, in_grids, split_of
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.systems.base import System
from t2i_jax.train.stored import last_step


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
    streamed: Measures | None = None,
) -> Images:
    """Images of a trained run for prompts, generated into OUT/images where they are not whole.

    Every process calls it.

    Args:
      recipe: that of the run, for results. step: of the checkpoint; None: the newest.
      options: of the run's system. seed: of all images, see `generate`. mesh: see
        `generate.loaded`.
      streamed: what is measured of each shard before most of its images are removed; None: all
        images stay.

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
            "weights": folders.fingerprint(system),
            "ema": folders.is_averaged(run, recipe),
            "recipe": recipe_to_dict(recipe),
        },
        "sampling": {
            "options": to_dict(options),
            "samplers": system.samplers(options),
            "seed": seed,
            "seed_rule": "of each image SHA-256 of [seed, id of the prompt, its number]",
            "batch_size": batch_size,
            "mesh": None if mesh is None else dict(mesh),
        },
    }
    pictures = {"count": split.count, "shard_size": shard_size, "encoding": "png"}
    plan.settle(out, {**about, "images": pictures, "software": plan.software()})
    shards = ImageShards(out / "images", split)
    if streamed is None:
        generate.generate(system, options, prompts, seed, shards, share, batch_size, progress)
    else:
        make = functools.partial(
            generate.generate_shard, system, options, prompts, seed, shards, batch_size=batch_size
        )
        measure = functools.partial(score.measure_shard, shards, streamed, out)
        is_measured = functools.partial(score.is_measured, shards, streamed, out)
        streaming.generate(make, measure, is_measured, shards, share, progress)
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
    spec: str,
    captions: PromptSet | None,
    shard_size: int,
    split: str | None = None,
    each_row: bool = False,
    grid: int | None = None,
) -> Images:
    """Images that are there already.

    Args:
      captions: of a table one for each image, by the names of their files; of a text one in each
        line, of a benchmark's set by its names or in its order, see `pairing.paired`. None: those
        beside the images, where there are such.
      split: of a source with splits; None: "heldout". each_row: see `SourceImages`.
      grid: images that each file holds; None: one, where nothing says that it may be a grid.

    Raises:
      UserError: fewer than 2 images, captions that do not fit them, a split of what has none, or
        files of which nothing tells whether they are grids.
    """
    part = split_of(spec, split, "split")
    files = SourceImages(spec, "images", split=part, shard_size=shard_size, each_row=each_row)
    images, no_captions, marks = in_grids(files, grid), "", []
    count = images.split.count
    if captions is None:
        texts, no_captions = _own_captions(images)
        keys, categories, prompts = _keys(images), [""] * count, None
        marks = [digest(text.encode()) for text in texts or ()]
    else:
        captions = pairing.unnumbered(captions)
        chosen, rule = _paired(spec, files, captions, grid)
        texts = [prompt.text for prompt, _ in chosen]
        keys = [(prompt.id, number) for prompt, number in chosen]
        categories = [prompt.category for prompt, _ in chosen]
        prompts = {**captions.about(), **({"paired": rule} if rule else {})}
    told = {} if grid is None else {"grid": grid}
    about = {
        "prompts": prompts,
        "run": None,
        "sampling": None,
        "images": {**images.about(), **told, "count": count, **images.passed_over()},
    }
    return Images(
        images,
        lambda: about,
        texts,
        keys,
        categories,
        no_captions,
        marks,
    )


def size_of(spec: str, split: str | None = None, grid: int | None = None) -> int | None:
    """The shorter side in pixels of the first image that can be read; None without one.

    Args:
      split, grid: see `of_source`.
    """
    files = SourceImages(spec, "images", split=split_of(spec, split, "split"))
    images = in_grids(files, grid)
    for row in range(images.split.count):
        try:
            return min(images.read(row).shape[:2])
        except BadSample:
            continue
    return None


def _paired(spec, files, captions, grid):
    """The captions of images, as of their files; files that may be grids, as a benchmark has them
    with a file for each prompt, are refused where nothing tells whether they are.
    """
    of_files, rule = pairing.paired(files, captions, spec)
    known = layout.LAYOUTS.get(captions.kind)
    each = 1 if known is None else known.images_per_file
    if grid is None and each > 1 and len(of_files) == len(captions):
        raise UserError(
            f"images={paths.shown(spec)} may be grids of {each} images, as the scorer of "
            f"{captions.kind} reads them, or single images; give --grid {each} or --grid 1."
        )
    each = grid or 1
    return [(prompt, n * each + i) for prompt, n in of_files for i in range(each)], rule


def _own_captions(files) -> tuple[Sequence[str] | None, str]:
    """The captions beside the images; None where an image has none, with the sentence that names
    it.
    """
    try:
        return files.captions(), ""
    except UserError as error:
        return None, str(error)


def _keys(files):
    """The keys of all images: (name, how many before it have the same) of each, so that it is
    compared with its namesake in other results; its number for a name where images have none.
    """
    seen, found = collections.Counter(), []
    for row in range(files.split.count):
        name = files.name(row) or f"{row:06d}"
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def _lay_out(home, prompts, shards):
    """The folder that the benchmark's own scorer reads."""
    import numpy as np

    each = prompts.images_per_prompt
    layout.write(
        home,
        prompts,
        lambda place: np.stack([shards.read(place * each + n) for n in range(each)]),
    )
