"""Diffusion processes: noising, the network's target, and the clean image from its prediction:
`Ddpm` and `Edm`.

Both describe x = alpha * x0 + sigma * eps with alpha and sigma given by a *level* that falls to 0
where x is clean. The level of `Ddpm` is a time in [0, 1], that of `Edm` the standard deviation of
the noise. Samplers and networks see only the interface `Noise`. Images are float, in [-1, 1] when
clean; everything is computed in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.types import Array, Key
from t2i_jax.values import Signed

SCHEDULES = ("cosine", "linear")
OBJECTIVES = ("noise", "x_start", "v")
WEIGHTINGS = ("min_snr", "p2", "snr", "plain")
DISTANCES = ("l2", "l1", "huber")

_COSINE_OFFSET = 0.008  # s in Nichol & Dhariwal 2021, eq. 17
# |cos(pi/2)| in float32: the cosine schedule ends at log-SNR -33.89 instead of -inf.
_COSINE_END = 4.371139e-8


def per_row(values_B: Array, x_BHWC: Array) -> Array:
    """One value per row, float32, shaped to multiply `x_BHWC` (of any rank)."""
    return jnp.asarray(values_B, jnp.float32).reshape(-1, *(1,) * (x_BHWC.ndim - 1))


@runtime_checkable
class Noise(Protocol):
    """The interface of a diffusion process for training and sampling; `level` is a scalar or one
    value per row.

    Attributes:
      sampler: the solver that goes with it, where none is named.
      reference: the class of imagen-pytorch that has this diffusion, as `inpaint.repaint` names it.
    """

    sampler: ClassVar[str]
    reference: ClassVar[str]

    def train_levels(self, key: Key, batch: int) -> Array:
        """Levels (batch,) sampled from the training distribution."""
        ...

    def levels(self, steps: int) -> Array:
        """The steps + 1 falling levels of a sampling run; the last one is 0."""
        ...

    def marginal(self, level: Array) -> tuple[Array, Array]:
        """(alpha, sigma) at a level."""
        ...

    def level_at(self, ratio: Array) -> Array:
        """The level at which sigma / alpha has this value, or the nearest one that there is."""
        ...

    def log_snr(self, level: Array) -> Array:
        """ln(alpha^2 / sigma^2); infinite where a level has no noise at all."""
        ...

    def start(self, eps_BHWC: Array, level: Array) -> Array:
        """Unit noise scaled to what sampling starts from at the level `level`."""
        ...

    def net_input(self, x_BHWC: Array, level_B: Array) -> Array:
        """The noised image, scaled for the network."""
        ...

    def condition(self, level_B: Array) -> Array:
        """The number (B,) by which the network is conditioned on the level."""
        ...

    def target(self, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """The target of the network's prediction."""
        ...

    def weight(self, level_B: Array) -> Array:
        """The weight (B,) of the distance between prediction and target."""
        ...

    def denoised(self, output_BHWC: Array, x_BHWC: Array, level_B: Array) -> Array:
        """The clean image that follows from a prediction."""
        ...

    def losses(self, output_BHWC: Array, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """Weighted distance (B,), a mean over the pixels of each row."""
        ...

    def add(self, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """The image noised to a level per row: alpha * x0 + sigma * eps."""
        alpha_B, sigma_B = self.marginal(level_B)
        return per_row(alpha_B, x0_BHWC) * x0_BHWC + per_row(sigma_B, x0_BHWC) * eps_BHWC


@dataclasses.dataclass(frozen=True)
class Ddpm(Noise):
    """Variance-preserving diffusion in continuous time (Kingma et al. 2021), as imagen-pytorch
    trains it.

    Attributes:
      schedule: log-SNR over time: "cosine" (Nichol & Dhariwal 2021) or "linear" (the betas of Ho et
        al. 2020).
      shift: added to that log-SNR, finite (Hoogeboom et al. 2023, section 3.1): below 0 more of
        training and sampling is spent where there is much noise.
      objective: what the network predicts: "noise", "x_start" or "v" = alpha * eps - sigma * x0
        (Salimans & Ho 2022).
      weighting: "min_snr" (Hang et al. 2023), "p2" (Choi et al. 2022), "snr": every objective
        weighs as the plain loss on the noise does, or "plain": no weights. With "v" the first three
        hardly look at the noisiest levels, where an image's layout is decided.
      min_snr_gamma: the largest signal-to-noise ratio that counts.
      p2_gamma, p2_k: the plain loss on the noise is multiplied by (k + SNR)^-gamma.
      distance: "l2", "l1" or "huber" (quadratic up to 1, then linear).
    """

    schedule: str = "cosine"
    objective: str = "noise"
    weighting: str = "min_snr"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 0.5
    p2_k: float = 1.0
    distance: str = "l2"
    shift: Signed = 0.0

    sampler: ClassVar[str] = "ancestral"
    reference: ClassVar[str] = "imagen-pytorch"

    def __post_init__(self):
        one_of("noise.schedule", self.schedule, SCHEDULES)
        one_of("noise.objective", self.objective, OBJECTIVES)
        one_of("noise.weighting", self.weighting, WEIGHTINGS)
        one_of("noise.distance", self.distance, DISTANCES)
        for name in ("min_snr_gamma", "p2_k"):
            _check_positive(self, name)
        if not self.p2_gamma >= 0:
            raise UserError(
                f"noise.p2_gamma={self.p2_gamma} is negative; try 0.5, or 0 for no weighting."
            )
        if not math.isfinite(self.shift):
            raise UserError(
                f"noise.shift={self.shift} is not finite; try 0, or -1.5 for more noise."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        used = {"min_snr": ("min_snr_gamma",), "p2": ("p2_gamma", "p2_k")}.get(self.weighting, ())
        of_weightings = ("min_snr_gamma", "p2_gamma", "p2_k")
        return {name: f"weighting={self.weighting!r}" for name in of_weightings if name not in used}

    def train_levels(self, key: Key, batch: int) -> Array:
        """Times (batch,), uniform in [0, 1)."""
        return jax.random.uniform(key, (batch,))

    def levels(self, steps: int) -> Array:
        """Evenly spaced times from 1 to 0."""
        _check_steps(steps)
        return jnp.linspace(1.0, 0.0, steps + 1)

    def log_snr(self, level: Array) -> Array:
        """ln(alpha^2 / sigma^2) at a time."""
        level = jnp.asarray(level, jnp.float32)
        if self.schedule == "linear":
            return self.shift - jnp.log(jnp.expm1(1e-4 + 10.0 * level**2))
        # alpha = cos(angle), and cos(angle) = sin(pi/2 - angle), which keeps its digits as the time
        # nears 1.
        quarter = math.pi / 2 / (1 + _COSINE_OFFSET)
        cosine = jnp.maximum(jnp.sin(quarter * (1 - level)), _COSINE_END)
        return self.shift + 2 * jnp.log(cosine / jnp.sin(quarter * (level + _COSINE_OFFSET)))

    def level_at(self, ratio: Array) -> Array:
        """The time at which sigma / alpha has this value, within [0, 1]."""
        ratio = jnp.asarray(ratio, jnp.float32) * math.exp(self.shift / 2)
        if self.schedule == "linear":
            return jnp.sqrt(jnp.clip((jnp.log1p(ratio**2) - 1e-4) / 10.0, 0.0, 1.0))
        return jnp.clip(
            jnp.arctan(ratio) * 2 / math.pi * (1 + _COSINE_OFFSET) - _COSINE_OFFSET, 0.0, 1.0
        )

    def marginal(self, level: Array) -> tuple[Array, Array]:
        """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
        log_snr = self.log_snr(level)
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    def start(self, eps_BHWC: Array, level: Array) -> Array:
        """The noise as it is: a noised image has about unit variance."""
        return eps_BHWC

    def net_input(self, x_BHWC: Array, level_B: Array) -> Array:
        """The noised image as it is."""
        return x_BHWC

    def condition(self, level_B: Array) -> Array:
        """The log-SNR."""
        return self.log_snr(level_B)

    def target(self, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """eps, x0 or v."""
        alpha, sigma = (per_row(a, x0_BHWC) for a in self.marginal(level_B))
        return {"noise": eps_BHWC, "x_start": x0_BHWC, "v": alpha * eps_BHWC - sigma * x0_BHWC}[
            self.objective
        ]

    def weight(self, level_B: Array) -> Array:
        """The weighting is one of errors in x0; those in eps are sqrt(SNR) times, in v sqrt(SNR +
        1) times as large.
        """
        snr_B = jnp.exp(self.log_snr(level_B))
        of_x0_B = {
            "min_snr": jnp.minimum(snr_B, self.min_snr_gamma),
            "p2": snr_B * (self.p2_k + snr_B) ** -self.p2_gamma,
            "snr": snr_B,
            "plain": {"noise": snr_B, "x_start": 1.0, "v": snr_B + 1.0}[self.objective],
        }[self.weighting]
        return of_x0_B / {"noise": snr_B, "x_start": 1.0, "v": snr_B + 1.0}[self.objective]

    def denoised(self, output_BHWC: Array, x_BHWC: Array, level_B: Array) -> Array:
        """x0 from the noise, from itself or from v."""
        output_BHWC = output_BHWC.astype(jnp.float32)
        alpha, sigma = (per_row(a, x_BHWC) for a in self.marginal(level_B))
        if self.objective == "noise":
            return (x_BHWC - sigma * output_BHWC) / jnp.maximum(alpha, 1e-8)
        return output_BHWC if self.objective == "x_start" else alpha * x_BHWC - sigma * output_BHWC

    def losses(self, output_BHWC: Array, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """Weighted distance (B,) between prediction and target, a mean over the pixels of each
        row.
        """
        error_BHWC = output_BHWC.astype(jnp.float32) - self.target(x0_BHWC, eps_BHWC, level_B)
        return self.weight(level_B) * jnp.mean(
            distance(error_BHWC, self.distance), axis=range(1, error_BHWC.ndim)
        )


@dataclasses.dataclass(frozen=True)
class Edm(Noise):
    """Variance-exploding diffusion with the preconditioning of Karras et al. 2022 (table 1), in its
    letters.

    Attributes:
      sigma_data: standard deviation of the clean images.
      P_mean, P_std: ln(sigma) in training is normal with this mean and standard deviation.
      sigma_min, sigma_max, rho: the levels of a sampling run (eq. 5).
    """

    sigma_data: float = 0.5
    P_mean: Signed = -1.2
    P_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    sampler: ClassVar[str] = "heun"
    reference: ClassVar[str] = "imagen-pytorch-elucidated"

    def __post_init__(self):
        for name in ("sigma_data", "P_std", "sigma_min", "rho"):
            _check_positive(self, name)
        if not self.sigma_max > self.sigma_min:
            raise UserError(
                f"noise.sigma_max={self.sigma_max} is not above "
                f"noise.sigma_min={self.sigma_min}; try 80 and 0.002."
            )

    def train_levels(self, key: Key, batch: int) -> Array:
        """sigma (batch,), log-normal."""
        return jnp.exp(self.P_mean + self.P_std * jax.random.normal(key, (batch,)))

    def levels(self, steps: int) -> Array:
        """sigma from sigma_max to sigma_min (eq. 5), then 0."""
        return karras(steps, self.sigma_min, self.sigma_max, self.rho)

    def log_snr(self, level: Array) -> Array:
        """-2 ln(sigma)."""
        return -2 * jnp.log(jnp.asarray(level, jnp.float32))

    def level_at(self, ratio: Array) -> Array:
        """sigma itself."""
        return jnp.asarray(ratio, jnp.float32)

    def marginal(self, level: Array) -> tuple[Array, Array]:
        """(1, sigma)."""
        sigma = jnp.asarray(level, jnp.float32)
        return jnp.ones_like(sigma), sigma

    def start(self, eps_BHWC: Array, level: Array) -> Array:
        """Noise of standard deviation sigma."""
        return level * eps_BHWC

    def net_input(self, x_BHWC: Array, level_B: Array) -> Array:
        """c_in * x: unit variance at every level."""
        return x_BHWC * per_row(level_B**2 + self.sigma_data**2, x_BHWC) ** -0.5

    def condition(self, level_B: Array) -> Array:
        """c_noise = ln(sigma) / 4."""
        return 0.25 * jnp.log(jnp.maximum(level_B, 1e-20))

    def target(self, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """(x0 - c_skip * (x0 + sigma * eps)) / c_out, with the small differences taken by hand."""
        sigma = per_row(level_B, x0_BHWC)
        scale = (sigma**2 + self.sigma_data**2) ** -0.5
        return scale * (sigma / self.sigma_data * x0_BHWC - self.sigma_data * eps_BHWC)

    def weight(self, level_B: Array) -> Array:
        """lambda(sigma) * c_out^2 = 1: the weight of x0 is such that every level counts the same
        for the prediction.
        """
        return jnp.ones_like(level_B, jnp.float32)

    def denoised(self, output_BHWC: Array, x_BHWC: Array, level_B: Array) -> Array:
        """c_skip * x + c_out * F."""
        sigma, sd = per_row(level_B, x_BHWC), self.sigma_data
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd * (sd**2 + sigma**2) ** -0.5
        return c_skip * x_BHWC + c_out * output_BHWC.astype(jnp.float32)

    def losses(self, output_BHWC: Array, x0_BHWC: Array, eps_BHWC: Array, level_B: Array) -> Array:
        """lambda(sigma) * |D - x0|^2 (B,), a mean over the pixels of each row (eq. 8)."""
        error_BHWC = output_BHWC.astype(jnp.float32) - self.target(x0_BHWC, eps_BHWC, level_B)
        return self.weight(level_B) * jnp.mean(error_BHWC**2, axis=range(1, error_BHWC.ndim))


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Array:
    """The noise levels of Karras et al. 2022, eq. 5: `steps` values of sigma / alpha from sigma_max
    to sigma_min, then 0; float32.

    They are levels of `Edm`; `Ddpm().level_at(karras(...))` makes times of them.
    """
    _check_steps(steps)
    fraction = jnp.arange(steps, dtype=jnp.float32) / max(steps - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return jnp.append((high + fraction * (low - high)) ** rho, 0.0)


def distance(error: Array, kind: str) -> Array:
    """The distance (same shape) that errors count as, by a name of `DISTANCES`."""
    if kind == "huber":
        size = jnp.abs(error)
        return jnp.where(size < 1, 0.5 * error**2, size - 0.5)
    return error**2 if kind == "l2" else jnp.abs(error)


def _check_positive(config, name):
    value = getattr(config, name)
    if not value > 0:
        default = type(config).__dataclass_fields__[name].default
        raise UserError(f"noise.{name}={value} is not above 0; try {default}.")


def _check_steps(steps):
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps} is not a number of steps from 1; try 32.")
