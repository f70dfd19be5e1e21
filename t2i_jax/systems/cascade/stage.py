"""One stage of a diffusion cascade: its fields, its loss, and how it makes images of noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion import inpaint, progress, samplers, sdedit, threshold
from t2i_jax.diffusion.denoiser import Denoise, Net, denoiser, training_losses
from t2i_jax.diffusion.draws import NoiseSource
from t2i_jax.diffusion.guidance import Scale, for_rows, guide, within
from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Ddpm, Noise
from t2i_jax.diffusion.samplers import Churn
from t2i_jax.errors import UserError
from t2i_jax.nn.resample import RESIZES, resize
from t2i_jax.pixels import to_float
from t2i_jax.types import Array, Batch, Key, Params

SAMPLERS = ("ancestral", "ddim", "heun", "dpm_solver")
_USUAL_STEPS = {"ancestral": 250, "ddim": 64, "heun": 32, "dpm_solver": 32}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A U-Net with its image size, its diffusion and its usual way of sampling.

    Attributes:
      unet: `Unet`, or `NullUnet` for a first stage that is left out; the task sets `lowres_cond`,
        `cond_on_text`, `text_embed_dim` and `channels` of it.
      image_size: side of its images.
      noise: `Ddpm(...)` or `Edm(...)`.
      lowres: noise on the smaller image; for stages after the first.
      crop_size: training is on squares of this side, cut anywhere; None: on whole images. Not for
        the first stage.
      resize: how images are made smaller and larger, see `nn.resample.resize`; imagen-pytorch has
        "nearest".
      sampler: "ancestral", "ddim", "heun" or "dpm_solver"; None: "ancestral" with `Ddpm`, "heun"
        with `Edm`.
      steps: None: 250 of "ancestral", 64 of "ddim", 32 of the other two.
      churn: noise added on the way, for "heun"; None: none.
      percentile: of dynamic thresholding; None: estimates are clipped to the range of images.
    """

    unet: Any
    image_size: int
    noise: Any = Ddpm()
    lowres: LowresNoise = LowresNoise()
    crop_size: int | None = None
    resize: str = "area"
    sampler: str | None = None
    steps: int | None = None
    churn: Churn | None = None
    percentile: float | None = 0.95

    def __post_init__(self):
        one_of("stage.resize", self.resize, RESIZES)
        if self.sampler is not None:
            one_of("stage.sampler", self.sampler, SAMPLERS)
        if not isinstance(self.noise, Noise):
            raise UserError(f"stage.noise={self.noise!r} is no diffusion; give Ddpm() or Edm().")
        for name in ("image_size", "crop_size", "steps"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise UserError(f"stage.{name}={value!r} is not a number from 1; give 1 or more.")
        if self.percentile is not None and not 0 < self.percentile <= 1:
            raise UserError(
                f"stage.percentile={self.percentile} is outside (0, 1]; try 0.95, or None to clip."
            )
        if self.crop_size is not None and self.crop_size >= self.image_size:
            raise UserError(
                f"stage.crop_size={self.crop_size} is not below image_size={self.image_size}; "
                "leave it out."
            )
        for name in ("image_size", "crop_size"):
            value, multiple = getattr(self, name), self.multiple
            if value is not None and value % multiple:
                near = max(value // multiple, 1) * multiple
                raise UserError(
                    f"stage.{name}={value} is not a multiple of {multiple}, as the U-Net's levels "
                    f"need; try {near}."
                )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        sampler, _ = sampling_of(self)
        why = f"sampler={sampler!r}, unless sampling names heun"
        return {} if sampler == "heun" else {"churn": why}

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: a stage that is left out has nothing."""
        return self.unet.trains

    @property
    def multiple(self) -> int:
        """The number of pixels of which the sides of its images are multiples."""
        return self.unet.multiple

    def levels(self, sampling: StageSampling) -> Array:
        """The falling levels of a sampling run."""
        return self.noise.levels(sampling.steps)

    def step(self, net: Net, sampling: StageSampling, scale: Scale) -> samplers.Step:
        """A step of the sampler that is asked for, with guidance and thresholds."""
        denoise = clean(self, guided(self.noise, net, sampling, scale), sampling)
        return solver(denoise, self.noise, sampling)

    def plain(self, net: Net) -> Denoise:
        """The network's estimate of the clean image, without guidance and thresholds."""
        return denoiser(net, self.noise, self_conditioned=self.unet.self_cond)

    def clipped(self, x_BHWC: Array) -> Array:
        """The result of a sampling run, clipped to the range of what it makes."""
        return jnp.clip(x_BHWC, -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class StageSampling:
    """The settings of a sampling run of one stage, for which its program is compiled.

    Attributes:
      sampler, steps, churn, percentile: as in `Stage`.
      guided: whether there is guidance at all. interval: (low, high) of sigma / alpha, where there
        is; None: everywhere.
      parallel: share that stays of the component of the guidance that is parallel to the
        conditional prediction; 1 is plain guidance.
      resample: times that each step is made in inpainting.
      skip: first steps that are left out where an image is changed.
      eta: where an image is changed, share of the noise of "ancestral" that "ddim" adds on the way
        from the noise that leads to it; None: the image is noised, and `skip` is of use.
      compat: "imagen-pytorch": noise of inpainting and of starting from an image, and the size of
        the mask, as the class of that package has them that `Stage.noise` belongs to.
      tell: whether progress is told (`diffusion.progress`).
    """

    sampler: str
    steps: int
    churn: Churn | None = None
    percentile: float | None = 0.95
    guided: bool = True
    interval: tuple[float, float] | None = None
    parallel: float = 1.0
    resample: int = 5
    skip: int = 0
    eta: float | None = None
    compat: str | None = None
    tell: bool = False

    @property
    def compat_of_image(self) -> str | None:
        """The package whose way of starting from an image is taken; None: ours is."""
        return self.compat if self.compat == Ddpm.reference else None


def sampling_of(
    stage: Stage, sampler: str | None = None, steps: int | None = None
) -> tuple[str, int]:
    """(sampler, steps) as asked for, else as the stage has them, else the usual ones."""
    usual = stage.sampler or stage.noise.sampler
    chosen = sampler or usual
    own = stage.steps if chosen == usual else None  # the stage's number is one of its own sampler
    most = getattr(stage.noise, "timesteps", _USUAL_STEPS[chosen])
    return chosen, steps or own or min(_USUAL_STEPS[chosen], most)


class Draws(NamedTuple):
    """The random numbers of a training step; None where a stage needs none.

    `keep_B` is False in rows that lose their text; `guess` whether a self-conditioned network sees
    an estimate; `corner_B2` where crops begin.
    """

    level_B: Array
    eps_BHWC: Array
    keep_B: Array | None = None
    lowres_level_B: Any = None
    lowres_eps_BHWC: Any = None
    guess: Array | None = None
    corner_B2: Array | None = None


def draw(
    stage: Stage, key: Key, shape: tuple[int, ...], cond_drop_prob: float, *, lowres: bool
) -> Draws:
    """The draws of a step for images of this shape (B, H, W, C)."""
    rows, side = shape[0], stage.crop_size or stage.image_size
    of_level, of_eps, of_text, of_lowres, of_lowres_eps, of_guess, of_corner = jax.random.split(
        key, 7
    )

    def normal(key):
        return jax.random.normal(key, (rows, side, side, shape[-1]))

    cropped = stage.crop_size is not None
    room = stage.image_size - side + 1
    return Draws(
        stage.noise.train_levels(of_level, rows),
        normal(of_eps),
        jax.random.bernoulli(of_text, 1 - cond_drop_prob, (rows,)),
        stage.lowres.train_levels(of_lowres, rows) if lowres else None,
        normal(of_lowres_eps) if lowres else None,
        jax.random.bernoulli(of_guess, 0.5) if stage.unet.self_cond else None,
        jax.random.randint(of_corner, (rows, 2), 0, room) if cropped else None,
    )


def losses(
    stage: Stage,
    bind: Callable[..., Net],
    image_BHWC: Array,
    draws: Draws,
    previous: int | None,
    cond_image_BHWC: Array | None = None,
) -> Array:
    """Weighted loss (B,) of images in [-1, 1] (Saharia et al. 2022, sections 2.2 to 2.4).

    Args:
      bind: the network with its text, a function of `(lowres, lowres_condition, cond_image)`; see
        `bound`.
      previous: side of the previous stage's images; None: this is the first stage.
    """
    size = (stage.image_size, stage.image_size)
    x0 = resize(image_BHWC, size, stage.resize)
    small = (
        None
        if previous is None
        else within_range(
            resize(smaller(image_BHWC, (previous, previous), stage.resize), size, stage.resize)
        )
    )
    if draws.corner_B2 is not None:
        x0 = cut(x0, draws.corner_B2, stage)
        small = None if small is None else cut(small, draws.corner_B2, stage)
        if cond_image_BHWC is not None:
            cond_image_BHWC = cut(
                resize(cond_image_BHWC, size, stage.resize), draws.corner_B2, stage
            )
    condition_B = None
    if small is not None:
        small, condition_B = stage.lowres.noised(small, draws.lowres_eps_BHWC, draws.lowres_level_B)
    net, last = bind(small, condition_B, cond_image_BHWC), None
    if draws.guess is not None:
        last = estimate(stage.noise, net, x0, draws)
    return training_losses(net, stage.noise, x0, draws.eps_BHWC, draws.level_B, draws.keep_B, last)


def smaller(image_BHWC: Array, size: tuple[int, int], mode: str) -> Array:
    """Images at the size of the previous stage, within the range of images.

    An upper stage has learnt to enlarge such images; what it is given in sampling must be one.
    """
    return within_range(resize(image_BHWC, size, mode))


def within_range(image_BHWC: Array) -> Array:
    """Images clipped to [-1, 1], which bicubic resizing leaves."""
    return jnp.clip(image_BHWC, -1.0, 1.0)


def bound(
    unet: Any,
    params: Params,
    text: tuple[Array, Array] | None = None,
    negative: tuple[Array, Array] | None = None,
    keep_B: Array | None = None,
    dropout: Key | None = None,
) -> Callable[..., Net]:
    """A U-Net with its weights and texts: `(lowres, lowres_condition, cond_image) -> Net`.

    Args:
      text: (embeddings (B, L, D), mask (B, L)). negative: the same, in place of no text in the half
        that guidance starts from. keep_B: conditioning mask of calls that bring none. dropout: in
        training.
    """
    kept_B = keep_B

    def bind(lowres_BHWC=None, lowres_condition_B=None, cond_image_BHWC=None) -> Net:
        def net(x_BHWC, condition_B, keep_B=None, *last):
            rows, keep_B = x_BHWC.shape[0], kept_B if keep_B is None else keep_B
            embeds, mask = (None, None) if text is None else for_rows(text, rows)
            if negative is not None and rows == 2 * len(text[0]):
                embeds, mask = (jnp.concatenate(pair) for pair in zip(text, negative, strict=True))
                keep_B = None
            images = for_rows((lowres_BHWC, lowres_condition_B, cond_image_BHWC), rows)
            return unet.apply(
                {"params": params}, x_BHWC, condition_B, embeds, mask, keep_B, *images, *last,
                deterministic=dropout is None, rngs={} if dropout is None else {"dropout": dropout},
            )  # fmt: skip

        return net

    return bind


def run(
    stage: Stage,
    bind: Callable[..., Net],
    sampling: StageSampling,
    shape: tuple[int, ...],
    draw: NoiseSource,
    scale: Scale,
    *,
    small: tuple[Array, Array, float | Array | None] | None = None,
    cond_image_BHWC: Array | None = None,
    init_BHWC: Array | None = None,
    keep_BHW: Array | None = None,
) -> Array:
    """Images in [-1, 1] of this shape (B, H, W, C).

    Args:
      small: (images of the previous stage, noise for them, its level or None for the stage's own).
      init_BHWC: images to change, of this shape; with `keep_BHW` (True: known) to inpaint.
    """
    lowres_BHWC = condition_B = None
    if small is not None:
        image_BHWC, eps_BHWC, level = small
        enlarged = resize(image_BHWC, (shape[1], shape[2]), stage.resize)
        lowres_BHWC, condition_B = stage.lowres.for_sampling(enlarged, eps_BHWC, level)
    levels = stage.levels(sampling)
    net = bind(lowres_BHWC, condition_B, cond_image_BHWC)
    step = stage.step(net, sampling, scale)
    tell = progress.tell if sampling.tell else None
    if keep_BHW is not None and init_BHWC is not None:
        x = samplers.start(stage.noise, levels, draw, shape)
        x = inpaint.repaint(
            step,
            stage.noise,
            x,
            levels,
            draw,
            init_BHWC,
            keep_BHW,
            resample=sampling.resample,
            compat=sampling.compat and stage.noise.reference,
            tell=tell,
        )
        return jnp.where(keep_BHW[..., None], init_BHWC, stage.clipped(x))
    if init_BHWC is not None and sampling.eta is not None:
        x = samplers.inverted(stage.plain(net), stage.noise, init_BHWC, levels)
    elif init_BHWC is not None:
        eps = draw(0, jnp.zeros(shape, jnp.float32))
        x, levels = sdedit.from_image(
            stage.noise, init_BHWC, levels, sampling.skip, eps, compat=sampling.compat_of_image
        )
    else:
        x = samplers.start(stage.noise, levels, draw, shape)
    return stage.clipped(samplers.sample(step, x, levels, draw, tell=tell))


def guided(noise: Noise, net: Net, sampling: StageSampling, scale: Scale) -> Net:
    """The network with the guidance that is asked for."""
    if not sampling.guided:
        return net
    if sampling.interval is not None:
        scale = _within(noise, scale, *sampling.interval)
    return guide(net, scale, parallel=sampling.parallel)


def clean(stage: Stage, net: Net, sampling: StageSampling) -> Denoise:
    """A network, with or without guidance, as a function to clean images within their range."""
    denoise = stage.plain(net)
    return (
        threshold.clamp(denoise)
        if sampling.percentile is None
        else threshold.dynamic(denoise, sampling.percentile)
    )


def _within(noise, scale, low, high):
    """The scale where the noise is between two values of sigma / alpha.

    The network is told its level otherwise.
    """
    ends = [noise.condition(noise.level_at(jnp.float32(ratio))) for ratio in (low, high)]
    return within(scale, jnp.minimum(*ends), jnp.maximum(*ends))


def solver(denoise: Denoise, noise: Noise, sampling: StageSampling) -> samplers.Step:
    """A step of the sampler that is asked for."""
    if sampling.sampler == "heun":
        return samplers.heun(denoise, noise, sampling.churn, sampling.steps)
    return {
        "ancestral": samplers.ancestral,
        "ddim": functools.partial(samplers.ddim, eta=sampling.eta or 0.0),
        "dpm_solver": samplers.dpm_solver,
    }[sampling.sampler](denoise, noise)


def estimate(noise: Noise, net: Net, x0: Array, draws: Any) -> Array:
    """The estimate that a self-conditioned network is shown in training: its own in half of the
    steps, else zeros.

    Args:
      draws: its `eps_BHWC`, `level_B`, `keep_B` and `guess` are used.
    """
    x = noise.add(x0, draws.eps_BHWC, draws.level_B)
    denoise = denoiser(net, noise, self_conditioned=True)

    def guess():
        return jax.lax.stop_gradient(denoise(x, draws.level_B, draws.keep_B))

    return jax.lax.cond(draws.guess, guess, lambda: jnp.zeros_like(x0))


def cut(image_BHWC: Array, corner_B2: Array, stage: Stage) -> Array:
    """A square of `crop_size` from each image, at its corner."""
    side = stage.crop_size

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (side, side, image.shape[-1]))

    return jax.vmap(one)(image_BHWC, corner_B2)


def group(number: int) -> str:
    """Name of the parameters of the stage with this number, from 1."""
    return f"stage_{number}"


def cond_image_of(unet: Any, batch: Batch) -> Array | None:
    """The batch's images to condition on as floats in [0, 1]; None for a U-Net without them."""
    return to_float(batch["cond_image"], (0.0, 1.0)) if unet.cond_images_channels else None


def known(keep_BHW: Array, size: tuple[int, int], mode: str) -> Array:
    """A mask at the size of a stage's images, bool (B, *size).

    By "nearest" it stays as it is drawn. By other modes (see `resample.resize`) every pixel counts
    as known that a known one has a share of.
    """
    return resize(keep_BHW[..., None].astype(jnp.float32), size, mode)[..., 0] != 0
