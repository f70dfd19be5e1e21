"""The metrics that `--metrics` names: which extractor each needs, and the numbers that it gives."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax import config
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from t2i_jax.eval import intervals
from t2i_jax.eval.alignment import Judge
from t2i_jax.eval.clip_score import PRESETS, ClipScoring, clip_score
from t2i_jax.eval.frechet import (
    FEWEST_FOR_INFINITY,
    Frechet,
    Gaussian,
    frechet,
    frechet_at_infinity,
    frechet_of_features,
)
from t2i_jax.eval.inception_score import ADM_SPLIT, inception_score, inception_score_adm
from t2i_jax.eval.kid import SUBSET_SIZE, kid, kid_by_subsets
from t2i_jax.eval.manifold import (
    NEIGHBOURS,
    NEIGHBOURS_OF_DENSITY,
    density_coverage,
    precision_recall,
)
from t2i_jax.eval.mmd import cmmd
from t2i_jax.eval.rows import moments_of
from t2i_jax.runs.scoring.features import FeatureSet
from t2i_jax.runs.scoring.reference import Reference

_JACKKNIFE = 40
_JUDGED_AT_ONCE = 256
INCEPTION_LAYERS = ("pool3", "logits_unbiased")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One number of the results: a metric with its value, interval and origin.

    Attributes:
      name: with network and preprocessing, as "fid_clean_inception".
      value: the number.
      extractor: the name of what made the features; "" for a judge.
      estimator: how it was estimated, as JSON that does not depend on the images.
      interval: gives JSON of where it lies, None where that is not estimated; it may cost more than
        the number itself.
      against: whether it compares with the reference.
      values_N: one per image, for metrics that are means of such; None for others.
      numerics: what tells how well the computation went, as JSON; {}: nothing to tell.
      cut: captions of which the network reads only the beginning.
      kept_N: of a judge, the numbers of the images that values_N are of; None: as the extractor
        says, or all. left_out: of a judge, by reason how many images could not be used.
    """

    name: str
    value: float
    extractor: str
    estimator: Mapping[str, Any]
    interval: Callable[[], Mapping[str, Any] | None] = lambda: None
    against: bool = True
    values_N: np.ndarray | None = None
    numerics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept_N: np.ndarray | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Subject:
    """The images that metrics are computed of, with captions, features and reference.

    Attributes:
      features: of the generated images, by the name of the extractor.
      extractors: by the same names.
      reference: what they are compared with; None: nothing.
      captions: one per image; None: there are none.
      groups: the prompt of each image.
      read: number of an image -> uint8 (H, W, 3).
      judge: makes the judge of a name.
      no_captions: why there are none, as the end of a sentence.
    """

    features: Mapping[str, FeatureSet]
    extractors: Mapping[str, Any]
    reference: Reference | None
    captions: Sequence[str] | None
    groups: Sequence[str]
    read: Callable[[int], np.ndarray]
    judge: Callable[[str], Judge]
    no_captions: str = ""

    def against(self, metric: str) -> Reference:
        """The reference.

        Raises:
          UserError: there is none.
        """
        if self.reference is None:
            raise UserError(
                f"metrics={metric} compares with real images; give --reference DIR or FILE.npz."
            )
        return self.reference

    def captioned(self, metric: str) -> Sequence[str]:
        """The captions.

        Raises:
          UserError: there are none.
        """
        if self.captions is None:
            why = self.no_captions or "give --captions FILE with one for each image."
            raise UserError(f"metrics={metric} compares with captions; {why}")
        return self.captions


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric as it is asked for.

    Attributes:
      about: what it is, in a line of help.
      network: "inception", "clip", "cmmd", "dinov2", "pickscore" or "hpsv2"; "": none.
      layers: of that network's extractor; the first is the one that is compared.
      measure: (name of the metric, subject, name of the extractor) -> its numbers.
      needs_reference: whether it compares with real images. needs_captions: with captions.
      prefix: what comes before each caption.
      by_gaussian: whether mean and covariance of the real images are enough.
      least: generated images that it takes. least_real: real ones.
    """

    about: str
    network: str
    layers: tuple[str, ...]
    measure: Callable[[str, Subject, str], Iterator[Entry]]
    needs_reference: bool = True
    needs_captions: bool = False
    prefix: str = ""
    by_gaussian: bool = False
    least: int = 1
    least_real: int = 1


def _frechet(metric, subject, extractor, layer="pool3", name="fid"):
    reference = subject.against(metric)
    generated, other = subject.features[extractor], reference.gaussian(extractor, layer)
    one = Gaussian.of(generated.moments(layer))
    of_few = _of_few(metric, generated, reference, extractor, layer, len(one.mean_D))
    found = frechet(one, other) if of_few is None else of_few
    yield Entry(
        _named(name, extractor), found.value, extractor,
        {"method": "eigenvalues" if of_few is None else "singular values of features",
         "layer": layer, "covariance": "N - 1", "dtype": "float64"},
        functools.partial(_halves, generated.rows(layer), found.value, other),
        numerics={"means": found.means, "covariances": found.covariances,
                  "clipped_eigenvalues": found.clipped},
    )  # fmt: skip


reconstruction_distance = functools.partial(_frechet, name="rfid")
"""The Frechet distance of reconstructions and the images they are of, as (metric, subject, name of
the extractor) -> its number."""


def _of_few(metric, generated, reference, extractor, layer, width) -> Frechet | None:
    """The distance from features, where there are fewer images than features on both sides."""
    known = reference.count(extractor)
    if known is None or max(known, len(generated.kept)) >= width:
        return None
    try:
        return frechet_of_features(
            generated.rows(layer), reference.features(extractor, layer, metric)
        )
    except UserError:  # statistics without features
        return None


def _halves(generated_ND, value, other):
    if len(generated_ND) < 4:
        return None

    def distance(chosen):
        one = Gaussian.of(moments_of(generated_ND, chosen))
        return frechet(one, other).value

    return intervals.halves(len(generated_ND), value, distance).about()


def _infinity(metric, subject, extractor):
    other = subject.against(metric).gaussian(extractor, "pool3")
    found = frechet_at_infinity(subject.features[extractor].rows("pool3"), other)
    told = {"method": "line in 1/N through 15 random subsets", "layer": "pool3", "seed": 0}
    numerics = {"sizes": list(found.sizes), "values": list(found.values), "slope": found.slope}
    yield Entry(_named("fid_infinity", extractor), found.value, extractor, told, numerics=numerics)


def _kid(metric, subject, extractor):
    x_ND = subject.features[extractor].rows("pool3")
    y_MD = subject.against(metric).features(extractor, "pool3", metric)
    told = {"method": "unbiased, all pairs", "kernel": "(x.y/D + 1)^3", "scale": 1}
    if min(len(x_ND), len(y_MD)) < _JACKKNIFE:
        value, interval = kid(x_ND, y_MD), lambda: None
    else:
        value, span = intervals.kid_jackknife(x_ND, y_MD)
        interval = span.about
    yield Entry(_named("kid", extractor), value, extractor, told, interval)
    if min(len(x_ND), len(y_MD)) >= SUBSET_SIZE:
        subsets = kid_by_subsets(x_ND, y_MD, size=SUBSET_SIZE)
        told = {
            **told, "method": f"100 random subsets of {SUBSET_SIZE}, RandomState(2020)",
            "as": "torch-fidelity 0.4.0",
        }  # fmt: skip
        yield Entry(
            _named("kid_subsets", extractor), subsets.mean, extractor, told,
            numerics={"std_of_subsets": subsets.std},
        )  # fmt: skip


def _inception_score(metric, subject, extractor):
    del metric
    logits_NC = subject.features[extractor].rows("logits_unbiased")
    splits = min(10, len(logits_NC))
    found = inception_score(logits_NC, splits)
    told = {
        "method": f"{splits} splits, shuffled by RandomState(2020)", "as": "torch-fidelity 0.4.0",
        "layer": "logits_unbiased",
    }  # fmt: skip
    yield Entry(
        _named("inception_score", extractor), found.mean, extractor, told, against=False,
        numerics={"std_of_splits": found.std},
    )  # fmt: skip
    if len(logits_NC) >= ADM_SPLIT:
        adm = inception_score_adm(logits_NC, ADM_SPLIT)
        told = {"method": f"consecutive splits of {ADM_SPLIT}",
                "as": "guided-diffusion evaluator", "layer": "logits_unbiased"}  # fmt: skip
        yield Entry(
            _named("inception_score_adm", extractor), adm.mean, extractor, told, against=False,
            numerics={"std_of_splits": adm.std},
        )  # fmt: skip


def _precision_recall(metric, subject, extractor):
    x_ND = subject.features[extractor].rows("pool3")
    y_MD = subject.against(metric).features(extractor, "pool3", metric)
    found = precision_recall(x_ND, y_MD)
    told = {"neighbours": 3, "layer": "pool3", "edge": "within"}
    yield Entry(_named("precision", extractor), found.precision, extractor, told)
    yield Entry(_named("recall", extractor), found.recall, extractor, told)


def _density_coverage(metric, subject, extractor):
    x_ND = subject.features[extractor].rows("pool3")
    y_MD = subject.against(metric).features(extractor, "pool3", metric)
    found = density_coverage(x_ND, y_MD)
    told = {"neighbours": 5, "layer": "pool3", "edge": "outside"}
    yield Entry(_named("density", extractor), found.density, extractor, told)
    yield Entry(_named("coverage", extractor), found.coverage, extractor, told)


def _clip_score(metric, subject, extractor, scoring: ClipScoring, name: str):
    features, network = subject.features[extractor], subject.extractors[extractor]
    captions = subject.captioned(metric)
    captions = [scoring.prefix + captions[row] for row in features.kept]
    text_ND = network.text_features(captions, keeps_end=scoring.keeps_end)
    found = clip_score(features.rows("image"), text_ND, scoring)
    cut = int((network.lengths(captions) > network.text_length).sum())
    told = {"prefix": scoring.prefix, "scale": scoring.scale, "clamp": scoring.clamp}
    if network.mends:  # as earlier versions did not, whose numbers of some captions are others
        told["captions"] = "mended"
    if cut and not scoring.keeps_end:
        told["cut"] = "without the end token"
    groups = [subject.groups[row] for row in features.kept]
    yield Entry(
        _named(name, extractor), found.value, extractor, told,
        functools.partial(mean_interval, found.values_N, groups), against=False,
        values_N=found.values_N, cut=cut,
    )  # fmt: skip


def _preference(metric, subject, extractor, name: str, scaled: bool):
    scale = subject.extractors[extractor].logit_scale if scaled else 1.0
    return _clip_score(metric, subject, extractor, ClipScoring(scale=scale), name)


def _cmmd(metric, subject, extractor):
    x_ND = subject.features[extractor].rows("image")
    y_MD = subject.against(metric).features(extractor, "image", metric)
    told = {"method": "biased, all pairs", "kernel": "Gaussian, sigma 10", "scale": 1000,
            "as": "google-research/cmmd"}  # fmt: skip
    yield Entry(_named("cmmd", extractor), cmmd(x_ND, y_MD), extractor, told)


def _judged(metric, subject, extractor):
    del extractor
    name = metric.partition(":")[2]
    judge, captions = subject.judge(name), subject.captioned(metric)
    verdicts: dict[str, dict[int, float]] = {"": {}}  # by part and number of the image
    left_out: collections.Counter[str] = collections.Counter()
    for rows, images in _by_size(subject, range(len(captions)), left_out):
        told = [captions[row] for row in rows]
        for part, found in {"": judge.judge(images, told), **judge.parts(images, told)}.items():
            verdicts.setdefault(part, {}).update(zip(rows, found, strict=True))
    if not (kept := sorted(verdicts[""])):
        told = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        raise UserError(f"none of {len(captions)} images can be used ({told}); give readable ones.")
    groups = [subject.groups[row] for row in kept]
    for part, found in verdicts.items():
        values_N = np.array([found[row] for row in kept], np.float64)
        yield Entry(
            f"judge_{name}_{part}" if part else f"judge_{name}",
            float(values_N.mean()), "", {"method": f"judge of {name}", "part": part},
            functools.partial(share_interval, values_N, groups), against=False, values_N=values_N,
            kept_N=np.array(kept), left_out={} if part else left_out,
        )  # fmt: skip


def _by_size(subject, rows, left_out) -> Iterator[tuple[list[int], np.ndarray]]:
    """The numbers of some images of one size, and these; those that can't be read are counted."""
    for start in range(0, len(rows), _JUDGED_AT_ONCE):
        groups: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
        for row in rows[start : start + _JUDGED_AT_ONCE]:
            try:
                image = subject.read(row)
            except BadSample as bad:
                left_out[bad.reason] += 1
                continue
            groups.setdefault(image.shape, {})[row] = image
        for found in groups.values():
            yield list(found), np.stack(list(found.values()))


METRICS: dict[str, Metric] = {
    "fid": Metric(
        "Frechet distance of Inception", "inception", INCEPTION_LAYERS, _frechet,
        by_gaussian=True, least=2, least_real=2,
    ),
    "fid_infinity": Metric(
        "the same at infinitely many images", "inception", INCEPTION_LAYERS, _infinity,
        by_gaussian=True, least=FEWEST_FOR_INFINITY, least_real=2,
    ),
    "kid": Metric(
        "kernel distance of Inception", "inception", INCEPTION_LAYERS, _kid, least=2, least_real=2,
    ),
    "is": Metric(
        "Inception Score", "inception", INCEPTION_LAYERS, _inception_score, needs_reference=False
    ),
    "pr": Metric(
        "precision and recall", "inception", INCEPTION_LAYERS, _precision_recall,
        least=NEIGHBOURS + 1, least_real=NEIGHBOURS + 1,
    ),
    "dc": Metric(
        "density and coverage", "inception", INCEPTION_LAYERS, _density_coverage,
        least_real=NEIGHBOURS_OF_DENSITY + 1,
    ),
    "clip": Metric(
        "mean cosine of images and captions", "clip", ("image",),
        functools.partial(_clip_score, scoring=PRESETS["cosine"], name="clip_score"),
        needs_reference=False, needs_captions=True,
    ),
    **{
        f"clip_{preset}": Metric(
            f"CLIP score as {scoring.source}", "clip", ("image",),
            functools.partial(_clip_score, scoring=scoring, name=f"clip_score_{preset}"),
            needs_reference=False, needs_captions=True, prefix=scoring.prefix,
        )
        for preset, scoring in PRESETS.items()
        if preset != "cosine"
    },
    "clip_fid": Metric(
        "Frechet distance of CLIP", "clip", ("image",),
        functools.partial(_frechet, layer="image", name="fid"),
        by_gaussian=True, least=2, least_real=2,
    ),
    "cmmd": Metric("MMD of CLIP ViT-L/14-336", "cmmd", ("image",), _cmmd),
    "fdd": Metric(
        "Frechet distance of DINOv2", "dinov2", ("cls",),
        functools.partial(_frechet, layer="cls", name="fd"),
        by_gaussian=True, least=2, least_real=2,
    ),
    "pickscore": Metric(
        "PickScore", "pickscore", ("image",),
        functools.partial(_preference, name="score", scaled=True),
        needs_reference=False, needs_captions=True,
    ),
    "hpsv2": Metric(
        "HPSv2", "hpsv2", ("image",), functools.partial(_preference, name="score", scaled=False),
        needs_reference=False, needs_captions=True,
    ),
}  # fmt: skip
"""The metrics by name; "judge:NAME" stands beside them."""


def metric_of(name: str) -> Metric:
    """The metric of a name.

    Raises:
      UserError: there is none.
    """
    if name.startswith("judge:"):
        return Metric("a judge", "", (), _judged, needs_reference=False, needs_captions=True)
    config.one_of("metrics", name, METRICS)
    return METRICS[name]


def parse_metrics(text: str) -> list[str]:
    """The names in "fid,kid,clip".

    Raises:
      UserError: an unknown name, one that stands twice, or none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"metrics={text!r} names none; give some of {', '.join(METRICS)}.")
    for name in names:
        metric_of(name)
        if names.count(name) > 1:
            raise UserError(f"metrics={text!r} has {name} twice; give it once.")
    return names


def _named(metric, extractor):
    """The name of a metric with its extractor: "fid_clean_inception" of ("fid", "inception-clean"),
    "cmmd_clip_vit_l_14_336".
    """
    if extractor.startswith("inception-"):
        mode = extractor.removeprefix("inception-").replace("-", "_")
        return f"{metric}_{mode}_inception"
    return f"{metric}_{extractor.replace('-', '_').replace('.', '_')}"


def mean_interval(values_N: np.ndarray, groups: Sequence[str]) -> Mapping[str, Any] | None:
    """The interval of the mean of one value per image, as JSON; None for one value alone.

    Args:
      groups: the prompt of each image.
    """
    if len(values_N) < 2:
        return None
    return intervals.bootstrap(values_N, _several(groups)).about()


def share_interval(right_N: np.ndarray, groups: Sequence[str]) -> Mapping[str, Any]:
    """The interval of the share of right images, as JSON.

    Args:
      groups: the prompt of each image.
    """
    return intervals.wilson(right_N.astype(bool), _several(groups)).about()


def _several(groups):
    """The groups, where some have several images; None: they tell nothing."""
    return list(groups) if 1 < len(set(groups)) < len(groups) else None
