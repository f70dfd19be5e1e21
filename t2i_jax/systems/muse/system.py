"""A trained Muse: captions to small images, and on to large ones."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from t2i_jax.compiler import Program
from t2i_jax.models import image_tokenizer
from t2i_jax.pixels import as_pil
from t2i_jax.systems import batching, calls, given, notices, placing, prompting
from t2i_jax.systems.maskgit import previews
from t2i_jax.systems.maskgit.options import COMPAT
from t2i_jax.systems.maskgit.previews import Show
from t2i_jax.systems.maskgit.system import MaskGitSystem, rows_in
from t2i_jax.systems.muse.options import MuseOptions, told_of_superres
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.types import Array

if TYPE_CHECKING:
    from t2i_jax.systems.muse.task import MuseTask


@dataclasses.dataclass(frozen=True)
class MuseSystem(TextToImage):
    """A trained Muse.

    Attributes:
      task: the task that joins its parts. weights: {}; they are those of the stages.
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

    def made_size(self, options: MuseOptions, trained_at: int | None = None) -> int | None:
        """Side of the large images, which the second stage makes, or of the small ones where it
        stops at these; None for small ones of a size that was not trained.
        """
        if options.stop_at is None:
            return self.superres.made_size(options, trained_at)
        return None if options.image_size is not None else self.base.made_size(options, trained_at)

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer of both stages."""
        return self.base.text_tokenizer

    def on_mesh(self, shape: Any, devices: Any = None) -> MuseSystem:
        """The same system, both stages of which sample on a mesh, see `placing.on_mesh`."""
        base, superres = (
            placing.on_mesh(one, shape, devices) for one in (self.base, self.superres)
        )
        return dataclasses.replace(self, base=base, superres=superres)

    def offloaded(self) -> MuseSystem:
        """The same system, see `placing.offloaded`: of its stages only the one that runs is on
        the device.
        """
        base, superres = (placing.offloaded(one) for one in (self.base, self.superres))
        return dataclasses.replace(self, base=base, superres=superres)

    def generate(
        self,
        prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        options: MuseOptions | None = None,
        *,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: str | Sequence[str] | tuple[Array, Array] | None = None,
        init_images: Any = None,
        mask: Any = None,
        return_stages: bool = False,
        return_steps: bool = False,
        on_step: Show | None = None,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        Args:
          prompts, seed, images_per_prompt, negative_prompts, init_images, mask, return_pil,
            batch_size, progress: as of `MaskGitSystem.generate`. Images to inpaint or to change are
            so at both sizes, see `MuseOptions`; negative prompts are for the stages that are
            guided.
          options: sampling options; None: the defaults of `MuseOptions`. changes: single options by
            name, superres_steps=12.
          return_stages: a list with the small and the large images.
          return_steps: a list with the images at the end of every step, as of `MaskGitSystem`: the
            small ones of the first stage, then the large ones of the second.
          on_step: is called with these while they are made, as of `MaskGitSystem`.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {"init_images": init_images, "mask": mask}
        chosen = calls.with_changes(MuseOptions, options, changes, inputs)
        stages = self._chosen(chosen)
        calls.check_amounts(images_per_prompt, batch_size)
        previews.check(on_step)
        pixels = {
            "init_images": given.read_once("init_images", init_images, self.task.channels),
            "mask": given.read_once("mask", mask, None),
        }
        arrays, guided = {}, [own.guidance != 1 for _, own in stages]
        drawn = [stage.drawn(own) for stage, own in stages]
        for number, (stage, own) in enumerate(stages):
            # a stage without guidance has no use for them; where none is guided, they are refused
            against = negative_prompts if guided[number] or not any(guided) else None
            # what there is to say of prompts and images is said once
            with notices.quiet() if number else contextlib.nullcontext():
                found = stage.prepare(
                    prompts, own, negative_prompts=against, from_tokens=number > 0, made=drawn,
                    **pixels,
                )  # fmt: skip
            if number:  # which may read less of captions
                for field, one in (("prompts", prompts), ("negative_prompts", against)):
                    prompting.tell_cut_again(self.base, stage, "superres", one, field)
            arrays |= {f"{number}/{name}": value for name, value in found.items()}
        total, made = rows_in(arrays) * images_per_prompt, []
        for rows in batching.batches(
            arrays, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            with previews.shown(on_step, rows.count):
                parts = list(self._stages(stages, rows, on_step is not None))
            shown = [
                step[: rows.count]
                for part in parts
                for step in (part.steps if return_steps else [part.images])
            ]
            made.append(shown)
        images = [np.concatenate(parts) for parts in zip(*made, strict=True)]
        if return_pil:
            images = [as_pil(stage) for stage in images]
        return images if return_stages or return_steps else images[-1]

    def _chosen(self, options):
        """(stage, its options) of each stage that is to run."""
        base, superres = options.base, options.superres
        of_base, of_superres = self.base.task, self.superres.task
        without = {"critic": None, "critic_noise": None}
        # an option of critics is for the stages that have one; where none does, it is refused
        if of_superres.critic is None and of_base.critic is not None:
            superres = dataclasses.replace(superres, **without)
        if of_base.critic is None and of_superres.critic is not None:
            base = dataclasses.replace(base, **without)
        with told_of_superres(options):
            superres = self.superres.fitting(superres)
        windows = of_superres.windows(superres)
        if windows is not None:
            patch = of_superres.tokenizers[1].patch_size
            size = tuple(length * patch for length in windows.small_grid)
            base = dataclasses.replace(base, image_size=size)
        elif options.image_size is not None:
            base = dataclasses.replace(base, image_size=None)
        stages = [(self.base, self.base.fitting(base)), (self.superres, superres)]
        return stages[:1] if options.stop_at == "base" else stages

    def _stages(self, stages, rows, told):
        """The results of each stage; the second is given the tokens of the first."""
        small = None
        for number, (stage, options) in enumerate(stages):
            arrays = {
                name.removeprefix(f"{number}/"): value
                for name, value in rows.arrays.items()
                if name.startswith(f"{number}/")
            }
            if small is not None:
                as_they_are = self.shared and options.compat != COMPAT
                arrays["cond_ids"] = small.ids_BN if as_they_are else self._translated(small)
                if "init" in arrays and "known" not in arrays:
                    arrays["known"] = self._unchanged(small, options)
            keys_B = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(rows.keys_B)
            small = stage.make(arrays, keys_B, options, told)
            yield small

    def _translated(self, small):
        base, superres = self.base, self.superres
        with jax.set_mesh(base.mesh):
            return _translated(
                small.ids_BN,
                base.frozen[base.task.own_tokenizer],
                superres.frozen["tokenizer"],
                models=(base.task.tokenizers[0], superres.task.tokenizers[1]),
                grid=small.grid,
            )

    def _unchanged(self, small, options):
        """bool (B, N): the large tokens over those small ones that are still those of the images
        that were given.
        """
        windows = self.superres.task.windows(options)
        grid = self.superres.task.network.grid if windows is None else windows.grid
        same_BRC = (small.ids_BN == small.given_BN).reshape(-1, *small.grid)
        rows, columns = (
            np.arange(large) * few // large for large, few in zip(grid, small.grid, strict=True)
        )
        return same_BRC[:, rows][:, :, columns].reshape(len(same_BRC), -1)


@functools.partial(Program, static_argnames=("models", "grid"))
def _translated(ids_BN, weights, to_weights, *, models, grid):
    return image_tokenizer.translated(ids_BN, models[0], weights, models[1], to_weights, grid)
