"""One `t2i evaluate`: checks all that was given, then images, features, numbers and a page."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i_jax import paths
from t2i_jax.cluster import lock, processes
from t2i_jax.errors import UserError
from t2i_jax.eval import layout
from t2i_jax.eval.prompts import PromptSet
from t2i_jax.eval.protocol import Protocol
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.scoring import (
    generate,
    networks,
    page,
    pairing,
    plan,
    sizes,
    sources,
    subjects,
    sweep,
)
from t2i_jax.runs.scoring.features import BATCH_SIZE
from t2i_jax.runs.scoring.metrics import metric_of
from t2i_jax.runs.scoring.networks import Build, Weights
from t2i_jax.runs.scoring.reference import (
    ImagesReference,
    Reference,
    Size,
    StatisticsReference,
    no_size,
    open_reference,
)
from t2i_jax.runs.scoring.results import read_results
from t2i_jax.runs.scoring.score import GENERATED, Images, Measures, check, score
from t2i_jax.runs.scoring.split import SHARD_SIZE, Share
from t2i_jax.systems import calls, notices
from t2i_jax.words import counted


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of scoring: metrics, the images that they are of, and the reference.

    Attributes:
      metrics: names, see `metrics.METRICS`; (): images are generated and nothing is measured.
      out: folder of the results.
      modes: how images are prepared for Inception, where no protocol says it.
      protocol: brings all images to one size and says how many there are; None: they stay as they
        are.
      reference: a folder or another source of images, or an npz; None: there is none.
      reference_mode: how the statistics of an npz were made; None: its JSON says so.
      reference_split: of a source with splits; None: "heldout".
      weights: where the networks' weights are.
      shard_size: images of a shard.
      mesh: sizes of the axes of each process's mesh, over which it shards the weights of a run,
        {"tensor": 4} for one that is too large for a device; None: each of its devices has all of
        them, and a part of a batch.
      batch_size: images that are generated at a time, on each device. extractor_batch_size: that an
        extractor is given at a time, on each device.
      streaming: whether images of a run are measured shard by shard, and all but the first removed.
    """

    metrics: Sequence[str]
    out: pathlib.Path
    modes: Sequence[str] = ("clean",)
    protocol: Protocol | None = None
    reference: str | None = None
    reference_mode: str | None = None
    reference_split: str | None = None
    weights: Weights = Weights()
    mesh: Mapping[str, int] | None = None
    shard_size: int = SHARD_SIZE
    batch_size: int = 64
    extractor_batch_size: int = BATCH_SIZE
    streaming: bool = False

    def __post_init__(self):
        if self.shard_size < 1 or self.batch_size < 1 or self.extractor_batch_size < 1:
            raise UserError(
                f"shard_size={self.shard_size} and batch_size={self.batch_size} must be 1 or more."
            )
        if self.streaming:
            self._check_streaming()
        compares = any(metric_of(name).needs_reference for name in self.metrics)
        if self.reference is None and compares:
            name = next(name for name in self.metrics if metric_of(name).needs_reference)
            raise UserError(
                f"metrics={name} compares with real images; give --reference DIR or FILE.npz."
            )
        if self.reference is not None and not compares:
            raise UserError(
                f"reference={self.reference!r} is compared with by none of metrics="
                f"{','.join(self.metrics)}; leave it out, or add fid."
            )

    def _check_streaming(self):
        """Refuses metrics that look at the images themselves."""
        if not self.metrics:
            raise UserError("streaming keeps no images, and none are measured; give --metrics.")
        for name in self.metrics:
            if not metric_of(name).network:
                raise UserError(
                    f"metrics={name} looks at all images, and streaming removes them; leave out "
                    "one of the two."
                )

    def opened(
        self, build: Build = networks.build, size: Size = no_size
    ) -> tuple[Measures, Reference | None]:
        """The networks and the reference, with all their files read.

        Args:
          size: of the images that are measured, asked for where the reference is drawn, or is
            statistics of such; a protocol's own goes before it.

        Raises:
          UserError: weights or a reference that are not there.
        """
        modes = self.modes if self.protocol is None else self.protocol.modes
        wanted = dict.fromkeys(metric_of(name).network for name in self.metrics)
        own = self.protocol and self.protocol.size
        drawn = size if own is None else lambda: own
        reference = self.reference and open_reference(
            self.reference, self.reference_mode, drawn, self.shard_size, self.reference_split
        )
        found = {name: build(name, modes, self.weights) for name in wanted if name}
        networks.check_apart(found)
        named = f"reference={paths.shown(self.reference or '')}"
        if isinstance(reference, StatisticsReference):
            self._check(named, reference, found, size)
        elif isinstance(reference, ImagesReference):
            _check_enough(named, reference.total, self.metrics)
            if self.protocol is not None:
                self.protocol.check_reference(named, reference.total)
        measures = Measures(self.metrics, found, self.protocol, self.extractor_batch_size)
        return measures, reference or None

    def _check(self, named, reference, extractors, size):
        """Checks that a file of reference statistics has what each network's metrics need of it."""
        for network, some in extractors.items():
            of_network = {
                name: metric
                for name, metric in zip(self.metrics, map(metric_of, self.metrics), strict=True)
                if metric.network == network and metric.needs_reference
            }
            if not of_network:
                continue
            # the one that needs the most, as reading the file may take long
            name = min(of_network, key=lambda name: of_network[name].by_gaussian)
            metric = of_network[name]
            for extractor in some:
                count = reference.check(
                    extractor, metric.layers[0], name, not metric.by_gaussian, self.protocol, size
                )
                if count is not None:
                    _check_enough(named, count, of_network)


def evaluate_source(
    job: Job,
    spec: str,
    captions: PromptSet | None,
    build: Build = networks.build,
    progress: Callable[[Any], Any] = iter,
    split: str | None = None,
    grid: int | None = None,
) -> Mapping[str, Any]:
    """Measures images that are there already; every process calls it.

    Args:
      spec: of the images, "folder:DIR" and so on.
      captions, split, grid: see `subjects.of_source`.

    Returns:
      The results; {} in a process that is not the first.
    """
    measures, reference = job.opened(build, lambda: subjects.size_of(spec, split, grid))
    with lock.held(job.out, "out"):
        by_caption = [metric_of(name).needs_captions for name in job.metrics]
        each_row = captions is None and any(by_caption)
        with _told_once():
            images = subjects.of_source(spec, captions, job.shard_size, split, each_row, grid)
        if not all(by_caption):
            _check_one_row(spec, images.files, job.metrics, by_caption)
        count = images.files.split.count
        check(measures, reference, images.captions, count, images.no_captions)
        told = images.about()
        counted = {**told["images"], "shard_size": job.shard_size}
        counted.pop("passed_over", None)  # what lies beside them changes no image
        if counted.get("grid") == 1:  # as where nothing is said, and in plans of earlier versions
            del counted["grid"]
        plan.settle(job.out, {**told, "images": counted, "software": plan.software()})
        found = _scored(job, images, reference, measures, job.out, progress, spec)
    _tell_of_sizes(found, reference)
    return found


def evaluate_run(
    job: Job,
    run: pathlib.Path,
    recipe: Recipe,
    step: int | str | None,
    prompts: PromptSet,
    seed: int = 0,
    guidances: Sequence[float] = (),
    build: Build = networks.build,
    progress: Callable[[Any], Any] = iter,
) -> Mapping[float | None, Mapping[str, Any]]:
    """Generates images of a run for prompts and measures them; every process calls it.

    Args:
      recipe: that of the run; its `evaluation.options` say how images are sampled.
      guidances: in place of that of the options; several are measured side by side, each in a
        folder of its own, with one set of features of the reference. (): the options' own.

    Returns:
      Results by guidance, None for the options' own; {} where nothing is measured.
    """
    if job.protocol is not None:
        job.protocol.check_prompts(prompts)
    with _told_once():
        prompts = pairing.unnumbered(prompts, "prompts")
    loaded = functools.cache(lambda: generate.loaded(run, step, job.mesh))
    measures, reference = job.opened(build, lambda: sources.size_of_run(recipe, loaded()))
    if isinstance(reference, ImagesReference):
        reference.check_apart(job.out)
    if job.metrics:
        check(measures, reference, prompts.texts, len(prompts) * prompts.images_per_prompt)
    if job.streaming and prompts.kind in layout.LAYOUTS:
        raise UserError(
            f"prompts={prompts.kind} keeps its images for the scorer of that benchmark, and "
            "streaming removes them; leave out --streaming."
        )
    system = loaded()
    found = dict[float | None, Mapping[str, Any]]()
    with _told_once():
        system.check_prompts(prompts.texts)
        if job.protocol is not None and (told := job.protocol.other_prompts(prompts.about())):
            notices.tell(told)
    options = recipe.evaluation.options
    chosen = {
        one: calls.with_changes(type(options), options, {"guidance": one}) for one in guidances
    } or {None: options}
    with lock.held(job.out, "out"):
        check_folder = plan.check_places if len(chosen) == 1 else plan.check_several
        processes.once(lambda: check_folder(job.out))
        for guidance, sampled in chosen.items():
            out = job.out if len(chosen) == 1 else job.out / f"guidance-{guidance:g}"
            images = subjects.of_run(
                run, recipe, system, step, prompts, sampled, seed=seed, batch_size=job.batch_size,
                mesh=job.mesh, shard_size=job.shard_size, out=out, share=Share.here(),
                progress=progress, streamed=measures if job.streaming else None,
            )  # fmt: skip
            title = f"{run.name}: {prompts.kind}"
            found[guidance] = _scored(job, images, reference, measures, out, progress, title)
        if len(chosen) > 1 and job.metrics and processes.is_first():
            sweep.write(job.out, {one: found[one] for one in found if one is not None})
    _tell_of_sizes(next(iter(found.values())), reference)
    return found if job.metrics else {}


def _tell_of_sizes(results, reference):
    """Warns where images of two sizes are compared as they are; {}: nothing was measured here."""
    if results and (told := sizes.told_of_results(results, reference)):
        notices.tell(told)


def _told_once():
    """A context in which only the first process prints messages."""
    return contextlib.nullcontext() if processes.is_first() else notices.quiet()


def _scored(job, images, reference, measures, out, progress, title):
    if not job.metrics:
        return {}
    results = score(images, reference, measures, out, job.out, None, progress)
    if results:
        values = read_results(out).values
        nearest = _nearest(images, reference, measures, out)
        page.write_page(out, title, results, values, images, nearest)
    return results


def _check_one_row(spec, files, metrics, by_caption):
    """Refuses to measure images with several captions by metrics of both kinds."""
    if files.further_rows:
        once, each = metrics[by_caption.index(False)], metrics[by_caption.index(True)]
        raise UserError(
            f"metrics={each} takes an image of images={paths.shown(spec)} with each of its captions"
            f" (its table has {counted(files.further_rows, 'further row')} of images), and {once} "
            "takes it once; give the two in two commands, each with an --out of its own."
        )


def _check_enough(named, count, metrics):
    """Refuses fewer real images than a metric takes."""
    for name in metrics:
        least = metric_of(name).least_real
        if count < least:
            raise UserError(
                f"metrics={name} takes {least} real images or more, and {named} has {count}; "
                "give more, or leave it out."
            )


def _nearest(images: Images, reference, measures, out):
    """The reference images nearest to the first images, by the first extractor that the metrics
    use.
    """
    from t2i_jax.runs.scoring import features

    for network, some in measures.extractors.items():
        for extractor in some:
            layer = page.layer_of_neighbours(extractor.name)
            if layer is None or reference is None or not measures.compares(network):
                continue
            folder = measures.folder(out / GENERATED, extractor, measures.layers(network))
            own = features.Features(folder, images.files.split)
            try:
                others = reference.features(extractor.name, layer, "fid")
            except UserError:  # statistics alone
                return []
            read = functools.partial(reference.image, extractor.name)
            found = page.neighbours(own.rows(layer), others, read)
            return [(int(own.kept[row]), image, distance) for row, image, distance in found]
    return []
