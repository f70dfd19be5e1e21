"""A trained Parti: captions to images."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.decoding.autoregressive import Sampling
from t2i_jax.errors import UserError
from t2i_jax.pixels import as_pil
from t2i_jax.systems import prompts as prompting
from t2i_jax.systems.parti.task import PartiTask, generate
from t2i_jax.types import Array


@dataclasses.dataclass(frozen=True)
class PartiSystem:
    """A trained Parti: captions to pictures.

    Attributes:
      task: what it was trained as; it needs a tokenizer.
      weights: {"parti": {"decoder", "text"}}.
      frozen: {"tokenizer": weights, "text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings.
      mesh: over which it samples, see `placement.on_mesh`; None: one device.
    """

    task: PartiTask
    weights: Mapping[str, Any]
    frozen: Mapping[str, Any]
    text_tokenizer: Any = None
    mesh: Any = None

    def generate(
        self,
        prompts: Sequence[str] | tuple[Array, Array],
        *,
        seed: int = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int | float | None = None,
        top_p: float | None = None,
        images_per_prompt: int = 1,
        negative_prompts: Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Array | None = None,
        known_rows: int | None = None,
        mask: Array | None = None,
        return_pil: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """Pictures, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts: captions; with stored text the pair (embeddings (P, L, D), mask (P, L)).
          seed: the same seed gives the same pictures, whatever the batch size.
          guidance: 1 is none; the paper uses small values, parti-pytorch 3.
          temperature: below 1 is safer; 0 always takes the likeliest token.
          top_k: a number of tokens, or a float in (0, 1): a fraction of the codebook. top_p: a probability.
          negative_prompts: what the pictures should not show, one per prompt; guidance then starts from there.
          init_images: uint8 pictures to complete, one per prompt. known_rows: how many rows of tokens to keep, from
            the top; or mask: bool (rows, columns) or (P, rows, columns) of the token grid, True where to keep.
          return_pil: a list of PIL images instead.
          batch_size: pictures made at a time; None: all of them.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        if self.task.tokenizer is None:
            raise UserError("tokenizer=None of the task leaves no way to pictures; give the task an image tokenizer.")
        _check_numbers(guidance, temperature, images_per_prompt, batch_size)
        sampling = Sampling(guided=guidance != 1, top_k=top_k, top_p=top_p)
        prompt = prompting.encode(self.task.text, self.text_tokenizer, prompts, "prompts")
        count = len(prompt["text_mask"])
        if negative_prompts is not None:
            if guidance == 1:
                raise UserError("negative_prompts have no effect at guidance=1; raise the guidance or leave them out.")
            negative = prompting.encode(self.task.text, self.text_tokenizer, negative_prompts, "negative_prompts")
            prompt |= prompting.negatives(negative, count)
        prompt |= prompting.completion(self.task.tokenizer, count, init_images, known_rows, mask)
        prompt = {name: np.repeat(value, images_per_prompt, axis=0) for name, value in prompt.items()}
        total = count * images_per_prompt
        batch_size = min(batch_size or total, total)
        images = []
        for start in range(0, total, batch_size):
            index = np.minimum(np.arange(start, start + batch_size), total - 1)  # the last batch is filled up
            rows = {name: value[index] for name, value in prompt.items()}
            keys = _keys(seed, index)
            with jax.set_mesh(self.mesh):
                _, made = generate(
                    self.weights["parti"], self.frozen, rows, keys, task=self.task, sampling=sampling,
                    guidance=jnp.float32(guidance), temperature=jnp.float32(temperature),
                )  # fmt: skip
            images.append(np.asarray(made)[: total - start])
        images = np.concatenate(images)
        return as_pil(images) if return_pil else images


def _keys(seed, index):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(index))


def _check_numbers(guidance, temperature, images_per_prompt, batch_size):
    if not math.isfinite(guidance):
        raise UserError(f"guidance={guidance} is not finite; try 3.0.")
    if not math.isfinite(temperature) or temperature < 0:
        raise UserError(f"temperature={temperature} is not a finite number from 0; try 1.0.")
    for name, value in (("images_per_prompt", images_per_prompt), ("batch_size", batch_size)):
        prompting.check_count(name, value)
