"""The images that are measured: those of a run, generated now, or those of a folder."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from t2i_jax import paths
from t2i_jax.config import to_dict
from t2i_jax.errors import UserError
from t2i_jax.eval import layout
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.runs import folder as folders
from t2i_jax.runs.recipe import Recipe, recipe_to_dict
from t2i_jax.runs.scoring import generate, plan
from t2i_jax.runs.scoring.score import Images
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.sources import SourceImages
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.systems.base import System
from t2i_jax.train.checkpoint import last_step
from t2i_jax.words import counted

_FILES = ("file", "file_name", "filename", "image", "image_path", "path")  # columns of captions


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
    shard_size: int,
    out: pathlib.Path,
    share: Share,
    progress: Callable[[Any], Any] = iter,
) -> Images:
    """Images of a trained run for prompts, generated into OUT/images where they are not whole.

    Every process calls it.

    Args:
      recipe: that of the run, for results. step: of the checkpoint; None: the newest.
      options: of the run's system. seed: of all images, see `generate`.

    Raises:
      UserError: the run reads no captions, or OUT was begun with another plan.
    """
    generate.check(system)
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


def of_source(spec: str, captions: PromptSet | None, out: pathlib.Path, shard_size: int) -> Images:
    """Images that are there already.

    Args:
      captions: for each image one, or for each group of as many images that follow each other; by
        the names of their files where it has a column "file", else in the order of the names.
        None: those beside the images, where there are such.

    Raises:
      UserError: fewer than 2 images, captions that do not fit them, or OUT was begun with another
        plan.
    """
    files = SourceImages(spec, "images", shard_size=shard_size)
    count = files.split.count
    if captions is None:
        texts = _own_captions(files)
        keys, categories = [(f"{row:06d}", 0) for row in range(count)], [""] * count
    else:
        chosen = _matched(files, captions, spec)
        texts = [prompt.text for prompt, _ in chosen]
        keys = [(prompt.id, number) for prompt, number in chosen]
        categories = [prompt.category for prompt, _ in chosen]
    about = {"prompts": None if captions is None else captions.about(), "run": None}
    pictures = {**files.about(), "count": count}
    plan.settle(
        out,
        {**about, "images": {**pictures, "shard_size": shard_size}, "software": plan.software()},
    )
    return Images(
        files, lambda: {**about, "sampling": None, "images": pictures}, texts, keys, categories
    )


def _own_captions(files) -> Sequence[str] | None:
    """Those beside the images; None where one has none."""
    try:
        return files.captions()
    except UserError:
        return None


def _matched(files, captions, spec):
    """(prompt, number) of each image, in the order of the images."""
    count, known = files.split.count, captions.prompts
    column = next((name for name in _FILES if all(name in one.labels for one in known)), None)
    if column is not None and files.source.file(0) is not None:
        by_name = {str(one.labels[column]): one for one in known}
        names = [files.source.file(row)[1] for row in range(count)]
        lost = [name for name in names if name not in by_name]
        if lost or len(by_name) != count:
            raise UserError(
                f"captions={paths.shown(captions.source)} has no caption for "
                f"{lost[0] if lost else 'some files'} of images={paths.shown(spec)} "
                f"({counted(len(by_name), 'name')} for {counted(count, 'image')}); give one for "
                "each."
            )
        return [(by_name[name], 0) for name in names]
    each, rest = divmod(count, len(known))
    if rest or not each:
        raise UserError(
            f"captions={paths.shown(captions.source)} has {counted(len(known), 'caption')} for "
            f"{counted(count, 'image')} of images={paths.shown(spec)}; give one for each image."
        )
    return [(one, number) for one in known for number in range(each)]


def _lay_out(home, prompts, shards):
    """The folder that the benchmark's own scorer reads."""
    import numpy as np

    each = prompts.images_per_prompt
    layout.write(
        home,
        prompts,
        lambda place: np.stack([shards.read(place * each + n) for n in range(each)]),
    )
