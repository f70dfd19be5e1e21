"""Intervals hold what they promise: measured over many sets of which the truth is known."""

import math

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.intervals import Interval, bootstrap, halves, kid_jackknife, wilson


def holds(intervals, truth):
    return np.mean([one.low <= truth <= one.high for one in intervals])


def test_bootstrap_of_a_mean():
    rng = np.random.default_rng(0)
    sets = rng.exponential(2.0, (200, 80))
    found = [bootstrap(values, resamples=400, seed=i) for i, values in enumerate(sets)]
    assert 0.89 <= holds(found, 2.0) <= 0.98
    assert np.mean([one.stderr for one in found]) == pytest.approx(2 / np.sqrt(80), rel=0.05)
    assert bootstrap(sets[0]) == bootstrap(list(sets[0]))


def test_images_of_one_prompt_are_no_independent_ones():
    rng = np.random.default_rng(1)
    of_prompt = np.repeat(rng.normal(size=(150, 60)), 4, axis=1)  # four images that agree
    prompts = np.repeat(np.arange(60), 4)
    values = of_prompt + 0.1 * rng.normal(size=of_prompt.shape)
    by_prompts = [bootstrap(one, prompts, resamples=300) for one in values]
    by_images = [bootstrap(one, resamples=300) for one in values]
    assert holds(by_prompts, 0) >= 0.89 and holds(by_images, 0) < 0.8


def test_wilson_is_the_published_interval():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    cases = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (right, count), wanted in {**cases, (1, 29): (0.0061, 0.1718)}.items():
        one = wilson(np.arange(count) < right)
        assert (one.low, one.high) == pytest.approx(wanted, abs=5e-5)


def test_wilson_by_prompts():
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(100), 4)
    together = np.repeat(rng.random((200, 100)) < 0.3, 4, axis=1)
    assert holds([wilson(one, prompts) for one in together], 0.3) >= 0.9
    assert wilson(together[0], prompts).stderr == pytest.approx(
        wilson(together[0][::4]).stderr, rel=0.02
    )
    # where images of a prompt don't agree more than others, there is nothing to correct
    apart = rng.random(4000) < 0.3
    one, other = wilson(apart, np.repeat(np.arange(1000), 4)), wilson(apart)
    assert one.stderr == pytest.approx(other.stderr, rel=0.1)


def test_wilson_by_prompts_never_counts_more_images_than_there_are():
    alike = np.tile([True, True, False, False], 20)  # every prompt is right twice
    one, other = wilson(alike, np.repeat(np.arange(20), 4)), wilson(alike)
    assert (one.low, one.high, one.stderr) == (other.low, other.high, other.stderr)


@pytest.mark.parametrize("truth", [0.08, 0.92])
def test_wilson_where_all_images_are_right_or_none_is_counts_prompts(truth):
    """Four images of a prompt that agree, and a truth by which 20 prompts often do too."""
    prompts, covered = np.repeat(np.arange(20), 4), 0.0
    for right in range(21):
        one = wilson(np.repeat(np.arange(20) < right, 4), prompts)
        chance = math.comb(20, right) * truth**right * (1 - truth) ** (20 - right)
        covered += chance * (one.low <= truth <= one.high)
    assert covered >= 0.9


def features(count, shift, seed, width=6):
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


def test_kid_is_the_u_statistic():
    x, y = features(60, 0.3, 0), features(50, 0, 1)

    def kernel(a, b):
        return (a @ b.T / 6 + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    wanted = (
        (xx.sum() - np.trace(xx)) / (60 * 59)
        + (yy.sum() - np.trace(yy)) / (50 * 49)
        - 2 * kernel(x, y).mean()
    )
    value, _ = kid_jackknife(x, y)
    assert value == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_kids_standard_error_is_its_spread_over_new_images(shift):
    found = [
        kid_jackknife(features(100, shift, 2 * i), features(120, 0, 2 * i + 1)) for i in range(150)
    ]
    spread = np.std([value for value, _ in found], ddof=1)
    assert np.mean([one.stderr for _, one in found]) == pytest.approx(spread, rel=0.2)
    assert holds([one for _, one in found], np.mean([value for value, _ in found])) >= 0.9


def frechet(x, mean, width=4):
    """To N(mean, 1), which has a covariance of ones: no square root is needed."""
    values = np.linalg.eigvalsh(np.cov(x.T))
    return float(((x.mean(0) - mean) ** 2).sum() + (values + 1 - 2 * np.sqrt(values.clip(0))).sum())


def test_halves_tell_the_spread_over_new_images_and_remove_the_bias():
    truth, count, full, found = 4 * 0.25, 300, [], []
    for i in range(150):
        x = features(count, 0.5, i, 4)
        full.append(frechet(x, 0))
        found.append(halves(count, full[-1], lambda rows, x=x: frechet(x[rows], 0), seed=i))
    stderr = np.sqrt(np.mean([one.interval.stderr**2 for one in found]))
    assert stderr == pytest.approx(np.std(full, ddof=1), rel=0.2)
    assert holds([one.interval for one in found], np.mean(full)) >= 0.9
    # here the bias is (4 + 10 / 8) / N, about; a third of it remains at most
    assert abs(np.mean([one.at_infinity for one in found]) - truth) < (np.mean(full) - truth) / 3


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="1 values"):
        bootstrap([1.0])
    with pytest.raises(UserError, match="2 values and 1 groups"):
        bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(UserError, match="0 images"):
        wilson([])
    with pytest.raises(UserError, match="one prompt alone"):
        wilson([True, False], ["a", "a"])
    with pytest.raises(UserError, match="one prompt alone"):
        wilson([True, True], ["a", "a"])
    with pytest.raises(UserError, match="30 images are too few for 20 blocks"):
        kid_jackknife(features(30, 0, 0), features(50, 0, 1))
    with pytest.raises(UserError, match="too few for halves"):
        halves(3, 0.0, lambda rows: 0.0)
    with pytest.raises(UserError, match=r"level=95"):
        bootstrap([1.0, 2.0], level=0.95) and Interval(0, 1, "", 0.1, 95)
