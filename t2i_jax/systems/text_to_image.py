"""Previews and metrics of a system that makes images from text: grids, a judge's verdict,
inpainting.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from t2i_jax.config import fields_of
from t2i_jax.eval.alignment import alignment
from t2i_jax.eval.evaluation import JUDGES, Evaluation
from t2i_jax.eval.grid import grid
from t2i_jax.eval.judge_shapes import parse
from t2i_jax.systems import calls, notices, placing, prompting
from t2i_jax.systems.base import Findings, HeldOut, System

_SIDE = 96  # least height in pixels of an image in a grid
_SWEPT, _GUIDANCES, _TEMPERATURES = 3, (1.0, 1.5, 2.0, 3.0, 6.0), (0.0, 0.5, 1.0)
_SHOWN = 32  # most images of a sheet
_AT_ONCE = 64  # images that are generated at a time


@dataclasses.dataclass(frozen=True)
class Judged:
    """Generated images beside their captions; without a judge `right` is None and `parts` is empty.

    Attributes:
      right: bool per image. parts: fraction that is right of each property that the judge looks at.
    """

    captions: list[str]
    images: np.ndarray
    right: np.ndarray | None
    parts: Mapping[str, float]


class TextToImage(System):
    """A system whose `generate` makes images.

    Its task's `samples` name the entries of the data that it is given for that.
    """

    text_tokenizer: Any  # captions to ids; None where prompts are embeddings or there are none

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Lets the text encoder read all prompts, before images are made for the first: a line on
        stderr tells which are cut.

        Raises:
          UserError: one that it can't read.
        """
        encoder: Any = self.task.text_encoder
        prompting.texts(encoder, self.text_tokenizer, list(prompts), None, guided=False)

    def samplers(self, options: Any) -> list[dict[str, Any]]:
        """The sampler and the steps of each diffusion network, in the order in which they sample,
        with the numbers that options leave to defaults; []: nothing is sampled by diffusion.
        """
        del options
        return []

    def on_mesh(
        self, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
    ) -> Self:
        """The same system, sampling on a mesh, see `placing.on_mesh`."""
        return placing.on_mesh(self, shape, devices)

    def conditions(self, samples: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any]:
        """The arguments of `generate` that these samples give beside their captions: images to
        condition on.
        """
        if "cond_image" not in samples:
            return {}
        return {"cond_images": samples["cond_image"][list(rows)]}

    def images(
        self,
        samples: Mapping[str, Any],
        rows: Sequence[int],
        options: Any,
        seed: int | Sequence[int],
        **given: Any,
    ) -> np.ndarray:
        """An image, uint8 (rows, H, W, C), for each of these rows of samples.

        Args:
          samples: with the entries that the task's `samples` name; {} for a task without any.
          seed: of all of them, or one for each. given: to `generate`, beside what the samples give.
        """
        given |= self.conditions(samples, rows)
        prompts: Any = None
        if self.task.text_encoder is None:
            options = calls.with_changes(self.task.options, options, {"guidance": 1.0})
            given |= {} if samples else {"images_per_prompt": len(rows)}
        else:
            prompts = _prompts(samples, rows)
        with notices.quiet():
            return np.asarray(self.generate(prompts, options, seed=seed, **given))

    def judge(self, held_out: HeldOut, evaluation: Evaluation, count: int, seed: int = 0) -> Judged:
        """Images for `count` held-out captions, and the judge's verdict on each."""
        wants = self.task.samples
        samples = held_out(count, wants) if wants else {}
        images = self.images(
            samples, range(count), evaluation.options, seed, batch_size=min(count, _AT_ONCE)
        )
        if self.task.text_encoder is None:
            return Judged([""] * count, images, None, {})
        captions = list(samples["caption"])
        if evaluation.judge is None:
            return Judged(captions, images, None, {})
        return _verdict(evaluation, captions, images)

    def inpaint(
        self, held_out: HeldOut, evaluation: Evaluation, count: int
    ) -> tuple[Judged, np.ndarray]:
        """Held-out images of two things, one half of each inpainted, and how much of the other half
        changed.

        The half that is kept is the left, the right, the upper and the lower one in turn.

        Returns:
          The images and the verdict; and per image the fraction of kept pixels that are not as they
          were.
        """
        samples = held_out(3 * count, ("image", *self.task.samples))
        two = [
            i for i, caption in enumerate(samples["caption"]) if parse(caption).relation is not None
        ][:count]
        images, captions = samples["image"][two], [samples["caption"][i] for i in two]
        size = images.shape[1:3]
        upper, left = (axis < side / 2 for axis, side in zip(np.indices(size), size, strict=True))
        masks = np.stack([(left, ~left, upper, ~upper)[i % 4] for i in range(len(two))])
        given: dict[str, Any] = {"seed": 0, "batch_size": min(len(two), _AT_ONCE)}
        given |= self.conditions(samples, two)
        with notices.quiet():
            made = np.asarray(self.generate(
                _prompts(samples, two), evaluation.options, init_images=images, mask=masks, **given
            ))  # fmt: skip
        changed = ((made != images).any(-1) & masks).sum((1, 2)) / masks.sum((1, 2))
        return _verdict(evaluation, captions, made), changed

    def preview(
        self, held_out: HeldOut, evaluation: Evaluation
    ) -> tuple[np.ndarray, Mapping[str, float]]:
        """A grid of images for held-out captions, and with a judge `eval/alignment`."""
        judged = self.judge(held_out, evaluation, evaluation.preview)
        metrics = {} if judged.right is None else {"eval/alignment": float(np.mean(judged.right))}
        return _sheet(judged, evaluation.preview), metrics

    def sweep(self, held_out: HeldOut, evaluation: Evaluation) -> Mapping[str, np.ndarray]:
        """{"sweep": a few held-out captions at each guidance and temperature}, a row for each pair,
        for systems with both options.
        """
        known, wants = fields_of(self.task.options), self.task.samples
        if not {"guidance", "temperature"} <= set(known) or "caption" not in wants:
            return {}
        samples = held_out(_SWEPT, wants)
        images, told = [], []
        for guidance, temperature in itertools.product(_GUIDANCES, _TEMPERATURES):
            images.append(
                self.generate(
                    _prompts(samples, range(_SWEPT)),
                    evaluation.options,
                    guidance=guidance,
                    temperature=temperature,
                    **self.conditions(samples, range(_SWEPT)),
                )
            )
            pair = f"guidance {guidance:g}, temperature {temperature:g}"
            told += [f"{pair}: {caption}" for caption in samples["caption"]]
        columns = _SWEPT * len(_TEMPERATURES)
        return {"sweep": grid(np.concatenate(images), columns, _SIDE, told)}

    def evaluate(self, held_out: HeldOut, evaluation: Evaluation) -> Findings:
        """The metrics of images for held-out captions: with a judge `alignment_heldout` (the
        fraction of images that agree with their captions) and its parts.

        With `evaluation.completions`, and captions, also `alignment_completed`, the same of
        inpainted images, and `kept_changed`, the fraction of kept pixels that changed.
        """
        metrics: dict[str, float] = {}
        judged = self.judge(held_out, evaluation, evaluation.pictures)
        if judged.right is not None:
            metrics["alignment_heldout"] = float(np.mean(judged.right))
            metrics |= {
                f"alignment_heldout/{name}": float(value) for name, value in judged.parts.items()
            }
        sheets = {"heldout": _sheet(judged, _SHOWN)}
        if evaluation.completions and "caption" in self.task.samples:
            judged, changed = self.inpaint(held_out, evaluation, evaluation.completions)
            metrics["alignment_completed"] = float(np.mean(np.asarray(judged.right)))
            metrics["kept_changed"] = float(np.mean(changed))
            sheets["completed"] = _sheet(judged, _SHOWN)
        return Findings(metrics, sheets)


def samples_of(encoder: Any, *more: str) -> tuple[str, ...]:
    """The entries of held-out data from which a system with this text encoder generates: captions,
    stored embeddings.
    """
    if encoder is None:
        return more
    stored = () if encoder.entry == "text" else (encoder.entry, "text_mask")
    return (*more, "caption", *stored)


def _sheet(judged, count):
    """The first images with their captions, in red where the judge disagrees."""
    right = None if judged.right is None else judged.right[:count]
    return grid(judged.images[:count], 8, _SIDE, judged.captions[:count], right)


def _verdict(evaluation, captions, images):
    verdict = alignment(images, captions, JUDGES[evaluation.judge]())
    return Judged(captions, images, np.asarray(verdict["right"]), verdict["parts"])


def _prompts(samples: Mapping[str, Any], rows: Sequence[int]) -> Any:
    if "text_embeds" in samples:
        return samples["text_embeds"][list(rows)], samples["text_mask"][list(rows)]
    return [samples["caption"][i] for i in rows]
