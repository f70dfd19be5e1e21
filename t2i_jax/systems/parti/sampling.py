"""The compiled program with which Parti makes images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.decoding import autoregressive
from t2i_jax.decoding.autoregressive import Sampling
from t2i_jax.models import image_tokenizer
from t2i_jax.systems import prompting
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.parti.task import PartiTask


@functools.partial(Program, static_argnames=("task", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: PartiTask,
    sampling: Sampling,
    guidance: Array | float = 3.0,
    temperature: Array | float = 1.0,
    plausibility: Array | float = 0.0,
) -> tuple[Array, Array | None]:
    """Tokens (B, N) and, with a tokenizer, their uint8 images.

    One compiled program per task, sampling and shapes.

    Args:
      params: of the group "parti". frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask"; the same with the prefix "negative_" for
        what the image should not show (None given: guidance starts from no text); "init" (uint8
        images) and "known" (B, N) bool, True for tokens to keep of them.
      keys_B: one key per image. guidance, temperature, plausibility: see `PartiOptions`; a
        plausibility of 0 is none.
    """
    batch, network = keys_B.shape[0], task.network
    embeds_BLD, mask_BL = task.embed(params, frozen, prompt), prompt["text_mask"]
    keep_B = None
    negative = prompting.negative_of(prompt)
    if sampling.guided and negative:
        embeds_BLD = jnp.concatenate([embeds_BLD, task.embed(params, frozen, negative)])
        mask_BL = jnp.concatenate([mask_BL, negative["text_mask"]])
    elif sampling.guided:
        embeds_BLD, mask_BL = (jnp.concatenate([t, t]) for t in (embeds_BLD, mask_BL))
        keep_B = jnp.arange(2 * batch) < batch
    variables = {"params": params["decoder"]}
    given_BN = None
    if "init" in prompt:
        given_BN = image_tokenizer.tokens(task.tokenizer, frozen["tokenizer"], prompt["init"])
    ids_BN = autoregressive.generate(
        lambda ids_B, position, cache: network.apply(
            variables, ids_B, position, cache, method="decode"
        ),
        network.apply(
            variables,
            embeds_BLD,
            mask_BL,
            keep_B,
            autoregressive.cache_lengths(network.num_tokens)[0],
            method="init_cache",
        ),
        keys_B,
        network.num_tokens,
        sampling=sampling,
        grow=network.grow_cache,
        guidance=guidance,
        temperature=temperature,
        plausibility=plausibility,
        given_BN=given_BN,
        known_BN=prompt.get("known"),
    )
    if task.tokenizer is None:
        return ids_BN, None
    images = image_tokenizer.pixels(task.tokenizer, frozen["tokenizer"], ids_BN)
    return ids_BN, sharding.constrain(images, None, None, None, None)  # whole in every process
