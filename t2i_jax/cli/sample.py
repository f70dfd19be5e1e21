"""`t2i sample RUN "a caption"`: pictures from a trained run."""

from __future__ import annotations

import pathlib
from typing import Annotated

import numpy as np
import tyro

from t2i_jax.errors import UserError


def sample(
    run: Annotated[pathlib.Path, tyro.conf.Positional],
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: pathlib.Path | None = None,
    count: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    negative: str | None = None,
    init: pathlib.Path | None = None,
    keep_rows: float = 0.5,
    upscale: pathlib.Path | None = None,
) -> None:
    """Generate pictures for captions.

    Args:
        run: Folder of the run.
        prompts: One caption or several.
        out: Folder for the PNG files; RUN/samples/<seed> by default. Nothing there is overwritten.
        count: Pictures per caption.
        seed: The same seed gives the same pictures.
        guidance: Strength of classifier-free guidance; the recipe's by default.
        temperature: Below 1 is safer, above 1 is more varied; the recipe's by default.
        top_k: Sample among the k likeliest tokens only.
        top_p: Sample among the likeliest tokens that hold this probability only.
        negative: What the pictures should not show.
        init: A picture to complete: its upper part is kept.
        keep_rows: Which part of --init is kept, from the top.
        upscale: Folder of a super-resolution run, which makes the pictures larger.
    """
    from t2i_jax import runs
    from t2i_jax.eval.grid import grid, save_png

    if count < 1:
        raise UserError(f"count={count} must be at least 1.")
    system = runs.load(run)
    larger = None if upscale is None else _upscaler(runs.load(upscale), upscale)
    if not hasattr(system, "generate"):
        raise UserError(f"run={str(run)!r} holds {type(system).__name__}, which makes no pictures from text.")
    options = runs.load_run_recipe(run).evaluation.sampling()
    given = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = {**options, **{name: value for name, value in given.items() if value is not None}}
    if negative is not None:
        options["negative_prompts"] = [negative] * len(prompts)
    if init is not None:
        options |= _completion(init, keep_rows, system, len(prompts))
    images = np.asarray(system.generate(list(prompts), seed=seed, images_per_prompt=count, **options))
    images = images if larger is None else larger(images)
    out = _new_folder(out or pathlib.Path(run) / "samples" / f"seed{seed}")
    for i, image in enumerate(images):
        save_png(out / f"{i // count:03d}-{i % count:02d}.png", image)
    save_png(out / "grid.png", grid(images, count, 128))
    (out / "captions.txt").write_text("".join(f"{i:03d} {caption}\n" for i, caption in enumerate(prompts)))
    print(f"{len(images)} pictures in {out}")


def _upscaler(system, run):
    if not hasattr(system, "upscale"):
        kind = type(system).__name__
        raise UserError(f"upscale={str(run)!r} holds {kind}; give the folder of a SuperResolutionTask's run.")
    return system.upscale


def _completion(path, keep_rows, system, prompts):
    from PIL import Image

    if not 0 < keep_rows < 1:
        raise UserError(f"keep_rows={keep_rows} must lie between 0 and 1, for example 0.5.")
    side = system.task.tokenizer.image_size
    try:
        picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"init={str(path)!r} can't be read as a picture ({error}); give a PNG or JPEG file.") from None
    rows = max(1, round(system.task.tokenizer.grid[0] * keep_rows))
    return {"init_images": np.repeat(np.asarray(picture)[None], prompts, axis=0), "known_rows": rows}


def _new_folder(out):
    for i in range(1, 10_000):
        folder = out if i == 1 else out.with_name(f"{out.name}-{i}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    raise UserError(f"out={str(out)!r} and its numbered neighbours exist; name another folder.")
