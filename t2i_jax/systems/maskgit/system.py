"""A trained MaskGIT: captions, or nothing at all, to images; images inpainted, changed and
enlarged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.pixels import as_pil
from t2i_jax.systems import generation, given
from t2i_jax.systems.maskgit import sampling
from t2i_jax.systems.maskgit.blend import blended
from t2i_jax.systems.maskgit.options import COMPAT, MaskGitOptions
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.types import Array
from t2i_jax.words import counted

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


@dataclasses.dataclass(frozen=True)
class Made:
    """A batch of images.

    Attributes:
      system: what made it. ids_BN: its tokens. trace_SBN: those at the end of every step.
      images: uint8 (B, H, W, C).
    """

    system: MaskGitSystem
    ids_BN: Array
    trace_SBN: Array
    images: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """uint8 (S, B, H, W, C): the images at the end of every step."""
        return np.stack([np.asarray(self.system.pixels(ids_BN)) for ids_BN in self.trace_SBN])


@dataclasses.dataclass(frozen=True)
class MaskGitSystem(TextToImage):
    """A trained MaskGIT.

    Attributes:
      task: what it was trained as; it needs a tokenizer.
      weights: {"maskgit": {"decoder", "text", "critic"}, "critic"}.
      frozen: {"tokenizer", "superres_tokenizer": weights, "text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings or there are none.
      mesh: the mesh on which it samples, see `generation.on_mesh`; None: one device.
    """

    task: MaskGitTask
    weights: Mapping[str, Any]
    frozen: Mapping[str, Any]
    text_tokenizer: Any = None
    mesh: Any = None

    def generate(
        self,
        prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        options: MaskGitOptions | None = None,
        *,
        seed: int = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Any = None,
        mask: Any = None,
        cond_images: Any = None,
        return_steps: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts: a caption, or a list of them; with stored text the pair (embeddings (P, L, D),
            mask (P, L)); None for a system without texts.
          options: how it samples; None: the defaults of `MaskGitOptions`. changes: single options
            by name, steps=12.
          seed: the same seed gives the same images, whatever the batch size.
          negative_prompts: what the images should not show, one per prompt or one string for all;
            guidance then starts from there.
          init_images: images to inpaint or to change, one per prompt or one for all, in any form
            and size, see `given.images`. With `mask` their tokens are kept where it is white or
            True, see `given.masks`: a token is kept where all of its pixels are. Without, they are
            changed by `options.strength`, or edited in `options.edit_steps`.
          cond_images: for super-resolution, the images to enlarge, likewise.
          return_steps: a list with the images at the end of every step: what the tokens so far look
            like, those included that the next step masks again.
          return_pil: lists of PIL images instead.
          batch_size: images made at a time; None: all of them. progress: shows a bar over these
            batches.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        chosen = self.fitting(generation.with_changes(MaskGitOptions, options, changes))
        arrays = self.prepare(
            prompts,
            chosen,
            negative_prompts=negative_prompts,
            init_images=init_images,
            mask=mask,
            cond_images=cond_images,
        )
        for name, value in (("images_per_prompt", images_per_prompt), ("batch_size", batch_size)):
            generation.check_count(name, value)
        total, images = rows_in(arrays) * images_per_prompt, []
        for rows in generation.batches(
            arrays, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            made = self.make(rows.arrays, rows.keys_B, chosen)
            images.append(made.steps if return_steps else made.images)
            images[-1] = images[-1][..., : rows.count, :, :, :]
        images = np.concatenate(images, axis=-4)
        if return_steps:
            return [as_pil(step) for step in images] if return_pil else list(images)
        return as_pil(images) if return_pil else images

    def fitting(self, options: MaskGitOptions) -> MaskGitOptions:
        """The options; without texts there is no guidance."""
        if self.task.text is None and options.guidance != 1:
            return dataclasses.replace(options, guidance=1.0)
        return options

    def prepare(
        self,
        prompts: Any,
        options: MaskGitOptions,
        *,
        negative_prompts: Any = None,
        init_images: Any = None,
        mask: Any = None,
        cond_images: Any = None,
        from_tokens: bool = False,
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` takes, a row per prompt; arguments as of `generate`.

        Args:
          from_tokens: super-resolution is given "cond_ids" (B, M), tokens of the small images,
            rather than cond_images.
        """
        own = self.task.tokenizers[0]
        if own is None:
            raise UserError(
                "tokenizer=None of the task leaves no way to images; give the task an image "
                "tokenizer."
            )
        found = self._texts(prompts, negative_prompts, options)
        count = (
            len(found["text_mask"])
            if found
            else given.count_of(init_images=init_images, cond_images=cond_images)
        )
        found |= {} if from_tokens else self._small(count, cond_images)
        found |= self._changed(count, options, init_images, mask)
        return found or {"images": np.zeros((1, 0))}

    def make(self, arrays: Mapping[str, Any], keys_B: Any, options: MaskGitOptions) -> Made:
        """Images of arrays of `prepare`, with a row per key."""
        prompt = {name: value for name, value in arrays.items() if name not in ("keep", "images")}
        edits = "init" in prompt and options.edit_steps is not None
        names = ["guidance", "temperature"]
        names += ["edit_share"] if edits else ["choice_temperature", "critic_noise", "strength"]
        numbers = {name: jnp.float32(getattr(options, name)) for name in names}
        numbers["plausibility"] = jnp.float32(options.plausibility or 0.0)
        if edits:
            numbers["share"] = numbers.pop("edit_share")
        with jax.set_mesh(self.mesh):
            ids_BN, trace_SBN, made = sampling.generate(
                self.weights["maskgit"], self.frozen, prompt, keys_B, task=self.task,
                sampling=options.sampling, critic=self.weights.get("critic"),
                use_critic=options.critic and self.task.critic is not None and not edits,
                guide_self_critic=options.compat != COMPAT,
                edit_steps=options.edit_steps if edits else None, **numbers,
            )  # fmt: skip
        images = np.asarray(made)
        if "keep" in arrays and options.feather is not None:
            images = blended(images, arrays["init"], arrays["keep"], options.feather)
        return Made(self, ids_BN, trace_SBN, images)

    def pixels(self, ids_BN: Array) -> Array:
        """uint8 images of tokens."""
        return self._pixels(self.frozen[self.task.own_tokenizer], ids_BN)

    @functools.cached_property
    def _pixels(self):
        return jax.jit(functools.partial(image_tokenizer.pixels, self.task.tokenizers[0]))

    def _texts(self, prompts, negative_prompts, options):
        if self.task.text is None:
            if prompts is not None or negative_prompts is not None:
                raise UserError(
                    "prompts are given to a system that was trained without texts; leave them out."
                )
            return {}
        if prompts is None:
            raise UserError(
                "prompts=None: this system was trained on captions; give a list of them."
            )
        return generation.texts(
            self.task.text,
            self.text_tokenizer,
            prompts,
            negative_prompts,
            guided=options.guidance != 1,
        )

    def _changed(self, count, options, init_images, mask):
        """{"init": images} to inpaint or change, and where a mask is given "known", the tokens that
        it keeps, and "keep", the pixels.
        """
        if init_images is None:
            if mask is not None:
                raise UserError(
                    "mask says what to keep of init_images; give init_images too, or leave it out."
                )
            return {}
        own = self.task.tokenizers[0]
        size = (own.image_size, own.image_size)
        read = given.images("init_images", init_images, count, own.channels)
        found = {"init": given.fitted("init_images", read, size, self.crop)}
        if mask is None:
            return found
        if options.edit_steps is not None:
            raise UserError(
                f"edit_steps={options.edit_steps} is for editing without a mask; leave out one of "
                "them."
            )
        masks = given.masks("mask", mask, read)
        keep = given.kept("mask", masks, read, size, self.crop)
        known = rearrange(_tokens_kept(keep, own.grid), "p r c -> p (r c)")
        return found | {"known": known, "keep": keep}

    def _small(self, count, cond_images):
        """{"cond": the images to enlarge}; {} for a system that enlarges none."""
        small = self.task.tokenizers[1]
        if (small is None) != (cond_images is None):
            remedy = "leave them out" if small is None else "give images to enlarge, one per prompt"
            raise UserError(
                f"cond_image_size={self.task.cond_image_size} of the task does not fit "
                f"cond_images; {remedy}."
            )
        if small is None:
            return {}
        read = given.images("cond_images", cond_images, count, small.channels)
        size = (small.image_size, small.image_size)
        return {"cond": given.fitted("cond_images", read, size, self.crop)}


def rows_in(arrays: Mapping[str, np.ndarray]) -> int:
    """How many prompts arrays of `prepare` are for."""
    return len(next(iter(arrays.values())))


def _tokens_kept(kept_PHW, grid):
    """bool (P, rows, columns): the tokens all of whose pixels a mask keeps; a line says so.

    The same is in systems/parti/system.py.
    """
    rows, columns = grid
    pixels_PRCN = rearrange(kept_PHW, "p (r h) (c w) -> p r c (h w)", r=rows, c=columns)
    known_PRC = pixels_PRCN.all(-1)
    height, width = (kept_PHW.shape[axis + 1] // grid[axis] for axis in (0, 1))
    what = f"whole tokens, {width}x{height} pixels each"
    if not known_PRC.any((1, 2)).all():
        raise UserError(f"mask keeps no token, and MaskGIT keeps {what}; keep a larger part.")
    anew = int((pixels_PRCN & ~known_PRC[..., None]).sum())
    told = f"MaskGIT keeps {what}: {known_PRC.sum()} of {known_PRC.size}"
    generation.tell(
        told + (f"; {counted(anew, 'kept pixel')} beside them are inpainted" if anew else "")
    )
    return known_PRC
