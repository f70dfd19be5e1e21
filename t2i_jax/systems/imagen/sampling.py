"""The compiled program with which one stage of a cascade makes images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.diffusion.draws import gaussian
from t2i_jax.systems import prompting
from t2i_jax.systems.cascade import stage as stages
from t2i_jax.systems.cascade.stage import StageSampling
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.imagen.task import ImagenTask


@functools.partial(Program, static_argnames=("task", "number", "size", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: ImagenTask,
    number: int,
    size: tuple[int, int],
    sampling: StageSampling,
    guidance: Array | float = 1.0,
    lowres_level: Array | float | None = None,
) -> Array:
    """Images (B, *size, C) in [-1, 1] of one stage.

    One compiled program per task, stage, sampling and shapes.

    Args:
      params: of the stage's group. frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask" where there are texts; the same with the
        prefix "negative_"; "dropped": bool (B,), True in rows whose text is replaced by the learnt
        null; "small": images in [-1, 1] of the previous stage; "init": images in [-1, 1] of any
        size, "keep": bool (B, H, W), True where they are known; "cond_image": uint8 of any size.
      keys_B: one key per image. guidance: one scale, or one per image.
      lowres_level: of the noise on "small"; None: the stage's own.
    """
    stage = dataclasses.replace(task.stages[number - 1], unet=task.networks[number - 1])
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
    text = task.embed(params, frozen, prompt)
    negative = prompting.negative_of(prompt)
    against = task.embed(params, frozen, negative) if negative else None
    keep_B = jnp.logical_not(prompt["dropped"]) if "dropped" in prompt else None
    bind = stages.bound(stage.unet, params["unet"], text, against, keep_B)
    shape = (keys_B.shape[0], *size, task.channels)
    small = None
    if "small" in prompt:
        for_small = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(keys_B)
        small = prompt["small"], gaussian(for_small)(0, jnp.zeros(shape)), lowres_level
    more: dict[str, Any] = {"cond_image_BHWC": stages.cond_image_of(stage.unet, prompt)}
    if "init" in prompt:
        more["init_BHWC"] = stages.resize(prompt["init"], size, stage.resize)
    if "keep" in prompt:
        # Reference quirk: the mask is resized as images are.
        mode = stage.resize if sampling.compat else "nearest"
        more["keep_BHW"] = stages.known(prompt["keep"], size, mode)
    images = stages.run(
        stage, bind, sampling, shape, gaussian(keys_B), guidance, small=small, **more
    )
    return sharding.constrain(images, None, None, None, None)  # whole in every process
