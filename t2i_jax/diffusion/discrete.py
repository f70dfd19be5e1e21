"""Diffusion in whole timesteps (Ho et al. 2020), with the schedules of betas of dalle2-pytorch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.config import one_of
from t2i_jax.diffusion.noise import DISTANCES, OBJECTIVES, Noise, distance, per_row
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key
from t2i_jax.values import Count

BETAS = ("cosine", "linear", "quadratic", "sigmoid", "jsd")
_MOST_TIMESTEPS = 100_000


@dataclasses.dataclass(frozen=True)
class DiscreteDdpm(Noise):
    """Variance-preserving diffusion in `timesteps` steps, as DALL-E 2's prior and decoder have it.

    A level n, a whole number, has the cumulative product alpha_bar of the first n steps: level 0 is
    clean, level `timesteps` is noise. The network is conditioned on the timestep t = n - 1.

    Attributes:
      timesteps: number of steps T.
      schedule: of the betas: "cosine" (Nichol & Dhariwal 2021, eq. 17), "linear" (Ho et al. 2020),
        "quadratic", "sigmoid" or "jsd", 1 / (T - t), at whose last level nothing is left of the
        image; from a prediction of the noise it is told there as if 0.0001 were. "linear",
        "quadratic" and "sigmoid" are scaled by 1000 / T.
      objective: what the network predicts: "noise", "x_start" or "v" = alpha * eps - sigma * x0
        (Salimans & Ho 2022).
      distance: "l2", "l1" or "huber" (quadratic up to 1, then linear).
      p2_gamma, p2_k: the loss is multiplied by (k + SNR)^-gamma (Choi et al. 2022).
    """

    timesteps: Count = 1000
    schedule: str = "cosine"
    objective: str = "noise"
    distance: str = "l2"
    p2_gamma: float = 0.0
    p2_k: float = 1.0

    sampler: ClassVar[str] = "ancestral"
    reference: ClassVar[str] = "imagen-pytorch"

    def __post_init__(self):
        one_of("noise.schedule", self.schedule, BETAS)
        one_of("noise.objective", self.objective, OBJECTIVES)
        one_of("noise.distance", self.distance, DISTANCES)
        T = self.timesteps
        if isinstance(T, bool) or not isinstance(T, int) or not 1 <= T <= _MOST_TIMESTEPS:
            raise UserError(
                f"noise.timesteps={T!r} is not a number from 1 to {_MOST_TIMESTEPS}; try 1000."
            )
        if not (self.p2_gamma >= 0 and math.isfinite(self.p2_gamma)):
            raise UserError(
                f"noise.p2_gamma={self.p2_gamma} is negative or not finite; try 0.5, or 0 for no "
                "weighting."
            )
        if not (self.p2_k > 0 and math.isfinite(self.p2_k)):
            raise UserError(f"noise.p2_k={self.p2_k} is not a positive number; try 1.0.")
        if self.schedule != "jsd" and self.betas.max() >= 1:
            raise UserError(
                f"noise.timesteps={T} makes betas of the schedule {self.schedule!r} that are not "
                "below 1; give 25 or more, or schedule='cosine'."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        return {} if self.p2_gamma else {"p2_k": "p2_gamma=0"}

    @property
    def betas(self) -> np.ndarray:
        """The variances (T,) that the steps add, float64."""
        return _betas(self.timesteps, self.schedule)

    @property
    def alpha_bar(self) -> np.ndarray:
        """The share (T + 1,) of the variance that is the image's at each level 0..T, float64."""
        return _alpha_bar(self.timesteps, self.schedule)

    def train_levels(self, key: Key, batch: int) -> Array:
        """Levels (batch,), uniform among 1..T."""
        return jax.random.randint(key, (batch,), 1, self.timesteps + 1).astype(jnp.float32)

    def levels(self, steps: int) -> Array:
        """Whole levels from T to 0, evenly spaced but for rounding.

        Raises:
          UserError: more steps than there are timesteps.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps={steps} is not a number of steps from 1; try 64.")
        if steps > self.timesteps:
            raise UserError(
                f"steps={steps} are more than the {self.timesteps} timesteps of the diffusion; "
                f"give {self.timesteps} at most."
            )
        return jnp.asarray(np.round(np.linspace(self.timesteps, 0, steps + 1)), jnp.float32)

    def marginal(self, level: Array) -> tuple[Array, Array]:
        """(alpha, sigma) with alpha^2 + sigma^2 = 1, of the nearest whole level."""
        bar = self.alpha_bar
        return self._at(np.sqrt(bar), level), self._at(np.sqrt(1 - bar), level)

    def log_snr(self, level: Array) -> Array:
        """ln(alpha^2 / sigma^2) of the nearest whole level; infinite at level 0."""
        bar = self.alpha_bar
        with np.errstate(divide="ignore"):
            return self._at(np.log(bar) - np.log1p(-bar), level)

    def level_at(self, ratio: Array) -> Array:
        """The whole level whose sigma / alpha is nearest on a logarithmic scale."""
        bar = self.alpha_bar[1:]
        with np.errstate(divide="ignore"):
            known = jnp.asarray(0.5 * (np.log1p(-bar) - np.log(bar)), jnp.float32)
        between = 0.5 * (known[1:] + known[:-1])
        wanted = jnp.log(jnp.maximum(jnp.asarray(ratio, jnp.float32), 1e-20))
        return (1 + jnp.searchsorted(between, wanted)).astype(jnp.float32)

    def start(self, eps_BHWC: Array, level: Array) -> Array:
        """The noise as it is: a noised image has about unit variance."""
        return eps_BHWC

    def net_input(self, x_BHWC: Array, level_B: Array) -> Array:
        """The noised image as it is."""
        return x_BHWC

    def condition(self, level_B: Array) -> Array:
        """The timestep t = n - 1, from 0, of the nearest whole level."""
        return jnp.maximum(jnp.round(level_B) - 1, 0.0)

    def target(self, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """eps, x0 or v."""
        alpha, sigma = (per_row(a, x0_BHWC) for a in self.marginal(level_B))
        return {"noise": eps_BHWC, "x_start": x0_BHWC, "v": alpha * eps_BHWC - sigma * x0_BHWC}[
            self.objective
        ]

    def weight(self, level_B: Array) -> Array:
        """(k + SNR)^-gamma; 1 where gamma is 0."""
        bar = self.alpha_bar[1:]
        weights = (self.p2_k + bar / (1 - bar)) ** -self.p2_gamma
        return self._at(np.concatenate([weights[:1], weights]), level_B)

    def denoised(self, output_BHWC: Array, x_BHWC: Array, level_B: Array) -> Array:
        """x0 from the noise, from itself or from v."""
        output_BHWC = output_BHWC.astype(jnp.float32)
        if self.objective == "x_start":
            return output_BHWC
        alpha, sigma = (per_row(a, x_BHWC) for a in self.marginal(level_B))
        if self.objective == "v":
            return alpha * x_BHWC - sigma * output_BHWC
        # Of pure noise there is no way back; dalle2-pytorch has NaN there.
        bar = np.where(self.alpha_bar > 0, self.alpha_bar, 1e-4 * self.alpha_bar[-2])
        bar = np.maximum(bar, 1e-30)
        over, times = (
            per_row(self._at(table, level_B), x_BHWC)
            for table in (np.sqrt(1 / bar), np.sqrt(1 / bar - 1))
        )
        return over * x_BHWC - times * output_BHWC

    def losses(self, output_BHWC: Array, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """Weighted distance (B,) between prediction and target, a mean over what each row holds."""
        error_BHWC = output_BHWC.astype(jnp.float32) - self.target(x0_BHWC, eps_BHWC, level_B)
        return self.weight(level_B) * jnp.mean(
            distance(error_BHWC, self.distance), axis=range(1, error_BHWC.ndim)
        )

    def _at(self, table: np.ndarray, level: Array) -> Array:
        """The entries of a table (T + 1,) for each level, in float32."""
        index = jnp.clip(jnp.round(jnp.asarray(level)), 0, self.timesteps).astype(jnp.int32)
        return jnp.asarray(table, jnp.float32)[index]


@functools.lru_cache
def _betas(timesteps, schedule):
    T = timesteps
    if schedule == "cosine":
        angle = (np.arange(T + 1, dtype=np.float64) / T + 0.008) / 1.008 * math.pi / 2
        share = np.cos(angle) ** 2
        return np.clip(1 - share[1:] / share[:-1], 0, 0.999)
    if schedule == "jsd":
        return 1 / np.linspace(T, 1, T)
    low, high = 1000 / T * 1e-4, 1000 / T * 0.02
    if schedule == "linear":
        return np.linspace(low, high, T)
    if schedule == "quadratic":
        return np.linspace(math.sqrt(low), math.sqrt(high), T) ** 2
    return 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (high - low) + low


@functools.lru_cache
def _alpha_bar(timesteps, schedule):
    return np.concatenate([[1.0], np.cumprod(1 - _betas(timesteps, schedule))])
