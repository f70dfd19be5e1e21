"""A trained Muse: captions to small images, and on to large ones."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from t2i_jax.models import image_tokenizer
from t2i_jax.pixels import as_pil
from t2i_jax.systems import generation
from t2i_jax.systems.maskgit.options import COMPAT
from t2i_jax.systems.maskgit.system import MaskGitSystem, rows_in
from t2i_jax.systems.muse.options import MuseOptions
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.types import Array

if TYPE_CHECKING:
    from t2i_jax.systems.muse.task import MuseTask


@dataclasses.dataclass(frozen=True)
class MuseSystem(TextToImage):
    """A trained Muse.

    Attributes:
      task: what joined it. weights: {}; they are those of the stages.
      base, superres: the stages.
      shared: the second stage reads tokens of the tokenizer that makes the small images. False: it
        has another one for them, and gets the tokens that that one has for the images.
    """

    task: MuseTask
    weights: Any
    base: MaskGitSystem
    superres: MaskGitSystem
    shared: bool = True

    def __repr__(self) -> str:
        """A line for each stage."""
        return f"MuseSystem(base={self.base!r}, superres={self.superres!r})"

    def on_mesh(self, shape: Any) -> MuseSystem:
        """The same system, both stages of which sample on a mesh of all devices."""
        base, superres = (generation.on_mesh(one, shape) for one in (self.base, self.superres))
        return dataclasses.replace(self, base=base, superres=superres)

    def generate(
        self,
        prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        options: MuseOptions | None = None,
        *,
        seed: int = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Any = None,
        mask: Any = None,
        return_stages: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts, seed, images_per_prompt, negative_prompts, init_images, mask, return_pil,
            batch_size, progress: as of `MaskGitSystem.generate`. Images to inpaint or to change are
            so at both sizes.
          options: how it samples; None: the defaults of `MuseOptions`. changes: single options by
            name, superres_steps=12.
          return_stages: a list with the small and the large images.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        chosen = generation.with_changes(MuseOptions, options, changes)
        stages = [(self.base, self.base.fitting(chosen.base))]
        if chosen.stop_at != "base":
            stages.append((self.superres, self.superres.fitting(chosen.superres)))
        for name, value in (("images_per_prompt", images_per_prompt), ("batch_size", batch_size)):
            generation.check_count(name, value)
        arrays = {}
        for number, (stage, own) in enumerate(stages):
            given = {"init_images": init_images, "mask": mask, "negative_prompts": negative_prompts}
            # what there is to say of prompts and images is said once
            with generation.quiet() if number else contextlib.nullcontext():
                found = stage.prepare(prompts, own, from_tokens=number > 0, **given)
            arrays |= {f"{number}/{name}": value for name, value in found.items()}
        total, made = rows_in(arrays) * images_per_prompt, [[] for _ in stages]
        for rows in generation.batches(
            arrays, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            for images, part in zip(made, self._stages(stages, rows), strict=True):
                images.append(part[: rows.count])
        images = [np.concatenate(parts) for parts in made]
        if return_pil:
            images = [as_pil(stage) for stage in images]
        return images if return_stages else images[-1]

    def _stages(self, stages, rows):
        """The images of each stage; the second is given the tokens of the first."""
        ids_BN = None
        for number, (stage, options) in enumerate(stages):
            arrays = {
                name.removeprefix(f"{number}/"): value
                for name, value in rows.arrays.items()
                if name.startswith(f"{number}/")
            }
            if ids_BN is not None:
                as_they_are = self.shared and options.compat != COMPAT
                arrays["cond_ids"] = ids_BN if as_they_are else self._translated(ids_BN)
            keys_B = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(rows.keys_B)
            found = stage.make(arrays, keys_B, options)
            ids_BN = found.ids_BN
            yield found.images

    def _translated(self, ids_BN):
        base, superres = self.base, self.superres
        with jax.set_mesh(base.mesh):
            return _translated(
                ids_BN,
                base.frozen[base.task.own_tokenizer],
                superres.frozen["tokenizer"],
                models=(base.task.tokenizers[0], superres.task.tokenizers[1]),
            )


@functools.partial(jax.jit, static_argnames="models")
def _translated(ids_BN, weights, to_weights, *, models):
    return image_tokenizer.translated(ids_BN, models[0], weights, models[1], to_weights)
