"""The metrics that a recipe asks for while it trains, with all that they need: opened, and refused
where something is missing, before anything compiles.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax.config import to_dict
from t2i_jax.data.pipeline import division_of, source_of
from t2i_jax.errors import UserError
from t2i_jax.eval.alignment import Judge
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.monitored import Monitored
from t2i_jax.runs.evaluation import check_judge
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.samples import Samples
from t2i_jax.runs.scoring.metrics import metric_of
from t2i_jax.runs.scoring.networks import Build, Weights, check_apart
from t2i_jax.runs.scoring.networks import build as build_network
from t2i_jax.runs.scoring.reference import Reference, StatisticsReference, open_reference
from t2i_jax.runs.scoring.score import check_vocabulary
from t2i_jax.runs.scoring.sources import size_of_run
from t2i_jax.words import counted

_TRIED = 8  # captions that a judge is tried on
_SLACK = 1.5  # of a number of records that was estimated


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The metrics of a recipe with their networks and real images.

    Attributes:
      recipe: that asks for them.
      metrics: in its order.
      extractors: by their names.
      networks: by the name of a network that of its extractor.
      reference: the real images that the recipe names; None: held-out images.
    """

    recipe: Recipe
    metrics: Sequence[Monitored]
    extractors: Mapping[str, Extractor]
    networks: Mapping[str, str]
    reference: Reference | None

    @classmethod
    def of(cls, recipe: Recipe, build: Build = build_network) -> Wanted:
        """Opens the files that a recipe names.

        Args:
          build: makes the extractors of a network.

        Raises:
          UserError: weights or a reference that are not there, or do not fit.
        """
        evaluation = recipe.evaluation
        asked, found, names = evaluation.monitored, dict[str, Extractor](), dict[str, str]()
        wanted = filter(None, dict.fromkeys(map(_network, asked)))
        built = {network: _built(network, evaluation, build) for network in wanted}
        check_apart({network: [extractor] for network, extractor in built.items()})
        for one in asked:
            if not one.compares and (network := _network(one)):
                check_vocabulary(f"evaluation.metrics={one.name}", [built[network]])
        for network, extractor in built.items():
            found[extractor.name], names[network] = extractor, extractor.name
        return cls(recipe, asked, found, names, _reference(recipe, asked, built))

    @property
    def count(self) -> int:
        """The number of images that are generated: the most that a metric is of."""
        return max(map(self.count_of, self.metrics))

    def count_of(self, one: Monitored) -> int:
        """The number of images that a metric is of."""
        return self.recipe.evaluation.pictures if one.count is None else one.count

    def extractor(self, one: Monitored) -> Extractor:
        """The extractor of a metric that is not of a judge."""
        return self.extractors[self.networks[_network(one)]]

    def layers(self, extractor: str) -> tuple[str, ...]:
        """The layers of an extractor that the metrics need."""
        network = next(name for name, one in self.networks.items() if one == extractor)
        mine = (one for one in self.metrics if _network(one) == network)
        return metric_of(next(mine).metric).layers

    @functools.cached_property
    def judge(self) -> Judge | None:
        """The recipe's judge, where a metric asks for its verdicts."""
        name = self.recipe.evaluation.judge
        asked = any(one.metric == "judge" for one in self.metrics)
        return JUDGES[name]() if asked and name is not None else None

    def check_count(self, samples: Samples) -> None:
        """Refuses more images than are held out, where these are the real ones."""
        for one in self.metrics:
            if one.compares and self.reference is None:
                most = samples.available(self.count_of(one), distinct=True)
                if most < self.count_of(one):
                    raise _too_many(self.recipe, one, self.count_of(one), most)

    def about(self, captions: Sequence[str]) -> dict[str, Any]:
        """The settings that all of the metrics share, as JSON: captions, seeds, options."""
        told = json.dumps(captions).encode()
        return {
            "captions": {
                "count": self.count,
                "of": self.recipe.data and self.recipe.data.source,
                "sha256": hashlib.sha256(told).hexdigest() if captions else None,
            },
            "sampling": {
                "options": to_dict(self.recipe.evaluation.options),
                "seed_rule": "of each image SHA-256 of [0, its number in six digits, 0]",
            },
        }


def check(recipe: Recipe, build: Build = build_network) -> None:
    """Refuses metrics of a recipe that can't be measured, in seconds.

    Args:
      build: makes the extractors of a network.

    Raises:
      UserError: missing weights, a reference that does not fit, too few held-out images, or
        captions that the judge does not understand.
    """
    if recipe.evaluation.every is None:
        return
    wanted, samples = Wanted.of(recipe, build), Samples(recipe)
    if wanted.judge is not None:
        check_judge(recipe, _TRIED)
    if wanted.reference is None and any(one.compares for one in wanted.metrics):
        _check_held_out(recipe, wanted, samples)


def _network(one: Monitored) -> str:
    return "" if one.metric == "judge" else metric_of(one.metric).network


def _built(network, evaluation, build) -> Extractor:
    given = {name: pathlib.Path(path).expanduser() for name, path in evaluation.weights.items()}
    try:
        [found] = build(network, [evaluation.mode or "clean"], Weights(**given))
    except UserError as error:
        raise UserError(f"evaluation.weights: {error}") from None
    return found


def _reference(recipe: Recipe, asked, built) -> Reference | None:
    evaluation = recipe.evaluation
    if evaluation.reference is None:
        return None
    is_file = evaluation.reference.endswith(".npz")
    try:
        size = functools.partial(size_of_run, recipe, recipe.task)
        mode = evaluation.mode if is_file else None
        found = open_reference(evaluation.reference, mode, size)
        for one in asked:
            if one.compares and isinstance(found, StatisticsReference):
                metric = metric_of(one.metric)
                extractor, needs_features = built[metric.network], not metric.by_gaussian
                found.check(extractor, metric.layers[0], one.name, needs_features, size=size)
    except UserError as error:
        raise UserError(f"evaluation.{error}") from None
    return found


def _check_held_out(recipe, wanted, samples):
    """Checks that enough is held out, as far as a look at some captions tells."""
    if not samples.is_held_out:
        first = next(one for one in wanted.metrics if one.compares)
        remedy = "other data" if recipe.data.heldout else "a share such as 0.05"
        raise UserError(
            f"evaluation.metrics has {first.name!r}, a distance from held-out images, and "
            f"{samples.none}; give {remedy}, or evaluation.reference."
        )
    compared = [one for one in wanted.metrics if one.compares]
    division = division_of(samples.data, source_of(samples.data))
    if division is not None and division.looked_at < division.records:
        most = round(division.count * _SLACK)
    else:
        most = samples.available(max(map(wanted.count_of, compared)), distinct=True)
    for one in compared:
        if wanted.count_of(one) > most:
            raise _too_many(recipe, one, wanted.count_of(one), most)


def _too_many(recipe, one, count, most):
    there = f"{counted(most, 'image')} of {recipe.data.source!r}"
    return UserError(
        f"evaluation.metrics has {one.name!r}, of {count:,} images, and {there} are held out; "
        f"give {one.metric}_{most} at most, a larger data.heldout, or evaluation.reference."
    )
