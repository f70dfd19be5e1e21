"""One stage of DALL-E 2's decoder: a stage of a cascade that may learn its variances and may work
on latents, and its loss.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax.config import one_of
from t2i_jax.diffusion import dalle2_ddim, learned_variance, samplers, threshold
from t2i_jax.diffusion.blur import LowresBlur, LowresDraws
from t2i_jax.diffusion.denoiser import Denoise, Net
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.diffusion.guidance import Scale, for_rows
from t2i_jax.diffusion.learned_variance import LearnedVariance
from t2i_jax.diffusion.noise import Noise
from t2i_jax.errors import UserError
from t2i_jax.nn.resample import resize
from t2i_jax.systems.cascade import stage as stages
from t2i_jax.systems.cascade.stage import Stage, StageSampling
from t2i_jax.types import Array, Key, Params

COMPAT = "dalle2-pytorch"


@dataclasses.dataclass(frozen=True)
class DecoderStage(Stage):
    """A U-Net with its image size, its diffusion and its usual way of sampling.

    Attributes:
      unet: `DecoderUnet`; the task sets `lowres_cond`, `lowres_noise_cond`, `channels`,
        `channels_out` and the widths of embeddings of it.
      image_size: side of its images.
      noise: `DiscreteDdpm(...)`, or without `learned_variance` any other.
      lowres: what becomes of the smaller image; for stages after the first.
      crop_size: training is on squares of this side, cut anywhere; None: on whole images. Not for
        the first stage.
      resize: how images are made smaller and larger, see `nn.resample.resize`; dalle2-pytorch has
        "nearest".
      sampler: "ancestral", "ddim", "heun" or "dpm_solver"; None: "ancestral" with `DiscreteDdpm`.
      steps: None: 250 of "ancestral", 64 of "ddim", 32 of the other two.
      churn: noise added on the way, for "heun"; None: none. eta: share of the noise of "ancestral"
        that "ddim" adds.
      percentile: of dynamic thresholding; None: estimates are clipped to the range of images, and
        not at all where the stage works on latents.
      learned_variance: the network tells the variance of a step of "ancestral" too; None: it is
        that of the posterior.
      latent: whether it works on what the task's tokenizer makes of images. latent_scale: what
        latents are multiplied by, one over their standard deviation.
      compat: "dalle2-pytorch": in training a self-conditioned network that predicts noise or v is
        shown what it predicted, though in sampling the estimate of the clean image, as in that
        package; None: the estimate in both.
    """

    lowres: Any = LowresBlur()
    noise: Any = DiscreteDdpm()
    percentile: float | None = None
    learned_variance: LearnedVariance | None = None
    latent: bool = False
    latent_scale: float = 1.0
    eta: float = 0.0
    compat: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.lowres, LowresBlur):
            raise UserError(f"stage.lowres={self.lowres!r} is no LowresBlur; give LowresBlur().")
        if self.learned_variance is not None and not isinstance(self.noise, DiscreteDdpm):
            raise UserError(
                f"stage.learned_variance needs whole timesteps and stage.noise is a "
                f"{type(self.noise).__name__}; give DiscreteDdpm(), or leave it out."
            )
        if self.compat is not None:
            one_of("stage.compat", self.compat, (COMPAT,))
            if not isinstance(self.noise, DiscreteDdpm):
                raise UserError(
                    f"stage.compat={self.compat!r} is of whole timesteps and stage.noise is a "
                    f"{type(self.noise).__name__}; leave it out."
                )
        if not (self.latent_scale > 0 and math.isfinite(self.latent_scale)):
            raise UserError(f"stage.latent_scale={self.latent_scale} is not above 0; try 1.0.")
        if not 0 <= self.eta <= 1:
            raise UserError(f"stage.eta={self.eta} is outside [0, 1]; try 0.")
        if self.latent and self.crop_size is not None:
            raise UserError(
                f"stage.crop_size={self.crop_size}: a tokenizer takes whole images; leave it out."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found, (sampler, _) = dict(super().idle_fields), stages.sampling_of(self)
        if sampler != "ddim":
            found["eta"] = f"sampler={sampler!r}, unless sampling names ddim"
        if not self.latent:
            found["latent_scale"] = "latent=False"
        if not self.unet.self_cond:
            found["compat"] = "unet.self_cond=False"
        return found

    @property
    def multiple(self) -> int:
        """The number of pixels of which the sides of its images are multiples; the task knows more
        of a stage on latents.
        """
        return 1 if self.latent else self.unet.multiple

    def levels(self, sampling: StageSampling) -> Array:
        """The falling levels of a sampling run; those of dalle2-pytorch's DDIM end at level 1, a
        little noise.
        """
        if sampling.compat != COMPAT or sampling.sampler != "ddim":
            return super().levels(sampling)
        return dalle2_ddim.decoder_levels(self.noise.timesteps, sampling.steps)

    def step(self, net: Net, sampling: StageSampling, scale: Scale) -> samplers.Step:
        """A step of the sampler that is asked for, with guidance and thresholds."""
        net = stages.guided(self.noise, net, sampling, scale)
        if self.learned_variance is not None and sampling.sampler == "ancestral":
            bounded = functools.partial(self._bounded, percentile=sampling.percentile)
            return learned_variance.ancestral(
                net,
                self.noise,
                self.learned_variance,
                bounded,
                self_conditioned=self.unet.self_cond,
            )
        denoise = self._bounded(self.plain(net), sampling.percentile)
        if sampling.sampler == "ddim":
            eta = self.eta if sampling.eta is None else sampling.eta
            step = samplers.ddim(denoise, self.noise, eta)
            return _still_at_the_end(step) if sampling.compat == COMPAT else step
        return stages.solver(denoise, self.noise, sampling)

    def plain(self, net: Net) -> Denoise:
        """The network's estimate of the clean image, without guidance and thresholds."""
        return super().plain(self.prediction_of(net))

    def prediction_of(self, net: Net) -> Net:
        """The network's prediction, without its output on variances."""
        if self.learned_variance is None:
            return net
        return lambda *inputs: learned_variance.halves(net(*inputs))[0]

    def clipped(self, x_BHWC: Array) -> Array:
        """The result of a sampling run, clipped to the range of images; latents as they are."""
        return x_BHWC if self.latent else super().clipped(x_BHWC)

    def _bounded(self, denoise: Denoise, percentile: float | None) -> Denoise:
        if percentile is not None:
            return threshold.dynamic(denoise, percentile)
        return denoise if self.latent else threshold.clamp(denoise)


def _still_at_the_end(step: samplers.Step) -> samplers.Step:
    """A step that adds no noise where it reaches level 1, as the package's DDIM does not."""

    def stilled(state, levels, normal):
        return step(state, levels, lambda: jnp.where(levels.next > 1, normal(), 0.0))

    return stilled


class Conditions(NamedTuple):
    """The inputs that condition a decoder, beside the noised image; None: it is not conditioned on
    that.

    Attributes:
      image_BD: image embeddings. text_BLE, mask_BL: encodings of captions and True at their tokens.
      keep_image_B, keep_text_B: False in rows that lose them in training; None: all are kept.
    """

    image_BD: Array | None = None
    text_BLE: Array | None = None
    mask_BL: Array | None = None
    keep_image_B: Array | None = None
    keep_text_B: Array | None = None


class DecoderDraws(NamedTuple):
    """The random numbers of a training step; None where a stage needs none.

    Attributes:
      level_B, eps_BHWC: of the noise. keep_image_B, keep_text_B: see `Conditions`.
      lowres: of the smaller image. guess: whether a self-conditioned network sees an estimate.
      corner_B2: where crops begin. keep_B: None, as the two masks above take its place.
    """

    level_B: Array
    eps_BHWC: Array
    keep_image_B: Array
    keep_text_B: Array
    lowres: LowresDraws | None = None
    guess: Array | None = None
    corner_B2: Array | None = None
    keep_B: None = None


def draw(
    stage: DecoderStage,
    key: Key,
    rows: int,
    shape: tuple[int, int, int],
    channels: int,
    drop_probs: tuple[float, float],
    *,
    lowres: bool,
) -> DecoderDraws:
    """The draws of a step.

    Args:
      shape: (H, W, C) of what is noised. channels: of the images.
      drop_probs: shares of the image embeddings and of the captions that are dropped.
    """
    of_level, of_eps, of_image, of_text, of_lowres, of_guess, of_corner = jax.random.split(key, 7)
    side = stage.crop_size or stage.image_size
    room = stage.image_size - side + 1
    keep_image, keep_text = (
        jax.random.bernoulli(one, 1 - prob, (rows,))
        for one, prob in zip((of_image, of_text), drop_probs, strict=True)
    )
    return DecoderDraws(
        stage.noise.train_levels(of_level, rows),
        jax.random.normal(of_eps, (rows, *shape)),
        keep_image,
        keep_text,
        stage.lowres.draws(of_lowres, (rows, side, side, channels)) if lowres else None,
        jax.random.bernoulli(of_guess, 0.5) if stage.unet.self_cond else None,
        jax.random.randint(of_corner, (rows, 2), 0, room) if stage.crop_size is not None else None,
    )


def losses(
    stage: DecoderStage,
    bind: Callable[..., Net],
    image_BHWC: Array,
    draws: DecoderDraws,
    previous: int | None,
    encode: Callable[[Array], Array],
) -> Array:
    """Loss (B,) of images in [-1, 1] (Ramesh et al. 2022, section 2.1).

    Args:
      bind: the network with its conditions, a function of `(lowres, lowres_condition)`; see
        `bound`.
      previous: side of the previous stage's images; None: this is the first stage.
      encode: from images to what the stage makes: latents, or the images as they are.
    """
    size = (stage.image_size, stage.image_size)
    x0, small, condition_B = resize(image_BHWC, size, stage.resize), None, None
    if previous is not None and draws.lowres is not None:
        small = image_BHWC
        if stage.lowres.downsample_first:
            small = stages.smaller(small, (previous, previous), stage.resize)
        small = stage.lowres.blurred(small, draws.lowres)
        small = stages.within_range(resize(small, size, stage.resize))
    if draws.corner_B2 is not None:
        x0 = stages.cut(x0, draws.corner_B2, stage)
        small = None if small is None else stages.cut(small, draws.corner_B2, stage)
    if small is not None and draws.lowres is not None:
        noised, condition_B = stage.lowres.noised(
            small, draws.lowres.level_B, draws.lowres.eps_BHWC
        )
        small = encode(noised)
    x0, net, last = encode(x0), bind(small, condition_B), ()
    if draws.guess is not None:
        whole = _undropped(stage.prediction_of(net))
        last = (stages.estimate(_shown(stage), whole, x0, draws),)
    x = stage.noise.add(x0, draws.eps_BHWC, draws.level_B)
    output = net(
        stage.noise.net_input(x, draws.level_B), stage.noise.condition(draws.level_B), None, *last
    )
    variance = stage.learned_variance
    if variance is None:
        return stage.noise.losses(output, x0, draws.eps_BHWC, draws.level_B)
    prediction, fraction = learned_variance.halves(output)
    plain = stage.noise.losses(prediction, x0, draws.eps_BHWC, draws.level_B)
    bits = variance.bound(
        prediction, fraction, stage.noise, x0, x, draws.level_B, of_latents=stage.latent
    )
    return plain + variance.weight * bits


def _shown(stage: DecoderStage) -> Noise:
    """The diffusion that makes, of an output, the estimate that a self-conditioned network is shown
    in training.
    """
    noise: Any = stage.noise
    # Reference quirk: whatever the network predicts passes for the clean image.
    return noise if stage.compat is None else dataclasses.replace(noise, objective="x_start")


def _undropped(net: Net) -> Net:
    """The network with all conditions, also in rows that lose them: in sampling too, what guidance
    starts from sees an estimate that was made with them.
    """
    return lambda x, condition_B, _=None, *last: net(
        x, condition_B, jnp.ones(x.shape[0], bool), *last
    )


def bound(
    unet: Any, params: Params, conditions: Conditions, negative: Conditions | None = None
) -> Callable[..., Net]:
    """A U-Net with its weights and conditions: `(lowres, lowres_condition) -> Net`.

    Args:
      negative: conditions in place of none in the half that guidance starts from.
    """

    def bind(lowres_BHWC=None, lowres_condition_B=None, cond_image_BHWC=None) -> Net:
        def net(x_BHWC, condition_B, keep_B=None, *last):
            rows = x_BHWC.shape[0]
            told, doubled = conditions, rows == 2 * _rows(conditions)
            if negative is not None and doubled:
                told = jax.tree.map(lambda *pair: jnp.concatenate(pair), conditions, negative)
                keep_B = None
            else:
                told = for_rows(told, rows) if _rows(told) else told
            keep_image, keep_text = (
                keep if keep_B is None else keep_B for keep in (told.keep_image_B, told.keep_text_B)
            )
            images = for_rows((lowres_BHWC, lowres_condition_B), rows)
            return unet.apply(
                {"params": params}, x_BHWC, condition_B, told.image_BD, told.text_BLE,
                told.mask_BL, keep_image, keep_text, *images, *last,
            )  # fmt: skip

        return net

    return bind


def _rows(conditions):
    """The number of rows of the conditions; 0: there are none."""
    return next((one.shape[0] for one in jax.tree.leaves(conditions)), 0)
