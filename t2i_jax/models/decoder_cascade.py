"""The U-Nets of a DALL-E 2 decoder as one value, and a factory that makes them agree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from t2i_jax.config import check, did_you_mean, fields_of
from t2i_jax.diffusion.discrete import BETAS, DiscreteDdpm
from t2i_jax.errors import UserError
from t2i_jax.models.decoder_unet import DecoderUnet
from t2i_jax.values import shown
from t2i_jax.words import counted


@dataclasses.dataclass(frozen=True)
class DecoderUnets:
    """The networks that dalle2-pytorch saves as one decoder; parameters are {"stage_1": ...,
    "stage_2": ...}, and "clip" where there is one.

    Attributes:
      unets: from small images to large ones. noises: the diffusion of each.
      clip: the network that embeds images and captions; None: it is saved elsewhere.
    """

    unets: tuple[DecoderUnet, ...]
    noises: tuple[DiscreteDdpm, ...] = ()
    clip: Any = None


def noise_of(betas: np.ndarray, weights: np.ndarray) -> DiscreteDdpm:
    """The diffusion whose betas (T,) and weights (T,) of the loss these are.

    Its objective and distance, which they do not tell, are those by default.

    Raises:
      UserError: betas or weights that no schedule and no exponent makes.
    """
    found, kind = None, _stored(betas)
    for schedule in BETAS:
        try:
            noise = DiscreteDdpm(len(betas), schedule)
        except UserError:  # so few timesteps that its betas are not below 1
            continue
        if np.allclose(noise.betas, betas, rtol=max(1e-4, float(kind.eps)), atol=1e-7):
            found = noise
            break
    if found is None:
        raise UserError(
            f"the weights hold {len(betas)} betas of no schedule known here; known: "
            f"{', '.join(BETAS)}."
        )
    gamma, k = _exponent(np.asarray(weights, np.float64), found.alpha_bar[1:], kind)
    return dataclasses.replace(found, p2_gamma=gamma, p2_k=k)


def _stored(values):
    """The properties of the narrowest type that holds all of these numbers: bfloat16 comes here as
    float32.
    """
    for kind in (ml_dtypes.bfloat16, np.float16):
        if np.array_equal(values.astype(kind).astype(values.dtype), values):
            return ml_dtypes.finfo(kind)
    return np.finfo(np.float32)


def _exponent(weights, bar, kind):
    """(gamma, k) of weights (k + SNR)^-gamma, to four digits behind the point; where 16 bits do not
    tell several apart, the one with the fewest digits.
    """
    snr = bar / (1 - bar)
    gamma, k = _unrounded(weights, snr, kind)
    digits = sorted(itertools.product(range(1, 5), repeat=2), key=sum)
    for pair in digits if kind.bits == 16 else digits[-1:]:
        found = round(gamma, pair[0]), round(k, pair[1])
        with np.errstate(divide="ignore"):  # k may be rounded to 0, and so may an SNR
            made = (found[1] + snr) ** -found[0]
        least = max(1e-8, float(kind.smallest_subnormal))
        if np.allclose(made, weights, rtol=max(1e-3, float(kind.eps)), atol=least):
            return found
    raise UserError(
        "the weights hold p2_loss_weight of no gamma and k; make the decoder with "
        "p2_loss_weight_gamma=0, as which it computes the same images."
    )


def _unrounded(weights, snr, kind):
    """Gamma of the first weight that is held in whole, where the SNR is far above k, and k of the
    last one, where it is below.
    """
    if np.allclose(weights, 1.0) or not (weights > 0).any():
        return 0.0, 1.0
    first, gamma, k = np.argmax(weights >= kind.smallest_normal), 0.0, 1.0
    for _ in range(50):
        gamma = float(-np.log(weights[first]) / np.log(k + snr[first]))
        k = float(max(weights[-1] ** (-1 / gamma) - snr[-1], 1e-4)) if gamma else 1.0
    return gamma, k


def buffers(noise: DiscreteDdpm) -> dict[str, np.ndarray]:
    """The arrays that dalle2-pytorch saves of a diffusion (dalle2_pytorch.py, `NoiseScheduler`),
    float32 (T,) each, by name.
    """
    betas, bar = noise.betas, noise.alpha_bar[1:]
    before = noise.alpha_bar[:-1]
    variance = betas * (1 - before) / (1 - bar)
    with np.errstate(divide="ignore"):  # of pure noise, with which "jsd" ends
        inverse = 1 / bar
    found = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(inverse),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(inverse - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
        "p2_loss_weight": (noise.p2_k + bar / (1 - bar)) ** -noise.p2_gamma,
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def cascade(
    image_sizes: Sequence[int], *, cross_attention_up_to: int | None = None, **fields: Any
) -> tuple[DecoderUnet, ...]:
    """U-Nets for images of these sizes that agree on what they are conditioned on.

        small, large = cascade((64, 256), dim=[128, 64], image_embed_dim=512,
                               cross_attention_up_to=32)

    The first makes images from nothing, the others enlarge (`lowres_cond`). With an
    `image_embed_dim` the first is conditioned on image embeddings, with a `text_embed_dim` on
    encodings of a text; the others are not, as in the paper, unless `fields` say so.

    Args:
      image_sizes: rising sides in pixels.
      cross_attention_up_to: levels whose feature maps have longer sides than this have no
        cross-attention: what they know of the conditions is added to the timestep. None: as
        `cross_attn` says.
      fields: of `DecoderUnet`; a list has one value per U-Net, anything else is for all.

    Raises:
      UserError: sizes that do not rise or that the levels do not divide, or a field that is none,
        is of another type or has not one value per U-Net.
    """
    sizes = _rising(image_sizes)
    if cross_attention_up_to is not None:
        _check_limit(cross_attention_up_to, fields)
    each = {name: _each(name, value, len(sizes)) for name, value in fields.items()}
    return tuple(
        _one(i, size, cross_attention_up_to, {name: own[i] for name, own in each.items()})
        for i, size in enumerate(sizes)
    )


def _rising(image_sizes):
    """The sizes as a tuple of numbers."""
    sizes = tuple(image_sizes) if isinstance(image_sizes, Iterable) else (image_sizes,)
    sizes = tuple(size.item() if isinstance(size, np.integer) else size for size in sizes)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(
                f"image_sizes={shown(image_sizes)} are not sides in pixels; give whole numbers "
                "from 1, for example (64, 256)."
            )
    if not sizes or list(sizes) != sorted(set(sizes)):
        raise UserError(f"image_sizes={sizes} do not rise; give them from small to large.")
    return sizes


def _check_limit(limit, fields):
    """Refuses a `cross_attention_up_to` that is no number of pixels, or that comes with fields that
    say the same.
    """
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 0:
        raise UserError(
            f"cross_attention_up_to={shown(limit)} is not a side in pixels; give a whole number, 0 "
            "for no cross-attention."
        )
    if fields.get("cross_attn") is not None:
        raise UserError(
            f"cross_attn={fields['cross_attn']} and cross_attention_up_to={limit} both say which "
            "levels have cross-attention; give one of them."
        )


def _each(name, value, count):
    """The values of a field, one for each U-Net."""
    known = fields_of(DecoderUnet)
    if name not in known:
        raise UserError(f"DecoderUnet has no field {name!r}; {did_you_mean(name, known)}")
    own = value if isinstance(value, list) else [value] * count
    if len(own) != count:
        raise UserError(
            f"{name}={value} has {counted(len(own), 'value')} for {counted(count, 'U-Net')}; give "
            "one for each, or one for all."
        )
    own = [one.item() if isinstance(one, np.generic) else one for one in own]
    for one in own:
        check(DecoderUnet, name, one)
    return own


def _one(i, size, limit, fields):
    first = i == 0
    usual = {
        "lowres_cond": not first,
        "cond_on_image_embeds": first and fields.get("image_embed_dim") is not None,
        "cond_on_text_encodings": first and fields.get("text_embed_dim") is not None,
    }
    unet = DecoderUnet(**{**usual, **fields})
    if unet.lowres_cond == first:
        raise UserError(
            f"lowres_cond={unet.lowres_cond} of U-Net {i + 1}, and only the first one enlarges "
            "nothing; leave it out."
        )
    if size % unet.multiple:
        raise UserError(
            f"image_sizes has {size}, which is not a multiple of {unet.multiple}, as the levels of "
            f"U-Net {i + 1} need; try {max(size // unet.multiple, 1) * unet.multiple}."
        )
    if limit is None:
        return unet
    shrunk = range(unet.memory_efficient, len(unet.dim_mults) + unet.memory_efficient)
    allowed = tuple(size // 2**n <= limit for n in shrunk)
    return unet.clone(parent=None, cross_attn=allowed)
