"""A trained Parti: captions to images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from t2i_jax.errors import UserError
from t2i_jax.models import encoder_side
from t2i_jax.pixels import as_pil
from t2i_jax.systems import batching, calls, given, kept, prompting
from t2i_jax.systems.parti import sampling
from t2i_jax.systems.parti.options import PartiOptions
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.types import Array
from t2i_jax.values import shown

if TYPE_CHECKING:
    from t2i_jax.systems.parti.task import PartiTask


@dataclasses.dataclass(frozen=True)
class PartiSystem(TextToImage):
    """A trained Parti: captions to images.

    Attributes:
      task: the task that trained it; it needs a tokenizer.
      weights: {"parti": {"decoder", "text"}}.
      frozen: {"tokenizer": weights, "text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings.
      mesh: the mesh on which it samples, see `placing.on_mesh`; None: one device.
    """

    task: PartiTask
    weights: Mapping[str, Any]
    frozen: Mapping[str, Any]
    text_tokenizer: Any = None
    mesh: Any = None

    def generate(
        self,
        prompts: str | Sequence[str] | tuple[Array, Array],
        options: PartiOptions | None = None,
        *,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Any = None,
        known_rows: int | None = None,
        mask: Any = None,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts: a caption, or a list of them; with stored text the pair (embeddings (P, L, D),
            mask (P, L)).
          options: sampling options; None: the defaults of `PartiOptions`. changes: single options
            by name, guidance=2.0.
          seed: the same seed gives the same images, whatever the batch size. A list has
            one for each prompt, or for each image.
          negative_prompts: what the images should not show, one per prompt or one string for all;
            guidance then starts from there.
          init_images: images to inpaint, one per prompt or one for all, in any form and size, see
            `given.images`. Their tokens are kept where `mask` says, white or True where to keep,
            see `given.masks`: a token is kept where all of its pixels are. Without a mask the first
            `known_rows` rows of tokens are kept; None: the part of them that `options.keep_rows`
            says.
          return_pil: a list of PIL images instead.
          batch_size: images made at a time; None: all of them. progress: shows a bar over these
            batches.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {"init_images": init_images, "mask": mask, "known_rows": known_rows}
        options = calls.with_changes(PartiOptions, options, changes, inputs)
        if self.task.tokenizer is None:
            raise UserError(
                "tokenizer=None of the task leaves no way to images; give the task an image "
                "tokenizer."
            )
        calls.check_amounts(images_per_prompt, batch_size)
        guided = options.guidance != 1
        prompt = prompting.texts(
            self.task.text, self.text_tokenizer, prompts, negative_prompts, guided=guided,
            dropped=self.task.cond_drop_prob,
        )  # fmt: skip
        prompting.tell_unread(prompt, self.task.text_lengths)
        count = len(prompt["text_mask"])
        prompt |= self._completion(count, init_images, known_rows, mask, options)
        images, total = [], count * images_per_prompt
        for rows in batching.batches(
            prompt, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            with jax.set_mesh(self.mesh):
                _, made = sampling.generate(
                    self.weights["parti"], self.frozen, rows.arrays, rows.keys_B, task=self.task,
                    sampling=options.sampling, guidance=jnp.float32(options.guidance),
                    temperature=jnp.float32(options.temperature),
                    plausibility=jnp.float32(options.plausibility or 0.0),
                )  # fmt: skip
            images.append(np.asarray(made)[: rows.count])
        images = np.concatenate(images)
        return as_pil(images) if return_pil else images

    def with_tokenizer(self, tokenizer: Any) -> PartiSystem:
        """The same system with another decoder from tokens to images.

            load("runs/parti").with_tokenizer(load("runs/larger_decoder"))

        Args:
          tokenizer: a trained image tokenizer (`TokenizerSystem`) with the tokens of this system's:
            one that was trained from it with `trained="decoder"`.

        Raises:
          UserError: no image tokenizer, one whose tokens are others, or a system that lies on a
            mesh.
        """
        if self.task.tokenizer is None:
            raise UserError(
                "tokenizer=None of the task leaves nothing to compare with; give the task an image "
                "tokenizer."
            )
        if self.mesh is not None:
            raise UserError(
                "with_tokenizer is given for a system on a mesh; give the tokenizer first, and "
                "then on_mesh."
            )
        if not isinstance(tokenizer, TokenizerSystem):
            raise UserError(
                f"tokenizer={shown(tokenizer)} is no trained image tokenizer; give load(RUN) of "
                "the run of one."
            )
        model, weights = tokenizer.task.network, tokenizer.weights
        own = self.frozen["tokenizer"]
        if not encoder_side.same_tokens(self.task.tokenizer, own, model, weights):
            raise UserError(
                "tokenizer has other tokens than this system was trained on; give one that was "
                "trained from its tokenizer with trained='decoder'."
            )
        task = dataclasses.replace(self.task, tokenizer=model)
        return dataclasses.replace(self, task=task, frozen={**self.frozen, "tokenizer": weights})

    def _completion(self, count, init_images, known_rows, mask, options):
        """{"init": images, "known": (P, N) bool, True for tokens to keep}; {} without images to
        complete.
        """
        if init_images is None:
            if known_rows is not None or mask is not None:
                raise UserError(
                    "known_rows and mask say what to keep of init_images; give init_images too."
                )
            return {}
        tokenizer = self.task.tokenizer
        if known_rows is not None and mask is not None:
            raise UserError(
                "known_rows and mask both say what to keep of init_images; give one of them."
            )
        (rows, columns), size = tokenizer.grid, (tokenizer.image_size, tokenizer.image_size)
        read = given.images("init_images", init_images, count, tokenizer.channels)
        images = given.fitted("init_images", read, size, self.crop)
        if mask is not None:
            masks = given.masks("mask", mask, read)
            keep = given.kept("mask", masks, read, size, self.crop)
            known = kept.whole(keep, tokenizer.grid)
            kept.tell(known, keep, "token", "Parti", "mask keeps no token, and Parti")
        else:
            if known_rows is None:
                known_rows = max(1, round(rows * options.keep_rows))
            if (
                isinstance(known_rows, bool)
                or not isinstance(known_rows, (int, np.integer))
                or not 0 < known_rows <= rows
            ):
                raise UserError(
                    f"known_rows={known_rows!r} is no number of token rows; give a whole number "
                    f"from 1 to {rows}."
                )
            known = np.broadcast_to(np.arange(rows)[:, None] < known_rows, (count, rows, columns))
        return {"init": images, "known": rearrange(known, "p r c -> p (r c)")}
