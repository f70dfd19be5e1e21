"""Conditioning of a super-resolution stage on the image of the previous stage, enlarged and noised
(Ho et al. 2021).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion.noise import Ddpm
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class LowresNoise:
    """Noise conditioning augmentation: the network is conditioned on the noise level of its
    low-resolution image.

    Attributes:
      schedule: of the noise, see `Ddpm`. The Imagen stages use the linear one whatever they are
        trained with.
      sample_level: the time in [0, 1] to which the small image is noised in sampling.
      per_row: whether each row of a training batch has its own level; else one level holds for the
        batch.
      compat: "imagen-pytorch-elucidated" conditions the network, in sampling only, on the time
        instead of the log-SNR, as that class does against its own training. None: the log-SNR,
        always.
      train_limit: times are sampled below it in training. With 1, as in imagen-pytorch, most of the
        small images that it sees are hardly more than noise; a lower one is for small images that
        hold nearly all there is to know.
    """

    schedule: str = "linear"
    sample_level: float = 0.2
    per_row: bool = False
    compat: str | None = None
    train_limit: float = 1.0

    def __post_init__(self):
        one_of("lowres.schedule", self.schedule, ("linear", "cosine"))
        if not 0 <= self.sample_level <= 1:
            raise UserError(f"lowres.sample_level={self.sample_level} is outside [0, 1]; try 0.2.")
        if not 0 < self.train_limit <= 1:
            raise UserError(f"lowres.train_limit={self.train_limit} is outside (0, 1]; try 1.0.")
        if self.sample_level > self.train_limit:
            level, limit = self.sample_level, self.train_limit
            raise UserError(
                f"lowres.sample_level={level} is above train_limit={limit}, never trained; lower "
                "it."
            )
        if self.compat is not None:
            one_of("lowres.compat", self.compat, ("imagen-pytorch-elucidated",))

    @property
    def noise(self) -> Ddpm:
        """The diffusion process that noises the image."""
        return Ddpm(schedule=self.schedule)

    def train_levels(self, key: Key, batch: int) -> Array:
        """Times (batch,), uniform in [0, train_limit)."""
        shape = (batch,) if self.per_row else ()
        return jnp.broadcast_to(jax.random.uniform(key, shape, maxval=self.train_limit), (batch,))

    def noised(self, image_BHWC: Array, eps_BHWC: Array, level_B: Array) -> tuple[Array, Array]:
        """(the image noised to a level per row, the condition (B,) of the network on it); for
        training.
        """
        return self.noise.add(image_BHWC, eps_BHWC, level_B), self.noise.condition(level_B)

    def for_sampling(
        self, image_BHWC: Array, eps_BHWC: Array, level: Array | float | None = None
    ) -> tuple[Array, Array]:
        """The pair of `noised` at one level for all rows; None: `sample_level`."""
        level_B = jnp.full(
            image_BHWC.shape[:1], self.sample_level if level is None else level, jnp.float32
        )
        noised, condition_B = self.noised(image_BHWC, eps_BHWC, level_B)
        return noised, level_B if self.compat else condition_B
