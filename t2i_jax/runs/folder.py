"""A run's folder: what is in it, read and written.

    WORKDIR/checkpoints/      the trainer's checkpoints, the recipe in each
    WORKDIR/PART/             a part that was trained or copied: itself a run, or an exported system
    WORKDIR/parts.json        where each part is, and the fingerprint of its weights
    WORKDIR/text_tokenizer/   the vocabulary of a learned text encoder, and text_tokenizer.json its
                              digests; vocabulary.json, of what it was made (`runs.vocabulary`)
    WORKDIR/stored_text.json  what made the stored text that it is trained on, and stored_clip.json
                              the stored embeddings of images and captions (`runs.stored_text`)
    WORKDIR/division.json     how its data were divided when it was begun (`runs.division`)
    WORKDIR/captions.json     the data whose captions the text encoder was found to read, where it
                              can't read every text (`runs.captions`)
    WORKDIR/recipe.json       the recipe of a run that joins its parts and trains nothing of its own
    WORKDIR/samples/          grids of images; metrics.jsonl, metrics.json, goodput.json and event
                              files beside them; wandb_id.txt: the run's id in Weights & Biases
    WORKDIR/profile/          traces
    WORKDIR/evaluation.json   how the metrics of generated images were measured while it trained
    WORKDIR/evaluation/       the features of the real images that they are compared with

An exported system has `system.json` (its recipe) and `weights.safetensors` in place of checkpoints.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax import paths, sharding
from t2i_jax.cluster import lock
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.foreign import json_file, safetensors_file
from t2i_jax.runs import division, shapes, vocabulary
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.systems import placing
from t2i_jax.systems.base import Given, System, on_device
from t2i_jax.train.stored import load_config, load_params
from t2i_jax.values import shown

PARTS, TEXT_TOKENIZER = "parts.json", vocabulary.TEXT_TOKENIZER
STORED = {"text": "stored_text.json", "clip": "stored_clip.json"}  # by column of packed data
_RESTORE = "restore it from a copy"  # the remedy for a file of a run that was damaged or edited
EXPORT, _WEIGHTS, _JOINED = "system.json", "weights.safetensors", "recipe.json"


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a run's folder, without optimisers.

    Attributes:
      folder: of the run. params, ema: by group; `ema` is empty where no moving average is kept.
      stats: what training changes without a gradient. parts: the contents of the parts' folders by
        name.
    """

    folder: pathlib.Path
    recipe: Recipe
    params: Mapping[str, Any]
    ema: Mapping[str, Any]
    stats: Mapping[str, Any]
    parts: Mapping[str, Contents]

    @property
    def averaged(self) -> Mapping[str, Any]:
        """The parameters by group, averaged where an average is kept."""
        return {**self.params, **self.ema}

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of the system, see `fingerprint`."""
        return fingerprint(self.system)

    @functools.cached_property
    def system(self) -> System:
        """The trained system, of the averaged parameters."""
        parts, recorded = {}, recorded_parts(self.folder)  # of the weights that were read
        for name, part in self.parts.items():
            known = recorded.get(name, {}).get("fingerprint") or ""
            own = given(part.system, part.folder)
            parts[name] = dataclasses.replace(own, fingerprint=known)
        task = self.recipe.task
        if task.objectives:
            encoder, frozen = task.text_encoder, task.frozen(parts)
            tokenizer = encoder and vocabulary.load(self.folder, encoder)
            system = task.system(self.averaged, self.stats, parts, frozen, tokenizer)
        else:
            system = task.with_parts(parts).system({}, {}, parts, {}, None)
        return cutting(system, self.recipe)


def load(
    workdir: str | pathlib.Path,
    *,
    averaged: bool = True,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    step: int | str | None = None,
    offload: bool = False,
) -> System:
    """The trained system of a run's folder, or of a folder that `export` wrote.

    >>> system = load("runs/quickstart")                                        # doctest: +SKIP
    >>> system.generate(["a red circle above a blue square"], seed=0).shape    # doctest: +SKIP
    (1, 32, 32, 3)

    Args:
      averaged: use the EMA weights where the run keeps them; an exported system has one set.
      mesh: sizes of a mesh's axes, {"data": 2, "tensor": 4}, on which a system that makes images
        from text samples (see `placing.on_mesh`). A checkpoint is restored directly into its
        sharding. None: one device.
      devices: of the mesh; None: all there are.
      step: of the checkpoint, a number, or "best": the one with the best validation metric; None:
        the newest.
      offload: the weights are kept in the host's memory, and of a cascade, or of a system of
        several parts, only the network that runs is on the device.

    Raises:
      UserError: no such folder, no finished checkpoint in it, a part that is missing or another
        than it was trained with, a mesh that does not fit, or a system that is not offloaded.
    """
    if offload:
        if mesh is not None:
            raise UserError(
                f"mesh={shown(mesh)} shares the weights among devices and offload keeps them out "
                "of the memory of one; give one of the two."
            )
        with jax.default_device(_host()):
            return _read(_existing(workdir), averaged, step=step).system.offloaded()
    folder = _existing(workdir)
    if mesh is None:
        # those of a run are there; those of an exported system would be sent with every call
        return on_device(_read(folder, averaged, step=step).system, sharding.default_device())
    sharding.make_mesh(mesh, devices)  # refused before any array is read
    task, places = load_run_recipe(folder).task, None
    if task.objectives and not is_export(folder):
        places = placing.places(task, mesh, devices)[1]
    return _read(folder, averaged, places, step).system.on_mesh(mesh, devices)


def _read(folder, averaged=None, places=None, step=None, recipe=None, known=None):
    """The contents of a run, whose parts' weights are compared with those that it was trained with
    while it is read itself.

    Args:
      averaged: whether EMA weights take the place of the last ones, as they always do in the parts;
        None: both are kept, in the parts too.
      recipe: the run's, where it has been read.
      known: contents of parts by path; what is a part of several parts, as DALL-E 2's CLIP is, is
        read once.
    """
    recipe = load_run_recipe(folder) if recipe is None else recipe
    known = {} if known is None else known
    of_parts = None if averaged is None else True
    task, recorded, parts, found = recipe.task, recorded_parts(folder), {}, {}
    with concurrent.futures.ThreadPoolExecutor(1) as background:
        for name, home in part_folders(folder, recipe).items():
            theirs = load_run_recipe(home)
            kind, wanted = type(theirs.task), task.parts[name].of
            if not issubclass(kind, wanted):  # asked first: it may lead back to this run
                told = f"is a run of {kind.__name__}, not of {wanted.__name__}"
                raise _wrong_part(folder, name, home, told)
            if (path := os.path.realpath(home)) not in known:
                known[path] = _read(home, of_parts, recipe=theirs, known=known)
            part = parts[name] = known[path]
            if before := recorded.get(name, {}).get("fingerprint"):
                found[name] = before, background.submit(lambda part=part: part.fingerprint)
        params, ema, stats = {}, {}, {}
        if task.objectives:
            params, ema, stats = arrays(folder, task, places, step)
        elif step is not None:
            raise UserError(
                f"step={shown(step)} is the number of a checkpoint, and run={str(folder)!r} has "
                f"none of its own, but joins {', '.join(parts)}; leave it out."
            )
        for name, (before, digits) in found.items():
            if digits.result() != before:
                told = f"has other weights (fingerprint {digits.result()}) than it was trained with"
                raise _wrong_part(folder, name, parts[name].folder, f"{told} ({before})")
    if averaged is not None:
        params, ema = ({**params, **ema} if averaged else params), {}
    return Contents(folder, recipe, params, ema, stats, parts)


def _wrong_part(folder, name, home, told):
    return UserError(
        f"run={str(folder)!r}: its part {name} at {os.path.normpath(home)!r} {told}; {_RESTORE}."
    )


def _host():
    """The device of the host's memory."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "offload keeps weights in the host's memory, and JAX was started without its backend "
            "for CPUs; add it, as in JAX_PLATFORMS=cuda,cpu."
        ) from error


def load_run_recipe(workdir: str | pathlib.Path) -> Recipe:
    """The recipe of a run's folder, or of a folder that `export` wrote; no array is read.

    Raises:
      UserError: no such folder, no finished checkpoint in it, or a recipe that was damaged or
        edited so that it is none; the file and the field are named.
    """
    folder = _existing(workdir)
    for name in (EXPORT, _JOINED):
        if (path := folder / name).exists():
            return recipe_from_dict(json_file.read(path, "run", _RESTORE), f"run={str(path)!r}")
    return recipe_from_dict(load_config(folder), f"run={str(folder / 'checkpoints')!r}")


def read(workdir: str | pathlib.Path) -> Contents:
    """The weights in a run's folder, those of its parts too.

    Raises:
      UserError: no such folder, no finished checkpoint in it, or a part as of `load`.
    """
    return _read(_existing(workdir))


def export(
    workdir: str | pathlib.Path, out: str | pathlib.Path, step: int | str | None = None
) -> pathlib.Path:
    """Writes a run's system, without optimiser and history, as `system.json` and
    `weights.safetensors`.

    Args:
      step: as in `load`.

    Raises:
      UserError: `out` exists and is not empty (nothing is overwritten), another command is
        writing it, or a part as of `load`.
    """
    run, out = _existing(workdir), paths.new_folder("out", out)
    if is_export(run):
        _check_step(run, step)
    _write(_read(run, averaged=True, step=step), out)
    return out


def _write(contents, out):
    run, recipe = contents.folder, contents.recipe
    vocabulary.check(run)
    beside: dict[str, Callable[[pathlib.Path], Any]] = {}
    recorded, told = recorded_parts(run), {}
    for name, part in contents.parts.items():
        beside[name] = lambda folder, part=part: _write(part, folder)
        told[name] = {**recorded.get(name, {}), "folder": name}
    if told:
        beside[PARTS] = lambda path: path.write_text(json.dumps(told, indent=1))
    if (run / TEXT_TOKENIZER).is_dir():
        beside[TEXT_TOKENIZER] = lambda folder: shutil.copytree(run / TEXT_TOKENIZER, folder)
    for stored in (*STORED.values(), division.FILE):
        if (run / stored).is_file():
            beside[stored] = lambda path, stored=stored: shutil.copyfile(run / stored, path)
    write_system(out, recipe, contents.averaged, contents.stats, beside)


def write_system(
    out: pathlib.Path,
    recipe: Recipe,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    beside: Mapping[str, Callable[[pathlib.Path], Any]],
) -> None:
    """Writes a folder that `load` reads; it appears whole or not at all.

    Args:
      params: by group. beside: name of a folder within `out`, and what writes it.
    """
    with _appearing(out) as folder:
        folder.mkdir()
        if recipe.task.objectives:
            arrays = _flatten({"params": params, "stats": stats})
            safetensors_file.write(folder / _WEIGHTS, arrays)
        (folder / EXPORT).write_text(json.dumps(recipe_to_dict(recipe), indent=1))
        for name, write in beside.items():
            write(folder / name)
        vocabulary.note(folder)


@contextlib.contextmanager
def _appearing(out):
    """The temporary path of a new folder, which one command at a time writes; of a link it appears
    where that leads.
    """
    home = pathlib.Path(os.path.realpath(out))
    with lock.writing("out", home):
        paths.new_folder("out", out)  # another command may have written it while this one looked
        with replacing(home) as folder:
            yield folder


def write_joined(workdir: pathlib.Path, recipe: Recipe) -> None:
    """Writes the recipe of a run that trains nothing of its own."""
    with replacing(workdir / _JOINED) as path:
        path.write_text(json.dumps(recipe_to_dict(recipe), indent=1))


def part_folders(workdir: pathlib.Path, recipe: Recipe) -> dict[str, pathlib.Path]:
    """The folders of a run's parts by name, those of other tasks.

    Files of weights are not kept in a run.

    Raises:
      UserError: a part is not there, and parts.json says where it was.
    """
    found = {}
    recorded = recorded_parts(workdir)
    for name, part in recipe.task.parts.items():
        told = recorded.get(name, {}).get("folder")
        folder = workdir / (told or name)
        if part.is_file:
            continue
        if folder.is_dir():
            found[name] = folder
        elif told:
            beside = "copy it there too, or copy what `t2i export` makes of the whole run"
            raise UserError(
                f"run={str(workdir)!r}: its part {name} is missing at "
                f"{os.path.normpath(folder)!r}; {beside if told.startswith('..') else _RESTORE}."
            )
    return found


def recorded_parts(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The entries of parts.json by name: "folder" (of a trained part, seen from WORKDIR) and
    "fingerprint".
    """
    path = workdir / PARTS
    if not path.exists():
        return {}
    where = f"run={str(path)!r}"
    found = json_file.an_object(json_file.read(path, "run", _RESTORE), where, _RESTORE)
    for name, part in found.items():
        json_file.an_object(part, f"{where}: {name}", _RESTORE)
        for field in ("folder", "fingerprint"):
            if part.get(field) is not None:
                json_file.a(str, part[field], f"{where}: {name}.{field}", _RESTORE)
    return found


def record_parts(workdir: pathlib.Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes parts.json."""
    with replacing(workdir / PARTS) as path:
        path.write_text(json.dumps(parts, indent=1))


def part_in(folder: pathlib.Path) -> Given:
    """A trained part, from the folder of its run; an exported one is in the host's memory."""
    return given(_read(_existing(folder), averaged=True).system, folder)


def given(system: System, folder: pathlib.Path) -> Given:
    """The trained system of a run's folder as a part of another one."""
    return Given(system.task.network, system.weights, system, folder, made_with=made_with(folder))


def is_averaged(workdir: pathlib.Path, recipe: Recipe) -> Any:
    """Whether EMA weights are kept in the checkpoints of a run, which `load` then takes; None of an
    exported system, whose one set of weights does not tell. For a run that joins its parts the
    answer for each, by their names.

    Args:
      recipe: of the run.
    """
    task, train = recipe.task, recipe.train
    if not task.objectives:
        parts = part_folders(workdir, recipe)
        return {name: is_averaged(home, load_run_recipe(home)) for name, home in parts.items()}
    if is_export(workdir) or train is None:
        return None
    return bool(train.ema_decay and task.ema_groups)


def made_with(run: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The settings that each stored column was made with, by column, as the run's files tell them;
    {} where nothing is told.
    """
    found = {}
    for column, name in STORED.items():
        if (path := run / name).exists():
            read = json_file.read(path, "run", _RESTORE)
            found[column] = json_file.an_object(read, f"run={str(path)!r}", _RESTORE)
    return found


def fingerprint(weights: Any) -> str:
    """The fingerprint of weights, 16 hexadecimal digits: a run and its exported system have the
    same.

    Args:
      weights: by name, or a trained system: its own, and of one that joins its parts theirs.
    """
    weights = weights.trained if isinstance(weights, System) else weights
    digest = hashlib.sha256()
    for name, value in sorted(_flatten(weights).items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()[:16]


def checkpoint_step(text: str | None) -> int | str | None:
    """The step that a command names: "best", a number, or None.

    Raises:
      UserError: neither.
    """
    if text is None or text == "best":
        return text
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    raise UserError(f"step={text!r} is no step; give best, or the number of a checkpoint.")


def trained_arrays(
    workdir: str | pathlib.Path, step: int | str | None = None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The trained arrays of a run's folder: (parameters by group, averaged where an average is
    kept, and stats).
    """
    folder = _existing(workdir)
    params, ema, stats = arrays(folder, load_run_recipe(folder).task, None, step)
    return {**params, **ema}, stats


def _existing(workdir: str | pathlib.Path) -> pathlib.Path:
    workdir = paths.given("run", workdir)
    if not workdir.is_dir():
        raise UserError(
            f"run={str(workdir)!r} is not a folder; give one that `t2i train` or `t2i quickstart` "
            "made."
        )
    return workdir


def is_export(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a system that `export` wrote."""
    return (workdir / EXPORT).is_file()


def is_joined(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run that joins its parts and trains nothing of its own."""
    return (workdir / _JOINED).is_file()


def cutting(system: System, recipe: Recipe) -> System:
    """A system that cuts the images that it is given as the recipe cut those of training."""
    crop = "center" if recipe.data is None else recipe.data.crop
    return system if crop == system.crop else dataclasses.replace(system, crop=crop)


def _check_step(workdir, step):
    if step is not None:
        raise UserError(
            f"step={step!r} is given for {str(workdir)!r}, an exported system, which has one step; "
            "leave it out."
        )


def arrays(
    workdir: pathlib.Path,
    task: Any,
    places: Mapping[str, Any] | None,
    step: int | str | None = None,
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """The arrays of a run's or an exported system's folder: (params, ema, stats).

    Args:
      task: that of its recipe.
      places: by group the shardings of its parameters, to which those of a run are read; None: all
        on one device. Those of an exported system are NumPy arrays.
      step: as in `load`.

    Raises:
      UserError: arrays that are not those of the task, or that are not finite.
    """
    if is_export(workdir):
        _check_step(workdir, step)
        params, ema, stats = _exported(workdir)
    else:
        params, ema, stats = load_params(workdir, places, step)[1:]
    shapes.check(task, params, ema, stats, f"run={str(workdir)!r}")
    return params, ema, stats


def _exported(workdir):
    path = workdir / _WEIGHTS
    tree: dict[str, Any] = {"params": {}, "stats": {}}
    for name, read in safetensors_file.readers(path, "run", _RESTORE).items():
        *parents, leaf = name.split("/")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if name.split("/")[0] not in tree or not parents or not isinstance(node, dict):
            raise UserError(f"run={str(path)!r} has {name!r}, no weights' name; {_RESTORE}.")
        node[leaf] = read()
    return tree["params"], {}, tree["stats"]


def _flatten(tree) -> Mapping[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in shapes.flat(tree).items()}
