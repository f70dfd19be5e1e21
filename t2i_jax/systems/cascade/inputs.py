"""What a user asks a cascade for, checked before anything compiles: stages, numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.systems import prompts
from t2i_jax.systems.cascade.stage import SAMPLERS, Sampling, Stage, sampling_of


def stages_to_run(
    stages: Sequence[Stage], updates: Sequence[int], start_at: int | None, stop_at: int | None
) -> tuple[list[int], str | None]:
    """(numbers from 1 of the stages to run, a sentence for the user or None).

    Args:
      updates: of each stage, how often it was trained. start_at, stop_at: the first and the last to run; None: the first
        there is, and the last one before an untrained one.

    Raises:
      UserError: a number that is no stage's, or a stage that was not trained.
    """
    last, first = len(stages), 1 if stages[0].trains else 2
    for name, value in (("start_at", start_at), ("stop_at", stop_at)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last):
            raise UserError(f"{name}={value} is no stage; give a number from {first} to {last}.")
    start = start_at or first
    if stop_at is not None and stop_at < start:
        raise UserError(f"stop_at={stop_at} is before start_at={start}; give a number from {start} to {last}.")
    untrained = [number for number in range(start, (stop_at or last) + 1) if not updates[number - 1]]
    if not untrained:
        return list(range(start, (stop_at or last) + 1)), None
    if stop_at is not None or untrained[0] == start:
        remedy = "train it first" if untrained[0] == start else f"train it first, or stop_at={untrained[0] - 1}"
        raise UserError(f"stage {untrained[0]} was never trained, its pictures are noise; {remedy}.")
    side = stages[untrained[0] - 2].image_size
    told = f"stage {untrained[0]} was never trained: these are the pictures of stage {untrained[0] - 1}, {side} pixels"
    return list(range(start, untrained[0])), told


def per_stage(name: str, value: Any, count: int) -> list[Any]:
    """One value per stage: a tuple or list as it is, anything else for all.

    Raises:
      UserError: a tuple of another length.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != count:
            raise UserError(f"{name}={value} has {len(value)} values for {count} stages; give one, or one for each.")
        return list(value)
    return [value] * count


def settings(stage: Stage, sampler: Any, steps: Any, guidance: float, **fields: Any) -> Sampling:
    """The sampling of one stage.

    Raises:
      UserError: an unknown sampler, or a number out of its range.
    """
    if sampler is not None:
        one_of("sampler", sampler, SAMPLERS)
    prompts.check_count("steps", steps)
    sampler, steps = sampling_of(stage, sampler, steps)
    churn = stage.churn if sampler == "heun" else None
    return Sampling(sampler, steps, churn, stage.percentile, guided=guidance != 1, **fields)


def check_finite(name: str, value: Any) -> None:
    """Refuses what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{name}={value!r} is not a finite number; try 3.0, or 1 for none.")


def check_fraction(name: str, value: Any) -> None:
    """Refuses what is neither None nor a number from 0 to 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1):
        raise UserError(f"{name}={value!r} is outside [0, 1]; give a number in it.")


def pictures(name: str, images: Any, count: int, channels: int) -> np.ndarray:
    """uint8 (count, H, W, channels).

    Raises:
      UserError: another number, rank, dtype or number of channels.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != channels or not images.size:
        raise UserError(f"{name} is {images.dtype} {images.shape}; give uint8 ({count}, height, width, {channels}).")
    if len(images) != count:
        raise UserError(f"{name} has {len(images)} pictures for {count} prompts; give one for each.")
    return images


def known(mask: Any, init: np.ndarray | None) -> np.ndarray:
    """bool (P, H, W) of the pictures `init`.

    Raises:
      UserError: no pictures, another size or dtype, nothing to keep or nothing to paint.
    """
    if init is None:
        raise UserError("mask says what to keep of init_images; give init_images too.")
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape not in (init.shape[1:3], init.shape[:3]):
        raise UserError(
            f"mask is {mask.dtype} {mask.shape}; give bool {init.shape[1:3]} or {init.shape[:3]} like init_images, True "
            "where to keep."
        )
    if not mask.any():
        raise UserError("mask keeps nothing of init_images; leave both out, or set it to True where to keep.")
    return np.broadcast_to(mask, init.shape[:3])


def sizes_of(stages: Sequence[Stage], image_sizes: Any) -> list[tuple[int, int]]:
    """(height, width) of each stage's pictures.

    Raises:
      UserError: another number of sizes, or one that the stage's network does not divide.
    """
    if image_sizes is None:
        return [(stage.image_size, stage.image_size) for stage in stages]
    sizes = [tuple(size) if isinstance(size, (tuple, list)) else (size, size) for size in image_sizes]
    if len(sizes) != len(stages):
        raise UserError(f"image_sizes={image_sizes} has {len(sizes)} sizes for {len(stages)} stages; give one for each.")
    for size, stage in zip(sizes, stages, strict=True):
        multiple = stage.unet.multiple
        if len(size) != 2 or any(not isinstance(side, int) or side < 1 or side % multiple for side in size):
            raise UserError(f"image_sizes has {size}; give (height, width), multiples of {multiple}.")
    return sizes
