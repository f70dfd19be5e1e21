"""`t2i sample RUN "a caption"`: pictures from a trained run."""

from __future__ import annotations

import pathlib
from typing import Annotated

import numpy as np
import tyro

from t2i_jax.errors import UserError


def sample(
    run: Annotated[pathlib.Path, tyro.conf.Positional],
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    out: pathlib.Path | None = None,
    count: int = 4,
    seed: int = 0,
    guidance: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    stop_at: int | None = None,
    negative: str | None = None,
    init: pathlib.Path | None = None,
    keep_rows: float | None = None,
    mask: pathlib.Path | None = None,
    strength: float | None = None,
    cond: pathlib.Path | None = None,
    upscale: pathlib.Path | None = None,
    mesh: str | None = None,
) -> None:
    """Generate pictures for captions.

    Args:
        run: Folder of the run.
        prompts: One caption or several; none for a system that was trained without captions.
        out: Folder for the PNG files; RUN/samples/<seed> by default. Nothing there is overwritten.
        count: Pictures per caption.
        seed: The same seed gives the same pictures.
        guidance: Strength of classifier-free guidance; the recipe's by default.
        temperature: Parti: below 1 is safer, above 1 is more varied; the recipe's by default.
        top_k: Parti: sample among the k likeliest tokens only.
        top_p: Parti: sample among the likeliest tokens that hold this probability only.
        sampler: Imagen: ancestral, ddim, heun or dpm_solver.
        steps: Imagen: steps of the sampler, in every stage.
        stop_at: Imagen: the last stage to run, from 1.
        negative: What the pictures should not show.
        init: A picture to complete or, with Imagen and no --mask, to change.
        keep_rows: Parti: which part of --init is kept, from the top; 0.5 by default.
        mask: Imagen: a picture as large as --init, white where that is kept and black where it is painted anew.
        strength: Imagen: how much --init is changed, from 0 to 1; 0.6 by default.
        cond: Imagen: the picture to condition on, for a run that was trained on such pictures.
        upscale: Folder of a super-resolution run, which makes the pictures larger.
        mesh: Sizes of a mesh's axes over all devices, as data=2,tensor=4; one device by default.
    """
    from t2i_jax import runs
    from t2i_jax.eval.grid import grid
    from t2i_jax.pixels import save_png
    from t2i_jax.sharding import parse_mesh

    if count < 1:
        raise UserError(f"count={count} must be at least 1.")
    system = runs.load(run, mesh=None if mesh is None else parse_mesh(mesh))
    larger = None if upscale is None else _upscaler(runs.load(upscale), upscale)
    if not hasattr(system, "generate"):
        raise UserError(f"run={str(run)!r} holds {type(system).__name__}, which makes no pictures from text.")
    options = dict(runs.load_run_recipe(run).evaluation.sampling())
    given = {
        "guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p, "sampler": sampler,
        "steps": steps, "stop_at": stop_at, "strength": strength,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and name not in system.task.sampling_options:
            known = ", ".join("--" + option.replace("_", "-") for option in system.task.sampling_options)
            kind = f"run={str(run)!r}, a {type(system).__name__}"
            raise UserError(f"{name}={value} is no option of {kind}, which has {known}; leave it out.")
    options |= {name: value for name, value in given.items() if value is not None}
    if sampler is not None and steps is None:
        options.pop("steps", None)  # the recipe's number is for its own sampler
    if negative is not None:
        options["negative_prompts"] = [negative] * len(prompts)
    options |= _pictures(system, init, keep_rows, mask, max(len(prompts), 1))
    if cond is not None:
        if not getattr(system.task, "cond_image_channels", 0):
            raise UserError(f"cond={str(cond)!r} is given for a run that is conditioned on no pictures; leave it out.")
        options["cond_images"] = _cond(cond, system.task, max(len(prompts), 1))
    if "steps" in system.task.sampling_options:
        options["progress"] = True
    captions = list(prompts) if prompts or system.task.text is not None else None
    images = np.asarray(system.generate(captions, seed=seed, images_per_prompt=count, **options))
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


def _pictures(system, init, keep_rows, mask, prompts):
    """What to complete or to change, as arguments of `generate`."""
    parti = hasattr(system.task, "tokenizer")
    for name, value, fits in (("keep_rows", keep_rows, parti), ("mask", mask, not parti)):
        if value is not None and (init is None or not fits):
            why = "is nothing without --init" if fits else f"is no option of a {type(system).__name__}"
            raise UserError(f"{name}={str(value)!r} {why}; leave it out{' or give --init' if fits else ''}.")
    if init is None:
        return {}
    picture = _open("init", init).convert("RGB" if _channels(system) == 3 else "L")
    if parti:
        keep_rows = 0.5 if keep_rows is None else keep_rows
        if not 0 < keep_rows < 1:
            raise UserError(f"keep_rows={keep_rows} must lie between 0 and 1, for example 0.5.")
        side, rows = system.task.tokenizer.image_size, max(1, round(system.task.tokenizer.grid[0] * keep_rows))
        return {"init_images": _repeated(_resized(picture, side), prompts), "known_rows": rows}
    side = system.task.image_size
    given = {"init_images": _repeated(_resized(picture, side), prompts)}
    if mask is not None:
        white = _open("mask", mask).convert("L")
        if white.size != picture.size:
            raise UserError(f"mask={str(mask)!r} is {white.size} and init {picture.size} pixels; make them equal.")
        given["mask"] = np.asarray(_resized(white, side)) >= 128
    return given


def _cond(path, task, prompts):
    picture = _open("cond", path).convert("RGB" if task.cond_image_channels == 3 else "L")
    return _repeated(_resized(picture, task.image_size), prompts)


def _channels(system):
    return getattr(system.task, "channels", None) or system.task.tokenizer.channels


def _open(name, path):
    from PIL import Image

    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}={str(path)!r} can't be read as a picture ({error}); give a PNG or JPEG file.") from None


def _resized(picture, side):
    from PIL import Image

    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _repeated(picture, count):
    array = np.asarray(picture)
    return np.repeat(array.reshape(1, *array.shape[:2], -1), count, axis=0)


def _new_folder(out):
    for i in range(1, 10_000):
        folder = out if i == 1 else out.with_name(f"{out.name}-{i}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    raise UserError(f"out={str(out)!r} and its numbered neighbours exist; name another folder.")
