"""How a run is looked at: the judge, the numbers of held-out samples, the options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge
from t2i_jax.eval.judge_compositions import JudgeCompositions
from t2i_jax.eval.judge_digits import JudgeDigits
from t2i_jax.eval.judge_shapes import JudgeShapes
from t2i_jax.values import Count

JUDGES: dict[str, Callable[[], Judge]] = {
    "shapes": JudgeShapes,
    "digits": JudgeDigits,
    "compositions": JudgeCompositions,
}

FORMER = ("guidance", "temperature", "top_k", "top_p", "sampler", "steps", "parallel")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a run is looked at while it trains and when it is done.

    Attributes:
      judge: "shapes", "digits" or "compositions": generated images are judged against their
        captions; None: they are only drawn.
      pictures: how many held-out captions are judged at the end.
      completions: how many held-out images of two shapes, half of each inpainted, are judged; 0:
        none.
      preview: how many images a sample grid holds, at `train.eval_every`.
      options: how images are sampled, a value of the options class of the task's system, as
        PartiOptions(guidance=2.0), or a mapping with some of its fields; None: its defaults.
      guidance, temperature, top_k, top_p, sampler, steps, parallel: fields of `options`, as recipes
        named them before there was that.
    """

    judge: str | None = None
    pictures: Count = 200
    completions: int = 0
    preview: Count = 16
    options: Any = None
    guidance: dataclasses.InitVar[Any] = None
    temperature: dataclasses.InitVar[Any] = None
    top_k: dataclasses.InitVar[Any] = None
    top_p: dataclasses.InitVar[Any] = None
    sampler: dataclasses.InitVar[Any] = None
    steps: dataclasses.InitVar[Any] = None
    parallel: dataclasses.InitVar[Any] = None

    def __post_init__(self, guidance, temperature, top_k, top_p, sampler, steps, parallel):
        values = (guidance, temperature, top_k, top_p, sampler, steps, parallel)
        given = {name: v for name, v in zip(FORMER, values, strict=True) if v is not None}
        if given and self.options is not None:
            raise UserError(f"evaluation has both options and {next(iter(given))}; give options.")
        if given:
            object.__setattr__(self, "options", given)
        if self.judge is not None:
            one_of("evaluation.judge", self.judge, JUDGES)
        if self.pictures < 1 or self.preview < 1:
            raise UserError(
                f"evaluation.pictures={self.pictures} and .preview={self.preview} must be at least "
                "1."
            )
        if self.completions < 0 or (self.completions and self.judge != "shapes"):
            remedy = "give judge='shapes' and a number from 1, or 0 for none"
            raise UserError(
                f"evaluation.completions={self.completions} with judge={self.judge!r}; {remedy}."
            )
