"""`t2i sample RUN "a caption"`: images from a trained run, with the options of its system."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from t2i_jax import paths
from t2i_jax.cli import arguments as cli
from t2i_jax.cli import docstring
from t2i_jax.cli.arguments import Argument, Shown
from t2i_jax.config import Count, check_all
from t2i_jax.errors import UserError
from t2i_jax.words import counted


@dataclasses.dataclass(frozen=True)
class _Command:
    """What every system is asked when it samples.

    Attributes:
      run: Folder of the run.
      prompts: One caption or several; none for a system that was trained without captions.
      out: Folder for the PNG files. Nothing there is overwritten.
      count: Images per caption.
      seed: The same seed gives the same images.
      upscale: Folder of a super-resolution run, which makes the images larger.
      mesh: Sizes of a mesh's axes over all devices, as data=2,tensor=4; one device by default.
      step: The checkpoint: its step, or best, the one with the best validation metric.
    """

    run: pathlib.Path
    prompts: Annotated[tuple[str, ...], Shown("CAPTION", positional=True)] = ()
    out: Annotated[pathlib.Path | None, Shown("FOLDER", default="RUN/samples/seedSEED")] = None
    count: Count = 4
    seed: int = 0
    upscale: Annotated[pathlib.Path | None, Shown("RUN")] = None
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None


# What a system may take beside prompts and options, by the name that its task lists in `inputs`:
# the flag and its help.
_INPUTS: Mapping[str, tuple[str, type, str]] = {
    "negative_prompts": ("negative", str, "What the images should not show."),
    "init_images": ("init", pathlib.Path, "An image to complete or to change."),
    "mask": (
        "mask",
        pathlib.Path,
        "An image as large as --init, white where that is kept and black where it is inpainted.",
    ),
    "cond_images": ("cond", pathlib.Path, "The image to condition on."),
}


def command(words: Sequence[str]) -> None:
    """Generate images for captions. With RUN, --help also lists the options of that run's system.

    Args:
      words: what follows `t2i sample`.
    """
    own = cli.arguments_of(_Command)
    run = _run_in(words)
    if run is None:  # help without a run, or a sentence that says what is missing
        if not cli.wants_help(words):
            cli.parsed(own, words, _NAME)
        print(cli.help_of(_NAME, own, docstring.paragraphs(command)))
        return
    from t2i_jax import runs

    recipe = runs.load_run_recipe(run)
    defaults, kind = recipe.evaluation.options, type(recipe.task).__name__
    options = cli.arguments_of(type(defaults), vars(defaults))
    inputs = [_input(name) for name in recipe.task.inputs]
    arguments = [*own, *options, *inputs]
    if cli.wants_help(words):
        about = f"Generate images with the system of a {kind}. The defaults are the recipe's."
        print(cli.help_of(_NAME, arguments, [about]))
        return
    given = cli.parsed(arguments, words, f"{_NAME} {run}, a run of {kind}")

    def of(some):
        return {argument.name: given[argument.name] for argument in some}

    chosen = type(defaults)(**of(options))
    check_all(chosen)
    _sample(_Command(**of(own)), recipe.task.adapted(chosen, defaults), of(inputs))


_NAME = "t2i sample"


def _input(name):
    flag, kind, about = _INPUTS[name]
    return Argument(flag, kind | None, None, about, Shown())


def _sample(common: _Command, options: Any, inputs: Mapping[str, Any]) -> None:
    from t2i_jax import runs
    from t2i_jax.eval.grid import grid
    from t2i_jax.pixels import save_png
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.sharding import parse_mesh

    run = paths.given("run", common.run)
    out = paths.folder("out", common.out or run / "samples" / f"seed{common.seed}")
    mesh = None if common.mesh is None else parse_mesh(common.mesh)
    system = runs.load(run, mesh=mesh, step=checkpoint_step(common.step))
    larger = None if common.upscale is None else runs.load(common.upscale)
    given = _given(system.task, inputs, max(len(common.prompts), 1))
    captions = (
        list(common.prompts) if common.prompts or system.task.text_encoder is not None else None
    )
    images = np.asarray(
        system.generate(
            captions,
            options,
            seed=common.seed,
            images_per_prompt=common.count,
            progress=True,
            **given,
        )
    )
    images = images if larger is None else larger.upscale(images)
    out = _new_folder(out)
    for i, image in enumerate(images):
        save_png(out / f"{i // common.count:03d}-{i % common.count:02d}.png", image)
    told = [caption for caption in captions or () for _ in range(common.count)]
    save_png(out / "grid.png", grid(images, common.count, 128, told or None))
    (out / "captions.txt").write_text(
        "".join(f"{i:03d} {caption}\n" for i, caption in enumerate(common.prompts))
    )
    print(f"{counted(len(images), 'image')} in {out}")


def _given(task, inputs, prompts):
    """What is beside prompts and options, as arguments of `generate`."""
    files = {name: path for name, path in inputs.items() if path is not None}
    found: dict[str, Any] = {}
    if "negative" in files:
        found["negative_prompts"] = [files["negative"]] * prompts
    init = None
    if "init" in files:
        init = _open("init", files["init"]).convert("RGB" if task.channels == 3 else "L")
        found["init_images"] = _repeated(_resized(init, task.image_size), prompts)
    if "mask" in files:
        if init is None:
            raise UserError(
                f"mask={str(files['mask'])!r} is nothing without --init; leave it out or give "
                "--init."
            )
        white = _open("mask", files["mask"]).convert("L")
        if white.size != init.size:
            raise UserError(
                f"mask={str(files['mask'])!r} is {white.size} and init {init.size} pixels; make "
                "them equal."
            )
        found["mask"] = np.asarray(_resized(white, task.image_size)) >= 128
    if "cond" in files:
        image = _open("cond", files["cond"]).convert(
            "RGB" if task.cond_image_channels == 3 else "L"
        )
        found["cond_images"] = _repeated(_resized(image, task.image_size), prompts)
    return found


def _run_in(arguments):
    """The run among the arguments: the first that is no flag and no flag's value.

    None without one.
    """
    for i, argument in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1].startswith("--") and "=" not in arguments[i - 1]
        if not argument.startswith("-") and not is_value:
            return pathlib.Path(argument)
    folders = [argument for argument in arguments if os.path.isdir(argument)]
    return pathlib.Path(folders[0]) if folders else None


def _open(name, path):
    from PIL import Image

    try:
        image = Image.open(paths.given(name, path))
        image.load()
        return image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name}={str(path)!r} can't be read as an image ({error}); give a PNG or JPEG file."
        ) from None


def _resized(image, side):
    from PIL import Image

    return image.resize((side, side), Image.Resampling.BICUBIC)


def _repeated(image, count):
    array = np.asarray(image)
    return np.repeat(array.reshape(1, *array.shape[:2], -1), count, axis=0)


def _new_folder(out):
    for i in range(1, 10_000):
        folder = out if i == 1 else out.with_name(f"{out.name}-{i}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            paths.make("out", folder)
            return folder
    raise UserError(f"out={str(out)!r} and its numbered neighbours exist; name another folder.")
