"""What a run shows of itself: grids while it trains, and a judged set of held-out captions when it is done."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax.cluster import processes
from t2i_jax.data.pipeline import batches
from t2i_jax.eval.alignment import alignment
from t2i_jax.eval.grid import grid
from t2i_jax.pixels import save_png
from t2i_jax.eval.judge_digits import JudgeDigits
from t2i_jax.eval.judge_shapes import JudgeShapes, parse
from t2i_jax.eval.reconstruction import codebook_usage, psnr
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.parti.system import PartiSystem
from t2i_jax.systems.super_resolution.system import SuperResolutionSystem
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.train.log import add_metrics
from t2i_jax.train.loop import Hook

_JUDGES = {"shapes": JudgeShapes, "digits": JudgeDigits}
_SIDE = 96  # pixels that a picture of a grid is at least high
_EMBEDDED = ("shapes", "digits")


@dataclasses.dataclass(frozen=True)
class Judged:
    """Generated pictures beside their captions; without a judge `right` is None and `parts` is empty.

    Attributes:
      right: bool per picture. parts: fraction that is right of each property the judge looks at.
    """

    captions: list[str]
    images: np.ndarray
    right: np.ndarray | None
    parts: Mapping[str, float]


def preview_hooks(recipe: Recipe, build_system) -> tuple[Hook, ...]:
    """A hook that draws a grid into WORKDIR/samples every `train.eval_every` steps, and logs what can be measured."""
    if not recipe.train.eval_every:
        return ()

    def run(state, step, log):
        system = build_system({**state.params, **state.ema}, state.stats)
        sheet, metrics = preview(recipe, system)  # every process paints; process 0 writes
        _save(log.workdir / "samples" / f"{step:07d}.png", sheet)
        log.scalars(step, metrics)

    return (Hook(recipe.train.eval_every, run),)


def preview(recipe: Recipe, system) -> tuple[np.ndarray, Mapping[str, float]]:
    """A grid of `evaluation.preview` pictures, and metrics: originals above reconstructions, or generated pictures."""
    count = recipe.evaluation.preview
    if hasattr(system, "generate"):
        judged = judge(recipe, system, count)
        metrics = {} if judged.right is None else {"eval/alignment": float(np.mean(judged.right))}
        return grid(judged.images, 8, _SIDE), metrics
    images = held_out(recipe, count)["image"]
    again = remake(system, images)
    metrics = {"eval/psnr": _decibel(images, again)}
    rows = [np.concatenate([images[i : i + 8], again[i : i + 8]]) for i in range(0, count, 8)]
    return np.concatenate([grid(row, min(8, len(row) // 2), _SIDE) for row in rows]), metrics


def remake(system: TokenizerSystem | SuperResolutionSystem, images: np.ndarray) -> np.ndarray:
    """What a tokenizer or a super-resolution network makes of pictures: NHWC uint8 in and out."""
    if isinstance(system, SuperResolutionSystem):
        return np.asarray(system.upscale(system.shrink(images)))
    return np.asarray(system.decode(system.encode(images)))


def held_out(recipe: Recipe, count: int, wants: Sequence[str] = ("image",)) -> Mapping[str, Any]:
    """`count` samples that training did not see, for an embedded set; else the first of the data."""
    split = "heldout" if recipe.data.source in _EMBEDDED else recipe.data.split
    data = dataclasses.replace(recipe.data, split=split, flip=False)
    length = getattr(getattr(recipe.task, "text", None), "max_length", None)
    stream = batches(data, count, 0, tokenize=None, wants=wants, text_length=length, repeat=True)
    return next(iter(stream))


def judge(recipe: Recipe, system: PartiSystem | ImagenSystem, count: int, seed: int = 0) -> Judged:
    """Pictures for `count` held-out captions, and the verdict of the recipe's judge on each."""
    options = dict(seed=seed, batch_size=min(count, 64), **recipe.evaluation.sampling())
    wants = _wants(recipe)
    samples = held_out(recipe, count, wants) if wants else {}
    if "cond_image" in samples:
        options["cond_images"] = samples["cond_image"]
    if recipe.task.text is None:
        options |= {"guidance": 1} if samples else {"guidance": 1, "images_per_prompt": count}
        return Judged([""] * count, np.asarray(system.generate(**options)), None, {})
    captions = list(samples["caption"])
    images = np.asarray(system.generate(_prompts(samples, range(count)), **options))
    if recipe.evaluation.judge is None:
        return Judged(captions, images, None, {})
    return _judged(recipe, captions, images)


def complete(
    recipe: Recipe, system: PartiSystem | ImagenSystem, count: int, seed: int = 0
) -> tuple[Judged, np.ndarray]:
    """Held-out pictures of two things, one half of each painted anew, judged; and how much of the rest changed.

    The half that is kept is the left, the right, the upper and the lower one in turn.

    Returns:
      The pictures and the verdict; and per picture the fraction of kept pixels that are not as they were.
    """
    samples = held_out(recipe, 3 * count, ("image", *_wants(recipe)))
    two = [i for i, caption in enumerate(samples["caption"]) if parse(caption).relation is not None][:count]
    images, captions = samples["image"][two], [samples["caption"][i] for i in two]
    places = system.task.tokenizer.grid if isinstance(system, PartiSystem) else images.shape[1:3]
    upper, left = (axis < size / 2 for axis, size in zip(np.indices(places), places, strict=True))
    masks = np.stack([(left, ~left, upper, ~upper)[i % 4] for i in range(len(two))])
    options = dict(seed=seed, batch_size=min(len(two), 64), **recipe.evaluation.sampling())
    made = np.asarray(system.generate(_prompts(samples, two), init_images=images, mask=masks, **options))
    scale = [side // place for side, place in zip(images.shape[1:3], places, strict=True)]
    kept = masks.repeat(scale[0], 1).repeat(scale[1], 2)
    changed = ((made != images).any(-1) & kept).sum((1, 2)) / kept.sum((1, 2))
    return _judged(recipe, captions, made), changed


def evaluate(recipe: Recipe, system, workdir: str | pathlib.Path) -> Mapping[str, float]:
    """The figures of a finished run, added to WORKDIR/metrics.json, and its grid in WORKDIR/samples/heldout.png.

    Returns:
      With captions and a judge `alignment_heldout` (fraction of pictures that agree with their captions); with
      `evaluation.completions` the same of `complete` as `alignment_completed`, and `kept_changed`; for a tokenizer
      `reconstruction_psnr` in dB and `codebook_usage` (fraction of codes that held-out pictures use).
    """
    workdir = pathlib.Path(workdir)
    metrics: dict[str, float] = {}
    if hasattr(system, "generate"):
        judged = judge(recipe, system, recipe.evaluation.pictures)
        if judged.right is not None:
            metrics["alignment_heldout"] = float(np.mean(judged.right))
            metrics |= {f"alignment_heldout/{name}": float(value) for name, value in judged.parts.items()}
        _save(workdir / "samples" / "heldout.png", grid(judged.images[:32], 8, _SIDE))
        if recipe.evaluation.completions:
            judged, changed = complete(recipe, system, recipe.evaluation.completions)
            metrics |= {"alignment_completed": float(np.mean(judged.right)), "kept_changed": float(np.mean(changed))}
            _save(workdir / "samples" / "completed.png", grid(judged.images[:32], 8, _SIDE))
    else:
        images = held_out(recipe, recipe.evaluation.pictures)["image"]
        metrics["reconstruction_psnr"] = _decibel(images, remake(system, images))
        if isinstance(system, TokenizerSystem):
            usage = codebook_usage(np.asarray(system.encode(images)), system.task.model.codebook_size)
            metrics["codebook_usage"] = float(usage["codebook_usage"])
        _save(workdir / "samples" / "heldout.png", preview(recipe, system)[0])
    if processes.is_first():
        add_metrics(workdir, metrics)
    return metrics


def _save(path, sheet):
    if processes.is_first():
        save_png(path, sheet)


def _judged(recipe, captions, images):
    verdict = alignment(images, captions, _JUDGES[recipe.evaluation.judge]())
    return Judged(captions, images, np.asarray(verdict["right"]), verdict["parts"])


def _wants(recipe):
    """What of the data a system is given to make pictures from."""
    text = recipe.task.text
    stored = ("text_embeds", "text_mask") if getattr(text, "entry", None) == "text_embeds" else ()
    pictures = ("cond_image",) if "cond_image" in recipe.task.batch_spec(1) else ()
    return (*pictures, *(("caption", *stored) if text is not None else ()))


def _prompts(samples, rows):
    if "text_embeds" in samples:
        return samples["text_embeds"][list(rows)], samples["text_mask"][list(rows)]
    return [samples["caption"][i] for i in rows]


def _decibel(images, again):
    return float(np.mean(np.minimum(psnr(images, again), 99.0)))  # a perfect picture would be infinite
