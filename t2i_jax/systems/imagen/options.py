"""What a cascade can be told when it samples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.systems import generation
from t2i_jax.systems.cascade.stage import SAMPLERS

COMPAT = "imagen-pytorch"


@dataclasses.dataclass(frozen=True)
class ImagenOptions:
    """How a cascade samples; "per stage" is one value for all stages, or a tuple with one for each.

    Attributes:
      guidance: scale of classifier-free guidance, per stage; 1 is none.
      sampler: per stage, "ancestral", "ddim", "heun" or "dpm_solver"; None: the stage's own.
      steps: of the sampler, per stage; None: the stage's own.
      parallel: the share, 0 to 1, that stays of the guidance's component parallel to the
        conditional prediction (APG); imagen-pytorch 2.1.0 has 0.
      interval: (low, high) of sigma / alpha where guidance is applied; None: everywhere.
      start_at: number, from 1, of the first stage that runs; None: the first there is.
      stop_at: number of the last stage that runs; None: the last one before an untrained one.
      strength: how much init_images without a mask are changed, from above 0 to 1.
      resample: how often each step of inpainting is made (RePaint).
      lowres_level: of the noise on each smaller image, from 0 to 1; None: the stage's own.
      image_sizes: side or (height, width) per stage; None: those of training.
      compat: "imagen-pytorch": noise levels of inpainted and changed images, and the resizing of
        a mask, as that package has them (with `Edm` those of its ElucidatedImagen, whose solver is
        "heun"); None: ours.
    """

    guidance: float | tuple[float, ...] = 3.0
    sampler: str | tuple[str | None, ...] | None = None
    steps: int | tuple[int | None, ...] | None = None
    parallel: float = 1.0
    interval: tuple[float, float] | None = None
    start_at: int | None = None
    stop_at: int | None = None
    strength: float = 0.6
    resample: int = 5
    lowres_level: float | None = None
    image_sizes: tuple[int | tuple[int, int], ...] | None = None
    compat: str | None = None

    def __post_init__(self):
        for name in ("guidance", "sampler", "steps", "image_sizes"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for scale in _each(self.guidance):
            if (
                isinstance(scale, bool)
                or not isinstance(scale, (int, float))
                or not math.isfinite(scale)
            ):
                raise UserError(
                    f"guidance={scale!r} is not a finite number; try 3.0, or 1 for none."
                )
        for sampler in _each(self.sampler):
            if sampler is not None:
                one_of("sampler", sampler, SAMPLERS)
        for name in ("steps", "resample"):
            for value in _each(getattr(self, name)):
                generation.check_count(name, value)
        for name in ("parallel", "lowres_level", "strength"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise UserError(f"{name}={value!r} is outside [0, 1]; give a number in it.")

    def per_stage(self, name: str, count: int) -> list[Any]:
        """The values of an option for `count` stages.

        Raises:
          UserError: a tuple of another length.
        """
        return per_stage(name, getattr(self, name), count)


def per_stage(name: str, value: Any, count: int) -> list[Any]:
    """One value per stage: a tuple or list as it is, anything else for all.

    Raises:
      UserError: a tuple of another length.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != count:
            raise UserError(
                f"{name}={value} has {len(value)} values for {count} stages; give one, or one for "
                "each."
            )
        return list(value)
    return [value] * count


def _each(value):
    return value if isinstance(value, tuple) else (value,)
