"""Checks of the arguments of a cascade, before anything compiles: stages, samplers and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.systems.cascade.stage import Stage, StageSampling, sampling_of


def stages_to_run(
    stages: Sequence[Stage], updates: Sequence[int], start_at: int | None, stop_at: int | None
) -> tuple[list[int], str | None]:
    """(numbers from 1 of the stages to run, a sentence for the user or None).

    Args:
      updates: of each stage, how often it was trained. start_at, stop_at: the first and the last to
        run; None: the first there is, and the last one before an untrained one.

    Raises:
      UserError: a number that is no stage's, or a stage that was not trained.
    """
    last, first = len(stages), 1 if stages[0].trains else 2
    for name, value in (("start_at", start_at), ("stop_at", stop_at)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last
        ):
            raise UserError(f"{name}={value} is no stage; give a number from {first} to {last}.")
    start = start_at or first
    if stop_at is not None and stop_at < start:
        raise UserError(
            f"stop_at={stop_at} is before start_at={start}; give a number from {start} to {last}."
        )
    untrained = [
        number for number in range(start, (stop_at or last) + 1) if not updates[number - 1]
    ]
    if not untrained:
        return list(range(start, (stop_at or last) + 1)), None
    if stop_at is not None or untrained[0] == start:
        remedy = (
            "train it first"
            if untrained[0] == start
            else f"train it first, or stop_at={untrained[0] - 1}"
        )
        raise UserError(f"stage {untrained[0]} was never trained, its images are noise; {remedy}.")
    side = stages[untrained[0] - 2].image_size
    told = (
        f"stage {untrained[0]} was never trained: these are the images of stage "
        f"{untrained[0] - 1}, {side} pixels"
    )
    return list(range(start, untrained[0])), told


def check_lowres_level(
    stages: Sequence[Stage],
    numbers: Sequence[int],
    lowres_level: float | None,
    field: str = "lowres_level",
) -> None:
    """Refuses noise on a smaller image at which one of these stages was never trained.

    Args:
      numbers: of the stages, from 1. lowres_level: of all of them; None: each has its own.
      field: its name in messages.
    """
    for number in numbers:
        lowres = stages[number - 1].lowres
        if lowres_level is None or number == 1 or not lowres.noise:
            continue
        if lowres_level > lowres.train_limit:
            raise UserError(
                f"{field}={lowres_level} is above the lowres.train_limit={lowres.train_limit} of "
                f"stage {number}, never trained; give {lowres.train_limit} at most."
            )


def settings(
    stage: Stage, sampler: Any, steps: Any, guidance: float, **fields: Any
) -> StageSampling:
    """The sampling of one stage; None: the stage's own sampler or steps."""
    sampler, steps = sampling_of(stage, sampler, steps)
    churn = stage.churn if sampler == "heun" else None
    return StageSampling(sampler, steps, churn, stage.percentile, guided=guidance != 1, **fields)


def sizes_of(task: Any, image_sizes: Any) -> list[tuple[int, int]]:
    """(height, width) of the images of each stage of a `CascadeTask`.

    Raises:
      UserError: another number of sizes, or one that the stage can't make.
    """
    stages = task.stages
    if image_sizes is None:
        return [(stage.image_size, stage.image_size) for stage in stages]
    sizes = [
        tuple(size) if isinstance(size, (tuple, list)) else (size, size) for size in image_sizes
    ]
    if len(sizes) != len(stages):
        raise UserError(
            f"image_sizes={image_sizes} has {len(sizes)} sizes for {len(stages)} stages; give one "
            "for each."
        )
    for number, size in enumerate(sizes, 1):
        task.check_size(number, size)
    return sizes


def side_of(task: Any, options: Any, number: int) -> int | None:
    """Side in pixels of the images of a stage of a `CascadeTask`; None: they are no squares.

    Args:
      number: of the stage, from 1; the last stage for a larger one.
    """
    height, width = sizes_of(task, options.image_sizes)[:number][-1]
    return height if height == width else None


def check_size(size: tuple[int, ...], multiple: int) -> None:
    """Refuses what is no (height, width) of multiples of a number of pixels."""
    if len(size) != 2 or any(
        not isinstance(side, int) or side < 1 or side % multiple for side in size
    ):
        raise UserError(f"image_sizes has {size}; give (height, width), multiples of {multiple}.")
