"""`t2i sample RUN "a caption"`: images from a trained run, with the options of its system."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import tyro

from t2i_jax import paths
from t2i_jax.config import did_you_mean, fields_of
from t2i_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Command:
    """What every system is asked when it samples.

    Attributes:
      run: Folder of the run.
      prompts: One caption or several; none for a system that was trained without captions.
      out: Folder for the PNG files; RUN/samples/seed<seed> by default. Nothing there is
        overwritten.
      count: Images per caption.
      seed: The same seed gives the same images.
      upscale: Folder of a super-resolution run, which makes the images larger.
      mesh: Sizes of a mesh's axes over all devices, as data=2,tensor=4; one device by default.
    """

    run: tyro.conf.Positional[pathlib.Path]
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    out: pathlib.Path | None = None
    count: int = 4
    seed: int = 0
    upscale: pathlib.Path | None = None
    mesh: str | None = None


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


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """`t2i sample` for these arguments: its options are those of the run that they name.

    Without a run (`t2i sample --help`) it has the options that every system has.
    """
    run = _run_in(arguments)
    if run is None:
        return lambda: _sample(
            tyro.cli(_Command, args=arguments, prog="t2i sample", description=_DESCRIPTION),
            None,
            {},
        )
    from t2i_jax import runs

    recipe = runs.load_run_recipe(run)
    return lambda: _parsed(arguments, recipe)


def describe(command: tyro.conf.OmitArgPrefixes[_Command]) -> None:
    """Generate images for captions.

    `t2i sample RUN --help` lists the options of that run's system.
    """


_DESCRIPTION = (
    "Generate images for captions. With RUN, --help also lists the options of that run's system."
)


def _parsed(arguments, recipe):
    options, inputs = recipe.evaluation.options, recipe.task.inputs
    flags = [_INPUTS[name] for name in inputs]
    fields = [
        (flag, Annotated[kind | None, tyro.conf.arg(help=about)], dataclasses.field(default=None))
        for flag, kind, about in flags
    ]
    sampling = _unchecked(options)
    beside = dataclasses.make_dataclass("Inputs", fields, frozen=True)
    nested = [
        ("sampling", sampling, dataclasses.field(default_factory=sampling)),
        ("input", beside, dataclasses.field(default_factory=beside)),
    ]
    whole = dataclasses.make_dataclass("Sample", nested, bases=(_Command,), frozen=True)
    kind = type(recipe.task).__name__
    told, unknown = tyro.cli(
        whole,
        args=list(arguments),
        prog="t2i sample",
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
        description=f"Generate images with the system of a {kind}; the defaults of its options are "
        "those of the recipe.",
    )
    if unknown:
        names = [*fields_of(_Command), *fields_of(type(options)), *(flag for flag, _, _ in flags)]
        known = ["--" + name.replace("_", "-") for name in names]
        named = unknown[0].partition("=")[0]
        remedy = did_you_mean(named, [name for name in known if name not in ("--run", "--prompts")])
        raise UserError(f"{named} is no option of run={str(told.run)!r}, a run of {kind}; {remedy}")
    given = type(options)(**vars(told.sampling))  # here they are checked
    _sample(told, recipe.task.adapted(given, options), vars(told.input))


def _unchecked(options):
    """The class of the options without its checks, whose sentences the parser would wrap."""
    hints = typing.get_type_hints(type(options))
    fields = [
        (name, hints[name], dataclasses.field(default=getattr(options, name)))
        for name in fields_of(type(options))
    ]
    made = dataclasses.make_dataclass("Sampling", fields, frozen=True)
    made.__doc__ = type(options).__doc__
    return made


def _sample(common: _Command, options: Any, inputs: Mapping[str, Any]) -> None:
    from t2i_jax import runs
    from t2i_jax.eval.grid import grid
    from t2i_jax.pixels import save_png
    from t2i_jax.sharding import parse_mesh

    if common.count < 1:
        raise UserError(f"count={common.count} must be at least 1.")
    run = paths.given("run", common.run)
    out = paths.folder("out", common.out or run / "samples" / f"seed{common.seed}")
    system = runs.load(run, mesh=None if common.mesh is None else parse_mesh(common.mesh))
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
    print(f"{len(images)} images in {out}")


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
