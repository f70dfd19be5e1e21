"""Conditioning of an upsampler on a smaller image that is blurred in training, and noised on demand
(Ramesh et al. 2022, section 2.1; Ho et al. 2021).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key
from t2i_jax.values import shown

_NOISE = DiscreteDdpm(timesteps=1000, schedule="linear")
_MOST_KERNEL = 99


class LowresDraws(NamedTuple):
    """The random numbers of the smaller images of a training step, one per row.

    Attributes:
      sigma_B: standard deviation of the blur in pixels; 0: the image stays sharp. kernel_B: side of
        its window. level_B, eps_BHWC: of the noise; None: there is none.
    """

    sigma_B: Array
    kernel_B: Array
    level_B: Array | None = None
    eps_BHWC: Array | None = None


@dataclasses.dataclass(frozen=True)
class LowresBlur:
    """Blur and noise on the smaller image that conditions an upsampler.

    Attributes:
      blur_prob: share of the training images whose smaller image is blurred by a Gaussian, before
        it is enlarged.
      sigma: standard deviation of that Gaussian in pixels; a pair: anything between.
      kernel: side of that Gaussian's window, odd; a pair: any odd side between.
      noise: whether noise is added too, whose timestep, of 1000 with linear betas, the network is
        told.
      sample_level: the share of the timesteps to which the small image is noised in sampling.
      downsample_first: training images are made as small as the previous stage's first; else they
        are blurred at their own size.
    """

    blur_prob: float = 0.5
    sigma: float | tuple[float, float] = 0.6
    kernel: int | tuple[int, int] = 3
    noise: bool = False
    sample_level: float = 0.2
    downsample_first: bool = True

    train_limit: ClassVar[float] = 1.0  # noise is trained at every share of the timesteps

    def __post_init__(self):
        for name in ("sigma", "kernel"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("blur_prob", "sample_level"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"lowres.{name}={getattr(self, name)} is outside [0, 1]; try 0.5.")
        low, high = _pair(self.sigma)
        if not 0 < low <= high < math.inf:
            raise UserError(
                f"lowres.sigma={shown(self.sigma)} is no standard deviation, nor a pair from low "
                "to high; try 0.6."
            )
        least, most = _pair(self.kernel)
        odd = all(isinstance(side, int) and side % 2 for side in (least, most))
        if not odd or not 1 <= least <= most <= _MOST_KERNEL:
            raise UserError(
                f"lowres.kernel={shown(self.kernel)} is no odd side of a window up to "
                f"{_MOST_KERNEL}, nor a pair of them; try 3."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = {} if self.noise else {"sample_level": "noise=False"}
        if self.blur_prob == 0:
            found |= dict.fromkeys(("sigma", "kernel"), "blur_prob=0")
        return found

    def draws(self, key: Key, shape: tuple[int, ...]) -> LowresDraws:
        """The draws for images of this shape (B, H, W, C), as they are noised."""
        rows = shape[0]
        of_coin, of_sigma, of_kernel, of_level, of_eps = jax.random.split(key, 5)
        low, high = _pair(self.sigma)
        sigma_B = jax.random.uniform(of_sigma, (rows,), minval=low, maxval=max(high, low + 1e-9))
        sharp_B = ~jax.random.bernoulli(of_coin, self.blur_prob, (rows,))
        least, most = _pair(self.kernel)
        steps_B = jax.random.randint(of_kernel, (rows,), 0, (most - least) // 2 + 1)
        noise = (None, None)
        if self.noise:
            noise = (_NOISE.train_levels(of_level, rows), jax.random.normal(of_eps, shape))
        return LowresDraws(jnp.where(sharp_B, 0.0, sigma_B), least + 2 * steps_B, *noise)

    def blurred(self, image_BHWC: Array, draws: LowresDraws) -> Array:
        """The images blurred as drawn."""
        if self.blur_prob == 0:
            return image_BHWC
        return gaussian_blur(image_BHWC, draws.sigma_B, draws.kernel_B, _pair(self.kernel)[1])

    def noised(
        self, image_BHWC: Array, level_B: Array | None, eps_BHWC: Array | None
    ) -> tuple[Array, Array | None]:
        """(the image in [-1, 1] noised to a level per row, the network's condition on it); without
        noise as it is, and None.
        """
        if not self.noise or level_B is None or eps_BHWC is None:
            return image_BHWC, None
        return _NOISE.add(image_BHWC, eps_BHWC, level_B), _NOISE.condition(level_B)

    def for_sampling(
        self, image_BHWC: Array, eps_BHWC: Array, level: Array | float | None = None
    ) -> tuple[Array, Array | None]:
        """The pair of `noised` at one share of the timesteps for all rows; None: `sample_level`."""
        share = self.sample_level if level is None else level
        level_B = jnp.full(image_BHWC.shape[:1], jnp.floor(jnp.float32(share) * 1000 + 1e-3) + 1)
        return self.noised(image_BHWC, jnp.minimum(level_B, 1000.0), eps_BHWC)


def gaussian_blur(image_BHWC: Array, sigma_B: Array, kernel_B: Array, most: int) -> Array:
    """Images blurred by a Gaussian that is cut to a window; edges are mirrored.

    Args:
      sigma_B: standard deviation in pixels; 0: the row stays as it is. kernel_B: odd side of the
        window, `most` at most.
    """
    reach = min(most // 2, *(side - 1 for side in image_BHWC.shape[1:3]))
    offset = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    weights_BK = jnp.exp(-0.5 * (offset / jnp.maximum(sigma_B, 1e-6)[:, None]) ** 2)
    weights_BK = jnp.where(jnp.abs(offset) <= kernel_B[:, None] // 2, weights_BK, 0.0)
    weights_BK = weights_BK / jnp.sum(weights_BK, axis=1, keepdims=True)
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded, side = jnp.pad(image_BHWC, pad, mode="reflect"), image_BHWC.shape[axis]
        shifted = [
            jax.lax.slice_in_dim(padded, k, k + side, axis=axis) for k in range(2 * reach + 1)
        ]
        image_BHWC = jnp.einsum("BK,KBHWC->BHWC", weights_BK, jnp.stack(shifted))
    return image_BHWC


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
