"""Losses of image tokenizers: reconstruction, adversarial, gradient penalties, and the weight that
balances them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t2i_jax.types import Array


def reconstruction(
    recon: Array, image: Array, l1: float, l2: float, laplace: float, pixel_range
) -> Array:
    """The weighted sum of mean absolute, mean squared and logit-Laplace error of float images of
    `pixel_range`.
    """
    difference = recon - image
    loss = l1 * jnp.mean(jnp.abs(difference)) + l2 * jnp.mean(difference**2)
    if laplace:
        loss += laplace * jnp.mean(jnp.abs(_logit(recon, pixel_range) - _logit(image, pixel_range)))
    return loss


def _logit(image, pixel_range, epsilon=0.1):
    """Logit-Laplace with a fixed scale (Ramesh et al. 2021, appendix A.3): pixels as 0.8 x + 0.1, x
    in [0, 1].
    """
    low, high = pixel_range
    x = (1 - 2 * epsilon) * (image - low) / (high - low) + epsilon
    x = jnp.clip(x, 1e-5, 1 - 1e-5)
    return jnp.log(x) - jnp.log1p(-x)


def psnr(recon: Array, image: Array, pixel_range: tuple[float, float]) -> Array:
    """Peak signal-to-noise ratio in dB of the clipped reconstruction, over the whole batch."""
    low, high = pixel_range
    error = jnp.mean(((jnp.clip(recon, low, high) - image) / (high - low)) ** 2)
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def _log(x):
    return jnp.log(x + 1e-10)


# Losses of the generator, from the logits of fakes. "hinge" and "bce" are parti-pytorch's,
# "softplus" is StyleGAN's.
GENERATOR: dict[str, Callable[[Array], Array]] = {
    "hinge": lambda fake: -jnp.mean(fake),
    "bce": lambda fake: -jnp.mean(_log(jax.nn.sigmoid(fake))),
    "softplus": lambda fake: jnp.mean(jax.nn.softplus(-fake)),
}

# Losses of the discriminator, from the logits of fakes and of real images.
DISCRIMINATOR: dict[str, Callable[[Array, Array], Array]] = {
    "hinge": lambda fake, real: jnp.mean(jax.nn.relu(1 + fake) + jax.nn.relu(1 - real)),
    "bce": lambda fake, real: jnp.mean(
        -_log(1 - jax.nn.sigmoid(fake)) - _log(jax.nn.sigmoid(real))
    ),
    "softplus": lambda fake, real: 0.5 * jnp.mean(jax.nn.softplus(fake) + jax.nn.softplus(-real)),
}


def slopes(pull_back: Callable[[Array], tuple[Array]], logits: Array) -> Array:
    """(B,) squared norm of the gradient of an image's summed logits with respect to its pixels.

    Args:
      pull_back: from a cotangent of the logits to (that of the images,), as of `jax.vjp`.
    """
    (gradient,) = pull_back(jnp.ones_like(logits))
    return jnp.sum(gradient**2, axis=(1, 2, 3))


# Penalties from `slopes` at real images, before the weight.
PENALTIES: dict[str, Callable[[Array], Array]] = {
    "unit_slope": lambda s_B: jnp.mean((jnp.sqrt(s_B + 1e-20) - 1) ** 2),  # parti-pytorch's
    "r1": lambda s_B: 0.5 * jnp.mean(s_B),  # Mescheder et al. 2018
}


def adaptive_weight(
    pull_back: Callable[[Array], Array], numerator: Array, denominator: Array
) -> Array:
    """The adaptive weight of the adversarial loss: |d a / d W| / |d b / d W| for the kernel W of
    the last layer.

    Esser et al. 2021, equation 7, with the constants of parti-pytorch.

    Args:
      pull_back: from a cotangent of the reconstruction to one of W; linear.
      numerator, denominator: the two losses' gradients with respect to the reconstruction.
    """
    top, bottom = (jnp.sqrt(jnp.sum(pull_back(g) ** 2)) for g in (numerator, denominator))
    return jnp.minimum(top / (bottom + 1e-8), 1e4)


def with_gradient(value: Array, at: Array, gradient: Array) -> Array:
    """A scalar of this value whose gradient with respect to `at` is `gradient`, computed before."""
    carrier = jnp.sum(at * jax.lax.stop_gradient(gradient))
    return carrier + jax.lax.stop_gradient(value - carrier)
