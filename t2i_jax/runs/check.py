"""Checks of a recipe before anything of it trains or compiles.

One walk through all of its stages, those of its parts first: values, parts, what the run's folder
holds, devices, data, shapes and memory. It takes seconds, and it finds what would otherwise stop a
run when a stage before has trained for days.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from t2i_jax import config, paths, sharding
from t2i_jax.cluster import processes
from t2i_jax.data.pipeline import batches, source_of
from t2i_jax.data.source import EMBEDDED, check_split
from t2i_jax.errors import UserError, first_line
from t2i_jax.runs import begin, begun, evaluation
from t2i_jax.runs.ledger import image_channels
from t2i_jax.runs.recipe import Recipe, idle
from t2i_jax.runs.wiring import planned_stages, told_apart, with_weights
from t2i_jax.systems.base import Given
from t2i_jax.train import state as states
from t2i_jax.train.log import check_wandb
from t2i_jax.train.stored import last_step

if TYPE_CHECKING:
    from t2i_jax.runs.scoring.networks import Build

_COLUMNS = {  # of packed data: the entry of a batch that it fills, and the command that makes it
    "tokens": ("tokens", "t2i data encode-images PACKED RUN"),
    "superres_tokens": (
        "superres_tokens",
        "t2i data encode-images PACKED RUN --cond-image-size PIXELS",
    ),
    "text": ("text_embeds", "t2i data encode-text PACKED --t5 NAME"),
    "clip": ("image_embeds", "t2i data encode-clip PACKED RUN"),
}
_LOOKED_AT = 32  # samples that are read of each stage's data
_PER_CORE = 8  # processes that read, at most
_GIB = 2**30


def check(
    recipe: Recipe,
    workdir: pathlib.Path | None = None,
    *,
    given: Mapping[str, Given] | None = None,
    devices: Sequence[jax.Device] | None = None,
    with_data: bool = True,
    build: Build | None = None,
) -> list[str]:
    """Refuses a recipe of which some stage can't be trained; returns sentences about what it does
    not refuse: settings of its stages that have no effect, and a run that was begun within its own
    data.

    Args:
      workdir: of the run, whose parts may be there already. given: parts that the task inherits.
      devices: that it would run on; None: those of this machine, whose memory is looked at too.
      with_data: look at the data as well, and at what is measured while it trains.
      build: makes the networks of metrics, whose weights are read for this; None:
        `networks.build`.

    Raises:
      UserError: one sentence for each stage in which something is wrong.
    """
    _refuse(_per_stage({"": recipe}, lambda _: [_check_values]))
    stages = {
        name: Wired(
            one, parts, devices, None if workdir is None else workdir.joinpath(*name.split("."))
        )
        for name, (one, parts) in planned_stages(recipe, given, workdir).items()
    }
    if workdir is not None:
        begun.check_around(recipe, workdir)
    _refuse(_per_stage(stages, lambda _: [_check_begun]))
    is_begun = not all(stage.is_new for stage in stages.values())
    inside: dict[str, None] = {}  # a run that was begun in its own data goes on, and is told of it
    apart = functools.partial(_check_apart, workdir, inside if is_begun else None)
    checks: list[Callable[[Wired], None]] = [_check_machine] * (devices is None)
    # of a single stage the trainer finds at once what its losses have to say, and whose columns
    # those of its data are
    several = sum(stage.is_trained for stage in stages.values()) > 1
    known = {} if several else None
    checks += [functools.partial(_check_data, apart=apart, known=known)] * with_data
    looks = [_check_evaluation] * with_data
    measures = [functools.partial(_check_monitored, build=build)] * with_data
    whole = _check_shapes if several else _check_networks
    _refuse(
        _per_stage(
            stages,
            lambda one: (
                [*checks, *looks, *measures, whole] if one.is_trained else [_check_joined, *looks]
            ),
        )
    )
    return [*inside, *(said for name, stage in stages.items() for said in idle(stage.recipe, name))]


@dataclasses.dataclass(frozen=True)
class Wired:
    """One stage of a recipe: its recipe with the networks of its parts, the shapes of these, the
    devices (None: those of this machine), and the folder where it is trained.
    """

    recipe: Recipe
    parts: Mapping[str, Given]
    devices: Sequence[jax.Device] | None
    home: pathlib.Path | None

    @property
    def is_trained(self) -> bool:
        """Whether the stage trains something of its own."""
        return bool(self.recipe.task.objectives) and self.recipe.train is not None

    @property
    def is_new(self) -> bool:
        """Whether no step of the stage was saved yet."""
        return self.home is None or last_step(self.home) is None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices, laid out as the recipe says."""
        assert self.recipe.train is not None
        return sharding.make_mesh(self.recipe.train.mesh, self.devices)

    @functools.cached_property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The entries of a batch of one sample."""
        with _told(self.recipe.task):
            return self.recipe.task.batch_spec(1)


def check_data(recipe: Recipe, parts: Mapping[str, Given]) -> None:
    """Refuses data without images of the task's size, or without the columns that it reads, made
    with what it has. Of a task that is conditioned on images, and trained on stored tokens, the
    images are read for previews.

    Raises:
      UserError: what is missing or does not fit.
    """
    spec, data = recipe.task.batch_spec(1), recipe.data
    assert data is not None
    size = None
    if "image" in spec:
        size = spec["image"].shape[1]
    elif "cond_images" in recipe.task.inputs:
        size = recipe.task.made_size(None)
    if size is not None and size != data.image_size:
        raise UserError(
            f"data.image_size={data.image_size} is not the task's image_size={size}; make them "
            "equal."
        )
    columns = recipe.task.columns(parts)
    stored = source_of(data).stored if columns else {}
    for column, wanted in columns.items():
        entry, command = _COLUMNS[column]
        if column not in stored:
            raise UserError(
                f"data.source={data.source!r} holds no {entry}; pack it, and run `{command}`."
            )
        for name, value in wanted.items():
            # a part that is still to be trained has no fingerprint
            values = value if isinstance(value, tuple) else (value,)
            if value != "" and stored[column].get(name) not in values:
                raise UserError(
                    f"data.source={data.source!r} holds {column} made with "
                    f"{name}={stored[column].get(name)!r}, and the task has {name}={values[0]!r}; "
                    "make them anew or change the task."
                )


def _per_stage(stages, checks) -> Iterator[str]:
    """A sentence for each kind of failure; the names of the stages that have it come first, unless
    the recipe itself is among them.

    Args:
      checks: of a stage.
    """
    failures: dict[str, list[str]] = {}
    for name, stage in stages.items():
        try:
            for check in checks(stage):
                check(stage)
        except UserError as error:
            failures.setdefault(str(error), []).append(name)
    for sentence, names in failures.items():
        yield sentence if "" in names else f"{', '.join(names)}: {sentence}"


def _refuse(sentences):
    found = list(sentences)
    if found:
        raise UserError(" ".join(found))


def _check_values(recipe):
    """Checks the types and ranges of all values, parts included."""
    config.check_all(recipe)


def _check_begun(stage):
    """Checks that the stage goes on with what its folder holds."""
    if stage.home is not None:
        begun.check(stage.recipe, stage.home)


def _check_joined(stage):
    """Checks that what the parts will have learnt can be joined."""
    task = stage.recipe.task
    if not task.objectives:
        with _told(task):
            task.check_parts(told_apart(stage.parts))


def _check_machine(stage):
    """Checks the readers, packages and memory of this machine."""
    workers = stage.recipe.data.workers
    most = _PER_CORE * (os.cpu_count() or 1)
    if workers > most:
        raise UserError(
            f"data.workers={workers} are more processes than {os.cpu_count()} cores can use; give "
            f"at most {most}, or 0 to read in this one."
        )
    if processes.is_first():  # which logs for all
        check_wandb(stage.recipe.train.wandb_project)
    _check_memory(stage, _batch_bytes(stage), 0)


def _check_memory(stage, batch, state):
    has = _memory(stage.mesh.devices.flat[0])
    if has is None or batch + state <= has:
        return
    train = stage.recipe.train
    if batch > state:
        size = stage.recipe.data.image_size
        told = f"train.batch_size={train.batch_size} of data.image_size={size}"
        need, remedy = batch, "lower one of them, or raise train.accumulate"
    else:
        told, need = "the network with its optimiser", state
        remedy = "make the network smaller, or shard it over more devices (train.mesh)"
    raise UserError(
        f"{told} needs {need / _GIB:.3g} GiB on each device, which has {has / _GIB:.3g}; {remedy}."
    )


def _batch_bytes(stage):
    """The bytes that the float images of a micro-batch take on a device, at the least."""
    train = stage.recipe.train
    ways = int(np.prod([stage.mesh.shape[axis] for axis in sharding.BATCH_AXES]))
    sample = sum(
        4 * float(np.prod([float(side) for side in leaf.shape])) for leaf in stage.spec.values()
    )
    return sample * train.batch_size / (ways * train.accumulate)


def _memory(device):
    """The bytes of a device's memory; None where it is not known."""
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _check_apart(workdir, inside, source, name):
    """Refuses a run whose previews would count among the images of its own data.

    Args:
      inside: takes the sentence for a run that was begun so; None: it is refused.
    """
    if workdir is None or not source.takes(workdir):
        return
    lies = f"workdir={paths.shown(workdir)} lies in data.source={paths.shown(name)}, among whose "
    if inside is None:
        raise UserError(f"{lies}images its own would count; name a workdir outside it.")
    remedy = "move the run out of it, and go on with its new place as workdir"
    inside[f"{lies}images its own count at the next start; {remedy}"] = None


def _check_data(stage, apart, known):
    """Checks sizes and columns of the data, and its first samples as training will read them.

    Args:
      apart: of the source and its name, whether the run lies outside of it.
      known: the parts that were read already, see `with_weights`; None: they are not to be read.
    """
    recipe, spec = stage.recipe, stage.spec
    if stage.is_new:
        check_split(recipe.data.source, recipe.data.split, "data.split")
    by_parts = known is not None and recipe.task.columns(stage.parts)
    check_data(recipe, with_weights(stage.parts, known) if by_parts else stage.parts)
    if recipe.data.source in EMBEDDED:
        return
    wants = tuple("caption" if name == "text" else name for name in spec)
    wants = tuple(n for n in wants if n != "text_mask" or "text_embeds" in wants)
    encoder = recipe.task.text_encoder
    length = None if encoder is None else encoder.max_length
    # what is held out is for the run to divide: captions of all records would be read for it
    small = min(recipe.data.image_size, 64)
    data = dataclasses.replace(recipe.data, workers=0, image_size=small, heldout=0.0)
    stream = batches(
        data, min(_LOOKED_AT, recipe.train.batch_size), recipe.train.seed, tokenize=None,
        wants=wants, text_length=length, channels=image_channels(spec),
    )  # fmt: skip
    apart(stream.source, recipe.data.source)
    found = next(stream, None)
    if found is None:
        raise UserError(f"data.source={recipe.data.source!r} holds no sample; name other data.")
    for name, wanted in spec.items():
        if name not in ("image", "cond_image") and name in found:
            shape = np.shape(found[name])[1:]
            if shape != wanted.shape[1:]:
                raise UserError(
                    f"data.source={recipe.data.source!r} has {name} of shape {shape}, and the task "
                    f"takes {wanted.shape[1:]}; make them anew or change the task."
                )


def _check_evaluation(stage):
    """Checks the evaluation, whose samples are drawn while the stage trains and when it has
    trained.
    """
    evaluation.check(stage.recipe)


def _check_monitored(stage, build):
    """Checks the metrics of generated images that are measured while the stage trains."""
    if stage.recipe.evaluation.every is None:
        return
    # with the networks of all metrics, which most runs do without
    from t2i_jax.runs.scoring import networks
    from t2i_jax.runs.scoring.wanted import check as check_monitored

    check_monitored(stage.recipe, build or networks.build)


def _check_networks(stage):
    """The shapes of the parameters, and whether they fit into memory, before their optimiser."""
    task, train = stage.recipe.task, stage.recipe.train
    train.check_batch(stage.mesh)
    task.check_batch(train.batch_size, train.accumulate)
    with _told(task):
        boxed = sharding.parameters_of(task)
        places = sharding.shardings(boxed, stage.mesh, train.preset)
        params = sharding.unbox(boxed)
    _check_init(stage, params)
    if stage.devices is None:
        of = zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True)
        _check_memory(stage, _batch_bytes(stage), sum(_bytes(leaf, place) for leaf, place in of))


def _check_shapes(stage):
    """Checks the networks, by `_check_networks`, and the shapes of every loss: what `fit` would
    find, where the stages before it are trained first.
    """
    _check_networks(stage)
    task, train = stage.recipe.task, stage.recipe.train
    with _told(task):
        _, state = states.laid(task, train, stage.mesh)
        frozen = sharding.unbox(task.frozen_shapes(stage.parts))
        batch = dict(task.batch_spec(max(train.batch_size // train.accumulate, 1)))
        rest = state.stats, frozen, batch, state.key, state.step
        for objective in task.objectives:
            jax.eval_shape(objective.loss, state.params, *rest)
    if stage.devices is None:
        own = sum(_bytes(leaf, leaf.sharding) for leaf in jax.tree.leaves(state))
        _check_memory(stage, _batch_bytes(stage), own)


def _check_init(stage, params):
    if stage.is_new:
        begin.check(stage.recipe, params)


@contextlib.contextmanager
def _told(task):
    """Turns what fields that do not go together make of a network into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"task: the networks of this {type(task).__name__} do not work with these fields "
            f"({first_line(error)}); `t2i config` lists them."
        ) from error


def _bytes(leaf, place):
    """The bytes of an abstract array on one device."""
    shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
    return float(np.prod([float(side) for side in shape])) * getattr(leaf.dtype, "itemsize", 8)
