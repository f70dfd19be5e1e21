"""Scores of images, written to results.json: features of every shard, then the metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.cluster import processes
from t2i_jax.config import did_you_mean
from t2i_jax.errors import UserError
from t2i_jax.eval import intervals, weights_file
from t2i_jax.eval.alignment import check_captions
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.protocol import Protocol
from t2i_jax.runs.report import REPORT
from t2i_jax.runs.scoring import features, plan, replaced
from t2i_jax.runs.scoring.metrics import Entry, Metric, Subject, metric_of, share_interval
from t2i_jax.runs.scoring.reference import Reference
from t2i_jax.runs.scoring.results import MARKS, RESULTS, VALUES, read_results
from t2i_jax.runs.scoring.split import Share
from t2i_jax.systems import notices
from t2i_jax.text.encoder import told_of_lengths

TIMES = "times.json"
GENERATED = "features/generated"  # the features of generated images, below the folder of results
SCHEMA = 1
_LEAST_IN_CATEGORY = 2


@dataclasses.dataclass(frozen=True)
class Images:
    """Generated images with what is known of them.

    Attributes:
      files: the images by their numbers.
      about: JSON of where they come from: "images" and, where they were generated here, "run",
        "sampling" and "prompts".
      captions: one per image; None: there are none. no_captions: why there are none, as the end of
        a sentence.
      keys: (id of the prompt, number of the image among its images), one per image.
      categories: one per image, "" where it has none.
      marks: one per image, a digest of what its values are measured against where its key does not
        tell that, the caption beside it or the original of a reconstruction; (): there are none.
    """

    files: Any
    about: Callable[[], Mapping[str, Any]]
    captions: Sequence[str] | None
    keys: Sequence[tuple[str, int]]
    categories: Sequence[str]
    no_captions: str = ""
    marks: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Measures:
    """The metrics that are measured, with their extractors.

    Attributes:
      metrics: names, see `metrics.METRICS`.
      extractors: by network ("inception") the extractors of each preprocessing that is wanted.
      protocol: how images are brought to one size first; None: they stay as they are.
      batch_size: images that an extractor is given at a time, on each device.
    """

    metrics: Sequence[str]
    extractors: Mapping[str, Sequence[Extractor]]
    protocol: Protocol | None = None
    batch_size: int = features.BATCH_SIZE

    def layers(self, network: str) -> tuple[str, ...]:
        """The layers of a network that the metrics need."""
        found = (metric_of(name) for name in self.metrics)
        return next(one.layers for one in found if one.network == network)

    def folder(
        self, home: pathlib.Path, extractor: Extractor, layers: tuple[str, ...]
    ) -> pathlib.Path:
        """The folder for the features of an extractor, see `features.folder_of`."""
        told = {} if self.protocol is None else self.protocol.about()
        return features.folder_of(home, extractor, layers, told)

    @property
    def bring(self) -> Callable[[np.ndarray], np.ndarray]:
        """What is done with an image before an extractor gets it."""
        return _as_it_is if self.protocol is None else self.protocol.bring

    def compares(self, network: str) -> bool:
        """Whether a metric of a network compares with real images."""
        found = (metric_of(name) for name in self.metrics)
        return any(one.needs_reference for one in found if one.network == network)

    def needs_features(self, network: str) -> bool:
        """Whether a metric of a network needs more of the real images than mean and covariance."""
        found = [metric_of(name) for name in self.metrics]
        compared = [one for one in found if one.network == network and one.needs_reference]
        return not all(one.by_gaussian for one in compared)


def digest(data: bytes) -> str:
    """The digest of a caption or of the pixels of an image, as `Images.marks` has it."""
    return hashlib.sha256(data).hexdigest()[:16]


def check(
    measures: Measures,
    reference: Reference | None,
    captions: Sequence[str] | None,
    count: int,
    no_captions: str = "",
) -> None:
    """Refuses what can't be measured, before anything is generated or computed.

    Args:
      captions: one for each of `count` images; None: there are none, with the reason as in
        `Images`.

    Raises:
      UserError: a metric without its reference, captions, vocabulary or judge, captions that a
        judge does not understand, or another number of images than the protocol has.
    """
    subject = Subject({}, {}, reference, captions, (), _no_image, _judge, no_captions)
    for name in measures.metrics:
        metric = metric_of(name)
        if count < metric.least:
            raise UserError(
                f"metrics={name} takes {metric.least} images or more, and there "
                f"{'is' if count == 1 else 'are'} {count}; give more, or leave it out."
            )
        if metric.needs_reference:
            subject.against(name)
        if metric.needs_captions:
            subject.captioned(name)
            check_vocabulary(f"metrics={name}", measures.extractors.get(metric.network, ()))
        if name.startswith("judge:"):
            _check_judge(name, subject.captioned(name))
    protocol = measures.protocol
    if protocol is not None and count != protocol.count:
        raise UserError(
            f"protocol={protocol.name} is of {protocol.count:,} images, and there are {count:,}; "
            "give that many, or leave --protocol out."
        )
    for told in _cuts(measures, captions) if processes.is_first() else ():
        notices.tell(told)


def score(
    images: Images,
    reference: Reference | None,
    measures: Measures,
    out: pathlib.Path,
    shared: pathlib.Path | None = None,
    share: Share | None = None,
    progress: Callable[[Any], Any] = iter,
) -> dict[str, Any]:
    """Measures images that passed `check`, and writes results.json and values.json; every process
    calls it.

    Args:
      out: folder of the results. shared: where the features of the reference are kept, for several
        results with one reference; None: in `out`.
      share: what this process works on; None: as the environment says.

    Returns:
      The results; {} in a process that is not the first.
    """
    share = share or Share.here()
    began = time.monotonic()
    found = {
        extractor.name: _features(images, reference, measures, out, shared or out, share, progress,
                                  network, extractor)
        for network in dict.fromkeys(metric_of(name).network for name in measures.metrics)
        if network
        for extractor in measures.extractors[network]
    }  # fmt: skip
    computed = time.monotonic()
    processes.gather(None)
    if share.process:
        return {}
    results, values = _measured(images, reference, measures, found)
    write(out, images, results, values)
    seconds = {"features": computed - began, "metrics": time.monotonic() - computed}
    plan.write_json(out / TIMES, {"seconds": seconds})
    return results


def write(
    out: pathlib.Path, images: Images, results: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Writes the results of `assembled`, and marks.json where images have marks. Results that are
    there and have other numbers are kept, see `replaced.keep`.
    """
    begun = None
    with contextlib.suppress(UserError):  # there are none, or they are damaged
        begun = read_results(out).results
    if begun is not None:
        lost = replaced.lost_metrics(begun, results)
        replaced.keep(out, (RESULTS, VALUES, MARKS, REPORT), lost)
    if images.marks:
        marks = zip(images.keys, images.marks, strict=True)
        plan.write_json(out / MARKS, [[*key, mark] for key, mark in marks])
    plan.write_json(out / VALUES, values)
    plan.write_json(out / RESULTS, results)


def measure_shard(files: Any, measures: Measures, out: pathlib.Path, shard: int) -> None:
    """Computes all features that the metrics need of one shard of generated images, as `score` then
    finds them.
    """
    for extractor, layers, folder in _generated(measures, out):
        features.compute_shard(
            files, extractor, layers, folder, measures.bring, shard, measures.batch_size
        )


def is_measured(files: Any, measures: Measures, out: pathlib.Path, shard: int) -> bool:
    """Whether `measure_shard` has nothing to do."""
    try:
        key = files.key(shard)
    except UserError:  # there is no manifest yet
        return False
    return all(features.has_shard(place, shard, key) for *_, place in _generated(measures, out))


def _generated(measures, out):
    """(extractor, layers, folder of its features of generated images) of each extractor."""
    for network, some in measures.extractors.items():
        layers = measures.layers(network)
        for extractor in some:
            yield extractor, layers, measures.folder(out / GENERATED, extractor, layers)


def _features(images, reference, measures, out, shared, share, progress, network, extractor):
    def compute(home, some, extractor, layers):
        return features.compute(
            some, extractor, layers, measures.folder(home, extractor, layers), measures.bring,
            share, measures.batch_size, progress,
        )  # fmt: skip

    layers = measures.layers(network)
    if reference is not None and measures.compares(network):
        home = shared / "features" / "reference"
        of_home, needs_features = functools.partial(compute, home), measures.needs_features(network)
        reference.prepare(extractor, layers, of_home, needs_features)
    return compute(out / GENERATED, images.files, extractor, layers)


def _measured(images, reference, measures, found):
    extractors = {one.name: one for some in measures.extractors.values() for one in some}
    groups = [prompt for prompt, _ in images.keys]
    subject = Subject(
        found, extractors, reference, images.captions, groups, images.files.read, _judge
    )
    entries: list[Entry] = []
    for name in measures.metrics:
        metric: Metric = metric_of(name)
        for extractor in measures.extractors.get(metric.network, (None,)):
            entries += metric.measure(name, subject, "" if extractor is None else extractor.name)
    return assembled(images, subject, entries, measures.protocol)


def assembled(
    images: Images,
    subject: Subject,
    entries: Sequence[Entry],
    protocol: Protocol | None,
    further: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of results.json and values.json.

    Args:
      further: files of weights beside those of the extractors, as results keep them, by their names
        in `weights_file.PUBLISHED`; None: there are none.
    """
    found, about = subject.features, images.about()
    other_prompts = protocol and protocol.other_prompts(about.get("prompts"))
    cut = {one.name: one.cut for one in entries if one.cut}
    others = _other_weights(subject.extractors, further or {})
    values = {
        one.name: [
            [*images.keys[row], float(value)]
            for row, value in zip(_rows(one, found), one.values_N, strict=True)
        ]
        for one in entries
        if one.values_N is not None
    }
    return {
        "schema": SCHEMA,
        **about,
        "protocol": None if protocol is None else protocol.about(),
        **({"captions": other_prompts} if other_prompts else {}),
        **({"cut_captions": cut} if cut else {}),
        **({"other_weights": others} if others else {}),
        "metrics": [
            {**block(one, subject, images.files.split.count), "interval": one.interval()}
            for one in entries
        ],
        "numerics": {one.name: dict(one.numerics) for one in entries if one.numerics},
        "categories": _categories(images, entries, found),
        "generated": {
            **{name: dict(one.about) for name, one in found.items()},
            **{
                one.name: {"count": len(_rows(one, found)), "left_out": dict(one.left_out)}
                for one in entries
                if one.left_out
            },
        },
        "software": plan.software(),
    }, values


def _other_weights(extractors, further):
    """For each extractor, and each further file by its name, a sentence about weights that are not
    the published ones.
    """
    told = {
        name: weights_file.told_of_other(name.partition("-")[0], one.about)
        for name, one in extractors.items()
    }
    told |= {name: weights_file.told_of_other(name, about) for name, about in further.items()}
    return {name: sentence for name, sentence in told.items() if sentence}


def block(one: Entry, subject: Subject, count: int) -> dict[str, Any]:
    """The JSON of a number without its interval: all that is needed to compute it again, and
    nothing of its speed.

    Args:
      count: of the images, where it is of no features and of all of them.
    """
    count = count if one.kept_N is None else len(one.kept_N)
    used = subject.features.get(one.extractor)
    made_by = subject.extractors.get(one.extractor)
    against = subject.reference if one.against else None
    return {
        "name": one.name,
        "value": one.value,
        "n_generated": count if used is None else used.about["count"],
        "n_reference": None if against is None else against.count(one.extractor),
        "extractor": None if made_by is None else {"name": made_by.name, **_json(made_by.about)},
        "estimator": dict(one.estimator),
        "reference": None if against is None else against.about(one.extractor),
    }


def _rows(entry, found):
    """The numbers of the images that an entry's values belong to."""
    if entry.kept_N is not None:
        return entry.kept_N
    return found[entry.extractor].kept if entry.extractor else range(len(entry.values_N))


def _categories(images, entries, found):
    """The mean of the values by metric and category, with its interval and the number of values."""
    told: dict[str, dict[str, Any]] = {}
    for one in entries:
        if one.values_N is None or not any(images.categories):
            continue
        names = [images.categories[row] for row in _rows(one, found)]
        groups = [images.keys[row][0] for row in _rows(one, found)]
        for name in dict.fromkeys(filter(None, names)):
            rows = [place for place, other in enumerate(names) if other == name]
            told.setdefault(one.name, {})[name] = _category(
                one.values_N[rows], [groups[row] for row in rows], not one.extractor
            )
    return told


def _category(values_N, groups, is_share):
    interval = None
    if is_share:
        interval = share_interval(values_N, groups)
    elif len(set(groups)) >= _LEAST_IN_CATEGORY:
        interval = intervals.bootstrap(values_N, groups).about()
    return {"value": float(values_N.mean()), "count": len(values_N), "interval": interval}


def check_vocabulary(named: str, extractors: Sequence[Any]) -> None:
    """Refuses CLIPs that can't read captions.

    Args:
      named: what they are to read them for, as "metrics=clip".

    Raises:
      UserError: one came without a vocabulary.
    """
    for extractor in extractors:
        try:
            extractor.lengths(())
        except UserError as error:
            raise UserError(f"{named}: {error}") from None


def told_of_cut(extractor: Any, captions: Sequence[str]) -> str | None:
    """A sentence about captions of which a CLIP reads the beginning alone; None: it reads all."""
    return told_of_lengths(extractor.lengths(captions), extractor.text_length, "caption")


def _cuts(measures, captions):
    """Sentences about captions that are too long for a CLIP, one for all metrics to which it
    applies.
    """
    found: dict[str, list[str]] = {}
    for name in measures.metrics:
        metric = metric_of(name)
        reads = measures.extractors.get(metric.network, ()) if metric.needs_captions else ()
        for extractor in reads:
            told = told_of_cut(extractor, [metric.prefix + one for one in captions])
            found.setdefault(told or "", []).append(name)
    return [f"metrics={','.join(names)}: {told}" for told, names in found.items() if told]


def _judge(name):
    if name not in JUDGES:
        raise UserError(f"metrics=judge:{name} is no judge; {did_you_mean(name, JUDGES)}")
    return JUDGES[name]()


def _check_judge(metric, captions):
    judge = _judge(metric.partition(":")[2])
    try:
        check_captions(judge, captions)
    except UserError as error:
        raise UserError(f"metrics={metric} does not understand the captions: {error}") from None


def _no_image(row: int) -> np.ndarray:
    raise LookupError(f"image {row} is not there yet")


def _as_it_is(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC


def _json(value):
    return json.loads(json.dumps(value, default=str))
