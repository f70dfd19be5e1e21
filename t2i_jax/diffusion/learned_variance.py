"""The variance of a denoising step as the network tells it beside its prediction (Nichol & Dhariwal
2021, section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion.denoiser import Denoise, Net
from t2i_jax.diffusion.noise import Noise, per_row
from t2i_jax.diffusion.samplers import State, Step
from t2i_jax.errors import UserError
from t2i_jax.types import Array

COMPAT = ("dalle2-pytorch",)
_TINY = 1e-20  # variance of the posterior's last step, which is 0
_BITS = 1 / math.log(2)
_EDGE = 0.999  # pixels beyond it are the lowest and the highest value of a byte
_FAR = 30.0  # standard deviations beyond which the approximated normal distribution is 0 or 1
_FRACTION = (-1.0, 2.0)  # outside, variances leave float32


@dataclasses.dataclass(frozen=True)
class LearnedVariance:
    """A network with twice as many output channels: the prediction, then where the variance of a
    step lies between that of the posterior and beta, on a logarithmic scale.

    Attributes:
      weight: of the variational bound, in bits per pixel, beside the loss of the prediction; its
        gradient reaches the variance alone.
      constrained: whether a sigmoid keeps the variance between both.
      compat: "dalle2-pytorch" takes the mean of the bound from the prediction as though that were
        of the noise, whatever it is of, and latents for the bytes of images, and lets a variance
        that is not constrained be any; None: from what it is, latents as they are, and as far
        beyond the two ends as these lie apart, no further.
    """

    weight: float = 0.001
    constrained: bool = False
    compat: str | None = None

    def __post_init__(self):
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise UserError(f"learned_variance.weight={self.weight} is below 0; try 0.001.")
        if self.compat is not None:
            one_of("learned_variance.compat", self.compat, COMPAT)

    def log_variance(self, fraction_BHWC: Array, noise: Noise, now: Array, next: Array) -> Array:
        """ln of the variance of a step from the levels `now` to `next`, a scalar or one per row
        each.
        """
        fraction = (fraction_BHWC.astype(jnp.float32) + 1) / 2
        if self.constrained:
            fraction = jax.nn.sigmoid(fraction)
        elif self.compat is None:
            fraction = jnp.clip(fraction, *_FRACTION)
        low, high = (per_row(one, fraction) for one in _ends(noise, now, next))
        return fraction * high + (1 - fraction) * low

    def bound(
        self,
        output_BHWC: Array,
        fraction_BHWC: Array,
        noise: Noise,
        x0_BHWC: Array,
        x_BHWC: Array,
        level_B: Array,
        *,
        of_latents: bool = False,
    ) -> Array:
        """Bits per pixel (B,) of the step from a level to the one before, a mean over the pixels:
        the divergence of the step from the posterior, and at the last step the likelihood of the
        bytes.

        Latents are no bytes, and the density of real numbers is unbounded where the variance goes
        to 0, as that of the last step's posterior is. So their last step has no term; its variance
        is never sampled with (`ancestral`).

        Args:
          output_BHWC: the prediction. fraction_BHWC: of the variance. x0_BHWC: clean images in
            [-1, 1], or latents. x_BHWC: those noised. level_B: whole levels from 1.
          of_latents: whether they are latents.
        """
        before_B = level_B - 1
        variance = self.log_variance(fraction_BHWC, noise, level_B, before_B)
        of: Any = noise
        of_noise = dataclasses.replace(of, objective="noise") if self.compat else noise
        guess = of_noise.denoised(output_BHWC, x_BHWC, level_B)
        mean = jax.lax.stop_gradient(posterior_mean(noise, guess, x_BHWC, level_B, before_B))
        true = posterior_mean(noise, x0_BHWC, x_BHWC, level_B, before_B)
        last = per_row(level_B, x0_BHWC) <= 1
        low = per_row(_ends(noise, level_B, before_B)[0], x0_BHWC)
        # Each half is computed at numbers that leave it finite where the other one is taken.
        divergence = _divergence(true, low, mean, jnp.where(last, low, variance))
        if of_latents and self.compat is None:
            bits = _BITS * jnp.where(last, 0.0, divergence)
        else:
            likelihood = log_likelihood(x0_BHWC, mean, 0.5 * jnp.where(last, variance, 0.0))
            bits = _BITS * jnp.where(last, -likelihood, divergence)
        return jnp.mean(bits, axis=range(1, bits.ndim))


def halves(output_BHWC: Array) -> tuple[Array, Array]:
    """The prediction and the fraction of the variance, each half of the channels."""
    prediction, fraction = jnp.split(output_BHWC, 2, axis=-1)
    return prediction, fraction


def posterior_mean(noise: Noise, x0: Array, x: Array, now: Array, next: Array) -> Array:
    """The mean of q(x_next | x, x0); levels as in `log_variance`."""
    (alpha, _), (alpha_next, _) = noise.marginal(now), noise.marginal(next)
    c = per_row(-jnp.expm1(noise.log_snr(now) - noise.log_snr(next)), x)
    kept = (1 - c) / per_row(jnp.maximum(alpha, _TINY), x)  # of pure noise nothing is kept
    return per_row(alpha_next, x) * (x * kept + c * x0)


def ancestral(
    net: Net,
    noise: Noise,
    variance: LearnedVariance,
    threshold: Callable[[Denoise], Denoise],
    *,
    self_conditioned: bool = False,
) -> Step:
    """Samples a step with the variance that the network tells.

    Args:
      net: with guidance or without; its output has both halves. threshold: from a denoiser to one
        whose estimates are within their range.
      self_conditioned: whether the network takes its own last estimate.
    """

    def step(state, levels, normal):
        x_BHWC = state.x_BHWC
        level_B = jnp.full(x_BHWC.shape[:1], levels.now, jnp.float32)
        last = (state.x0_BHWC,) if self_conditioned else ()
        output = net(noise.net_input(x_BHWC, level_B), noise.condition(level_B), None, *last)
        prediction, fraction = halves(output)
        x0 = threshold(lambda *_: noise.denoised(prediction, x_BHWC, level_B))(x_BHWC, level_B)
        mean = posterior_mean(noise, x0, x_BHWC, levels.now, levels.next)
        spread = jnp.exp(0.5 * variance.log_variance(fraction, noise, levels.now, levels.next))
        return State(mean + jnp.where(levels.next > 0, spread, 0.0) * normal(), x0)

    return step


def _ends(noise, now, next):
    """ln of the variance of the posterior, 1e-20 at least, and of the forward process's step."""
    (alpha, _), (alpha_next, sigma_next) = noise.marginal(now), noise.marginal(next)
    c = -jnp.expm1(noise.log_snr(now) - noise.log_snr(next))
    posterior = jnp.log(jnp.maximum(sigma_next**2 * c, _TINY))
    return posterior, jnp.log(jnp.maximum(-jnp.expm1(2 * jnp.log(alpha / alpha_next)), _TINY))


def _divergence(mean, log_variance, other_mean, other_log_variance):
    """KL divergence of two normal distributions in nats."""
    ratio = log_variance - other_log_variance
    square = (mean - other_mean) ** 2 * jnp.exp(-other_log_variance)
    return 0.5 * (-1.0 - ratio + jnp.exp(ratio) + square)


def log_likelihood(x0: Array, mean: Array, log_deviation: Array) -> Array:
    """ln of the probability, 1e-12 at least, of the bytes of images in [-1, 1] under a normal
    distribution.

    The lowest and the highest byte have all that lies beyond them.
    """
    scale = jnp.exp(-log_deviation)
    above, below = (scale * (x0 - mean + edge) for edge in (1 / 255, -1 / 255))
    inside = _log(_cumulative(above) - _cumulative(below))
    highest = _log(_cumulative(-below))
    return jnp.where(x0 < -_EDGE, _log(_cumulative(above)), jnp.where(x0 > _EDGE, highest, inside))


def _cumulative(x):
    """Page's approximation of the normal distribution function, as Nichol & Dhariwal have it; a
    sigmoid keeps digits where (1 + tanh) / 2 has none.
    """
    x = jnp.clip(x, -_FAR, _FAR)
    return jax.nn.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


def _log(x):
    return jnp.log(jnp.maximum(x, 1e-12))
