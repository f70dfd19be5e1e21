"""`t2i sample RUN "a caption"`: images from a trained run, with the options of its system."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from t2i_jax import paths
from t2i_jax.cli import arguments as cli
from t2i_jax.cli import docstring, rerank, upscale
from t2i_jax.cli.arguments import Argument, Shown
from t2i_jax.cli.dream import is_run
from t2i_jax.config import check_all, fields_of
from t2i_jax.errors import UserError
from t2i_jax.values import Count, Range, Seed
from t2i_jax.words import counted


@dataclasses.dataclass(frozen=True)
class _Command:
    """The arguments of `t2i sample` that every system has.

    Attributes:
      run: Folder of the run.
      captions: One caption or several; none for a system that was trained without captions.
      prompts: A file of more captions: .txt with one in each line, or a table (.csv, .tsv, .jsonl,
        .json) with a column caption, text or prompt.
      out: Folder for the PNG files. Nothing there is overwritten.
      count: Images per caption, or of an image.
      seed: The same seed gives the same images; all 63 bits count.
      batch_size: Images that are made at a time; fewer need less memory, and are the same images.
      t5: For a run with stored text embeddings, also that of --upscale: folder or hub name of the
        T5 that made them.
      best_of: Make this number of images per caption or image, and keep the --count of them that
        --rerank finds the most similar to it; how similar is in scores.tsv beside them.
      rerank: Folder of the run of a CLIP, which compares the images with their captions, or, where
        there are none, with --image.
      upscale: Folder of a super-resolution run, which makes the images larger, from the same
        captions where it reads any, and as its recipe says.
      mesh: Sizes of a mesh's axes over all devices, as data=2,tensor=4; one device by default.
      offload: Keep weights in the host's memory, and of several networks only the one that runs on
        the device; refused for a system whose weights are all on the device at any time.
      step: The checkpoint: its step, or best, the one with the best validation metric.
    """

    run: pathlib.Path
    captions: Annotated[tuple[str, ...], Shown("CAPTION", positional=True)] = ()
    prompts: Annotated[pathlib.Path | None, Shown("FILE")] = None
    out: Annotated[pathlib.Path | None, Shown("FOLDER", default="RUN/samples/seedSEED")] = None
    count: Count = 4
    seed: Seed = 0
    batch_size: Count = 64
    t5: Annotated[str | None, Shown("FOLDER|NAME")] = None
    best_of: Annotated[Annotated[int, Range(1, 2**31 - 1)] | None, Shown("N")] = None
    rerank: Annotated[pathlib.Path | None, Shown("RUN")] = None
    upscale: Annotated[pathlib.Path | None, Shown("RUN")] = None
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None
    offload: bool = False
    step: Annotated[str | None, Shown("STEP", default="the newest")] = None


# Inputs beside prompts and options, by the name that the task of a system lists in `inputs`:
# the flag and its help. "other_images" has no flag of its own: it is the second --image.
_INPUTS: Mapping[str, tuple[str, Any, str]] = {
    "negative_prompts": ("negative", str, "What the images should not show."),
    "init_images": (
        "init",
        pathlib.Path,
        "An image to complete or to change, read and cut as those of training.",
    ),
    "mask": (
        "mask",
        pathlib.Path,
        "An image as large as --init, white where that is kept; where it is black or transparent, "
        "it is inpainted.",
    ),
    "images": (
        "image",
        tuple[pathlib.Path, ...],
        "An image to vary.",
    ),
    "instead_of": (
        "instead_of",
        str,
        "What --image shows now, in words: it is changed to what the caption says (see --change).",
    ),
    "cond_images": ("cond", pathlib.Path, "The image to condition on."),
    "start_images": (
        "start",
        pathlib.Path,
        "An image in place of what the stages before --start-at make.",
    ),
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
    inputs = [_input(name, recipe.task.inputs) for name in recipe.task.inputs if name in _INPUTS]
    options = [
        option
        for option in cli.arguments_of(type(defaults), vars(defaults))
        if _has_use(option.name, type(defaults), recipe.task.inputs)
    ]
    arguments = [*own, *options, *inputs]
    if cli.wants_help(words):
        about = f"Generate images with the system of a {kind}. The defaults are the recipe's."
        print(cli.help_of(_NAME, arguments, [about]))
        return
    stated = cli.stated(arguments, words, f"{_NAME} {run}, a run of {kind}")

    def of(some):
        return {argument.name: stated.get(argument.name, argument.default) for argument in some}

    with _telling_of_captions(stated):
        chosen = dataclasses.replace(defaults, **of(options))
        check_all(chosen)
    _check_needed(chosen, defaults, of(inputs))
    adapted = recipe.task.adapted(chosen, defaults, stated.keys())
    _sample(_Command(**of(own)), adapted, of(inputs))


_NAME = "t2i sample"
_COLUMNS, _IN_GRID, _PIXELS_IN_GRID = 16, 256, 2**27  # of grid.png at most


@contextlib.contextmanager
def _telling_of_captions(stated):
    """A context in which an error about a further value of an option says where captions stand, if
    none is given: it may be one of a single word, as in `--sampler ddim circle`.

    Args:
      stated: the arguments that are given, by name.
    """
    try:
        yield
    except UserError as error:
        several = {name: value for name, value in stated.items() if isinstance(value, tuple)}
        further = [f"{name}={one!r} " for name, value in several.items() for one in value[1:]]
        if stated.get("captions") or not str(error).startswith(tuple(further)):
            raise
        said = str(error).rstrip(".?")
        raise UserError(f"{said}; a caption stands right after RUN, or after --.") from error


def _has_use(option, kind, inputs):
    """Whether something that an option needs can be given on the command line."""
    needed = getattr(kind, "needs", {}).get(option)
    known = {*inputs, *fields_of(kind)}
    return needed is None or not known.isdisjoint(needed)


def _check_needed(chosen, defaults, inputs):
    """Refuses options that were changed and have no effect without, or with, an image, other words
    or another option.
    """
    from t2i_jax.systems import calls

    flags = {name: flag.replace("_", "-") for name, (flag, *_) in _INPUTS.items()}
    given = {name for name, (flag, *_) in _INPUTS.items() if inputs.get(flag)}
    given |= {"other_images"} if len(inputs.get("image") or ()) > 1 else set()

    def told(name):
        spelt = flags.get(name, name.replace("_", "-"))
        return "a second --image" if name == "other_images" else f"--{spelt}"

    def refuse(sentence):
        raise UserError(f"{sentence}.")

    calls.check_used(defaults, chosen, given, told, refuse)


def _input(name, inputs):
    flag, kind, about = _INPUTS[name]
    if name == "images" and "other_images" in inputs:
        about = f"{about} Given twice, what lies between two images is made (see --blend)."
    return Argument(flag, kind | None, None, about, Shown())


def _sample(common: _Command, options: Any, inputs: Mapping[str, Any]) -> None:
    from t2i_jax import runs
    from t2i_jax.runs.folder import checkpoint_step
    from t2i_jax.sharding import parse_mesh
    from t2i_jax.systems import batching

    run = paths.given("run", common.run)
    out = paths.folder("out", common.out or run / "samples" / f"seed{common.seed}")
    captions = [*common.captions, *_in_file(common.prompts)]
    varied = len(inputs["image"] or ()) if "image" in inputs else None
    made = rerank.check(common.count, common.best_of, common.rerank, len(captions), varied)
    of_made = "count" if common.best_of is None else "best_of"
    batching.check_total(max(len(captions), 1) * made, of_made, made)
    mesh = None if common.mesh is None else parse_mesh(common.mesh)
    step = checkpoint_step(common.step)
    system = runs.load(run, mesh=mesh, step=step, offload=common.offload)
    given = _given(system.task, inputs)
    shown = None if captions else given.get("images")
    larger = _helper("upscale", common.upscale, "upscales", "super-resolution network")
    ranker = _helper("rerank", common.rerank, "compares", "CLIP")
    if ranker is not None:
        rerank.tried(ranker, captions, made, shown)
    encoder = system.task.text_encoder
    prompts = captions if captions or (encoder is not None and "images" not in given) else None
    t5_for_larger = common.t5 is not None and larger is not None and upscale.stores_text(larger)
    if common.t5 is not None and not (t5_for_larger and not upscale.stores_text(system)):
        prompts, given = _embedded(run, encoder, common.t5, captions, given)
    if larger is not None:
        before = encoder if upscale.stores_text(system) else None
        t5 = common.t5 if t5_for_larger else None
        larger = _upscaler(common, larger, captions, t5, before)
    with _new_folder(out) as folder:  # a place that can't be had is refused before images are made
        images = np.asarray(
            system.generate(
                prompts,
                options,
                seed=common.seed,
                images_per_prompt=made,
                batch_size=common.batch_size,
                progress=True,
                **given,
            )
        )
        scores = None
        if ranker is not None:
            images, scores = rerank.best(ranker, images, captions, common.count, shown)
        if larger is not None:
            images = larger(images, common.count)
        _save(folder, images, captions, common.count)
        if scores is not None:
            compared = captions or [str(inputs["image"][0])]
            rerank.write(folder, scores, compared, "caption" if captions else "image")


def _helper(field, run, can, kind):
    """The system of a run that works on the images once they are made; None without one.

    Raises:
      UserError: it is none that can, and images that are made first would be lost.
    """
    from t2i_jax import runs

    if run is None:
        return None
    if not paths.given(field, run).is_dir():
        raise UserError(f"{field}={str(run)!r} is not a folder; give the run of a {kind}.")
    system = runs.load(run)
    if not getattr(system, can):
        told = type(system.task).__name__
        raise UserError(f"{field}={str(run)!r} is a run of {told}; give the run of a {kind}.")
    return system


def _upscaler(common, system, captions, t5, before):
    """The upscaler of the run that --upscale names.

    Args:
      t5: the T5 that embeds the captions for it; None: none. before: as of `_tell_cut`.
    """

    def embed(run, encoder):
        return _embedded(run, encoder, t5, captions, {}, before)[0]

    given = (captions, None if t5 is None else embed, common.seed, common.batch_size)
    return upscale.upscaler(paths.given("upscale", common.upscale), system, *given)


def _in_file(path):
    """The captions of a file; none without one."""
    from t2i_jax.cli.prompts import read_prompts

    return [] if path is None else read_prompts(paths.given("prompts", path))


def _given(task, inputs):
    """The input images, masks and arrays of a command, as arguments of `generate`."""
    from t2i_jax.data import image_file

    def read(name, channels):
        path = paths.given(name, inputs[name])
        if channels is None:
            return image_file.read_mask(path, name)
        return image_file.read(path, channels, name)

    found: dict[str, Any] = {}
    if inputs.get("negative") is not None:
        found["negative_prompts"] = inputs["negative"]
    if inputs.get("init") is not None:
        found["init_images"] = read("init", task.channels)
    if inputs.get("mask") is not None:
        if "init_images" not in found:
            raise UserError(
                f"mask={str(inputs['mask'])!r} is nothing without --init; leave it out or give "
                "--init."
            )
        found["mask"] = read("mask", None)
    if inputs.get("image"):
        found |= _images(inputs["image"], task)
    if inputs.get("instead_of") is not None:
        found["instead_of"] = inputs["instead_of"]
    if inputs.get("cond") is not None:
        found["cond_images"] = read("cond", task.cond_image_channels)
    if inputs.get("start") is not None:
        found["start_images"] = read("start", task.channels)
    return found


def _images(named, task):
    """One image to vary, or two to go from one to the other where the system can."""
    from t2i_jax.data import image_file

    mixes = "other_images" in task.inputs
    if len(named) > 1 + mixes:
        remedy = "one image, or two to mix" if mixes else "one, since this run mixes no images"
        raise UserError(f"image is given {len(named)} times; give {remedy}.")
    read = [image_file.read(paths.given("image", path), task.channels, "image") for path in named]
    return dict(zip(("images", "other_images"), read))


def _embedded(run, encoder, t5, captions, given, before=None):
    """Prompts and negative prompts as embeddings, for a run that has no text encoder of its own.

    Args:
      before: as of `_tell_cut`.

    Raises:
      UserError: the run reads captions itself, or the T5 is another one.
    """
    import jax

    from t2i_jax.runs import stored_text
    from t2i_jax.text.encoder import captions_of
    from t2i_jax.text.stored import is_stored
    from t2i_jax.text.t5 import T5Text, pair_of

    if not is_stored(encoder):
        raise UserError(
            f"t5={t5!r} is for runs with stored text embeddings, and this one reads captions "
            "itself, or none; leave it out."
        )
    if not captions:
        raise UserError("captions are missing; name some after RUN, or a file of them: --prompts.")
    negative = [given["negative_prompts"]] if "negative_prompts" in given else []
    text = T5Text.from_directory(t5, max_length=encoder.max_length)
    if text.dim != encoder.dim:
        raise UserError(
            f"t5={t5!r} is {text.dim} wide, and the run's embeddings {encoder.dim}; give the T5 "
            "that made them."
        )
    params = text.init(jax.random.key(0))
    stored_text.check_t5(run, t5, params)
    captions = captions_of(captions, "prompts")
    _tell_cut(run, text, captions, before)
    negative = captions_of(negative, "negative") if negative else []
    embeds, mask = pair_of(text, params, [*captions, *negative])
    if negative:
        against = (part[-1:].repeat(len(captions), axis=0) for part in (embeds, mask))
        given = {**given, "negative_prompts": tuple(against)}
    return (embeds[: len(captions)], mask[: len(captions)]), given


def _tell_cut(run, text, captions, before):
    """Tells what a T5 cuts of captions.

    Args:
      before: `task.text` of the run for which it has been told already, so that only what this one
        cuts otherwise is; None: of none.
    """
    from t2i_jax.systems.notices import tell
    from t2i_jax.text.encoder import told_of_cuts

    told, *known = (
        told_of_cuts(text.tokenizer(), captions, one.max_length, "prompt")
        for one in (text, *([] if before is None else [before]))
    )
    if told is not None and told not in known:
        where = f" for upscale={str(run)!r} (text.max_length={text.max_length})"
        tell(told + (where if known else ""))


def _save(out, images, captions, count):
    """A PNG file per image, a grid of the first of them, and the captions by number."""
    from t2i_jax.eval import sample_folder
    from t2i_jax.eval.grid import grid
    from t2i_jax.pixels import save_png

    for i, image in enumerate(images):
        save_png(out / sample_folder.image_name(i // count, i % count), image)
    shown = max(1, min(len(images), _IN_GRID, _PIXELS_IN_GRID // images[0].size))
    told = [caption for caption in captions for _ in range(count)][:shown]
    rows = -(-count // _COLUMNS)
    save_png(out / sample_folder.SHEET, grid(images[:shown], -(-count // rows), 128, told or None))
    sample_folder.write_captions(out, captions)
    beside = "" if shown == len(images) else f"; {sample_folder.SHEET} shows the first {shown}"
    print(f"{counted(len(images), 'image')} in {out}{beside}")


def _run_in(words):
    """The run among the words: the first that is no option and no option's value; None without one.

    Whether an option takes a value that only the run's system knows is not known yet: after such a
    one the first word that is a run's folder is meant, where there is one.
    """
    takes_value = _takes_value()
    places, takes, is_value, unknown = [], None, False, False
    for i, word in enumerate(words):
        if word == "--":
            places += words[i + 1 :]
            break
        if word.startswith("--"):
            flag, equals, _ = word.partition("=")
            takes = takes_value.get(flag.replace("_", "-"))
            is_value, unknown = not equals and takes is not False, unknown or takes is None
        elif is_value and not (takes is None and is_run(word)):
            is_value = False
        elif not word.startswith("-"):
            places.append(word)
            is_value = False
    runs = [word for word in places if is_run(word)] if unknown else []
    return next(map(pathlib.Path, runs or places), None)


def _takes_value():
    """For each flag that does not depend on the run's system, whether a value follows it."""
    inputs = [_input(name, ()) for name in _INPUTS]
    known = [one for one in (*cli.arguments_of(_Command), *inputs) if not one.positional]
    negations = {one.negation: False for one in known if one.is_switch}
    return {"--help": False, **negations, **{one.flag: not one.is_switch for one in known}}


@contextlib.contextmanager
def _new_folder(out):
    """Holds the first of `out` and its numbered neighbours that is empty and that no other command
    writes to.
    """
    from t2i_jax.cluster import lock  # which imports JAX

    for i in range(1, 10_000):
        folder = out if i == 1 else out.with_name(f"{out.name}-{i}")
        if not _is_free(folder, lock.FILE):
            continue
        with contextlib.ExitStack() as holding:
            try:
                holding.enter_context(lock.held(folder, "out"))
            except lock.InUse:
                continue
            if _is_free(folder, lock.FILE):  # still
                yield folder
                return
    raise UserError(f"out={str(out)!r} and its numbered neighbours exist; name another folder.")


def _is_free(folder, lock):
    """Whether a folder is not there, or holds nothing but the file of a lock."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and not any(one.name != lock for one in folder.iterdir())
