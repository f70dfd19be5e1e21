"""A recipe: everything that one training run is, as one frozen value.

A recipe file has `get_config() -> Recipe`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import t2i_jax
from t2i_jax import config, paths, values
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import FORMER, Evaluation
from t2i_jax.runs.init import Init
from t2i_jax.sharding import parse_mesh
from t2i_jax.systems.base import SystemTask
from t2i_jax.train.config import TrainConfig
from t2i_jax.words import named

_FORMER_PARTS = ("tokenizer", "perceptual")  # parts that were fields of a recipe


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe of one run: what is trained, on what data, how, from which parts, and how it is
    evaluated.

    Attributes:
      task: what is trained, a `SystemTask`.
      data: where images and captions come from. train: steps, batch size, optimisers, mesh. None,
        both, for a task that trains nothing of its own and only joins its parts.
      parts: the trained things that the task reads, by the names of `task.parts`: a recipe, which
        is trained first (in WORKDIR/NAME); or a path, that of a finished run, of an exported
        system, or of a file of weights. A part that is missing is inherited from the task around
        this one, or does without.
      evaluation: judging and previews.
      init: the run that this one begins with (`Init`, or its path): other data, another optimiser,
        the same networks. None: networks begin anew.
      tokenizer, perceptual: the parts of these names, as recipes named them before there was
        `parts`.
    """

    task: Any
    data: DataConfig | None = None
    train: TrainConfig | None = None
    parts: Mapping[str, Recipe | str] = dataclasses.field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    init: Init | str | None = None
    tokenizer: dataclasses.InitVar[Recipe | str | None] = None
    perceptual: dataclasses.InitVar[str | None] = None

    def __post_init__(self, tokenizer, perceptual):
        if not isinstance(self.task, SystemTask):
            raise UserError(f"task={self.task!r} is no task of a system; give a SystemTask.")
        kind = type(self.task).__name__
        former = {"tokenizer": tokenizer, "perceptual": perceptual}
        given = {**self.parts, **{name: part for name, part in former.items() if part is not None}}
        parts = {
            name: os.fspath(part) if isinstance(part, os.PathLike) else part
            for name, part in given.items()
            if part is not None
        }
        for name, part in parts.items():
            if name not in self.task.parts:
                known = (
                    f"whose parts are {', '.join(self.task.parts)}"
                    if self.task.parts
                    else "which has no parts"
                )
                raise UserError(f"parts.{name[:60]} is given for {kind}, {known}; leave it out.")
            is_file = self.task.parts[name].is_file
            if not isinstance(part, str) and (is_file or not isinstance(part, Recipe)):
                wanted = (
                    "the path of a file of weights" if is_file else "a Recipe or the path of a run"
                )
                raise UserError(f"parts.{name} is {named(part)}; give {wanted}.")
        object.__setattr__(self, "parts", parts)
        if isinstance(self.init, (str, os.PathLike)):
            object.__setattr__(self, "init", Init(os.fspath(self.init)))
        if self.init is not None and not isinstance(self.init, Init):
            raise UserError(f"init={self.init!r} is no run; give its folder, or an Init.")
        if self.init is not None and not self.task.objectives:
            raise UserError(
                f"init is given for {kind}, which trains nothing; give it to its parts."
            )
        if self.task.objectives and (self.data is None or self.train is None):
            missing, wanted = (
                ("data", "DataConfig") if self.data is None else ("train", "TrainConfig")
            )
            raise UserError(f"{missing}=None, and a {kind} is trained; give a {wanted}.")
        options = self.evaluation.options
        if options is None or isinstance(options, Mapping):
            options = self._options(options or {})
            evaluation = dataclasses.replace(self.evaluation, options=options)
            object.__setattr__(self, "evaluation", evaluation)
        if not isinstance(options, self.task.options):
            given, wanted = type(options).__name__, self.task.options.__name__
            raise UserError(
                f"evaluation.options={given}(...) are those of another system; {kind} has {wanted}."
            )
        self.task.check_options(options)
        self._check_monitored(kind)

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found, task, kind = {}, self.task, type(self.task).__name__
        if "mask" not in task.inputs:
            found["evaluation.completions"] = f"{kind}, which completes no images"
        if not task.objectives:
            return {**found, "train": f"{kind}, which trains nothing itself"}
        if "caption" not in task.samples:
            found["evaluation.judge"] = f"{kind}, which is given no captions"
            found.setdefault("evaluation.completions", found["evaluation.judge"])
        if "image" not in (entries := task.batch_spec(1)):
            found["data.flip"] = f"a batch of {', '.join(entries)}, which has no images"
        return found

    def _check_monitored(self, kind):
        """Refuses metrics of images that the task's system does not make."""
        if self.evaluation.every is None:
            return
        given = f"evaluation.metrics={tuple(self.evaluation.metrics)!r}"
        if not self.task.objectives:
            raise UserError(
                f"{given} of a {kind}, which trains nothing itself; give them to its parts, or "
                "measure it with `t2i evaluate`."
            )
        if not self.task.makes_images:
            raise UserError(
                f"{given} are of generated images, and a {kind} generates none; leave them out."
            )
        for one in self.evaluation.monitored if "caption" not in self.task.samples else ():
            if not one.compares:
                raise UserError(
                    f"evaluation.metrics has {one.name!r}, which compares images with captions, "
                    f"and this {kind} reads none; leave it out."
                )

    def _options(self, given):
        known = config.fields_of(self.task.options)
        for name in given:
            if name not in known:
                remedy = config.did_you_mean(name, known) if known else "leave it out."
                kind = type(self.task).__name__
                raise UserError(f"evaluation.{name} is no option of a {kind}; {remedy}")
        return self.task.options(**given)


class _Types(Mapping[str, type]):
    """The classes that a stored configuration may name: the public ones of the package, imported
    when asked for.
    """

    def __getitem__(self, name: str) -> type:
        return getattr(importlib.import_module(t2i_jax.homes()[name]), name)

    def __iter__(self) -> Iterator[str]:
        return iter(t2i_jax.homes())

    def __len__(self) -> int:
        return len(t2i_jax.homes())


TYPES: Mapping[str, type] = _Types()


def load_recipe(path: str | pathlib.Path) -> Recipe:
    """Runs a recipe file and returns its `get_config()`.

    Raises:
      UserError: no such file, no `get_config`, or a result that is not a Recipe.
    """
    path = paths.given("config", path)
    if not path.is_file():
        raise UserError(
            f"config={str(path)!r} is not a file; give a recipe such as configs/parti/shapes.py."
        )
    spec = importlib.util.spec_from_file_location(f"t2i_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"config={str(path)!r} is not a Python file; a recipe ends in .py and has get_config()."
        )
    module = importlib.util.module_from_spec(spec)
    with _told(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"config={str(path)!r} has no get_config(); add one that returns a t2i_jax Recipe."
        )
    with _told(path):
        recipe = module.get_config()
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"config={str(path)!r}: get_config() returned {type(recipe).__name__}; return a Recipe."
        )
    return recipe


@contextlib.contextmanager
def _told(path):
    """Turns what the code of a recipe file raises into one sentence with its line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's own code
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f" at line {line}" if line else ""
        first = (str(error).strip() or "no message").splitlines()[0][:200]
        does, remedy = "fails", "mend it there"
        if isinstance(error, SystemExit):
            does = "ends the process"
            remedy = "a recipe only defines get_config(), take the exit out"
        raise UserError(
            f"config={str(path)!r} {does}{where} ({type(error).__name__}: {first}); {remedy}."
        ) from error


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with `field.subfield=value` applied, as `config.override` does.

    A part's name stands for parts.NAME, "*." for every stage that is trained (the recipe and those
    of its parts), and init=RUN for init.run=RUN.

    Raises:
      UserError: as `config.override`; or a setting of training for a task that trains nothing.
    """
    written = []
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        for place in _everywhere(recipe, path.strip().lstrip("-")):
            _check_trained(recipe, place)
            written.append(f"{_in_full(recipe, place, value.strip())}{equals}{value}")
    return config.override(recipe, written)


def _check_trained(recipe, place):
    """Refuses a setting of training for a recipe that only joins its parts."""
    if recipe.task.objectives or not place.startswith("train."):
        return
    stages = [f"{name}.{place}" for name, part in recipe.parts.items() if isinstance(part, Recipe)]
    remedy = f"give {' or '.join(stages)}, or *.{place} for all" if stages else "leave it out"
    raise UserError(
        f"{place} is given for {type(recipe.task).__name__}, which trains nothing itself; {remedy}."
    )


def reach(recipe: Recipe, assignments: Sequence[str]) -> Iterator[str]:
    """The sentences that say which stage a setting of training or data reaches, where there are
    several that are trained.
    """
    from_init = isinstance(recipe.init, Init) and recipe.init.parts
    stages = [
        name
        for name, part in recipe.parts.items()
        if isinstance(part, Recipe) and not (from_init and part.init is None)
    ]
    paths = [assignment.partition("=")[0].strip().lstrip("-") for assignment in assignments]
    named = {path.removeprefix("parts.") for path in paths}
    alone = [
        path
        for path in dict.fromkeys(paths)
        if path.partition(".")[0] in ("train", "data")
        and f"*.{path}" not in named
        and not {f"{name}.{path}" for name in stages} <= named
    ]
    if stages and alone:
        first, is_are = alone[0], "is" if len(alone) == 1 else "are"
        others = " and ".join(f"{name}.{first}" for name in stages)
        yield (
            f"{', '.join(alone)} {is_are} set for {type(recipe.task).__name__} alone; {others} for "
            f"the stage before it, *.{first} for all."
        )


def idle(recipe: Recipe, stage: str = "") -> Iterator[str]:
    """The sentences about settings of a stage that have no effect beside others.

    Args:
      recipe: its task has the networks of its parts. stage: its name among the parts, as in
        "decoder.clip"; "": the recipe itself.
    """
    prefix = f"{stage}." if stage else ""
    for name, reason in recipe.task.unread_parts.items():
        if name in recipe.parts:
            yield f"{prefix}{name} is given, and nothing reads it with {reason}."
    # networks of parts are told of where they are trained
    of_parts = [part.field for part in recipe.task.parts.values()]
    yield from config.idle(recipe.task, f"{prefix}task", of_parts)
    yield from config.idle(recipe, stage, ("task", "parts"))


def _everywhere(recipe, path):
    """The places that a path names: itself, or with "*." in front that field of every stage."""
    if not path.startswith("*."):
        yield path
        return
    if recipe.task.objectives:
        yield path[2:]
    for name, part in recipe.parts.items():
        if isinstance(part, Recipe):
            yield from (f"parts.{name}.{place}" for place in _everywhere(part, path))


def with_mesh(recipe: Recipe, mesh: str | None) -> Recipe:
    """The recipe on another mesh, "data=2,fsdp=4", the recipes of its parts too; None: as it is."""
    return recipe if mesh is None else _on(recipe, parse_mesh(mesh))


def recipe_to_dict(recipe: Recipe) -> Mapping[str, Any]:
    """The JSON form that every checkpoint holds."""
    return config.to_dict(recipe)


def recipe_from_dict(data: Any, where: str = "") -> Recipe:
    """The recipe that a checkpoint holds, of this release or of an earlier one.

    Args:
      where: the file that holds it, for messages.

    Raises:
      UserError: no recipe; the field that is wrong is named.
    """
    try:
        kind = _mapping(data, "recipe").get("type")
        if kind != "Recipe":
            raise UserError(f"recipe.type={values.shown(kind)} is not 'Recipe'; correct it.")
        recipe = config.from_dict(upgrade(data), TYPES, "recipe")
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
    except RecursionError as error:
        raise UserError(
            f"{where or 'recipe'}: values within values too deep; restore it from a copy."
        ) from error
    return recipe


def upgrade(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored recipe of an earlier release in today's form; one of today as it is.

    Raises:
      UserError: no recipe.
    """
    data = dict(_mapping(data, "recipe"))
    parts = dict(_mapping(data.get("parts") or {}, "recipe.parts"))
    for name in _FORMER_PARTS:
        part = data.pop(name, None)
        if part is not None:
            parts[name] = part
    data["parts"] = {
        name: upgrade(part) if isinstance(part, Mapping) else part for name, part in parts.items()
    }
    evaluation = dict(_mapping(data.get("evaluation") or {}, "recipe.evaluation"))
    former = {name: evaluation.pop(name) for name in FORMER if name in evaluation}
    if former:
        kind = _mapping(data.get("task"), "recipe.task").get("type")
        tasks = [name for name in TYPES if hasattr(TYPES[name], "options")]
        config.one_of("recipe.task.type", kind, tasks)
        options = TYPES[str(kind)].options
        known = config.fields_of(options)
        given = {
            name: value for name, value in former.items() if name in known and value is not None
        }
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        for name, value in given.items():
            config.check(options, name, value, f"recipe.evaluation.{name}")
        evaluation["options"] = config.to_dict(options(**given))
    return {**data, "evaluation": evaluation} if evaluation else data


def _mapping(value, path):
    if not isinstance(value, Mapping):
        raise UserError(f"{path}={values.shown(value)} is no object; restore it from a copy.")
    return value


def _in_full(recipe, path, value):
    """A field's path in which the name of a part may stand for parts.NAME, and init for init.run,
    written out.
    """
    if path == "init":
        return path if value.lower() in ("none", "null") else "init.run"
    head, _, rest = path.partition(".")
    if head == "parts":
        head, _, rest = rest.partition(".")
    if head not in recipe.task.parts:
        return path
    part = recipe.parts.get(head)
    rest = _in_full(part, rest, value) if isinstance(part, Recipe) and rest else rest
    return f"parts.{head}.{rest}" if rest else f"parts.{head}"


def _on(recipe, mesh):
    parts = {
        name: _on(part, mesh) if isinstance(part, Recipe) else part
        for name, part in recipe.parts.items()
    }
    train = recipe.train if recipe.train is None else dataclasses.replace(recipe.train, mesh=mesh)
    return dataclasses.replace(recipe, train=train, parts=parts)
