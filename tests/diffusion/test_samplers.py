"""Every solver with every noise, on images whose best denoiser is known: distribution, order, rows,
draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.diffusion.denoiser import denoiser
from t2i_jax.diffusion.draws import gaussian, injected
from t2i_jax.diffusion.guidance import guide
from t2i_jax.diffusion.noise import Ddpm, Edm, karras
from t2i_jax.diffusion.samplers import (
    Churn,
    ancestral,
    ddim,
    dpm_solver,
    heun,
    inverted,
    sample,
    start,
)
from t2i_jax.diffusion.threshold import dynamic
from t2i_jax.errors import UserError
from tests.diffusion.gaussian import DEVIATION, MEAN, carried, exact

NOISES = {"cosine": Ddpm(), "linear": Ddpm("linear"), "edm": Edm()}
STOCHASTIC = {
    "ancestral": ancestral,
    "ddim eta 1": lambda denoise, noise: ddim(denoise, noise, 1.0),
    "heun churn": lambda denoise, noise: heun(denoise, noise, Churn(20.0, scale=1.0), 48),
}
DETERMINISTIC = {"ddim": (ddim, 1), "heun": (heun, 2), "dpm_solver": (dpm_solver, 2)}


def _pairs(solvers):
    """Each solver with each noise; with the linear schedule only `dpm_solver` and `ancestral` by
    default, as it differs from the cosine in its numbers alone.
    """
    for solver in solvers:
        for name, noise in NOISES.items():
            few = name == "linear" and solver not in ("ancestral", "dpm_solver")
            marks = [pytest.mark.long] if few else []
            yield pytest.param(solver, noise, id=f"{solver}-{name}", marks=marks)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _keys(rows, first=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(
        jnp.arange(first, first + rows)
    )


@pytest.mark.parametrize("spacing", ["own", "karras"])
@pytest.mark.parametrize(("solver", "noise"), _pairs([*STOCHASTIC, *DETERMINISTIC]))
def test_samples_have_the_distribution_of_the_data(solver, noise, spacing):
    make = STOCHASTIC.get(solver) or DETERMINISTIC[solver][0]
    # those of order 1 need more
    steps = 384 if solver in ("ancestral", "ddim", "ddim eta 1") else 48

    @jax.jit
    def run(keys_B):
        own = noise.levels(steps)
        levels = own if spacing == "own" else noise.level_at(karras(steps, 0.02, 80.0))
        draw = gaussian(keys_B)
        x = start(noise, levels, draw, (2, 64, 64, 1))
        return sample(make(exact(noise), noise), x, levels, draw)

    got = np.asarray(run(_keys(2)))
    assert got.dtype == np.float32
    assert abs(got.mean() - MEAN) < 0.02  # 3 standard errors of 8192 values
    assert abs(got.std() / DEVIATION - 1) < 0.025  # 3 standard errors, as above


@pytest.mark.parametrize(("solver", "noise"), _pairs(DETERMINISTIC))
def test_the_order_of_convergence_is_the_promised_one(solver, noise):
    make, order = DETERMINISTIC[solver]
    x = np.linspace(-2.0, 2.0, 8, dtype=np.float32).reshape(1, 2, 4, 1)

    @functools.partial(jax.jit, static_argnums=1)
    def error(x, steps):
        levels = noise.level_at(jnp.exp(jnp.linspace(jnp.log(4.0), jnp.log(0.1), steps + 1)))
        got = sample(make(exact(noise), noise), x, levels, injected(jnp.zeros((1, *x.shape))))
        return jnp.max(jnp.abs(got - carried(noise, x, levels[0], levels[-1])))

    errors = [float(error(x, steps)) for steps in (16, 32, 64)]
    slopes = np.log2([errors[0] / errors[1], errors[1] / errors[2]])
    assert abs(slopes[-1] - order) < 0.15, slopes


def test_a_row_does_not_depend_on_what_else_is_in_the_batch():
    noise = Edm()

    @jax.jit
    def run(keys_B):
        levels, draw = noise.levels(4), gaussian(keys_B)
        x = start(noise, levels, draw, (len(keys_B), 4, 4, 3))
        return sample(heun(exact(noise), noise, Churn(), 4), x, levels, draw)

    three, one = np.asarray(run(_keys(3))), np.asarray(run(_keys(1, 1)))
    np.testing.assert_allclose(three[1:2], one, rtol=1e-6, atol=1e-6, equal_nan=False)
    assert np.abs(three[0] - three[1]).max() > 0.1


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_ddim_with_eta_1_is_ancestral_until_the_last_level(noise):

    @jax.jit
    def run(keys_B):
        levels, draw = noise.level_at(jnp.array([3.0, 1.0, 0.4, 0.1])), gaussian(keys_B)
        x = draw(0, jnp.zeros((1, 4, 4, 1)))
        return [
            sample(s, x, levels, draw)
            for s in (ancestral(exact(noise), noise), ddim(exact(noise), noise, 1.0))
        ]

    a, b = run(_keys(1))
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_inverted_ddim_finds_the_noise_that_leads_to_an_image(noise):
    x = np.linspace(-0.9, 0.9, 16, dtype=np.float32).reshape(1, 4, 4, 1)

    @jax.jit
    def run(x):
        levels = noise.level_at(jnp.exp(jnp.linspace(jnp.log(40.0), -3.5, 256)))
        levels = jnp.append(levels, 0.0)
        begun = inverted(exact(noise), noise, x, levels)
        again = sample(ddim(exact(noise), noise), begun, levels, injected(jnp.zeros((1, *x.shape))))
        return begun, carried(noise, x, jnp.float32(0.0), levels[0]), again

    begun, expected, again = run(x)
    # Steps of order 1, 256 each way, whose errors add up on the way back.
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(begun, expected, atol=0.02 * scale)
    np.testing.assert_allclose(again, x, atol=0.03)


def test_one_step_to_level_0_is_the_estimate_itself():
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 1)).astype(np.float32)
    for noise in NOISES.values():

        @jax.jit
        def run(x, noise=noise):
            levels, best = noise.levels(1), exact(noise)
            makers = [make for make, _ in DETERMINISTIC.values()]
            found = [sample(make(best, noise), x, levels, injected(x[None])) for make in makers]
            return best(x, levels[:1]), found

        expected, found = run(x)
        for got in found:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_a_run_takes_every_draw_once():
    noise, x = Ddpm(), jnp.zeros((1, 1, 1, 4))
    # draw n shows in value n only
    weight = jnp.diag(jnp.array([1.0, 10.0, 100.0, 0.0]))[:, None, None, None]
    levels = noise.level_at(jnp.array([3.0, 1.0, 0.4, 0.1]))
    begun = start(noise, levels, injected(weight), x.shape)
    assert begun.ravel().tolist() == [1.0, 0.0, 0.0, 0.0]
    got = sample(
        ancestral(lambda x, *rest: jnp.zeros_like(x), noise), x, levels, injected(weight)
    ).ravel()
    assert got[0] == 0 and (got[1:3] > 0).all()


def test_the_estimate_before_is_handed_on():
    noise, seen = Edm(), []

    def denoise(x, level_B, keep_B, last):
        jax.debug.callback(
            lambda level, last: seen.append((float(level[0]), float(last.ravel()[0]))),
            level_B,
            last,
        )
        return jnp.full_like(x, level_B[0])

    levels = jnp.array([4.0, 2.0, 1.0, 0.0])
    sample(
        ddim(denoise, noise), jnp.ones((1, 1, 1, 1)), levels, injected(jnp.ones((4, 1, 1, 1, 1)))
    )
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [(4.0, 0.0), (2.0, 4.0), (1.0, 2.0)]


def test_heun_calls_the_network_twice_per_step_and_once_in_the_last():
    noise, calls = Edm(), []

    def denoise(x, level_B, keep_B, last):
        jax.debug.callback(lambda level: calls.append(float(level[0])), level_B)
        return 0.5 * x

    levels = noise.levels(3)
    sample(
        heun(denoise, noise), jnp.ones((1, 1, 1, 1)), levels, injected(jnp.ones((4, 1, 1, 1, 1)))
    )
    jax.effects_barrier()
    assert len(calls) == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Churn(-1.0),
        lambda: Churn(scale=0.0),
        lambda: ddim(None, Edm(), 1.5),
        lambda: heun(None, Edm(), Churn()),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(UserError, match="try|for example"):
        make()


@pytest.mark.parametrize("objective", ["noise", "x_start", "v"])
@pytest.mark.parametrize("solver", [*STOCHASTIC, *DETERMINISTIC])
def test_an_untrained_network_still_gives_images(solver, objective):
    """Dividing by an alpha of 4e-8 at the first level must not leave infinities behind."""
    noise, make = Ddpm(objective=objective), STOCHASTIC.get(solver) or DETERMINISTIC[solver][0]

    def net(x, condition_B, keep_B):
        return jnp.where(keep_B[:, None, None, None], jnp.sin(3 * x), 0.1)

    denoise = dynamic(guide(denoiser(net, noise), 5.0, parallel=0.0))

    @jax.jit
    def run(keys_B):
        levels, draw = noise.levels(8), gaussian(keys_B)
        x = start(noise, levels, draw, (2, 8, 8, 3))
        return sample(make(denoise, noise), x, levels, draw)

    # nan fails too; ancestral sampling ends with a trace of noise
    assert np.abs(run(_keys(2))).max() <= 1.1
