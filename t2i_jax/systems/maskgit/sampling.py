"""The compiled program with which MaskGIT makes images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.decoding import masked
from t2i_jax.decoding.masked import Sampling
from t2i_jax.models import image_tokenizer
from t2i_jax.systems import generation
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


class Inputs(NamedTuple):
    """What the networks are given.

    Attributes:
      ids_BN: tokens of the images. embeds_BLD, mask_BL: text, and True where it is no padding.
      cond_ids_BM: tokens of smaller images; None: there are none.
    """

    ids_BN: Array
    embeds_BLD: Array
    mask_BL: Array
    cond_ids_BM: Array | None


@functools.partial(
    jax.jit, static_argnames=("task", "sampling", "edit_steps", "use_critic", "guide_self_critic")
)
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: MaskGitTask,
    sampling: Sampling,
    critic: Params | None = None,
    use_critic: bool = False,
    guide_self_critic: bool = True,
    edit_steps: int | None = None,
    **numbers: Array | float,
) -> tuple[Array, Array, Array | None]:
    """Tokens (B, N), those at the end of every step (steps, B, N) and, with a tokenizer, the uint8
    images.

    One compiled program per task, sampling and shapes.

    Args:
      params: of the group "maskgit". frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask"; the same with the prefix "negative_" for
        what the image should not show (None given: guidance starts from no text); "init" (uint8
        images) with "known" (B, N) bool, True for tokens to keep of them, or without, to change
        all of them; "cond" (uint8 images) or "cond_ids" (B, M) for super-resolution.
      keys_B: one key per image.
      critic: parameters of the group "critic". use_critic: a critic says what is masked again.
        guide_self_critic: also the scores of a `SelfCritic` are guided.
      edit_steps: see `MaskGitOptions`. numbers: guidance and all else that `masked.generate` takes.
    """
    batch, network = keys_B.shape[0], task.network
    own, small = task.tokenizers
    embeds_BLD, mask_BL, keep_B = _texts(params, frozen, prompt, batch, task, sampling.guided)
    cond_BM = prompt.get("cond_ids")
    if "cond" in prompt:
        cond_BM = image_tokenizer.tokens(small, frozen["tokenizer"], prompt["cond"])
    if cond_BM is not None and sampling.guided:
        cond_BM = jnp.concatenate([cond_BM, cond_BM])
    variables = {"params": params["decoder"]}

    def embed(ids_BN, before=None):
        inputs = (embeds_BLD, mask_BL, keep_B, cond_BM, before)
        return network.apply(variables, ids_BN, *inputs, method="embed")

    def predict(ids_BN, before):
        if before is not None and sampling.guided:
            before = jnp.concatenate([before, before])
        vectors = embed(ids_BN, before)
        logits = network.apply(variables, vectors, method="logits")
        return logits, vectors[:batch] if network.self_cond else None

    def guided(scores_BN):
        if not sampling.guided:
            return scores_BN
        scale = numbers.get("guidance", 1.0)
        return scores_BN[batch:] + (scores_BN[:batch] - scores_BN[batch:]) * scale

    def judge(ids_BN):
        rows_BN = jnp.concatenate([ids_BN, ids_BN]) if sampling.guided else ids_BN
        if task.token_critic is not None:
            inputs = (embeds_BLD, mask_BL, keep_B, cond_BM)
            return guided(task.token_critic.apply({"params": critic}, rows_BN, *inputs))
        scores_BN = task.critic.apply({"params": params["critic"]}, embed(rows_BN))
        return guided(scores_BN) if guide_self_critic else scores_BN[:batch]

    memory = None
    if network.self_cond:
        memory = jnp.zeros((batch, network.num_tokens, network.dim), network.dtype)
    given_BN = None
    if "init" in prompt:
        given_BN = image_tokenizer.tokens(own, frozen[task.own_tokenizer], prompt["init"])
    size = (keys_B, network.num_tokens, network.mask_id)
    if edit_steps is not None and given_BN is not None:
        ids_BN, trace = masked.edit(
            predict, *size, given_BN, steps=edit_steps, sampling=sampling, memory=memory, **numbers
        )
    else:
        ids_BN, trace = masked.generate(
            predict, *size, sampling=sampling, memory=memory, given_BN=given_BN,
            critic=judge if use_critic else None, known_BN=prompt.get("known"), **numbers,
        )  # fmt: skip
    if own is None:
        return ids_BN, trace, None
    images = image_tokenizer.pixels(own, frozen[task.own_tokenizer], ids_BN)
    # whole in every process
    return ids_BN, trace, sharding.constrain(images, None, None, None, None)


def _texts(params, frozen, prompt, batch, task, guided):
    """(embeddings, their mask, keep_B); where it is guided of twice as many rows, the second half
    without text or with the negative one.
    """
    embeds_BLD, mask_BL = task.embed(params, frozen, prompt, batch)
    negative = generation.negative_of(prompt)
    if guided and negative:
        other_BLD, other_BL = task.embed(params, frozen, negative, batch)
        return (
            jnp.concatenate([embeds_BLD, other_BLD]),
            jnp.concatenate([mask_BL, other_BL]),
            None,
        )
    if guided:
        keep_B = jnp.arange(2 * batch) < batch
        return jnp.concatenate([embeds_BLD] * 2), jnp.concatenate([mask_BL] * 2), keep_B
    return embeds_BLD, mask_BL, None
