"""Settings of a run's evaluation: the judge, the numbers of held-out samples, the options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.eval import resize
from t2i_jax.eval.alignment import Judge
from t2i_jax.eval.judge_compositions import JudgeCompositions
from t2i_jax.eval.judge_digits import JudgeDigits
from t2i_jax.eval.judge_shapes import JudgeShapes
from t2i_jax.eval.monitored import Monitored, check, parse
from t2i_jax.values import Count

JUDGES: dict[str, Callable[[], Judge]] = {
    "shapes": JudgeShapes,
    "digits": JudgeDigits,
    "compositions": JudgeCompositions,
}

FORMER = ("guidance", "temperature", "top_k", "top_p", "sampler", "steps", "parallel")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of how a run is evaluated while it trains and when it is done.

    Attributes:
      judge: "shapes", "digits" or "compositions": generated images are judged against their
        captions; None: they are only drawn.
      pictures: how many held-out captions are judged at the end.
      completions: how many held-out images of two shapes, half of each inpainted, are judged; 0:
        none.
      preview: how many images a sample grid holds, at `train.eval_every`.
      options: how images are sampled, a value of the options class of the task's system, as
        PartiOptions(guidance=2.0), or a mapping with some of its fields; None: its defaults.
      every: steps from one measurement of `metrics` to the next while the run trains; after the
        last step they are measured too. None: they are not.
      metrics: what is measured then of images that are generated for held-out captions, always the
        same ones with the same seeds, by the EMA weights where there are some: "judge", "clip"
        (cosine), "pickscore" and "hpsv2" of `pictures` images, or of as many as their name says
        ("clip_1k"); distances from real images with the number of images in their name, as "fid_2k"
        or "fid_500", "kid_2k", "clip_fid_2k", "cmmd_2k", "fdd_2k".
      reference: the real images of those distances, a folder or another source, or their statistics
        in FILE.npz; None: as many held-out images as are generated.
      mode: how images are made smaller for Inception, "clean", "tf" and others; and how a FILE.npz
        was made that does not say so itself. None: "clean".
      weights: files of the metrics' networks by name, as {"inception": PATH, "clip": FOLDER}; one
        that is missing is looked for in the folder that T2I_WEIGHTS names.
      best: which of `metrics` tells the best checkpoint; None: the validation loss.
      guidance, temperature, top_k, top_p, sampler, steps, parallel: fields of `options`, as recipes
        named them before there was that.
    """

    judge: str | None = None
    pictures: Count = 200
    completions: int = 0
    preview: Count = 16
    options: Any = None
    every: Count | None = None
    metrics: tuple[str, ...] = ()
    reference: str | None = None
    mode: str | None = None
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    best: str | None = None
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
        paths = {name: os.fspath(path) for name, path in self.weights.items()}
        object.__setattr__(self, "weights", paths)
        check(self.every, self.metrics, self.judge, self.weights, self.best)
        if self.mode is not None:
            one_of("evaluation.mode", self.mode, resize.INCEPTION)
        compares = any(one.compares for one in self.monitored)
        if self.reference is not None and not compares:
            raise UserError(
                f"evaluation.reference={self.reference!r} is compared with by none of "
                f"evaluation.metrics={tuple(self.metrics)!r}; leave it out, or add fid_2k."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found, is_file = {}, (self.reference or "").endswith(".npz")
        asked = f"metrics={tuple(self.metrics)!r}"
        if not is_file and not any(one.by_inception for one in self.monitored):
            found["mode"] = f"{asked}, of which none is by Inception"
        return found if self.metrics else {**found, "weights": asked}

    @property
    def monitored(self) -> tuple[Monitored, ...]:
        """The metrics with their numbers of images."""
        return tuple(map(parse, self.metrics))
