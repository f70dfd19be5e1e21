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

from t2i_jax.compiler import Program
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.pixels import as_pil, shrink
from t2i_jax.systems import batching, calls, given, kept, prompting
from t2i_jax.systems.maskgit import previews, sampling
from t2i_jax.systems.maskgit.blend import blended
from t2i_jax.systems.maskgit.canvas import box_of, laid
from t2i_jax.systems.maskgit.options import COMPAT, MaskGitOptions
from t2i_jax.systems.maskgit.previews import Show
from t2i_jax.systems.maskgit.windows import grayed
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.types import Array

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


@dataclasses.dataclass(frozen=True)
class Made:
    """A batch of images.

    Attributes:
      system: what made it. ids_BN: its tokens. trace_SBN: those at the end of every step.
      given_BN: tokens of the images that were given; None: none were.
      images: uint8 (B, H, W, C). grid: rows and columns of its tokens.
    """

    system: MaskGitSystem
    ids_BN: Array
    trace_SBN: Array
    given_BN: Array | None
    images: np.ndarray
    grid: tuple[int, int]

    @property
    def steps(self) -> np.ndarray:
        """uint8 (S, B, H, W, C): the images at the end of every step; of windows after every
        window, gray where none has been.
        """
        return np.stack([self._seen(np.asarray(ids_BN)) for ids_BN in self.trace_SBN])

    def _seen(self, ids_BN):
        undrawn_BN = ids_BN == self.system.task.network.mask_id
        images = np.asarray(self.system.pixels(np.where(undrawn_BN, 0, ids_BN), self.grid))
        return grayed(images, undrawn_BN.reshape(len(ids_BN), *self.grid))


@dataclasses.dataclass(frozen=True)
class MaskGitSystem(TextToImage):
    """A trained MaskGIT.

    Attributes:
      task: the task that trained it; it needs a tokenizer.
      weights: {"maskgit": {"decoder", "text", "critic"}, "critic"}.
      frozen: {"tokenizer", "superres_tokenizer": weights, "text": weights of a frozen encoder}.
      text_tokenizer: captions to ids; None where prompts are embeddings or there are none.
      mesh: the mesh on which it samples, see `placing.on_mesh`; None: one device.
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
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Any = None,
        mask: Any = None,
        cond_images: Any = None,
        return_steps: bool = False,
        on_step: Show | None = None,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts: a caption, or a list of them; with stored text the pair (embeddings (P, L, D),
            mask (P, L)); None for a system without texts.
          options: sampling options; None: the defaults of `MaskGitOptions`. changes: single options
            by name, steps=12.
          seed: the same seed gives the same images, whatever the batch size. A list has
            one for each prompt, or for each image.
          negative_prompts: what the images should not show, one per prompt or one string for all;
            guidance then starts from there.
          init_images: images to inpaint or to change, one per prompt or one for all, in any form
            and size, see `given.images`. With `mask` their tokens are kept where it is white or
            True, see `given.masks`: a token is kept where all of its pixels are. Without, they are
            changed by `options.strength`, edited in `options.edit_steps`, or something is drawn
            around them (`options.outpaint`).
          cond_images: for super-resolution, the images to enlarge, likewise.
          return_steps: a list with the images at the end of every step: what the tokens so far look
            like, those included that the next step masks again. With `options.image_size` those
            after every window.
          on_step: is called with these images, uint8 (B, H, W, C) of the batch that is made, while
            it is made; they are decoded in every step, which takes some time.
          return_pil: lists of PIL images instead.
          batch_size: images made at a time; None: all of them. progress: shows a bar over these
            batches.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {"init_images": init_images, "mask": mask}
        chosen = calls.with_changes(MaskGitOptions, options, changes, inputs)
        chosen = self.fitting(chosen)
        arrays = self.prepare(
            prompts,
            chosen,
            negative_prompts=negative_prompts,
            init_images=init_images,
            mask=mask,
            cond_images=cond_images,
        )
        calls.check_amounts(images_per_prompt, batch_size)
        previews.check(on_step)
        total, images = rows_in(arrays) * images_per_prompt, []
        for rows in batching.batches(
            arrays, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            with previews.shown(on_step, rows.count):
                made = self.make(rows.arrays, rows.keys_B, chosen, on_step is not None)
            images.append(made.steps if return_steps else made.images)
            images[-1] = images[-1][..., : rows.count, :, :, :]
        images = np.concatenate(images, axis=-4)
        if return_steps:
            return [as_pil(step) for step in images] if return_pil else list(images)
        return as_pil(images) if return_pil else images

    @property
    def upscales(self) -> bool:
        """Whether it is a super-resolution."""
        return self.task.cond_image_size is not None

    def upscale(
        self, images: Any, prompts: Any = None, options: MaskGitOptions | None = None, **others: Any
    ) -> np.ndarray:
        """uint8 images, larger, of a super-resolution.

        Args:
          images: in any form and size, see `given.images`.
          prompts: one per image, for a system with texts; None: none, as of images whose captions
            training dropped, and no guidance. options, others: of `generate`.
        """
        if not self.upscales:
            return super().upscale(images)
        count = given.count_of(images=images)
        prompts, changes = self._enlarging(count, prompts)
        return self.generate(prompts, options, **{**others, **changes}, cond_images=images)

    def check_upscale(
        self,
        prompts: Any = None,
        options: MaskGitOptions | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Refuses what `upscale` refuses, with a blank image in place of any."""
        small: Any = self.task.tokenizers[1]
        prompts, changes = self._enlarging(1, prompts)
        chosen = self.fitting(calls.with_changes(MaskGitOptions, options, changes))
        blank = np.zeros((small.image_size, small.image_size, small.channels), np.uint8)
        self.prepare(prompts, chosen, cond_images=blank)
        calls.check_amounts(1, batch_size)

    def _enlarging(self, count, prompts):
        """(prompts, changes of options) to enlarge `count` images."""
        if self.task.text is None or prompts is not None:
            return (prompts if self.task.text is not None else None), {}
        prompts = prompting.unprompted(self.task.text, count, self.task.cond_drop_prob)
        return prompts, {"guidance": 1.0}

    def conditions(self, samples: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any]:
        """The images to enlarge by super-resolution: those of the samples at the smaller size, as
        training makes them.
        """
        own, small = self.task.tokenizers
        if small is None:
            return {}
        images = samples["image"][list(rows)]
        return {"cond_images": np.asarray(shrink(images, own.image_size // small.image_size))}

    def fitting(self, options: MaskGitOptions) -> MaskGitOptions:
        """The options; without texts there is no guidance.

        Raises:
          UserError: options that do not fit what was trained.
        """
        self.task.check_options(options)
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
        made: Sequence[tuple[int, int]] = (),
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` takes, a row per prompt; arguments as of `generate`.

        Args:
          made: the (height, width) of what other stages make, as large as which a mask may be.
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
        found |= {} if from_tokens else self._small(count, options, cond_images)
        found |= self._changed(count, options, init_images, mask, made)
        return found or {"images": np.zeros((1, 0))}

    def make(
        self,
        arrays: Mapping[str, Any],
        keys_B: Any,
        options: MaskGitOptions,
        told: bool = False,
    ) -> Made:
        """Images of arrays of `prepare`, with a row per key.

        Args:
          told: those of every step are handed to `previews.shown` while they are made.
        """
        prompt = {name: value for name, value in arrays.items() if name not in ("keep", "images")}
        windows = self.task.windows(options)
        edits = options.edit_steps if "init" in prompt else None
        numbers = {name: getattr(options, name) for name in ("guidance", "temperature")}
        if options.plausibility:
            numbers["plausibility"] = options.plausibility
        if edits is not None:
            numbers["share"] = options.edit_share
        else:
            numbers["choice_temperature"] = options.choice_temperature
            numbers["critic_noise"] = 1.0 if options.critic_noise is None else options.critic_noise
            if "init" in prompt and "known" not in prompt:
                numbers["strength"] = options.strength
        with jax.set_mesh(self.mesh):
            made = sampling.generate(
                self.weights["maskgit"], self.frozen, prompt, keys_B, task=self.task,
                sampling=options.sampling, windows=windows, critic=self.weights.get("critic"),
                use_critic=self.task.has_critic_for(options) and edits is None,
                guide_self_critic=options.compat != COMPAT, edit_steps=edits, previews=told,
                **{name: jnp.float32(number) for name, number in numbers.items()},
            )  # fmt: skip
        images = np.asarray(made.images_BHWC)
        if "keep" in arrays and options.feather is not None:
            images = blended(images, arrays["init"], arrays["keep"], options.feather)
        grid = self.task.network.grid if windows is None else windows.grid
        return Made(self, made.ids_BN, made.trace_SBN, made.given_BN, images, grid)

    def pixels(self, ids_BN: Array | np.ndarray, grid: tuple[int, int] | None = None) -> Array:
        """uint8 images of tokens; `grid` as of `image_tokenizer.pixels`.

        Raises:
          UserError: tokens that the codebook has not.
        """
        image_tokenizer.check_ids(self.task.tokenizers[0], ids_BN)
        return self._pixels(self.frozen[self.task.own_tokenizer], ids_BN, grid)

    @functools.cached_property
    def _pixels(self):
        decode = functools.partial(image_tokenizer.pixels, self.task.tokenizers[0])
        return Program(decode, static_argnums=2)

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
        guided = options.guidance != 1
        return prompting.texts(
            self.task.text, self.text_tokenizer, prompts, negative_prompts, guided=guided,
            dropped=self.task.cond_drop_prob,
        )  # fmt: skip

    def drawn(self, options: MaskGitOptions) -> tuple[int, int]:
        """(height, width) of the images that are made with these options."""
        own, windows = self.task.tokenizers[0], self.task.windows(options)
        rows, columns = own.grid if windows is None else windows.grid
        return rows * own.patch_size, columns * own.patch_size

    def _changed(self, count, options, init_images, mask, made):
        """{"init": images} to inpaint, change or go beyond, and where something of them is kept
        "known", the tokens, and "keep", the pixels.
        """
        self._check_given(options, init_images, mask)
        if init_images is None:
            return {}
        own, size = self.task.tokenizers[0], self.drawn(options)
        grid = (size[0] // own.patch_size, size[1] // own.patch_size)
        read = given.images("init_images", init_images, count, own.channels)
        if options.outpaint is not None:
            box = box_of(options.outpaint, size)
            init = laid(given.fitted("init_images", read, box.size, self.crop), box)
            keep = np.broadcast_to(box.keep_HW, (len(read), *size))
        else:
            init = given.fitted("init_images", read, size, self.crop)
            if mask is None:
                return {"init": init}
            masks = given.masks("mask", mask, read)
            keep = given.kept("mask", masks, read, size, self.crop, made)
        way = "mask" if options.outpaint is None else f"outpaint={options.outpaint}"
        known = kept.whole(keep, grid)
        beside = "inpainted" if options.feather is None else "laid over what is made"
        none = f"{way} keeps no token, and MaskGIT"
        kept.tell(known, keep, "token", "MaskGIT", none, beside=beside)
        return {"init": init, "known": rearrange(known, "p r c -> p (r c)"), "keep": keep}

    def _check_given(self, options, init_images, mask):
        """Refuses ways to use init_images without them, and two ways at once."""
        told = {
            "mask": mask is not None and "mask",
            "edit_steps": options.edit_steps is not None and f"edit_steps={options.edit_steps}",
            "outpaint": options.outpaint is not None and f"outpaint={options.outpaint}",
        }
        ways = [told[name] for name in told if told[name]]
        if ways and init_images is None:
            raise UserError(
                f"{ways[0]} says what becomes of init_images; give init_images too, or leave it "
                "out."
            )
        if len(ways) > 1:
            raise UserError(
                f"{' and '.join(ways)} say different things of init_images; give one of them."
            )

    def _small(self, count, options, cond_images):
        """{"cond": the images to enlarge}; {} for a system that enlarges none."""
        small = self.task.tokenizers[1]
        if small is None and cond_images is not None:
            raise UserError(
                "cond_images are for super-resolution, and this system enlarges no images; leave "
                "them out."
            )
        if small is None:
            return {}
        if cond_images is None:
            raise UserError(
                f"cond_images=None: this system enlarges images of {small.image_size} pixels; give "
                "one per prompt."
            )
        windows = self.task.windows(options)
        rows, columns = small.grid if windows is None else windows.small_grid
        size = (rows * small.patch_size, columns * small.patch_size)
        read = given.images("cond_images", cond_images, count, small.channels)
        return {"cond": given.fitted("cond_images", read, size, self.crop)}


def rows_in(arrays: Mapping[str, np.ndarray]) -> int:
    """The number of prompts that arrays of `prepare` are for."""
    return len(next(iter(arrays.values())))
