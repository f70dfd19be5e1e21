"""The compiled program with which one stage of a decoder makes images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.diffusion.draws import gaussian
from t2i_jax.nn.resample import resize
from t2i_jax.systems import captions, prompting
from t2i_jax.systems.cascade import stage as cascade
from t2i_jax.systems.cascade.stage import StageSampling
from t2i_jax.systems.decoder import latents
from t2i_jax.systems.decoder import stage as stages
from t2i_jax.systems.decoder.stage import Conditions
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.decoder.task import DecoderTask


def clip_weights(frozen: Mapping[str, Any]) -> Params:
    """The parameters of CLIP among what a step reads and never changes."""
    return frozen["clip"]["clip"]


@functools.partial(Program, static_argnames=("task", "number", "size", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: DecoderTask,
    number: int,
    size: tuple[int, int],
    sampling: StageSampling,
    guidance: Array | float = 1.0,
    lowres_level: Array | float | None = None,
) -> Array:
    """Images (B, *size, C) in [-1, 1] of one stage.

    One compiled program per task, stage, sampling and shapes.

    Args:
      params: of the stage's group. frozen: as in training; the tokenizer of a stage on latents.
      prompt: "image_embeds" (B, D); "encodings" (B, L, E) and "encodings_mask" of captions, or
        "text" and "text_mask" for a jointly trained text encoder, and the same with the
        prefix "negative_"; "small": images in [-1, 1] of the previous stage; "init":
        images in [-1, 1] of any size, "keep": bool (B, H, W), True where they are known; of
        latents those are known all of whose pixels are.
      keys_B: one key per image. guidance: one scale, or one per image.
      lowres_level: share of the timesteps of the noise on "small"; None: the stage's own.
    """
    stage, (encode, decode) = task.stage(number), task.latents_of(number, frozen)
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)
    if task.learns_text(number):
        prompt = {**prompt, **_embedded(task.text, params, prompt)}
    bind = stages.bound(stage.unet, params["unet"], *_conditions(prompt, len(keys_B)))
    shape = (keys_B.shape[0], *task.made_shape(number, size))
    if "small" in prompt:
        bind = _enlarging(stage, bind, encode, prompt["small"], size, keys_B, lowres_level)
    more: dict[str, Any] = {}
    if "init" in prompt:
        more["init_BHWC"] = encode(resize(prompt["init"], size, stage.resize))
    if "keep" in prompt:
        known = functools.partial(cascade.known, mode="nearest")
        more["keep_BHW"] = (latents.kept if stage.latent else known)(prompt["keep"], shape[1:3])
    made = cascade.run(stage, bind, sampling, shape, gaussian(keys_B), guidance, **more)
    return sharding.constrain(decode(made), None, None, None, None)  # whole in every process


def _embedded(text, params, prompt):
    """Encodings of the captions, and of the negative ones, by the encoder of the stage."""
    found, negative = {}, prompting.negative_of(prompt)
    for prefix, arrays in (("", prompt), *((("negative_", negative),) if negative else ())):
        found[f"{prefix}encodings"] = captions.embed(text, params, None, arrays)
        found[f"{prefix}encodings_mask"] = arrays["text_mask"]
    return found


def _conditions(prompt, rows):
    """The conditions, and those in place of none where there are negative captions."""

    def of(prefix, **keep):
        text, mask = (prompt.get(f"{prefix}{name}") for name in ("encodings", "encodings_mask"))
        return Conditions(prompt.get("image_embeds"), text, mask, **keep)

    if "negative_encodings" not in prompt:
        return (of(""),)
    kept = jnp.ones(rows, bool)
    image = kept if "image_embeds" in prompt else None
    dropped = None if image is None else ~kept
    return of("", keep_image_B=image), of("negative_", keep_image_B=dropped)


def _enlarging(stage, bind, encode, small_BHWC, size, keys_B, level):
    """The network with the images of the previous stage, enlarged and noised."""
    enlarged = cascade.within_range(resize(small_BHWC, size, stage.resize))
    for_small = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(keys_B)
    eps = gaussian(for_small)(0, enlarged)
    lowres_BHWC, condition_B = stage.lowres.for_sampling(enlarged, eps, level)
    return lambda *_: bind(encode(lowres_BHWC), condition_B)
