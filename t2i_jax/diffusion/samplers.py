"""Samplers, from noise to an image along falling levels: ancestral DDPM, DDIM, Heun with churn and
DPM-Solver++(2M).

Each solver is a step, `sample` walks it over the levels in one compiled loop:

    noise = Edm()
    levels = noise.levels(32)
    draw = gaussian(keys_B)
    x = start(noise, levels, draw, (batch, 64, 64, 3))
    x0 = sample(heun(clamp(guide(denoiser(net, noise), 5.0)), noise), x, levels, draw)

Every solver works with every noise. A level of 0 stands for the clean image (see `ancestral` for
the one exception).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.diffusion.denoiser import Denoise
from t2i_jax.diffusion.draws import NoiseSource
from t2i_jax.diffusion.noise import Noise
from t2i_jax.errors import UserError
from t2i_jax.types import Array
from t2i_jax.values import Range


class State(NamedTuple):
    """The state of a sampling run: the noised image and the last estimate of the clean one (zeros
    at first).
    """

    x_BHWC: Array
    x0_BHWC: Array


class Levels(NamedTuple):
    """The previous level (equal to `now` where there is none), the one to leave, and the one to
    reach.
    """

    previous: Array
    now: Array
    next: Array


# sigma / alpha from which a step is not corrected; only the cosine schedule's first level is there.
_FAR = 1e3

_LEAST = 1e-12  # alpha of pure noise, by which it is divided

# The last argument samples unit noise shaped like x.
Step = Callable[[State, Levels, Callable[[], Array]], State]


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise added before each Heun step (Karras et al. 2022, algorithm 2), in units of sigma /
    alpha.

    Attributes:
      amount: S_churn, spread over the steps; 0 makes the solver deterministic.
      low, high: S_tmin and S_tmax, the noise levels at which it is added.
      scale: S_noise, the standard deviation of the added noise.
    """

    amount: float = 80.0
    low: float = 0.05
    high: Annotated[float, Range(0, math.inf)] = 50.0
    scale: float = 1.003

    def __post_init__(self):
        if not self.amount >= 0 or not self.scale > 0:
            raise UserError(
                f"churn amount={self.amount}, scale={self.scale}: try 80 and 1.003, or Churn(0) "
                "for none."
            )


def start(noise: Noise, levels: Array, draw: NoiseSource, shape: Sequence[int]) -> Array:
    """The noise (B, H, W, C) that a sampling run starts from; it takes the sample number 0 of the
    noise source.
    """
    return noise.start(draw(0, jnp.zeros(shape, jnp.float32)), levels[0])


def sample(
    step: Step,
    x_BHWC: Array,
    levels: Array,
    draw: NoiseSource,
    *,
    tell: Callable[[], None] | None = None,
) -> Array:
    """The clean images, float32, not clipped.

    Args:
      step: a solver, as `ancestral`, `ddim`, `heun` or `dpm_solver` makes it.
      x_BHWC: images noised to levels[0].
      levels: falling levels (steps + 1,); the last is 0, or the level to stop at. Without noise
        `ddim` goes along rising ones too, see `inverted`.
      draw: noise source; step i takes the sample number i + 1.
      tell: callback, called within the compiled loop for every step, see `progress`.
    """

    def body(state, at):
        i, levels = at
        if tell is not None:
            tell()
        return step(state, levels, lambda: draw(i + 1, state.x_BHWC)), None

    x_BHWC = x_BHWC.astype(jnp.float32)
    previous = jnp.concatenate([levels[:1], levels[:-2]])
    along = jnp.arange(len(levels) - 1), Levels(previous, levels[:-1], levels[1:])
    state, _ = jax.lax.scan(body, State(x_BHWC, jnp.zeros_like(x_BHWC)), along)
    return state.x_BHWC


def ancestral(denoise: Denoise, noise: Noise) -> Step:
    """Samples the posterior q(x_next | x, x0) (Ho et al. 2020; in continuous time Kingma et al.
    2021, eq. 33).

    The last step goes to the mean at level 0 as the schedule of the noise has it, as imagen-pytorch
    does. That is not quite clean for `Ddpm`: 0.0002 of the variance is noise.
    """

    def step(state, levels, normal):
        x0 = _estimate(denoise, state, levels.now)
        (alpha, _), (alpha_next, sigma_next) = (
            noise.marginal(levels.now),
            noise.marginal(levels.next),
        )
        c = -jnp.expm1(noise.log_snr(levels.now) - noise.log_snr(levels.next))
        kept = (1 - c) / jnp.maximum(alpha, _LEAST)
        mean = alpha_next * (state.x_BHWC * kept + c * x0)
        deviation = jnp.where(levels.next > 0, sigma_next * jnp.sqrt(c), 0.0)
        return State(mean + deviation * normal(), x0)

    return step


def ddim(denoise: Denoise, noise: Noise, eta: float = 0.0) -> Step:
    """DDIM (Song et al. 2021, eq. 12 and 16): order 1, with `eta` 0 deterministic and with `eta` 1
    as noisy as `ancestral`.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta={eta} is outside [0, 1]; try 0.")

    def step(state, levels, normal):
        x0 = _estimate(denoise, state, levels.now)
        (alpha, sigma), (alpha_next, sigma_next) = (
            _scales(noise, levels.now),
            _scales(noise, levels.next),
        )
        eps = (state.x_BHWC - alpha * x0) / sigma
        if eta == 0:
            return State(alpha_next * x0 + sigma_next * eps, x0)
        added = eta * sigma_next * jnp.sqrt(1 - (alpha * sigma_next / (sigma * alpha_next)) ** 2)
        kept = jnp.sqrt(jnp.maximum(sigma_next**2 - added**2, 0.0))
        return State(alpha_next * x0 + kept * eps + added * normal(), x0)

    return step


def inverted(denoise: Denoise, noise: Noise, x_BHWC: Array, levels: Array) -> Array:
    """The noise (B, H, W, C) from which `ddim` with `eta` 0 comes to these images again: its steps,
    taken upwards (Song et al. 2021, section 4.3).

    A clean image has no noise to go along: it counts as one of the lowest level above 0.

    Args:
      denoise: as of `ddim`, without guidance and thresholds, which no step upwards undoes.
      x_BHWC: clean images. levels: those of the way down, falling.
    """
    rising = levels[::-1]
    rising = rising.at[0].set(jnp.where(rising[0] > 0, rising[0], rising[1]))
    return sample(ddim(denoise, noise), x_BHWC, rising, lambda _, like: jnp.zeros_like(like))


def heun(
    denoise: Denoise, noise: Noise, churn: Churn | None = None, steps: int | None = None
) -> Step:
    """Heun's method (Karras et al. 2022, algorithm 2): order 2, two calls of the network per step
    and one in the last.

    It solves for x / alpha, whose noise level is sigma / alpha, so that it serves `Ddpm` too, best
    on levels such as `noise.level_at(karras(32, 0.02, 80.0))`. A step from where alpha is almost 0
    is of order 1: in these units it is too long for a slope at its far end to help.

    Args:
      churn: the noise added before each step. None: none.
      steps: the number of steps that `churn.amount` is spread over; needed with it.
    """
    if churn is not None and not steps:
        raise UserError(
            f"heun churns with steps={steps}; give the number of steps of the run, for example 32."
        )

    def step(state, levels, normal):
        (alpha, sigma), (alpha_next, sigma_next) = (
            _scales(noise, levels.now),
            _scales(noise, levels.next),
        )
        x, ratio, level, ratio_next = (
            state.x_BHWC / alpha,
            sigma / alpha,
            levels.now,
            sigma_next / alpha_next,
        )
        if churn is not None:
            x, ratio, level = _churned(noise, churn, steps, x, ratio, level, normal)
        x0 = _estimate(denoise, State(x * _scales(noise, level)[0], state.x0_BHWC), level)
        euler = x0 + (ratio_next / ratio) * (x - x0)

        def corrected():
            x0_next = _estimate(denoise, State(alpha_next * euler, x0), levels.next)
            slope, slope_next = (x - x0) / ratio, (euler - x0_next) / ratio_next
            return State(
                alpha_next * (euler + 0.5 * (ratio_next - ratio) * (slope_next - slope)), x0_next
            )

        return jax.lax.cond(
            (ratio_next > 0) & (ratio < _FAR), corrected, lambda: State(alpha_next * euler, x0)
        )

    return step


def dpm_solver(denoise: Denoise, noise: Noise) -> Step:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): order 2 at one call per step, as it uses the
    previous estimate.

    The first step and the step to level 0 are of order 1.
    """

    def step(state, levels, normal):
        x0 = _estimate(denoise, state, levels.now)
        (alpha, sigma), (alpha_next, sigma_next) = (
            _scales(noise, levels.now),
            _scales(noise, levels.next),
        )
        # lambda = ln(alpha / sigma)
        previous, now, after = (0.5 * noise.log_snr(level) for level in levels)
        second = (levels.previous > levels.now) & (levels.next > 0)
        over_2r = 0.5 * (after - now) / jnp.where(second, now - previous, 1.0)  # 1 / (2r)
        lean = jnp.where(second, over_2r, 0.0)
        leant = x0 + lean * (x0 - state.x0_BHWC)
        keep = sigma_next / sigma  # and alpha' - keep * alpha = -alpha' * expm1(lambda - lambda')
        return State(keep * state.x_BHWC + (alpha_next - keep * alpha) * leant, x0)

    return step


def _estimate(denoise, state, level):
    """The clean images of a state whose rows all have one level."""
    level_B = jnp.full(state.x_BHWC.shape[:1], level, jnp.float32)
    return denoise(state.x_BHWC, level_B, None, state.x0_BHWC)


def _scales(noise, level):
    """(alpha, sigma), and (1, 0) at level 0."""
    alpha, sigma = noise.marginal(level)
    return jnp.where(level > 0, jnp.maximum(alpha, _LEAST), 1.0), jnp.where(level > 0, sigma, 0.0)


def _churned(noise, churn, steps, x, ratio, level, normal):
    """The image with its noise raised by the factor 1 + gamma, and the level where it is then."""
    gamma = min(churn.amount / steps, math.sqrt(2) - 1)
    inside = (ratio >= churn.low) & (ratio <= churn.high)
    raised = jnp.where(inside, noise.level_at((1 + gamma) * ratio), level)
    alpha, sigma = _scales(noise, raised)
    higher = jnp.where(inside, jnp.maximum(sigma / alpha, ratio), ratio)
    return (
        x + churn.scale * jnp.sqrt((higher - ratio) * (higher + ratio)) * normal(),
        higher,
        raised,
    )
