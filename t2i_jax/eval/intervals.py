"""Confidence intervals: how far a metric may be from what endless images would give, each kind of
metric by its own method.

Means over images (CLIP score, PSNR) by a bootstrap over images; shares of right images (judges,
GenEval) by Wilson's score; KID by leaving out blocks; the Frechet distance by random halves, since
a plain bootstrap repeats images and is biased upwards there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.eval.rows import Rows, check_pair, in_blocks, same_rows

LEVEL = 0.95
_AT_ONCE = 2**22  # numbers that are drawn at a time
_ROWS = 1024  # of a kernel matrix at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval of a metric.

    Attributes:
      low: lower end. high: upper end.
      method: by which it was found, in words.
      stderr: standard error of the metric.
      level: how often such intervals hold the true value.
    """

    low: float
    high: float
    method: str
    stderr: float
    level: float = LEVEL

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise UserError(f"level={self.level} is no share between 0 and 1; give one as 0.95.")

    def about(self) -> dict[str, Any]:
        """The fields as JSON."""
        return dataclasses.asdict(self)


def normal_quantile(level: float) -> float:
    """The number of standard errors that an interval of this level reaches to either side."""
    from scipy.special import ndtri  # takes as long to import as Flax, and few runs come to it

    return float(ndtri((1 + level) / 2))


def student_quantile(freedom: int, level: float) -> float:
    """The number of standard errors as of `normal_quantile`, by Student's distribution with
    `freedom` degrees of freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def bootstrap(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The interval of the mean of one value per image: percentiles over means of resampled images.

    Args:
      values: (N,), at least 2.
      groups: (N,), the prompt of each image where prompts have several: prompts are resampled, with
        all of their images. None: images are.
      seed: of what is resampled; the same values give the same interval.
    """
    sums, counts = _grouped(values, groups)
    if len(sums) < 2:
        raise UserError(f"{len(sums)} values give no interval; give 2 or more.")
    generator, means = np.random.default_rng(seed), np.empty(resamples)
    step = max(1, _AT_ONCE // len(sums))
    for start in range(0, resamples, step):
        rows = generator.integers(0, len(sums), (min(step, resamples - start), len(sums)))
        means[start : start + step] = sums[rows].sum(1) / counts[rows].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    over = "images" if groups is None else "prompts"
    method = f"percentiles of {resamples} bootstrap resamples of {over}"
    return Interval(float(low), float(high), method, float(means.std(ddof=1)), level)


def wilson(
    right: Sequence[bool] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """The interval of the share of right images, by Wilson's score (1927), which is within [0, 1]
    and does not shrink to nothing where all images are right.

    Args:
      right: (N,) bools, at least 1.
      groups: (N,), the prompt of each image where prompts have several. Images of one prompt agree
        more than others; N is then divided by the design effect, the variance of the share by
        prompts over that by images (Korn and Graubard 1998), at least 1. Where all images are right
        or none is, that can't be measured, and N is the number of prompts. None: images are
        independent.
    """
    right = np.asarray(right, float)
    if not len(right):
        raise UserError("0 images give no interval; give 1 or more.")
    share, count = float(right.mean()), float(len(right))
    effective = count / _design_effect(right, groups, share)
    z = normal_quantile(level)
    spread = z * np.sqrt(share * (1 - share) / effective + z**2 / (4 * effective**2))
    middle, scale = share + z**2 / (2 * effective), 1 + z**2 / effective
    stderr = float(np.sqrt(share * (1 - share) / effective))
    by = "" if groups is None else ", effective number of images by prompts"
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return Interval(float(low), float(high), f"Wilson's score{by}", stderr, level)


def kid_jackknife(
    x_ND: Rows, y_MD: Rows, blocks: int = 20, level: float = LEVEL, seed: int = 0
) -> tuple[float, Interval]:
    """The KID, the unbiased MMD^2 of all features with the kernel (x.y / D + 1)^3, and its
    interval.

    One of `blocks` random blocks of one side is left out at a time; the variances of the two sides
    add up, as they are independent (Arvesen 1969).

    Args:
      x_ND: features of generated images. y_MD: of real ones; both at least twice `blocks` rows.
        A part of them at a time is in memory.
    """
    least = min(len(x_ND), len(y_MD))
    if least < 2 * blocks:
        raise UserError(
            f"{least} images are too few for {blocks} blocks; give {2 * blocks} or more, or fewer "
            "blocks."
        )
    x, y = x_ND, y_MD
    check_pair(x, y)
    block_x, block_y = (_blocks(len(side), blocks, seed + i) for i, side in enumerate((x, y)))
    member_x, member_y = np.eye(blocks)[block_x], np.eye(blocks)[block_y]
    xx, yy = _sums(x, x, member_x, member_x, True), _sums(y, y, member_y, member_y, True)
    xy = _sums(x, y, member_x, member_y, False)
    sizes = [np.bincount(one, minlength=blocks).astype(float) for one in (block_x, block_y)]
    m, n = len(x), len(y)

    def value(xx, yy, xy, m, n):
        return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)

    full = value(xx.sum(), yy.sum(), xy.sum(), m, n)
    without_x = value(_without(xx), yy.sum(), xy.sum() - xy.sum(1), m - sizes[0], n)
    without_y = value(xx.sum(), _without(yy), xy.sum() - xy.sum(0), m, n - sizes[1])
    spread = sum(np.square(one - one.mean()).sum() for one in (without_x, without_y))
    stderr = float(np.sqrt((blocks - 1) / blocks * spread))
    reach = student_quantile(blocks - 1, level) * stderr
    method = f"jackknife over {blocks} blocks of images"
    return float(full), Interval(float(full - reach), float(full + reach), method, stderr, level)


@dataclasses.dataclass(frozen=True)
class Halves:
    """A Frechet distance by random halves of the generated images.

    Attributes:
      values: the distance of each half.
      at_infinity: where the distance would be for endless images, by a line in 1/N through all and
        half of them (Chong and Forsyth 2020).
      interval: of the distance of all images, not of `at_infinity`.
      seed: of the halves; two runs with the same one have the same halves.
    """

    values: tuple[float, ...]
    at_infinity: float
    interval: Interval
    seed: int

    def about(self) -> dict[str, Any]:
        """The fields as JSON: those of the interval, and "halves", "halves_seed", "at_infinity"."""
        return {
            **self.interval.about(),
            "halves": list(self.values),
            "halves_seed": self.seed,
            "at_infinity": self.at_infinity,
        }


def halves(
    count: int,
    full: float,
    distance: Callable[[np.ndarray], float],
    times: int = 5,
    level: float = LEVEL,
    seed: int = 0,
) -> Halves:
    """The spread of a Frechet distance over the choice of generated images, from random halves of
    them.

    The spread of the distance over random halves is an estimate of the standard error for all
    images: the delete-d jackknife (Shao and Wu 1989) multiplies it by (N - d) / d, which is 1 for
    halves. No image occurs twice, so unlike a bootstrap it brings no bias of its own; the bias of
    half of the images is the same for all halves.

    Args:
      count: N, of generated images. full: the distance of all of them.
      distance: rows (N // 2,) of the generated features, ascending -> their distance to the
        reference.
    """
    if count < 4:
        raise UserError(f"{count} images are too few for halves; give 4 or more.")
    generator = np.random.default_rng(seed)
    draws = [np.sort(generator.permutation(count)[: count // 2]) for _ in range(times)]
    values = np.array([distance(rows) for rows in draws], float)
    stderr = float(values.std(ddof=1))
    reach = student_quantile(times - 1, level) * stderr
    part = (count // 2) / count
    # FD(N) = at_infinity + c / N, and the same at N // 2
    at_infinity = float((full - part * values.mean()) / (1 - part))
    method = f"spread of {times} random halves of the images"
    interval = Interval(float(full - reach), float(full + reach), method, stderr, level)
    return Halves(tuple(map(float, values)), at_infinity, interval, seed)


def _grouped(values, groups):
    values = np.asarray(values, float)
    if groups is None:
        return values, np.ones(len(values))
    if len(groups) != len(values):
        raise UserError(f"{len(values)} values and {len(groups)} groups; give one group per value.")
    number: dict[Hashable, int] = {}
    places = [number.setdefault(group, len(number)) for group in groups]
    return np.bincount(places, values), np.bincount(places).astype(float)


def _design_effect(right, groups, share):
    """The design effect: how many images tell as much as one that is independent of all others, at
    least 1.

    Prompts that are right equally often by chance are no evidence for more images than there are.
    """
    if groups is None:
        return 1.0
    sums, counts = _grouped(right, groups)
    if len(sums) < 2:
        raise UserError("images of one prompt alone give no interval; give more prompts.")
    if share in (0.0, 1.0):  # images of a prompt may agree as much as they can
        return len(right) / len(sums)
    residual = sums - share * counts
    by_groups = np.square(residual).sum() / len(right) ** 2 * len(sums) / (len(sums) - 1)
    effect = by_groups / (share * (1 - share) / len(right))
    return float(max(effect, 1.0))


def _blocks(count, blocks, seed):
    """A block for each image: random, of sizes that differ by one at most."""
    return np.random.default_rng(seed).permutation(np.arange(count) % blocks)


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def _sums(x, y, member_x, member_y, within):
    """The sums of the kernel over pairs of images, (blocks, blocks).

    Args:
      member_x, member_y: (N, blocks), 1 where an image is in a block. within: both are one set, of
        which an image is no pair with itself.
    """
    found = np.zeros((member_x.shape[1], member_y.shape[1]))
    for place, x_rows in in_blocks(x, _ROWS):
        of_y = np.empty((len(found), len(y)))
        for other, y_rows in in_blocks(y):
            kernel = _kernel(x_rows, y_rows)
            if within:
                kernel[same_rows(place, other)] = 0
            of_y[:, other] = member_x[place].T @ kernel
        found += of_y @ member_y
    return found


def _without(sums):
    """The sum of all pairs without one block, for each block."""
    return sums.sum() - sums.sum(0) - sums.sum(1) + np.diag(sums)
