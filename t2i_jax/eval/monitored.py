"""Metrics of generated images that a run measures while it trains, as its recipe names them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.values import shown

COMPARING = ("fid", "kid", "clip_fid", "cmmd", "fdd")
"""Distances from real images, the smaller the better; each depends on how many images it is of."""
ALIGNING = ("judge", "clip", "pickscore", "hpsv2")
"""Means of what each image has with its caption, the larger the better."""
NETWORKS = ("inception", "clip", "cmmd", "dinov2", "pickscore", "hpsv2")
"""Networks whose files of weights a recipe can name."""
_COUNTED = re.compile(r"(.+)_([0-9]{1,9})(k?)")


@dataclasses.dataclass(frozen=True)
class Monitored:
    """One metric that is measured while a run trains.

    Attributes:
      name: as the recipe and the log have it, "fid_2k".
      metric: what is computed, "fid".
      count: of the generated images; None: as many as the recipe judges at its end.
    """

    name: str
    metric: str
    count: int | None = None

    @property
    def compares(self) -> bool:
        """Whether the metric is a distance from real images; else it is a mean over images and
        captions.
        """
        return self.metric in COMPARING

    @property
    def by_inception(self) -> bool:
        """Whether the metric is a distance of Inception's features."""
        return self.metric in ("fid", "kid")


def parse(name: str) -> Monitored:
    """The metric and the number of images that "fid_2k", "kid_500", "clip", "judge_400" ask for; k
    stands for thousands.

    Raises:
      UserError: an unknown metric, or a distance without its number of images.
    """
    found = _COUNTED.fullmatch(name) if isinstance(name, str) else None
    metric = found[1] if found else name
    if metric not in (*COMPARING, *ALIGNING):
        examples = [*(f"{one}_2k" for one in COMPARING), *ALIGNING]
        raise UserError(
            f"evaluation.metrics has {shown(name)}, which is not measured while a run trains; "
            f"{did_you_mean(str(name), examples)}"
        )
    count = int(found[2]) * (1000 if found[3] else 1) if found else None
    if metric in COMPARING and (count is None or count < 2):
        raise UserError(
            f"evaluation.metrics has {shown(name)}, a distance, which depends on how many images "
            f"it is of; write their number, at least 2, as {metric}_2k."
        )
    if count == 0:
        raise UserError(f"evaluation.metrics has {shown(name)}, of no image; give 1 or more.")
    return Monitored(name, metric, count)


def check(
    every: int | None,
    metrics: Sequence[str],
    judge: str | None,
    weights: Mapping[str, str],
    best: str | None,
) -> None:
    """Refuses what a recipe says of it that does not go together.

    Args:
      every, metrics, judge, weights, best: fields of `Evaluation`.

    Raises:
      UserError: one of them is wrong.
    """
    if isinstance(metrics, str):
        raise UserError(
            f"evaluation.metrics={metrics!r} is a string; give a tuple such as ({metrics!r},)."
        )
    if every is not None and every < 1:
        raise UserError(f"evaluation.every={every} is below 1; give steps such as 500, or None.")
    if (every is None) == bool(metrics):
        given = f"metrics={tuple(metrics)!r}" if metrics else f"every={every}"
        missing = (
            "every, the steps between two, such as 500" if metrics else "metrics, as ('clip',)"
        )
        raise UserError(f"evaluation.{given} needs {missing}; give both, or neither.")
    found = [parse(name) for name in metrics]
    for number, name in enumerate(metrics):
        if name in metrics[:number]:
            raise UserError(f"evaluation.metrics has {name!r} twice; give it once.")
    if judge is None and any(one.metric == "judge" for one in found):
        raise UserError("evaluation.metrics has 'judge', and judge is None; give judge, or not it.")
    for network in weights:
        if network not in NETWORKS:
            raise UserError(
                f"evaluation.weights names {shown(network)}, no network of a metric; "
                f"{did_you_mean(str(network), NETWORKS)}"
            )
    if best is not None and best not in metrics:
        raise UserError(
            f"evaluation.best={best!r} is none of evaluation.metrics={tuple(metrics)!r}; add it "
            "there, or give None for the validation loss."
        )
