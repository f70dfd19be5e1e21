"""Runs that begin with another run's weights, parts and vocabulary: what is taken, and what is
reported of it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t2i_jax import paths, sharding
from t2i_jax.cluster import processes
from t2i_jax.errors import UserError
from t2i_jax.files import replacing
from t2i_jax.runs import folder as folders
from t2i_jax.runs import shapes
from t2i_jax.runs.init import Init
from t2i_jax.runs.recipe import Recipe
from t2i_jax.runs.vocabulary import check as check_vocabulary
from t2i_jax.terminal import say
from t2i_jax.train.stored import last_step
from t2i_jax.types import TrainState
from t2i_jax.values import shown
from t2i_jax.words import counted


def with_parts(recipe: Recipe, workdir: pathlib.Path | None = None) -> Recipe:
    """The recipe whose parts come from the run that it begins with, where `init.parts` says so.

    Args:
      workdir: of the run that begins, whose parts are there already once it has saved a step: the
        other run is then not looked at. None: it has none.

    Raises:
      UserError: the folder of `init` holds no run, or that of another task.
    """
    init = recipe.init
    if not isinstance(init, Init):
        return recipe
    free = [
        name
        for name, part in recipe.task.parts.items()
        if not part.is_file and init.parts and _is_free(recipe.parts.get(name))
    ]
    if workdir is not None and last_step(workdir) is not None:
        own = folders.recorded_parts(workdir)
        there = {name: workdir / name for name in free if name in own}
    else:
        run = _run_of(init)
        theirs = _recipe_of(run, recipe)
        there = {
            name: folder for name, folder in folders.part_folders(run, theirs).items()
            if name in free
        }  # fmt: skip
    taken = {name: str(folder) for name, folder in there.items()}
    return dataclasses.replace(recipe, parts={**recipe.parts, **taken})


def check_named(
    recipe: Recipe, assignments: Sequence[str], workdir: pathlib.Path | None = None
) -> None:
    """Refuses settings, as `changed` takes them, of what comes from elsewhere: of a part of the run
    that a recipe begins with, and other ones of a part's network than the part has.

    Args:
      workdir: as of `with_parts`.

    Raises:
      UserError: the first of them; or as `with_parts`.
    """
    parts = with_parts(recipe, workdir).parts
    begun = recipe.init.run if isinstance(recipe.init, Init) else None
    fields = {part.field: name for name, part in recipe.task.parts.items() if not part.is_file}
    for assignment in assignments:
        place = assignment.partition("=")[0].strip().lstrip("-")
        head, _, rest = place.removeprefix("parts.").partition(".")
        if rest and isinstance(recipe.parts.get(head), Recipe) and isinstance(parts[head], str):
            raise UserError(
                f"{place} is given, and init={begun!r} brings its own {head}, which is not "
                "trained; leave it out, or give init.parts=False to train one here."
            )
        field, _, inner = rest.partition(".")
        name = fields.get(field, "") if head == "task" else ""
        if name in parts:
            _check_alike(place, name, _at(getattr(recipe.task, field), inner), parts[name], inner)


def _check_alike(place, name, own, part, inner):
    """Refuses another value of a network's field than that of the part that takes its place."""
    there = part if isinstance(part, Recipe) else folders.load_run_recipe(pathlib.Path(part))
    theirs = _at(there.task.network, inner)
    if own != theirs:
        raise UserError(
            f"{place}={shown(own)} is given, and the part {name}, whose network it is, has "
            f"{shown(theirs)}; leave it out, or change the recipe that trains {name}."
        )


def _at(value, path):
    """The value at a path of fields; None where one of them is None."""
    for field in path.split(".") if path else ():
        value = getattr(value, field, None)
    return value


def vocabulary(recipe: Recipe, out: pathlib.Path) -> None:
    """Copies the vocabulary of the run that a recipe begins with, in place of one that would be
    trained on captions, or of one that is not given beside the same file of weights; not where
    `out` is there, nor for an embedding of another kind or size, whose weights begin anew.
    """
    task, init = recipe.task, recipe.init
    own = task.text_encoder
    is_of_file = not task.trains_vocabulary and getattr(own, "vocabulary", "") is None
    if not isinstance(init, Init) or out.is_dir() or not (task.trains_vocabulary or is_of_file):
        return
    run = _run_of(init)
    encoder = _recipe_of(run, recipe).task.text_encoder
    theirs = run / folders.TEXT_TOKENIZER
    is_alike = type(encoder) is type(own) and encoder.vocab_size == own.vocab_size
    if is_alike and is_of_file:
        is_alike = encoder.source == own.source
    if theirs.is_dir() and is_alike:
        check_vocabulary(run)
        with replacing(out) as folder:
            shutil.copytree(theirs, folder)


def check(recipe: Recipe, params: Mapping[str, Any]) -> None:
    """Checks, from shapes alone, that the parameters of the run that a recipe begins with fit it.

    Args:
      params: those of the recipe's task by group, or their shapes.

    Raises:
      UserError: as `weights`; or a task that keeps weights as they were begins with none.
    """
    held = recipe.task.held_as_begun
    if held and not isinstance(recipe.init, Init):
        raise UserError(
            f"task.{held} leaves weights as the run begins with them, and init=None begins with "
            "random ones; give init=RUN, a run that has trained them."
        )
    if isinstance(recipe.init, Init):
        theirs = _recipe_of(_run_of(recipe.init), recipe)
        given = sharding.unbox(sharding.parameters_of(theirs.task))
        _Told.of(shapes.flat({"params": given}), shapes.flat({"params": params})).check(recipe.init)


def weights(recipe: Recipe, mesh: Mesh, state: TrainState) -> TrainState:
    """The state before the first step, with the weights of the run that the recipe begins with; a
    table on stderr says what was taken.

    Optimisers stay as they are: their moments begin at 0 whatever the weights are.

    Raises:
      UserError: an array of another shape, unless `init.misfits` is "new"; or nothing fits.
    """
    init = recipe.init
    if not isinstance(init, Init) or recipe.train is None:
        return state
    run = _run_of(init)
    theirs = _recipe_of(run, recipe)
    boxed = sharding.parameters_of(theirs.task)
    places = sharding.shardings(boxed, mesh, recipe.train.preset)
    idle = recipe.task.idle_groups
    for group in set(idle) & set(places):
        places[group] = jax.tree.map(sharding.on_host, places[group])
    params, ema, stats = folders.arrays(run, theirs.task, places)
    chosen = {**params, **ema} if init.averaged else params
    given = shapes.flat({"params": chosen, "stats": stats})
    own = shapes.flat({"params": state.params, "stats": state.stats})
    told = _Told.of(given, own)
    told.check(init)
    merged = {
        path: _laid(given[path], leaf) if path in told.taken else leaf for path, leaf in own.items()
    }
    whole = _as_tree(merged, {"params": state.params, "stats": state.stats})
    averages = {  # of their own where the step gives them away
        group: own if group in idle else jax.tree.map(jnp.copy, own)
        for group, own in whole["params"].items()
        if group in state.ema
    }
    if processes.is_first():
        averaged = "EMA weights" if init.averaged and ema else "weights"
        say("\n".join(told.lines(recipe, init, averaged, last_step(run))))
    return state.replace(params=whole["params"], stats=whole["stats"], ema=averages)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class _Told:
    """The paths of arrays that were taken, that begin anew and that were left in the other run; and
    of those that do not fit, a sentence each.
    """

    taken: Mapping[str, int]
    new: Sequence[str]
    left: Sequence[str]
    misfits: Mapping[str, str]

    @classmethod
    def of(cls, given, own):
        fit = {path for path in own if path in given and given[path].shape == own[path].shape}
        return cls(
            {path: own[path].size for path in own if path in fit},
            [path for path in own if path not in given],
            [path for path in given if path not in own],
            {
                path: f"{path} {_size(given[path])}, here {_size(own[path])}"
                for path in own
                if path in given and path not in fit
            },
        )

    def check(self, init):
        if self.misfits and init.misfits == "refuse":
            listed = _listed(list(self.misfits.values()), "; ")
            raise UserError(
                f"init={init.run!r} has {counted(len(self.misfits), 'array')} of another shape "
                f"({listed}); change the recipe, or give init.misfits=new to begin them anew."
            )
        if not any(path.startswith("params/") for path in self.taken):
            raise UserError(
                f"init={init.run!r} has no array that fits the networks of this recipe; give a run "
                "of such networks."
            )

    def lines(self, recipe, init, averaged, step):
        numbers = sum(self.taken.values())
        at = "" if step is None else f" of step {step}"
        yield f"init={init.run}: {averaged}{at}"
        if step is None and not init.averaged:
            yield "  init.averaged=False has no effect: there is one set of weights to take"
        yield f"  taken  {counted(len(self.taken), 'array')}, {numbers:,} numbers"
        new = [*self.new, *self.misfits]
        for word, some in (("new", new), ("left", self.left)):
            if some:
                yield f"  {word:5}  {counted(len(some), 'array')}: {_listed(some, ', ')}"
        for name, part in recipe.parts.items():
            yield f"  part   {name}: {part if isinstance(part, str) else 'trained here'}"


def _is_free(part):
    return part is None or (isinstance(part, Recipe) and part.init is None)


def _run_of(init):
    run = paths.given("init", init.run)
    if not run.is_dir():
        raise UserError(
            f"init={init.run!r} is not a folder; give that of a run, or of an exported or "
            "converted system."
        )
    return run


def _recipe_of(run, recipe):
    theirs = folders.load_run_recipe(run)
    kind = type(recipe.task)
    if type(theirs.task) is kind:
        return theirs
    inside = [
        str(place)
        for place in folders.part_folders(run, theirs).values()
        if type(folders.load_run_recipe(place).task) is kind
    ]
    remedy = f"give init={inside[0]}" if inside else f"give a run of {kind.__name__}"
    raise UserError(
        f"init={str(run)!r} is a run of {type(theirs.task).__name__}, and this recipe trains "
        f"{kind.__name__}; {remedy}."
    )


def _as_tree(by_path, like):
    def of(path, _):
        return by_path["/".join(str(entry.key) for entry in path)]

    return jax.tree_util.tree_map_with_path(of, like)


def _laid(value, like):
    """A value where the array that it replaces lies, in its type."""
    if isinstance(value, jax.Array) and (value.dtype, value.sharding) == (
        like.dtype,
        like.sharding,
    ):
        return value
    return sharding.put(np.asarray(value).astype(like.dtype), like.sharding)


def _size(array):
    return "x".join(map(str, array.shape)) or "a single number"


def _listed(some, between):
    return between.join(some[:4]) + (f"{between}and {len(some) - 4} more" if len(some) > 4 else "")
