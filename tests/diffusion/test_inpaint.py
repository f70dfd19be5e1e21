"""RePaint and image to image: noise levels that match, known pixels that stay, the right
conditional distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion.draws import gaussian
from t2i_jax.diffusion.inpaint import repaint
from t2i_jax.diffusion.noise import Ddpm, Edm, karras, per_row
from t2i_jax.diffusion.samplers import (
    Churn,
    State,
    ancestral,
    ddim,
    dpm_solver,
    heun,
    sample,
    start,
)
from t2i_jax.diffusion.sdedit import from_image, steps_to_skip
from t2i_jax.errors import UserError
from tests.diffusion.gaussian import DEVIATION, MEAN, exact

NOISES = {"cosine": Ddpm(), "linear": Ddpm("linear"), "edm": Edm()}
# covariance of the two channels of a pixel
_CORRELATED = 0.25 * np.array([[1.0, 0.8], [0.8, 1.0]], np.float32)
SOLVERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "churn": lambda denoise, noise: heun(denoise, noise, Churn(10.0, scale=1.0), 24),
    "dpm_solver": dpm_solver,
}


def _keys(rows):
    return jax.random.split(jax.random.key(3), rows)


def _correlated(noise):
    """E[x0 | x] for pixels whose two channels are N(0, _CORRELATED)."""

    def denoise(x, level_B, keep_B=None, last=None):
        alpha, sigma = noise.marginal(level_B[0])
        gain = alpha * _CORRELATED @ jnp.linalg.inv(alpha**2 * _CORRELATED + sigma**2 * jnp.eye(2))
        return x @ gain.T

    return denoise


def _completed(solver, noise, steps, resample):
    """The second channels of 2304 pixels whose first channel is known to be 0.5; they should be
    N(0.4, 0.3^2).
    """

    @jax.jit
    def run(keys_B):
        levels, draw = noise.level_at(karras(steps, 0.02, 20.0)), gaussian(keys_B)
        known = jnp.broadcast_to(jnp.array([0.5, 9.0]), (1, 48, 48, 2))
        keep = jnp.broadcast_to(jnp.array([True, False]), known.shape)
        x = start(noise, levels, draw, known.shape)
        step = SOLVERS[solver](_correlated(noise), noise)
        return _by_channel(step, noise, x, levels, draw, known, keep, resample)

    got = np.asarray(run(_keys(1)))
    assert (got[..., 0] == 0.5).all()
    return got[..., 1]


def _pairs():
    """Each solver with each noise; with the linear schedule only one by default, as it differs from
    the cosine in its numbers alone.
    """
    for solver in SOLVERS:
        for name, noise in NOISES.items():
            marks = [pytest.mark.long] if name == "linear" and solver != "ancestral" else []
            yield pytest.param(solver, noise, id=f"{solver}-{name}", marks=marks)


@pytest.mark.parametrize(("solver", "noise"), _pairs())
def test_the_unknown_part_follows_the_known_one(solver, noise):
    got = _completed(solver, noise, 24, 10)
    # few steps: a bit narrow, a bit behind
    assert abs(got.mean() - 0.4) < 0.06 and 0.2 < got.std() < 0.34


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(NOISES["cosine"], id="cosine"),
        pytest.param(NOISES["edm"], id="edm", marks=pytest.mark.long),
    ],
)
def test_with_many_steps_and_passes_it_comes_close_to_the_conditional_distribution(noise):
    got = _completed("ddim", noise, 96, 40)
    assert abs(got.mean() - 0.4) < 0.02  # 3 standard errors
    # the method draws the noise of both parts apart, so it stays a bit narrow
    assert abs(got.std() - 0.3) < 0.06


def _by_channel(step, noise, x, levels, draw, known, keep, resample):
    """repaint with the two channels of a pixel laid out as two neighbouring pixels."""

    def aside(a):
        return jnp.moveaxis(a, -1, 1).reshape(a.shape[0], 2 * a.shape[1], a.shape[2], 1)

    def back(a):
        return jnp.moveaxis(a.reshape(a.shape[0], 2, -1, a.shape[2]), 1, -1)

    def aside_step(state, at, normal):
        inner = step(State(back(state.x_BHWC), back(state.x0_BHWC)), at, lambda: back(normal()))
        return State(aside(inner.x_BHWC), aside(inner.x0_BHWC))

    got = repaint(
        aside_step,
        noise,
        aside(x),
        levels,
        draw,
        aside(known),
        aside(keep)[..., 0],
        resample=resample,
    )
    return back(got)


@pytest.mark.parametrize("compat", [None, "imagen-pytorch"])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_every_pass_meets_images_at_its_level(noise, compat):
    """With a step that is never wrong, the spread at each pass is that of the level; in the package
    it falls short.
    """
    seen = []
    truth = np.full((1, 64, 64, 1), 0.7, np.float32)

    def step(state, at, normal):
        jax.debug.callback(
            lambda *a: seen.append(tuple(map(float, a))), at.now, jnp.std(state.x_BHWC[:, 32:])
        )
        return State(noise.add(truth, normal(), at.next[None]), truth)

    @jax.jit
    def run(keys_B):
        levels, draw = noise.level_at(jnp.array([3.0, 1.5, 0.5, 0.1])), gaussian(keys_B)
        x = noise.add(truth, draw(0, truth), levels[:1])
        keep = jnp.broadcast_to(jnp.arange(64)[:, None] < 32, (1, 64, 64))
        known = jnp.full_like(truth, -0.2)
        return repaint(step, noise, x, levels, draw, known, keep, resample=3, compat=compat)

    got = np.asarray(run(_keys(1)))
    jax.effects_barrier()
    assert len(seen) == 9
    spreads = jax.jit(jax.vmap(noise.marginal))(np.array([level for level, _ in seen]))[1]
    short = np.array([spread for _, spread in seen]) / np.asarray(spreads)
    if compat is None:
        np.testing.assert_allclose(short, 1.0, atol=0.06)  # 3 standard errors of 2048 values
    else:
        assert min(short) < 0.85
    assert (got[:, :32] == -0.2).all() and (got[:, 32:] != -0.2).all()


def test_one_pass_and_nothing_known_is_plain_sampling():
    noise = Edm()
    step = heun(exact(noise), noise)
    known, keep = np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 4, 4), bool)

    @jax.jit
    def run(keys_B):
        levels, draw = noise.levels(6), gaussian(keys_B)
        x = start(noise, levels, draw, known.shape)
        got = repaint(step, noise, x, levels, draw, known, keep, resample=1)
        return got, sample(step, x, levels, draw)

    np.testing.assert_allclose(*run(_keys(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_an_image_is_noised_to_the_level_where_sampling_starts(noise, key):
    levels = noise.levels(10)
    image = jnp.array([-0.9, 0.8])[:, None, None, None] * jnp.ones((2, 64, 64, 1))
    eps = jax.random.normal(key, image.shape)
    x, rest = from_image(noise, image, levels, 7, eps)
    assert rest.tolist() == levels[7:].tolist()
    alpha, sigma = noise.marginal(levels[7])
    np.testing.assert_allclose(
        x.mean(axis=(1, 2, 3)), alpha * jnp.array([-0.9, 0.8]), atol=0.06 * float(sigma) + 1e-3
    )
    np.testing.assert_allclose(x.std(axis=(1, 2, 3)), sigma, rtol=0.05)


def test_the_more_is_skipped_the_closer_the_result_is():
    noise = Ddpm()
    image = np.linspace(-0.2, 0.8, 256, dtype=np.float32).reshape(1, 16, 16, 1)

    @jax.jit
    def run(keys_B):
        levels, draw, found = noise.levels(20), gaussian(keys_B), []
        for strength in (1.0, 0.5, 0.2, 0.05):
            x, rest = from_image(noise, image, levels, steps_to_skip(strength, 20), draw(0, image))
            got = sample(dpm_solver(exact(noise), noise), x, rest, draw)
            found.append(jnp.abs(got - image).mean())
        return found

    distances = list(map(float, run(_keys(1))))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.1 < distances[0]
    assert [steps_to_skip(s, 20) for s in (1.0, 0.5, 0.01)] == [0, 10, 19]


def test_the_package_adds_the_image_to_the_noise_of_a_whole_run(key):
    image, eps = jnp.full((1, 2, 2, 1), 0.5), jax.random.normal(key, (1, 2, 2, 1))
    for noise, scale in ((Ddpm(), 1.0), (Edm(), 80.0)):
        x, rest = from_image(noise, image, noise.levels(4), 2, eps, compat="imagen-pytorch")
        np.testing.assert_allclose(x, scale * eps + 0.5, rtol=1e-5)
        assert len(rest) == 3


def test_a_mean_that_is_known_is_not_moved():
    assert exact(Edm())(jnp.full((1, 1, 1, 1), MEAN), jnp.array([DEVIATION])) == pytest.approx(MEAN)
    assert per_row(jnp.ones(2), jnp.ones((2, 1, 1, 1))).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_image(Edm(), None, jnp.zeros(5), 4, None),
            "skip=4 does not leave a step of 4; try 2",
        ),
        (
            lambda: from_image(Edm(), None, jnp.zeros(5), 1, None, compat="imagen"),
            "did you mean 'imagen-pytorch'",
        ),
        (lambda: steps_to_skip(0.0, 10), "strength=0.0"),
        (lambda: repaint(None, Edm(), None, None, None, None, None, resample=0), "resample=0"),
        (
            lambda: repaint(None, Edm(), None, None, None, None, None, compat="imagin-pytorch"),
            "did you mean",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
