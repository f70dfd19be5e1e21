"""The sampling options of a cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.systems import calls, notices
from t2i_jax.systems.cascade.stage import SAMPLERS
from t2i_jax.values import shown
from t2i_jax.words import counted

_MOST_STEPS = 100_000
_LARGEST = 16_384  # longest side in pixels


@dataclasses.dataclass(frozen=True)
class CascadeOptions:
    """The sampling options of a cascade; "per stage" is one value for all stages, or a tuple with
    one for each.

    Attributes:
      guidance: scale of classifier-free guidance, per stage; 1 is none.
      sampler: per stage, "ancestral", "ddim", "heun" or "dpm_solver"; None: the stage's own.
      steps: of the sampler, per stage; None: the stage's own.
      parallel: the share, 0 to 1, that stays of the guidance's component parallel to the
        conditional prediction (APG).
      interval: (low, high) of sigma / alpha where guidance is applied, from 0; None: everywhere.
      start_at: number, from 1, of the first stage that runs; None: the first there is.
      stop_at: number of the last stage that runs; None: the last one before an untrained one.
      strength: how much init_images without a mask are changed, from above 0 to 1.
      eta: in place of `strength`: the first stage begins with the noise from which DDIM comes to
        init_images again, and DDIM adds this share of the noise of "ancestral" on its way: 0 gives
        the images back, where guidance is 1, and nothing of them is left at 1 but what they are
        like (Ramesh et al. 2022, section 3.1); None: `strength`.
      resample: how often each step of inpainting is made (RePaint).
      lowres_level: of the noise on each smaller image, from 0 to what the stages were trained at
        (`LowresNoise.train_limit`, 1 at most); None: the stage's own.
      image_sizes: side or (height, width) per stage; None: those of training.
      compat: what is wrong in a package and kept, one of `compats`; None: nothing.
    """

    guidance: float | tuple[float, ...] = 3.0
    sampler: str | tuple[str | None, ...] | None = None
    steps: int | tuple[int | None, ...] | None = None
    parallel: float = 1.0
    interval: tuple[float, float] | None = None
    start_at: int | None = None
    stop_at: int | None = None
    strength: float = 0.6
    eta: float | None = None
    resample: int = 5
    lowres_level: float | None = None
    image_sizes: tuple[int | tuple[int, int], ...] | None = None
    compat: str | None = None

    compats: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "start_at": ("start_images",),
        "strength": ("init_images",),
        "eta": ("init_images",),
        "resample": ("mask",),
    }
    idle_with: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "strength": ("mask", "eta"),
        "eta": ("mask",),
    }

    def __post_init__(self):
        calls.plain(self)
        for scale in _each(self.guidance):
            calls.check_number("guidance", scale, "try 3.0, or 1 for none")
        for sampler in _each(self.sampler):
            if sampler is not None:
                one_of("sampler", sampler, SAMPLERS)
        for name in ("steps", "resample", "start_at", "stop_at"):
            for value in _each(getattr(self, name)):
                calls.check_count(name, value, most=_MOST_STEPS)
        for name in ("parallel", "lowres_level", "strength", "eta"):
            value = getattr(self, name)
            if value is not None or name not in ("lowres_level", "eta"):
                calls.check_number(name, value, "give a number in it", low=0, high=1)
        if self.compat is not None:
            one_of("compat", self.compat, self.compats)
        if self.interval is not None:
            _check_interval(self.interval)
        if self.image_sizes is not None:
            _check_sizes(self.image_sizes)

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The options without an effect, see `calls.check_used`."""
        if any(scale != 1 for scale in _each(self.guidance)):
            return {}
        return dict.fromkeys(("parallel", "interval"), "guidance=1")

    def per_stage(self, name: str, count: int) -> list[Any]:
        """The values of an option for `count` stages.

        Raises:
          UserError: a tuple of another length.
        """
        return per_stage(name, getattr(self, name), count)


def per_stage(name: str, value: Any, count: int) -> list[Any]:
    """The values of an option, one per stage: a tuple or list as it is, anything else for all.

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


def tell_unused(name: str, values: Sequence[Any], count: int) -> None:
    """Writes a line to stderr about values of more U-Nets than there are, which the packages leave
    out where they check no number.
    """
    if len(values) > count:
        notices.tell(
            f"{name}={tuple(values)} has {len(values)} values for {counted(count, 'U-Net')}; those "
            "after them are of no use"
        )


def _check_interval(interval):
    is_pair = isinstance(interval, tuple) and len(interval) == 2
    for end in interval if is_pair else ():
        calls.check_number("interval", end, "give (low, high), for example (0.3, 5.0)", low=0)
    if not is_pair or not interval[0] < interval[1]:
        raise UserError(
            f"interval={shown(interval)} is not a pair (low, high) with low below high; "
            "try (0.3, 5.0)."
        )


def _check_sizes(sizes):
    for size in sizes if isinstance(sizes, tuple) else (sizes,):
        sides = size if isinstance(size, tuple) else (size,)
        is_size = isinstance(sizes, tuple) and len(sides) in (1, 2)
        if not is_size or not all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST
            for side in sides
        ):
            raise UserError(
                f"image_sizes={shown(sizes)} is not one size per stage; give sides, or "
                f"pairs (height, width), from 1 to {_LARGEST}, for example (32, (64, 96))."
            )
    if sizes == ():
        raise UserError("image_sizes=() is empty; give one size per stage.")


def _each(value):
    return value if isinstance(value, tuple) else (value,)
