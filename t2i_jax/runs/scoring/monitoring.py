"""Metrics of generated images while a run trains: what its recipe asks for, set up once, and
measured of one state after another.

Images are generated batch by batch, a batch at a time by each process, and are never all in memory:
only their features are, which every process is given.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax.cluster import processes
from t2i_jax.eval.monitored import Monitored
from t2i_jax.eval.prompts import seed_of
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.report import MONITORED
from t2i_jax.runs.samples import Samples
from t2i_jax.runs.scoring import features, gathering, networks, plan, sizes
from t2i_jax.runs.scoring.held_out import HeldOutImages, Leading
from t2i_jax.runs.scoring.metrics import Subject, metric_of
from t2i_jax.runs.scoring.networks import Build
from t2i_jax.runs.scoring.reference import ImagesReference, Reference
from t2i_jax.runs.scoring.score import block, told_of_cut
from t2i_jax.runs.scoring.sources import size_of_run
from t2i_jax.runs.scoring.split import Share, Split
from t2i_jax.runs.scoring.wanted import Wanted
from t2i_jax.systems import notices, placing
from t2i_jax.systems.base import System
from t2i_jax.train.monitor import Monitor
from t2i_jax.types import TrainState

FOLDER = "evaluation"  # of a run, with the features of the real images
_AT_ONCE = 64  # images that are generated at a time, on each device
_VERDICTS = "judge"  # beside the layers of the extractors

BuildSystem = Callable[[Any, Any], System]


def monitor_of(
    recipe: Recipe,
    samples: Samples,
    build_system: BuildSystem,
    workdir: pathlib.Path,
    build: Build = networks.build,
) -> Monitor | None:
    """The monitor that `evaluation.metrics` of a recipe asks for; None: it asks for none. Every
    process calls it.

    The features of the real images are computed now, and kept in WORKDIR/evaluation.

    Args:
      samples: whose captions images are generated for. build_system: (params, stats) -> the system.
      build: makes the extractors of a network.

    Raises:
      UserError: something is missing, or does not fit.
    """
    evaluation = recipe.evaluation
    if evaluation.every is None:
        return None
    wanted = Wanted.of(recipe, build)
    wanted.check_count(samples)
    measurer = Measurer(recipe, wanted, samples, workdir)

    def start(state: TrainState) -> Callable[[], Mapping[str, float]]:
        return measurer.start(build_system({**state.params, **state.ema}, state.stats))

    by = evaluation.best
    is_larger = any(one.name == by and not one.compares for one in wanted.metrics)
    return Monitor(evaluation.metrics, evaluation.every, start, by, is_larger)


class Measurer:
    """Measures systems, all with the same captions, seeds and real images.

    Args:
      wanted: the metrics with their networks. workdir: of the run.
    """

    def __init__(self, recipe: Recipe, wanted: Wanted, samples: Samples, workdir: pathlib.Path):
        self._recipe, self._wanted, self._workdir = recipe, wanted, workdir
        self._split = Split(wanted.count, _batch_size(wanted.count))
        wants = recipe.task.samples
        self._stream = samples.batches(wanted.count, self._split.size, wants) if wants else None
        self._begin = {} if self._stream is None else self._stream.get_state()
        self._captions = self._read_captions() if "caption" in wants else []
        self._extractors = {
            name: _Remembering(one) for name, one in wanted.extractors.items()
        }  # fmt: skip
        self._references = self._compared_with(samples)
        for one in wanted.metrics:
            if not one.compares and one.metric != _VERDICTS:
                extractor = self._extractors[wanted.extractor(one).name]
                extractor.text_features(self._of(one))
                if (told := told_of_cut(extractor, self._of(one))) and processes.is_first():
                    notices.tell(f"evaluation.metrics={one.name}: {told}")

    def start(self, system: System) -> Callable[[], Mapping[str, float]]:
        """Generates images and computes their features on the devices; what it returns computes the
        metrics of these on the host.
        """
        alone = jax.process_count() == 1
        # several processes sample each for itself, with what it holds whole
        shape = self._recipe.train.mesh if alone and self._recipe.train is not None else None
        placed = placing.on_mesh(system, shape, None if alone else jax.local_devices())
        compute = functools.partial(self._batch, placed, self._batches())
        return functools.partial(self._numbers, gathering.gathered(self._split, compute))

    def _batches(self) -> Callable[[int], Mapping[str, Any]]:
        """A function: number of a batch, the numbers ascending -> its samples, always the same
        ones.
        """
        stream = self._stream
        if stream is None:
            return lambda shard: {}
        stream.set_state([self._begin])
        place = -1

        def read(shard: int) -> Mapping[str, Any]:
            nonlocal place
            while place < shard:
                batch, place = next(stream), place + 1
            return batch

        return read

    def _read_captions(self):
        read = self._batches()
        found = (read(shard)["caption"] for shard in range(self._split.shards))
        return list(itertools.chain.from_iterable(found))[: self._split.count]

    def _batch(self, system, read, shard):
        """The features of a batch's images by name, and the judge's verdict on each."""
        size = self._split.size
        # the last batch is filled up with images that belong to nobody, so that one program serves
        rows = range(shard * size, (shard + 1) * size)
        seeds = [seed_of(0, f"{row:06d}") for row in rows]
        samples = read(shard)
        images = system.images(
            samples, range(size), self._recipe.evaluation.options, seeds, batch_size=size
        )
        each = size // jax.local_device_count()
        found = {
            f"{name}/{layer}": values
            for name, extractor in self._wanted.extractors.items()
            for layer, values in extractor.features(images, each, self._wanted.layers(name)).items()
        }
        if (judge := self._wanted.judge) is not None:
            right_B = judge.judge(images, list(samples["caption"]))
            found[_VERDICTS] = np.asarray(right_B, np.float32)[:, None]
        return found

    def _numbers(self, found):
        """The metrics by name, and WORKDIR/evaluation.json about how they were measured."""
        if not processes.is_first():
            return {}
        values, told = {}, {}
        for one in self._wanted.metrics:
            values[one.name], told[one.name] = self._number(one, found)
        plan.write_json(
            self._workdir / MONITORED, {**self._wanted.about(self._captions), "metrics": told}
        )
        return values

    def _number(self, one: Monitored, found):
        """The value of a metric, and JSON of how it was measured."""
        count = self._wanted.count_of(one)
        if one.metric == _VERDICTS:
            about = {"n_generated": count, "estimator": {"judge": self._recipe.evaluation.judge}}
            return float(found[_VERDICTS][:count].mean()), about
        name = self._wanted.extractor(one).name
        layers = {
            layer: found[f"{name}/{layer}"][:count] for layer in self._wanted.layers(name)
        }  # fmt: skip
        subject = Subject(
            {name: gathering.Gathered(layers)}, self._extractors, self._references.get(one.name),
            self._of(one) or None, self._of(one), _no_image, _no_judge,
        )  # fmt: skip
        # the first number is the metric; what further ones cost is saved
        entry = next(metric_of(one.metric).measure(one.metric, subject, name))
        about = block(entry, subject, count)
        cut = {"cut_captions": entry.cut} if entry.cut else {}
        return entry.value, {key: about[key] for key in about if key != "value"} | cut

    def _of(self, one: Monitored) -> Sequence[str]:
        """The captions of a metric's images; () for a task that reads none."""
        return self._captions[: self._wanted.count_of(one)]

    def _compared_with(self, samples: Samples) -> dict[str, Reference]:
        """The real images of each metric that has some, with their features."""
        wanted, home = self._wanted, self._workdir / FOLDER
        compared = [one for one in wanted.metrics if one.compares]
        if not compared:
            return {}

        def compute(images, extractor, layers):
            folder = features.folder_of(home, extractor, layers, {})
            share, each = Share.here(), -(-features.BATCH_SIZE // jax.local_device_count())
            return features.compute(images, extractor, layers, folder, _as_it_is, share, each)

        reference = wanted.reference
        if reference is None:
            images = HeldOutImages(samples, max(wanted.count_of(one) for one in compared))
            reference = ImagesReference(images)
        needs = dict[str, bool]()  # by extractor whether mean and covariance are not enough
        for one in compared:
            name, by_gaussian = wanted.extractor(one).name, metric_of(one.metric).by_gaussian
            needs[name] = needs.get(name, False) or not by_gaussian
        for name, needs_features in needs.items():
            extractor, layers = wanted.extractors[name], wanted.layers(name)
            reference.prepare(extractor, layers, compute, needs_features)
        processes.gather(None)  # until all of them are written
        self._tell_of_sizes()
        count = None if wanted.reference is not None else wanted.count_of
        return {
            one.name: Leading(reference, None if count is None else count(one)) for one in compared
        }

    def _tell_of_sizes(self) -> None:
        """Tells where the recipe's own real images are of other sizes than the generated ones."""
        wanted, side = self._wanted, size_of_run(self._recipe, self._recipe.task)
        if wanted.reference is None or side is None or not processes.is_first():
            return
        compared = (wanted.extractor(one) for one in wanted.metrics if one.compares)
        name = next((one.name for one in compared if sizes.is_whole(one.about)), None)
        real = None if name is None else wanted.reference.sizes(name)
        if real and (told := sizes.told({f"{side}x{side}": wanted.count}, real)):
            notices.tell(f"{told}; give squares of {side} pixels as evaluation.reference")


class _Remembering:
    """An extractor that remembers what it has made of captions, which are always the same.

    Attributes:
      name, about, logit_scale, text_length, mends: of the extractor.
    """

    def __init__(self, extractor: Any):
        self.name, self.about = extractor.name, extractor.about
        self.logit_scale = getattr(extractor, "logit_scale", 1.0)
        self.text_length = getattr(extractor, "text_length", 0)
        self.mends = getattr(extractor, "mends", False)
        self._extractor = extractor
        self._known = functools.cache(
            lambda captions, keeps_end: extractor.text_features(captions, keeps_end=keeps_end)
        )

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """The number of tokens of each caption."""
        return self._extractor.lengths(captions)

    def text_features(self, captions: Sequence[str], keeps_end: bool = True) -> np.ndarray:
        """The features of captions, (N, D) float32."""
        return self._known(tuple(captions), keeps_end)


def _batch_size(count):
    """The number of images in a batch: a share for each device of a process, and no more than it
    has to generate.
    """
    devices = jax.local_device_count()
    size = min(_AT_ONCE * devices, -(-count // jax.process_count()))
    return -(-size // devices) * devices


def _as_it_is(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC


def _no_image(row: int) -> np.ndarray:
    raise LookupError(f"image {row} is not kept")


def _no_judge(name: str) -> Any:
    raise LookupError(f"the verdicts of {name} are known already")
