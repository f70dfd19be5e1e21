"""The compiled program with which MaskGIT makes images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.decoding import masked
from t2i_jax.decoding.masked import Sampling
from t2i_jax.models import image_tokenizer
from t2i_jax.systems import prompting
from t2i_jax.systems.maskgit import previews as handed_out
from t2i_jax.systems.maskgit.windows import Windows, slide
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


class Inputs(NamedTuple):
    """The inputs of the networks.

    Attributes:
      ids_BN: tokens of the images. embeds_BLD, mask_BL: text, and True where it is no padding.
      cond_ids_BM: tokens of smaller images; None: there are none.
    """

    ids_BN: Array
    embeds_BLD: Array
    mask_BL: Array
    cond_ids_BM: Array | None


class Sampled(NamedTuple):
    """The results of `generate`.

    Attributes:
      ids_BN: tokens. trace_SBN: those at the end of every step; of windows: after every window,
        `mask_id` where none is drawn yet.
      given_BN: tokens of the images that were given; None: none were.
      images_BHWC: uint8; None without a tokenizer.
    """

    ids_BN: Array
    trace_SBN: Array
    given_BN: Array | None
    images_BHWC: Array | None


@functools.partial(
    Program,
    static_argnames=(
        "task", "sampling", "windows", "edit_steps", "use_critic", "guide_self_critic", "previews",
    ),
)  # fmt: skip
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: MaskGitTask,
    sampling: Sampling,
    windows: Windows | None = None,
    critic: Params | None = None,
    use_critic: bool = False,
    guide_self_critic: bool = True,
    edit_steps: int | None = None,
    previews: bool = False,
    **numbers: Array | float,
) -> Sampled:
    """Tokens and, with a tokenizer, images.

    One compiled program per task, sampling and shapes.

    Args:
      params: of the group "maskgit". frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask"; the same with the prefix "negative_" for
        what the image should not show (None given: guidance starts from no text); "init" (uint8
        images) with "known" (B, N) bool, True for tokens to keep of them, or without, to change
        all of them; "cond" (uint8 images) or "cond_ids" (B, M) for super-resolution.
      keys_B: one key per image.
      windows: over images larger than those of training, of which all of the prompt then are; None:
        images as trained.
      critic: parameters of the group "critic". use_critic: a critic says what is masked again.
        guide_self_critic: also the scores of a `SelfCritic` are guided.
      edit_steps: mask-free editing of "init", see `MaskGitOptions`. previews: the images of every
        step, or with windows after every window, are handed out while it runs, see `previews.tell`.
      numbers: guidance and all else that `masked.generate` and `masked.edit` take.
    """
    batch, network = keys_B.shape[0], task.network
    own, small = task.tokenizers
    texts = _texts(params, frozen, prompt, batch, task, sampling.guided)
    cond_BM, given_BN = prompt.get("cond_ids"), None
    if "cond" in prompt:
        cond_BM = image_tokenizer.tokens(small, frozen["tokenizer"], prompt["cond"])
    if "init" in prompt:
        given_BN = image_tokenizer.tokens(own, frozen[task.own_tokenizer], prompt["init"])

    grid = None if windows is None else windows.grid
    tell = None
    if previews and own is not None:
        weights = frozen[task.own_tokenizer]
        tell = functools.partial(handed_out.tell, own, weights, network.mask_id, grid)

    def draw(keys_B, cond_BM, given_BN, known_BN):
        predict, score = _networks(
            params, critic, task, texts, cond_BM, sampling.guided, guide_self_critic,
            numbers.get("guidance", 1.0),
        )  # fmt: skip
        memory = None
        if network.self_cond:
            memory = jnp.zeros((batch, network.num_tokens, network.dim), network.dtype)
        size = (keys_B, network.num_tokens, network.mask_id)
        same = {"sampling": sampling, "memory": memory, "known_BN": known_BN, **numbers}
        same["tell"] = tell if windows is None else None
        same["logits"] = functools.partial(
            network.apply, {"params": params["decoder"]}, method="logits"
        )
        if edit_steps is not None:
            return masked.edit(predict, *size, given_BN, steps=edit_steps, **same)
        score = score if use_critic else None
        return masked.generate(predict, *size, critic=score, given_BN=given_BN, **same)

    known_BN = prompt.get("known")
    if windows is None:
        ids_BN, trace_SBN = draw(keys_B, cond_BM, given_BN, known_BN)
    else:
        ids_BN, trace_SBN = slide(
            windows, lambda *each: draw(*each)[0], keys_B, network.mask_id,
            cond_BM=cond_BM, given_BN=given_BN, known_BN=known_BN, tell=tell,
        )  # fmt: skip
    images = None
    if own is not None:
        images = image_tokenizer.pixels(own, frozen[task.own_tokenizer], ids_BN, grid)
    made = Sampled(ids_BN, trace_SBN, given_BN, images)
    # whole in every process
    return jax.tree.map(lambda part: sharding.constrain(part, *(None,) * part.ndim), made)


def _networks(params, critic, task, texts, cond_BM, guided, guide_self_critic, scale):
    """The functions that `masked.generate` calls: (tokens, memory) to vectors, and tokens to a
    critic's scores; where it is guided the network sees all rows twice.
    """
    (embeds_BLD, mask_BL, keep_B), network = texts, task.network
    variables = {"params": params["decoder"]}
    cond_BM = _twice(cond_BM) if guided else cond_BM

    def embed(ids_BN, before=None):
        inputs = (embeds_BLD, mask_BL, keep_B, cond_BM, before)
        return network.apply(variables, ids_BN, *inputs, method="embed")

    def predict(ids_BN, before):
        vectors = embed(ids_BN, _twice(before) if guided else before)
        told = jnp.split(vectors, 2)[0] if guided else vectors
        return vectors, told if network.self_cond else None

    def score(ids_BN):
        rows_BN = _twice(ids_BN) if guided else ids_BN
        if task.token_critic is not None:
            inputs = (embeds_BLD, mask_BL, keep_B, cond_BM)
            scores_BN = task.token_critic.apply({"params": critic}, rows_BN, *inputs)
        else:
            scores_BN = task.critic.apply({"params": params["critic"]}, embed(rows_BN))
        if not guided:
            return scores_BN
        told_BN, null_BN = jnp.split(scores_BN, 2)
        by_vectors = task.token_critic is None and not guide_self_critic
        return told_BN if by_vectors else null_BN + (told_BN - null_BN) * scale

    return predict, score


def _twice(rows):
    return None if rows is None else jnp.concatenate([rows, rows])


def _texts(params, frozen, prompt, batch, task, guided):
    """(embeddings, their mask, keep_B); where it is guided of twice as many rows, the second half
    without text or with the negative one.
    """
    embeds_BLD, mask_BL = task.embed(params, frozen, prompt, batch)
    negative = prompting.negative_of(prompt)
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
