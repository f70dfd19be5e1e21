"""A run's folder: train a recipe into it, load the trained system out of it, export it.

    WORKDIR/checkpoints/      the trainer's checkpoints, the recipe in each
    WORKDIR/tokenizer/        Parti: the image tokenizer, itself a run or an exported system
    WORKDIR/text_tokenizer/   Parti with a learned text encoder: its vocabulary
    WORKDIR/samples/          grids of pictures; metrics.jsonl, metrics.json, goodput.json and event files beside them
    WORKDIR/profile/          traces
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import convert, sharding
from t2i_jax.cluster import processes
from t2i_jax.data.pipeline import batches
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError
from t2i_jax.models.vgg import Vgg16
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.systems import placement
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.parti.system import PartiSystem
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.systems.super_resolution.system import SuperResolutionSystem
from t2i_jax.systems.super_resolution.task import SuperResolutionTask
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.learned import LearnedText
from t2i_jax.text.t5 import T5Text
from t2i_jax.text.tokenizer import load as load_text_tokenizer
from t2i_jax.text.tokenizer import train_bpe
from t2i_jax.train.checkpoint import load_config, load_params
from t2i_jax.train.goodput import Goodput
from t2i_jax.train.loop import fit
from t2i_jax.train.profile import Profile

_CAPTIONS_FOR_VOCABULARY = 50_000  # captions that a vocabulary is trained from

_FREE = (  # may change between starts
    "evaluation", "tokenizer", "data.workers", "data.threads", "data.max_bad_rate", "task.train_stages",
)  # fmt: skip

System = TokenizerSystem | PartiSystem | SuperResolutionSystem | ImagenSystem


def train(
    recipe: Recipe,
    workdir: str | pathlib.Path,
    *,
    hooks: Callable[[Recipe, Any], tuple] | None = None,
    profile: Profile | None = None,
) -> System:
    """Trains a recipe into `workdir`, or carries on with what is there, and returns the trained system.

    A recipe whose tokenizer is a recipe trains that one first, in WORKDIR/tokenizer. Several processes train together
    inside `with t2i_jax.cluster.processes.joined():`, with the same recipe and a folder that they share; each gets the system.

    Args:
      hooks: `(recipe, build_system) -> hooks` for the trainer; None: sample grids as `recipe.evaluation` says.
      profile: steps of which a trace is written into WORKDIR/profile; not those of a tokenizer that is trained first.

    Raises:
      UserError: what was given does not fit together, or the folder holds another run.
      Preempted: SIGTERM arrived; the state was saved first.
    """
    from t2i_jax.runs.evaluate import preview_hooks

    if profile is not None:
        profile.check(recipe.train.steps)
    workdir = pathlib.Path(workdir)
    processes.check_same(recipe_to_dict(recipe), "another recipe", "give every process the same command")
    processes.once(lambda: workdir.mkdir(parents=True, exist_ok=True))
    # A tokenizer may train for days before this recipe's own data are read.
    records = {"records": len(_check_source(recipe.data))}
    processes.check_same(records, f"other data as data.source={recipe.data.source!r}", "give all the same data")
    recipe, frozen = _with_tokenizer(recipe, workdir, hooks)
    clock = Goodput.of(workdir)
    recipe = _with_perceptual(recipe, frozen)
    processes.once(lambda: _write_vocabulary(recipe, workdir))
    text_tokenizer = _text_tokenizer(recipe, workdir)
    if isinstance(getattr(recipe.task, "text", None), T5Text):
        frozen["text"] = recipe.task.text.init(jax.random.key(0))
    mesh = sharding.make_mesh(recipe.train.mesh)
    recipe.train.check_batch(mesh)
    _check_sizes(recipe)
    _check_stored(recipe, frozen)

    def build_system(params, stats) -> System:
        return _system(recipe.task, *sharding.whole((params, stats)), frozen, text_tokenizer)

    stream = batches(
        recipe.data,
        recipe.train.batch_size,
        recipe.train.seed,
        tokenize=_tokenize(recipe, text_tokenizer),
        wants=tuple(recipe.task.batch_spec(1)),
        text_length=getattr(getattr(recipe.task, "text", None), "max_length", None),
        rows=sharding.rows_of_processes(mesh, recipe.train.batch_size),
        process=jax.process_index(),
    )
    state = fit(
        recipe.task,
        stream,
        recipe.train,
        workdir,
        frozen=frozen,
        hooks=(hooks or preview_hooks)(recipe, build_system),
        extra_config=recipe_to_dict(recipe),
        allowed=_FREE,
        clock=clock,
        profile=profile,
    )
    return build_system(_averaged(state.params, state.ema), state.stats)


def load(workdir: str | pathlib.Path, *, averaged: bool = True, mesh: Mapping[str, int] | None = None) -> System:
    """The trained system of a run's folder, or of a folder that `export` wrote.

    >>> system = load("runs/quickstart")                                        # doctest: +SKIP
    >>> system.generate(["a red circle above a blue square"], seed=0).shape    # doctest: +SKIP
    (1, 32, 32, 3)

    Args:
      averaged: use the moving average of the parameters where the run keeps one.
      mesh: sizes of a mesh's axes, {"data": 2, "tensor": 4}, over all devices: a system that makes pictures from text
        lies and works there (see `systems.placement`). A checkpoint is read straight to its places. None: one device.

    Raises:
      UserError: no such folder, no finished checkpoint in it, or a mesh that does not fit.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"run={str(workdir)!r} is not a folder; give one that `t2i train` or `t2i quickstart` made.")
    if (workdir / "system.json").is_file():
        recipe, params, stats = _read_export(workdir)
    else:
        place = None if mesh is None else placement.places(load_run_recipe(workdir).task, mesh)[1]
        config, params, ema, stats = load_params(workdir, place)
        recipe = recipe_from_dict(config)
        params = _averaged(params, ema) if averaged else params
    frozen: dict[str, Any] = {}
    if isinstance(recipe.task, PartiTask) and (workdir / "tokenizer").is_dir():
        frozen["tokenizer"] = load(workdir / "tokenizer").weights
    if isinstance(getattr(recipe.task, "text", None), T5Text):
        frozen["text"] = recipe.task.text.init(jax.random.key(0))
    system = _system(recipe.task, params, stats, frozen, _text_tokenizer(recipe, workdir))
    return system if mesh is None else placement.on_mesh(system, mesh)


def load_run_recipe(workdir: str | pathlib.Path) -> Recipe:
    """The recipe of a run's folder, or of a folder that `export` wrote.

    Raises:
      UserError: no such folder, or no finished checkpoint in it.
    """
    workdir = pathlib.Path(workdir)
    if (workdir / "system.json").is_file():
        return recipe_from_dict(json.loads((workdir / "system.json").read_text()))
    return recipe_from_dict(load_config(workdir))


def export(workdir: str | pathlib.Path, out: str | pathlib.Path) -> pathlib.Path:
    """Writes a run's system, without optimiser and history, as `system.json` and `weights.safetensors`.

    Raises:
      UserError: `out` exists and is not empty (nothing is overwritten).
    """
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    check_new(out)
    if (workdir / "system.json").is_file():
        shutil.copytree(workdir, out, dirs_exist_ok=True)
        return out
    config, params, ema, stats = load_params(workdir)
    beside = {}
    if (workdir / "tokenizer").is_dir():
        beside["tokenizer"] = lambda folder: export(workdir / "tokenizer", folder)
    if (workdir / "text_tokenizer").is_dir():
        beside["text_tokenizer"] = lambda folder: shutil.copytree(workdir / "text_tokenizer", folder)
    write_system(out, recipe_from_dict(config), _averaged(params, ema), stats, beside)
    return out


def check_new(out: pathlib.Path) -> None:
    """Refuses a place where something is already.

    Raises:
      UserError: `out` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={str(out)!r} exists and is not empty; name a new folder.")


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
    from safetensors.numpy import save_file

    half_done = out.with_name(out.name + ".partial")
    shutil.rmtree(half_done, ignore_errors=True)
    half_done.mkdir(parents=True)
    arrays = _flatten({"params": params, "stats": stats})
    save_file({name: np.array(value, order="C") for name, value in arrays.items()}, half_done / "weights.safetensors")
    (half_done / "system.json").write_text(json.dumps(recipe_to_dict(recipe), indent=1))
    for name, write in beside.items():
        write(half_done / name)
    if out.is_dir():
        out.rmdir()
    half_done.rename(out)


def read(workdir: pathlib.Path) -> tuple[Recipe, Mapping[str, Any], Mapping[str, Any]]:
    """The recipe, the parameters by group (averaged where there is an average) and the stats of a run's folder."""
    if (workdir / "system.json").is_file():
        return _read_export(workdir)
    config, params, ema, stats = load_params(workdir)
    return recipe_from_dict(config), _averaged(params, ema), stats


def fingerprint(weights: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that tell weights apart: of a run and of what was exported from it they are the same."""
    digest = hashlib.sha256()
    for name, value in sorted(_flatten(weights).items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()[:16]


def _with_tokenizer(recipe, workdir, hooks):
    """The recipe with the trained tokenizer's network in its task, and the frozen weights."""
    if not isinstance(recipe.task, PartiTask):
        if recipe.tokenizer is not None:
            raise UserError(f"tokenizer is given for {type(recipe.task).__name__}, which needs none; leave it out.")
        return recipe, {}
    if isinstance(recipe.tokenizer, Recipe):
        tokenizer = train(recipe.tokenizer, workdir / "tokenizer", hooks=hooks)
    elif isinstance(recipe.tokenizer, str):
        processes.once(lambda: _copy_tokenizer(recipe.tokenizer, workdir / "tokenizer"))
        tokenizer = load(workdir / "tokenizer")
    else:
        return recipe, {}
    task = dataclasses.replace(recipe.task, tokenizer=tokenizer.task.model)
    return dataclasses.replace(recipe, task=task), {"tokenizer": tokenizer.weights}


def _copy_tokenizer(run, folder):
    """A run's folder is complete in itself."""
    if not folder.is_dir():
        if not isinstance(load(run), TokenizerSystem):
            raise UserError(f"tokenizer={run!r} is no tokenizer's run; train one first.")
        export(run, folder)


def _with_perceptual(recipe, frozen):
    """The recipe with VGG16 in its task, as the file of weights says, and those weights in `frozen`."""
    if not isinstance(recipe.task, TokenizerTask):
        if recipe.perceptual is not None:
            kind = type(recipe.task).__name__
            raise UserError(f"perceptual is given for {kind}, not an image tokenizer; leave it out.")
        return recipe
    if recipe.perceptual is None:
        if recipe.task.discriminator is not None or recipe.task.perceptual is not None:
            line = "the perceptual loss is off: no weights are given (perceptual=FILE of VGG16 or LPIPS)"
            if processes.is_first():
                print(line, file=sys.stderr)
        return dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, perceptual=None))
    fields = {"features": recipe.task.perceptual.features} if recipe.task.perceptual is not None else {}
    found, params = convert.from_torch(recipe.perceptual, **fields)
    if not isinstance(found, Vgg16):
        kind = type(found).__name__
        raise UserError(f"perceptual={recipe.perceptual!r} holds a {kind}; give VGG16's or LPIPS's weights.")
    frozen["perceptual"] = params
    network = recipe.task.perceptual or found
    return dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, perceptual=network))


def _write_vocabulary(recipe, workdir):
    """Trains a vocabulary on the captions, where a learned text encoder needs one and there is none yet."""
    text, folder = getattr(recipe.task, "text", None), workdir / "text_tokenizer"
    if isinstance(text, LearnedText) and not folder.is_dir():
        stream = batches(recipe.data, 256, recipe.train.seed, tokenize=None, wants=("caption",), repeat=False)
        captions = itertools.chain.from_iterable(batch["caption"] for batch in stream)
        tokenizer = train_bpe(list(itertools.islice(captions, _CAPTIONS_FOR_VOCABULARY)), text.vocab_size)
        half_done = folder.with_name(folder.name + ".partial")
        tokenizer.save(half_done)
        half_done.rename(folder)


def _text_tokenizer(recipe, workdir):
    """The run's text tokenizer: T5's own, or the vocabulary from the captions; None without text ids."""
    text = getattr(recipe.task, "text", None)
    if isinstance(text, T5Text):
        return text.tokenizer()
    return load_text_tokenizer(workdir / "text_tokenizer") if isinstance(text, LearnedText) else None


def _tokenize(recipe, text_tokenizer):
    if text_tokenizer is None:
        return None
    return lambda captions: text_tokenizer(captions, recipe.task.text.max_length)


def _check_source(data):
    return open_source(data.source, image_size=data.image_size, split=data.split, seed=data.seed)


def _check_sizes(recipe):
    network = getattr(recipe.task, "tokenizer", None) or getattr(recipe.task, "model", None)
    size = getattr(recipe.task, "image_size", None) or getattr(network, "image_size", None)
    if "image" in recipe.task.batch_spec(1) and size not in (None, recipe.data.image_size):
        raise UserError(
            f"data.image_size={recipe.data.image_size} is not the task's image_size={size}; make them equal."
        )


def _check_stored(recipe, frozen):
    """Whether the data hold what the task takes from them, and whether it was made with this tokenizer and width."""
    spec, task = recipe.task.batch_spec(1), recipe.task
    stored = getattr(_check_source(recipe.data), "stored", {})
    for entry, column, command in (
        ("tokens", "tokens", "t2i data encode-images PACKED RUN"),
        ("text_embeds", "text", "t2i data encode-text PACKED --t5 NAME"),
    ):
        if entry in spec and column not in stored:
            raise UserError(f"data.source={recipe.data.source!r} holds no {entry}; pack it, and run `{command}`.")
    wanted = {}
    if "tokens" in spec:
        wanted["tokens"] = {"num_tokens": task.network.num_tokens, "codebook_size": task.network.codebook_size}
        if "tokenizer" in frozen:
            wanted["tokens"]["tokenizer"] = fingerprint(frozen["tokenizer"])
    if "text_embeds" in spec:
        wanted["text"] = {"dim": task.text.dim}
    for column, values in wanted.items():
        for name, value in values.items():
            if stored[column].get(name) != value:
                raise UserError(
                    f"data.source={recipe.data.source!r} holds {column} made with {name}={stored[column].get(name)!r}, "
                    f"and the task has {name}={value!r}; make them anew or change the task."
                )


def _system(task, params, stats, frozen, text_tokenizer) -> System:
    if isinstance(task, TokenizerTask):
        codebook = jax.eval_shape(task.model.start, jax.random.key(0))  # the counts of training stay in the run
        return TokenizerSystem(task, {"generator": params["generator"], "stats": {n: stats[n] for n in codebook}})
    if isinstance(task, PartiTask):
        return PartiSystem(task, params, frozen, text_tokenizer)
    if isinstance(task, SuperResolutionTask):
        return SuperResolutionSystem(task, params)
    if isinstance(task, ImagenTask):
        return ImagenSystem(task, params, jax.device_get(stats["updates"]), frozen, text_tokenizer)
    known = "TokenizerTask, PartiTask, SuperResolutionTask, ImagenTask"
    raise UserError(f"task={type(task).__name__} has no system; known: {known}.")


def _averaged(params, ema) -> Mapping[str, Any]:
    return {**params, **ema} if ema else params


def _flatten(tree) -> Mapping[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(entry.key) for entry in path): np.asarray(leaf) for path, leaf in leaves}


def _read_export(folder):
    from safetensors.numpy import load_file

    tree: dict[str, Any] = {"params": {}, "stats": {}}
    for name, value in load_file(folder / "weights.safetensors").items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    recipe = recipe_from_dict(json.loads((folder / "system.json").read_text()))
    return recipe, tree["params"], tree["stats"]
