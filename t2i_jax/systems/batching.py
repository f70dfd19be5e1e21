"""The images of a call batch by batch, with a key for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from t2i_jax import heap, seeds
from t2i_jax.errors import UserError
from t2i_jax.types import Key
from t2i_jax.values import shown
from t2i_jax.words import counted

MOST_IMAGES = 100_000  # most images of one call: they are kept in memory


class Rows(NamedTuple):
    """A batch of what is generated.

    Attributes:
      arrays: of the prompts, a row per image. keys_B: one PRNG key per image.
      count: images that are wanted; the last batch is filled up with copies, so that one program
        serves all.
    """

    arrays: dict[str, np.ndarray]
    keys_B: Key
    count: int


def batches(
    prompt: Mapping[str, np.ndarray],
    total: int,
    images_per_prompt: int,
    seed: int | Sequence[int],
    batch_size: int | None,
    *,
    candidates: int = 1,
    progress: bool = False,
) -> Iterator[Rows]:
    """The images to generate, batch by batch; those of one prompt stand together.

    The key of an image depends on the seed and on its number alone, so that batches of any size
    give the same images.

    Args:
      prompt: a row per prompt. total: images in all, candidates included.
      seed: see `seeds.key_of`; a sequence, or an array, has one for each image, which then depends
        on nothing else, or one for each prompt, which its images share.
      batch_size: None: all at once. candidates: how many are made for each image that is wanted;
        they share its seed. progress: shows a bar where there are several batches.

    Raises:
      UserError: a seed that is none, a sequence of another length, or more images than one call
        makes.
    """
    check_total(total, "images_per_prompt", images_per_prompt)
    batch_size = min(batch_size or total, total)
    seed = np.asarray(seed).tolist() if getattr(seed, "ndim", 0) == 1 else seed
    if isinstance(seed, Sequence):
        keys_of = _keys_of_each(seed, total, total // images_per_prompt, total // candidates)
    else:
        keys_of = _keys_of_all(seed)
    return _batches(prompt, total, images_per_prompt, keys_of, batch_size, progress)


def _keys_of_all(seed):
    """Numbers of images -> their keys, all of one seed."""
    return jax.vmap(functools.partial(jax.random.fold_in, seeds.key_of("seed", seed)))


def _keys_of_each(numbers, total, prompts, images):
    """Numbers of images -> their keys, of seeds that their prompts or they have."""
    if not numbers or len(numbers) not in (prompts, images):
        of_prompts = "" if prompts == images else f" of {counted(prompts, 'prompt')}"
        raise UserError(
            f"seed has {counted(len(numbers), 'number')} for {counted(images, 'image')}"
            f"{of_prompts}; give one for each{of_prompts and ' image or for each prompt'}."
        )
    each, keys = total // len(numbers), seeds.keys_of("seed", numbers)
    if each == 1:
        return keys.__getitem__
    return lambda index: jax.vmap(jax.random.fold_in)(keys[index // each], index % each)


def _batches(prompt, total, images_per_prompt, keys_of, batch_size, progress):
    starts = range(0, total, batch_size)
    for start in tqdm(
        starts, desc="sampling", unit="batch", disable=not progress or len(starts) == 1, leave=False
    ):
        index = np.minimum(np.arange(start, start + batch_size), total - 1)
        keys_B = keys_of(jnp.asarray(index))
        yield Rows(
            {name: value[index // images_per_prompt] for name, value in prompt.items()},
            keys_B,
            min(batch_size, total - start),
        )
        if start == 0 and len(starts) > 1:
            heap.clear()  # frees the memory that compiling for this batch has left


def check_total(total: int, name: str, value: Any) -> None:
    """Refuses more images than are made at once.

    Args:
      name, value: the argument of the user from which this number follows.
    """
    if total > MOST_IMAGES:
        raise UserError(
            f"{name}={shown(value)} makes {shown(total)} images, and one call makes "
            f"{MOST_IMAGES} at most; give less, and other seeds for more of them."
        )
