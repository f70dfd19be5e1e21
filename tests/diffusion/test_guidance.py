"""Guidance and thresholds, the wrappers around a denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion.denoiser import denoiser
from t2i_jax.diffusion.guidance import for_rows, guide, within
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.threshold import clamp, dynamic
from t2i_jax.errors import UserError

_TEXT = jnp.array([1.0, -2.0, 3.0])


def _net(x, condition_B, keep_B):
    """Depends on every argument; the text is closed over."""
    text_B = for_rows(_TEXT, x.shape[0])
    text_B = text_B if keep_B is None else jnp.where(keep_B, text_B, 0.5)
    return jnp.tanh(x + text_B[:, None, None, None] * x[:, :1]) + condition_B[:, None, None, None]


@pytest.fixture
def x(key):
    return jax.random.normal(key, (3, 4, 4, 2))


_LEVEL = jnp.array([0.2, 0.5, 0.8])
_NULL = jnp.zeros(3, bool)


def test_guidance_of_one_is_no_guidance_and_of_zero_the_null(x):
    assert guide(_net, 1.0) is _net
    plain, null = _net(x, _LEVEL, None), _net(x, _LEVEL, _NULL)
    np.testing.assert_allclose(guide(_net, jnp.array(1.0))(x, _LEVEL), plain, rtol=1e-6)
    np.testing.assert_allclose(guide(_net, 0.0)(x, _LEVEL), null, rtol=1e-5, atol=1e-6)


def test_guidance_is_linear_and_may_differ_by_row(x):
    plain, null = _net(x, _LEVEL, None), _net(x, _LEVEL, _NULL)
    scale = jnp.array([0.5, 3.0, 7.0])
    expected = null + scale[:, None, None, None] * (plain - null)
    np.testing.assert_allclose(guide(_net, scale)(x, _LEVEL), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [Ddpm(), Ddpm(objective="v"), Edm()], ids=str)
def test_plain_guidance_is_the_same_on_answers_and_on_clean_images(x, noise):
    answers = denoiser(guide(_net, 4.0), noise)(x, _LEVEL)
    images = guide(denoiser(_net, noise), 4.0)(x, _LEVEL)
    np.testing.assert_allclose(answers, images, rtol=1e-4, atol=1e-4)


def test_the_parallel_part_of_the_update_is_removed_or_weighed(x):
    plain, null = _net(x, _LEVEL, None), _net(x, _LEVEL, _NULL)

    def along(a):
        return jnp.sum(a * plain, axis=(1, 2, 3)) / jnp.sum(plain**2, axis=(1, 2, 3))

    for parallel in (0.0, 0.3, 1.0):
        update = guide(_net, 5.0, parallel=parallel)(x, _LEVEL) - plain
        np.testing.assert_allclose(
            along(update), 4 * parallel * along(plain - null), rtol=1e-4, atol=1e-5
        )
    removed = guide(_net, 5.0, parallel=0.0)(x, _LEVEL) - plain
    across = 4 * (plain - null - along(plain - null)[:, None, None, None] * plain)
    np.testing.assert_allclose(removed, across, rtol=1e-4, atol=1e-5)


def test_both_halves_go_through_one_call_that_keeps_given_drops_and_the_estimate(x):
    calls = []

    def net(x, condition_B, keep_B, last):
        calls.append((x.shape, condition_B.shape, keep_B.tolist(), last.shape))
        return x

    guide(net, 3.0)(x, _LEVEL, jnp.array([True, False, True]), x)
    assert calls == [((6, 4, 4, 2), (6,), [True, False, True, False, False, False], (6, 4, 4, 2))]


def test_an_interval_guides_inside_and_leaves_the_half_without_text_out_elsewhere(x):
    rows = []

    def net(x, condition_B, keep_B, *rest):
        jax.debug.callback(lambda n=x.shape[0]: rows.append(n))
        return _net(x, condition_B, keep_B)

    guided = jax.jit(guide(net, within(4.0, 0.3, 0.6)))
    got = guided(x, _LEVEL)
    np.testing.assert_allclose(got[1], guide(_net, 4.0)(x, _LEVEL)[1], rtol=1e-5)
    np.testing.assert_allclose(got[::2], _net(x, _LEVEL, None)[::2], rtol=1e-5)
    np.testing.assert_allclose(
        guided(x, jnp.full(3, 0.7)), _net(x, jnp.full(3, 0.7), None), rtol=1e-5, atol=1e-6
    )
    jax.effects_barrier()
    assert rows == [6, 3]


def test_clamp_and_dynamic_thresholds_stay_in_range(x):
    def wild(*args):
        return 5 * x.at[0].multiply(0.01)

    assert float(jnp.abs(clamp(wild)(x, _LEVEL)).max()) == 1.0
    got = dynamic(wild, 0.9)(x, _LEVEL)
    np.testing.assert_array_equal(got[0], wild()[0])  # within [-1, 1]: left alone
    for row, raw in zip(np.asarray(got[1:]), np.asarray(wild()[1:]), strict=True):
        bound = np.quantile(np.abs(raw), 0.9)
        np.testing.assert_allclose(row, np.clip(raw, -bound, bound) / bound, rtol=1e-5)
    np.testing.assert_allclose(
        dynamic(wild, 1.0)(x, _LEVEL)[1], wild()[1] / np.abs(wild()[1]).max(), rtol=1e-5
    )


@pytest.mark.parametrize("percentile", [0.0, 1.5, 99.5])
def test_a_percentile_is_a_fraction(percentile):
    with pytest.raises(UserError, match="try 0.95"):
        dynamic(_net, percentile)
