"""`Decoder`: a decoder by the argument names and defaults of dalle2-pytorch 1.15.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i_jax.diffusion.blur import LowresBlur
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.diffusion.learned_variance import LearnedVariance
from t2i_jax.errors import UserError
from t2i_jax.systems.cascade.options import per_stage, tell_unused
from t2i_jax.systems.decoder.stage import DecoderStage
from t2i_jax.systems.decoder.task import DecoderTask

Flags = bool | Sequence[bool]  # one for all U-Nets, or one for each


def Decoder(
    unet: Any,
    *,
    clip: Any = None,
    image_size: int | None = None,
    image_sizes: Sequence[int] | None = None,
    channels: int = 3,
    timesteps: int = 1000,
    sample_timesteps: Any = None,
    cond_drop_prob: float | None = None,
    image_cond_drop_prob: float = 0.1,
    text_cond_drop_prob: float = 0.5,
    loss_type: str = "l2",
    beta_schedule: Any = None,
    predict_x_start: Flags = False,
    predict_v: Flags = False,
    random_crop_sizes: Any = None,
    use_noise_for_lowres_cond: Flags = False,
    use_blur_for_lowres_cond: Flags = True,
    lowres_downsample_first: bool = True,
    blur_prob: float = 0.5,
    blur_sigma: Any = 0.6,
    blur_kernel_size: Any = 3,
    lowres_noise_sample_level: float = 0.2,
    learned_variance: Flags = True,
    learned_variance_constrain_frac: bool = False,
    vb_loss_weight: float = 0.001,
    unconditional: bool = False,
    use_dynamic_thres: bool = False,
    dynamic_thres_percentile: float = 0.95,
    p2_loss_weight_gamma: Any = 0.0,
    p2_loss_weight_k: float = 1.0,
    ddim_sampling_eta: float = 0.0,
    image_embed_dim: int | None = None,
    text: Any = None,
    compat: str | None = None,
) -> DecoderTask:
    """A decoder (dalle2_pytorch.py, class `Decoder`); as there the first U-Net is conditioned on
    image embeddings, and the others are not unless they say so.

    "Any" and "Flags" are one value, or one per U-Net; a short tuple for `learned_variance`
    leaves the rest without, and one True is for the first U-Net alone.

    Args:
      unet: one `DecoderUnet` or several, from small to large. clip: the network, for its image
        size; its weights are a part of the recipe.
      image_size, image_sizes: side of the images, or one per U-Net; None: that of `clip`.
      timesteps: of training. sample_timesteps: of sampling, by DDIM where they are fewer.
      cond_drop_prob: of images and captions both, the name of early releases.
      beta_schedule: see `DiscreteDdpm`; None: "cosine", and "linear" for the last of several.
      unconditional: there are no conditions.
      image_embed_dim, text: see `DecoderTask`. compat: "dalle2-pytorch" of `DecoderStage`, where
        its network is self-conditioned, and of `LearnedVariance`, so that losses are the package's;
        None: of neither. The others: see `DiscreteDdpm` (objective, distance, p2), `LowresBlur`,
        `LearnedVariance` and `DecoderStage`.

    Raises:
      UserError: values of another number than U-Nets, or of no use.
    """
    unets = unet if isinstance(unet, (tuple, list)) else (unet,)
    count = len(unets)
    sizes = _sizes(image_size, image_sizes, clip, count)

    def each(name, value):
        return per_stage(name, value, count)

    if beta_schedule is None:
        beta_schedule = ["cosine"] * (count - (count > 1)) + ["linear"] * (count > 1)
    learned = (
        learned_variance if isinstance(learned_variance, (tuple, list)) else [learned_variance]
    )
    tell_unused("learned_variance", learned, count)
    learned = [*learned, *[False] * (count - len(learned))]
    variance = LearnedVariance(vb_loss_weight, learned_variance_constrain_frac, compat)
    noises = each("use_noise_for_lowres_cond", _shifted(use_noise_for_lowres_cond, count))
    blurs = each("use_blur_for_lowres_cond", _shifted(use_blur_for_lowres_cond, count))
    objectives = [
        "v" if v else "x_start" if x else "noise"
        for v, x in zip(
            each("predict_v", predict_v), each("predict_x_start", predict_x_start), strict=True
        )
    ]
    steps = each("sample_timesteps", sample_timesteps)
    crops = each("random_crop_sizes", random_crop_sizes)
    betas = each("beta_schedule", beta_schedule)
    gammas = each("p2_loss_weight_gamma", p2_loss_weight_gamma)
    stages = [
        DecoderStage(
            _conditioned(one, i, unconditional),
            sizes[i],
            noise=DiscreteDdpm(
                timesteps, betas[i], objectives[i], loss_type, float(gammas[i]), p2_loss_weight_k
            ),
            lowres=LowresBlur(
                blur_prob if blurs[i] else 0.0,
                blur_sigma,
                blur_kernel_size,
                bool(noises[i]) and i > 0,
                lowres_noise_sample_level,
                lowres_downsample_first,
            ),
            crop_size=crops[i],
            resize="nearest",
            sampler="ddim" if steps[i] is not None and steps[i] < timesteps else "ancestral",
            steps=timesteps if steps[i] is None else steps[i],
            percentile=dynamic_thres_percentile if use_dynamic_thres else None,
            learned_variance=variance if learned[i] else None,
            eta=ddim_sampling_eta,
            compat=compat if one.self_cond else None,
        )
        for i, one in enumerate(unets)
    ]
    return DecoderTask(
        tuple(stages),
        clip,
        image_embed_dim=image_embed_dim,
        text=text,
        image_cond_drop_prob=image_cond_drop_prob if cond_drop_prob is None else cond_drop_prob,
        text_cond_drop_prob=text_cond_drop_prob if cond_drop_prob is None else cond_drop_prob,
        channels=channels,
    )


def _sizes(image_size, image_sizes, clip, count):
    if (image_size is not None) and (image_sizes is not None):
        raise UserError(
            f"image_size={image_size} and image_sizes={image_sizes} are both given; give one."
        )
    if image_sizes is None:
        if image_size is None and clip is None:
            raise UserError("image_size=None, and there is no clip to tell it; give image_size.")
        image_sizes = (clip.image_size if image_size is None else image_size,)
    if len(image_sizes) != count:
        raise UserError(
            f"image_sizes={tuple(image_sizes)} has {len(image_sizes)} sizes for {count} U-Nets; "
            "give one for each."
        )
    return tuple(image_sizes)


def _shifted(value, count):
    """A value for all stages; a tuple that leaves out the first stage has False there."""
    if isinstance(value, (tuple, list)) and len(value) == count - 1:
        return (False, *value)
    return value


def _conditioned(unet, i, unconditional):
    """The U-Net with the conditions that it has in the package's decoder."""
    fields = {}
    if unconditional:
        fields = {"cond_on_image_embeds": False, "cond_on_text_encodings": False}
    elif i == 0 and not unet.cond_on_image_embeds:
        fields = {"cond_on_image_embeds": True}
        if unet.image_embed_dim is None:
            raise UserError("unet.image_embed_dim=None; give the width of CLIP's embeddings.")
    return unet.clone(parent=None, **fields) if fields else unet
