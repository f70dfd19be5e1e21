"""`Imagen` and `ElucidatedImagen`: cascades by the argument names and defaults of imagen-pytorch
2.1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.samplers import Churn
from t2i_jax.errors import UserError
from t2i_jax.systems.cascade.options import per_stage, tell_unused
from t2i_jax.systems.cascade.stage import Stage
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.systems.imported import LONGEST_TEXT
from t2i_jax.text.t5 import DEFAULT_NAME, T5Text
from t2i_jax.values import Signed


def Imagen(
    unets: Any,
    *,
    image_sizes: int | Sequence[int],
    text: Any = None,
    text_encoder_name: str = DEFAULT_NAME,
    condition_on_text: bool = True,
    channels: int = 3,
    timesteps: int | Sequence[int] = 1000,
    cond_drop_prob: float = 0.1,
    loss_type: str = "l2",
    noise_schedules: str | Sequence[str] = "cosine",
    pred_objectives: str | Sequence[str] = "noise",
    min_snr_loss_weight: bool | Sequence[bool] = True,
    min_snr_gamma: float | Sequence[float] = 5,
    random_crop_sizes: int | Sequence[int | None] | None = None,
    lowres_noise_schedule: str = "linear",
    lowres_sample_noise_level: float = 0.2,
    per_sample_random_aug_noise_level: bool = False,
    dynamic_thresholding: bool | Sequence[bool] = True,
    dynamic_thresholding_percentile: float = 0.95,
    resize_mode: str = "nearest",
    only_train_unet_number: int | None = None,
) -> ImagenTask:
    """A cascade with DDPM (imagen_pytorch.py, class `Imagen`).

    What is said to be "any" is one value, or one per U-Net.

    Args:
      unets: one `Unet` or several, from small to large. image_sizes: sides of their images.
      text: `LearnedText`, `T5Text` or `StoredText`; None: the T5 named `text_encoder_name`, a
        folder or hub name, of captions of up to 256 tokens.
      condition_on_text: False: no texts at all.
      timesteps: steps of ancestral sampling. cond_drop_prob: share of the captions dropped in
        training.
      noise_schedules: "cosine" or "linear"; missing ones are "cosine" for the first two stages,
        "linear" after.
      the others: see `Ddpm` (objective, weighting, distance), `Stage` (crop_size, percentile,
        resize) and `LowresNoise`.

    Raises:
      UserError: values of another number than U-Nets, or of no use.
    """
    unets = _tuple(unets)
    given = list(_tuple(noise_schedules))
    tell_unused("noise_schedules", given, len(unets))
    given += ["cosine"] * (2 - len(given))
    given += ["linear"] * (len(unets) - len(given))

    def each(name, value):
        return per_stage(name, value, len(unets))

    lowres = LowresNoise(
        lowres_noise_schedule, lowres_sample_noise_level, per_sample_random_aug_noise_level
    )
    stages = [
        Stage(
            unet,
            size,
            noise=Ddpm(
                schedule=schedule,
                objective=objective,
                weighting="min_snr" if capped else "snr",
                min_snr_gamma=float(gamma),
                distance=loss_type,
            ),
            lowres=lowres,
            crop_size=crop,
            resize=resize_mode,
            sampler="ancestral",
            steps=steps,
            percentile=dynamic_thresholding_percentile if dynamic else None,
        )
        for unet, size, schedule, objective, capped, gamma, crop, dynamic, steps in zip(
            unets,
            each("image_sizes", image_sizes),
            given,
            each("pred_objectives", pred_objectives),
            each("min_snr_loss_weight", min_snr_loss_weight),
            each("min_snr_gamma", min_snr_gamma),
            each("random_crop_sizes", random_crop_sizes),
            each("dynamic_thresholding", dynamic_thresholding),
            each("timesteps", timesteps),
        )
    ]
    text = _text(text, text_encoder_name, condition_on_text)
    return _task(stages, text, cond_drop_prob, channels, only_train_unet_number)


def ElucidatedImagen(
    unets: Any,
    *,
    image_sizes: int | Sequence[int],
    text: Any = None,
    text_encoder_name: str = DEFAULT_NAME,
    condition_on_text: bool = True,
    channels: int = 3,
    cond_drop_prob: float = 0.1,
    random_crop_sizes: int | Sequence[int | None] | None = None,
    lowres_noise_schedule: str = "linear",
    lowres_sample_noise_level: float = 0.2,
    per_sample_random_aug_noise_level: bool = False,
    dynamic_thresholding: bool | Sequence[bool] = True,
    dynamic_thresholding_percentile: float = 0.95,
    resize_mode: str = "nearest",
    only_train_unet_number: int | None = None,
    num_sample_steps: int | Sequence[int] = 32,
    sigma_min: float | Sequence[float] = 0.002,
    sigma_max: float | Sequence[float] = 80,
    sigma_data: float | Sequence[float] = 0.5,
    rho: float | Sequence[float] = 7,
    P_mean: Signed | Sequence[Signed] = -1.2,
    P_std: float | Sequence[float] = 1.2,
    S_churn: float | Sequence[float] = 80,
    S_tmin: float | Sequence[float] = 0.05,
    S_tmax: float | Sequence[float] = 50,
    S_noise: float | Sequence[float] = 1.003,
) -> ImagenTask:
    """A cascade with the diffusion of Karras et al. 2022 (elucidated_imagen.py, class
    `ElucidatedImagen`).

    Args:
      num_sample_steps: of Heun's method. sigma_min to P_std: see `Edm`. S_churn to S_noise: see
        `Churn`. All of them one value, or one per U-Net. The others are those of `Imagen`.

    Raises:
      UserError: values of another number than U-Nets, or of no use.
    """
    unets = _tuple(unets)

    def each(name, value):
        return per_stage(name, value, len(unets))

    edm = dict(
        sigma_data=sigma_data,
        P_mean=P_mean,
        P_std=P_std,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
    )
    churn = dict(amount=S_churn, low=S_tmin, high=S_tmax, scale=S_noise)

    def of(values, i):
        return {name: float(each(name, value)[i]) for name, value in values.items()}

    lowres = LowresNoise(
        lowres_noise_schedule, lowres_sample_noise_level, per_sample_random_aug_noise_level
    )
    stages = [
        Stage(
            unet,
            size,
            noise=Edm(**of(edm, i)),
            lowres=lowres,
            crop_size=crop,
            resize=resize_mode,
            sampler="heun",
            steps=steps,
            churn=Churn(**of(churn, i)),
            percentile=dynamic_thresholding_percentile if dynamic else None,
        )
        for i, (unet, size, crop, dynamic, steps) in enumerate(
            zip(
                unets,
                each("image_sizes", image_sizes),
                each("random_crop_sizes", random_crop_sizes),
                each("dynamic_thresholding", dynamic_thresholding),
                each("num_sample_steps", num_sample_steps),
            )
        )
    ]
    text = _text(text, text_encoder_name, condition_on_text)
    return _task(stages, text, cond_drop_prob, channels, only_train_unet_number)


def _task(stages, text, cond_drop_prob, channels, only):
    return ImagenTask(
        tuple(stages),
        text,
        cond_drop_prob,
        channels,
        train_stages=None if only is None else (only,),
    )


def _text(text, name, condition_on_text):
    if not condition_on_text:
        if text is not None:
            raise UserError("condition_on_text=False has no use for text; leave one of them out.")
        return None
    return T5Text.from_directory(name, LONGEST_TEXT) if text is None else text


def _tuple(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
