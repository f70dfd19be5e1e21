"""Images from a normal distribution, for which the best denoiser and the path of the sampling ODE
are known.
"""

import jax.numpy as jnp

from t2i_jax.diffusion.noise import per_row

MEAN, DEVIATION = 0.3, 0.4


def exact(noise):
    """E[x0 | x] for x0 ~ N(MEAN, DEVIATION^2) per value."""

    def denoise(x, level_B, keep_B=None, last=None):
        alpha, sigma = (per_row(a, x) for a in noise.marginal(level_B))
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def carried(noise, x, high, low):
    """Where the deterministic ODE takes `x` from one level to another: it keeps the quantile of
    each value.
    """
    (alpha, sigma), (alpha_low, sigma_low) = noise.marginal(high), noise.marginal(low)

    def spread(a, s):
        return jnp.sqrt(a**2 * DEVIATION**2 + s**2)

    return alpha_low * MEAN + (x - alpha * MEAN) * spread(alpha_low, sigma_low) / spread(
        alpha, sigma
    )
