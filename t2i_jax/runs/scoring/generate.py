"""Images of a run for a set of prompts, into shards."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import runs
from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.eval.prompts import PromptSet, seed_of
from t2i_jax.runs.scoring.shards import ImageShards
from t2i_jax.runs.scoring.split import Share
from t2i_jax.systems import notices
from t2i_jax.systems.base import System
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.text.stored import is_stored
from t2i_jax.words import named


def generate(
    system: System,
    options: Any,
    prompts: PromptSet,
    seed: int,
    shards: ImageShards,
    share: Share,
    batch_size: int,
    progress: Callable[[Any], Any] = iter,
) -> None:
    """Generates the images of the shards that are this process's, those that are whole apart.

    Image n of a prompt has the seed `seed_of(seed, its id, n)`, and every batch has one size: how
    many images there are, in which shards and on how many processes, changes none of them.

    Args:
      batch_size: images that are generated at a time, on each device.

    Raises:
      UserError: the system makes none from captions.
    """
    system = checked(system)
    for shard in progress(list(share.mine(shards.split.shards))):
        if not shards.is_whole(shard):
            generate_shard(system, options, prompts, seed, shards, shard, batch_size)
    processes.gather(None)


def generate_shard(
    system: TextToImage,
    options: Any,
    prompts: PromptSet,
    seed: int,
    shards: ImageShards,
    shard: int,
    batch_size: int,
) -> None:
    """Generates the images of one shard; arguments as of `generate`."""
    each, size = prompts.images_per_prompt, batch_size * jax.local_device_count()
    rows = shards.split.rows(shard)
    chosen = [(prompts.prompts[row // each], row % each) for row in rows]
    seeds = [seed_of(seed, prompt.id, number) for prompt, number in chosen]
    texts = [prompt.text for prompt, _ in chosen]
    images = [*_batches(system, options, texts, seeds, size)]
    lines = [
        {"prompt": prompt.id, "number": number, "seed": one}
        for (prompt, number), one in zip(chosen, seeds, strict=True)
    ]
    shards.write(shard, np.concatenate(images), lines)


def loaded(
    run: pathlib.Path, step: int | str | None, mesh: Mapping[str, int] | None
) -> TextToImage:
    """The system of a run, which generates on all devices of this process.

    Args:
      step: of the checkpoint; None: the newest.
      mesh: sizes of the axes of a mesh of these devices, by which they share the weights; None:
        each has all of them, and a part of a batch.

    Raises:
      UserError: the system makes no images from captions, or a mesh that does not fit the devices.
    """
    devices = jax.local_devices()
    system = runs.load(run, mesh=mesh, devices=devices, step=step)
    system = checked(system)
    return system.on_mesh(None, devices) if mesh is None and len(devices) > 1 else system


def checked(system: System) -> TextToImage:
    """The system, which makes images from captions as they are.

    Raises:
      UserError: it does not.
    """
    encoder = system.task.text_encoder
    reads = encoder is not None and not is_stored(encoder)
    if not isinstance(system, TextToImage) or not reads:
        raise UserError(
            f"{named(system)} of this run makes no images from captions; give a run that does, or "
            "generate images with `t2i sample` and give --images DIR."
        )
    return system


def _batches(system, options, texts, seeds, batch_size) -> Iterator[np.ndarray]:
    """Images of one batch after the other, the last filled up, so that there is one program."""
    for start in range(0, len(texts), batch_size):
        mine = range(start, min(start + batch_size, len(texts)))
        filled = [*mine, *itertools.repeat(mine[-1], batch_size - len(mine))]
        with notices.quiet():
            made = system.generate(
                [texts[row] for row in filled],
                options,
                seed=[seeds[row] for row in filled],
                batch_size=batch_size,
            )
        yield np.asarray(made)[: len(mine)]
