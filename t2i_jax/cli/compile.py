"""`t2i compile CONFIG --topology SLICE`: the training step compiled for TPUs that are not there,
and its costs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Annotated

from t2i_jax import files, paths
from t2i_jax.cli.arguments import Shown, check_said_once
from t2i_jax.errors import UserError
from t2i_jax.values import Count


def compile_for(
    config: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    *,
    topology: Annotated[str, Shown("SLICE")],
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None,
    search: bool = False,
    generate: Annotated[Count | None, Shown("N")] = None,
    json_file: Annotated[pathlib.Path | None, Shown("FILE", flag="json")] = None,
) -> None:
    """Compile a recipe's training step for a TPU slice on any machine, and tell what each chip will
    do.

    Exit status: 0 it fits; 1 it does not; 2 a mistake in what was given. Needs libtpu, no TPU. The
    compiler is told to take little time (its level O1: the same products, collectives and peak, a
    little more traffic); the environment variable JAX_OPTIMIZATION_LEVEL names another level,
    UNKNOWN the one of training.

    Args:
        config: A recipe file with get_config(), such as configs/parti/paper_3b.py.
        overrides: Fields to change, as train.batch_size=4096.
        topology: The slice, as v5p:8x8x8, or several of them, as 2*v5e:16x16.
        mesh: Sizes of the mesh's axes, as data=2,fsdp=4,tensor=2; the recipe's own by default.
        search: Try the remat policies, numbers of gradient accumulation steps and meshes, for at
        most about ten minutes; name the fastest that fits. For a recipe that is trained itself.
        generate: Compile sampling instead: this many images at a time, guided, in one program per
        stage.
        json_file: A file for the numbers; of --search and --generate several, by name.
    """
    import jax

    from t2i_jax.aot import ahead
    from t2i_jax.runs.check import check
    from t2i_jax.runs.recipe import changed, load_recipe, with_mesh

    if search and generate is not None:
        raise UserError(
            f"search is of the training step, and generate={generate} compiles sampling; leave out "
            "one of them."
        )
    # nothing is computed, and a GPU has kernels of its own
    jax.config.update("jax_platforms", "cpu")
    # it can't keep programs for devices that are not there
    jax.config.update("jax_enable_compilation_cache", False)
    if "JAX_OPTIMIZATION_LEVEL" not in os.environ:
        jax.config.update("jax_optimization_level", "O1")
    check_said_once(overrides, "train.mesh", "mesh", mesh)
    recipe = with_mesh(changed(load_recipe(config), overrides), mesh)
    json_file = None if json_file is None else _numbers_file(json_file)
    devices = ahead.slice_devices(topology)  # refused before anything long
    if generate is None:
        check(recipe, devices=devices, with_data=False)
    if generate is not None:
        reports = _sampling(recipe, topology, generate)
        fewer = f"fewer images than --generate {generate}, " if generate > 1 else ""
        remedy = f"try a larger fsdp or tensor axis, {fewer}or more chips."
        remedies = dict.fromkeys(reports, remedy)
        _end(reports, remedies, f"{{}}, {generate} at a time", json_file)
    if not recipe.task.objectives:
        _end(*_steps(recipe, topology, search), "the step of {}", json_file)
    if search:
        from t2i_jax.aot.search import fastest

        found = _search(recipe, topology)
        best = fastest(found)
        report, reports = found[best], {str(setting): one for setting, one in found.items()}
        print(f"fastest that fits: {best}" if report.fits else "nothing fits")
    else:
        reports, report = {}, _compile(recipe, topology)
    remedy = "try more chips." if search else _remedy(recipe.task, recipe.train)
    print(ahead.text(report, remedy))
    numbers = {name: dataclasses.asdict(one) for name, one in reports.items()}
    _write(json_file, numbers if search else dataclasses.asdict(report))
    if not report.fits:
        sys.exit(1)


def _steps(recipe, topology, search):
    """The reports of the steps of the stages that a recipe joins, and the remedies, both by
    stage.
    """
    from t2i_jax.aot import ahead

    if search:
        raise UserError(
            f"search is given for {type(recipe.task).__name__}, which joins what its parts have "
            "learnt; search in the recipe of one part."
        )
    reports, remedies = {}, {}
    for name, (task, config, frozen) in _stages(recipe).items():
        reports[name] = ahead.compile_step(task, config, frozen, topology)
        remedies[name] = _remedy(task, config, f"{name}.")
    return reports, remedies


def _remedy(task, config, stage=""):
    """The remedy for a training step that does not fit in memory; `stage` is the prefix of its
    fields.
    """
    policies = [f"{stage}{path}=full" for path, now in _policies(task).items() if now != "full"]
    parts = f"{stage}train.accumulate={2 * config.accumulate}"
    return f"try {', '.join([*policies, parts])}, a larger fsdp or tensor axis, or more chips."


def _sampling(recipe, topology, count):
    """The reports of the programs that sample images: those of the task, or of the stages that it
    joins.
    """
    from t2i_jax.aot import ahead

    if recipe.task.objectives:
        return ahead.compile_sampling(*_parts(recipe), topology, count)
    return {
        f"{stage} {name}": report
        for stage, wired in _stages(recipe).items()
        if wired[0].sampling_programs(count)
        for name, report in ahead.compile_sampling(*wired, topology, count).items()
    }


def _end(reports, remedies, told, json_file):
    """Tells several reports, each under its name as `told` has it, and ends."""
    from t2i_jax.aot import ahead

    for name, one in reports.items():
        print(f"{told.format(name)}:\n{ahead.text(one, remedies[name])}")
    _write(json_file, {name: dataclasses.asdict(one) for name, one in reports.items()})
    sys.exit(0 if all(one.fits for one in reports.values()) else 1)


def _numbers_file(path):
    """The path of the file for the numbers, which may replace such a file and nothing else."""
    found = paths.new_file("json", path)
    there = files.read_object(found) or {}
    reports = [there] if "topology" in there else list(there.values()) or [None]
    if found.exists() and not all(isinstance(one, dict) and "topology" in one for one in reports):
        raise UserError(
            f"json={paths.shown(path)} is there and holds no numbers of a compiled step; name "
            "another file."
        )
    return found


def _write(path, numbers):
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            temporary.write_text(json.dumps(numbers, indent=1) + "\n")


def _compile(recipe, topology):
    from t2i_jax.aot import ahead

    return ahead.compile_step(*_parts(recipe), topology)


def _parts(recipe):
    """The task, its TrainConfig and the shapes of its frozen networks, wired as training wires
    them.
    """
    from t2i_jax.runs.wiring import planned

    recipe, parts = planned(recipe)
    return recipe.task, recipe.train, recipe.task.frozen_shapes(parts)


def _stages(recipe):
    """The result of `_parts` for each stage that a recipe joins, by its name."""
    from t2i_jax.runs.wiring import planned_stages

    return {
        name: (stage.task, stage.train, stage.task.frozen_shapes(parts))
        for name, (stage, parts) in planned_stages(recipe).items()
        if stage.task.objectives
    }


def _search(recipe, topology):
    """Reports by setting, a line of each as it is compiled; see `aot.search`."""
    from t2i_jax.aot import ahead, search

    fields = list(_policies(recipe.task))
    devices = ahead.slice_devices(topology)
    found = search.search(
        lambda setting: _compile(_with(recipe, fields, setting), topology),
        search.POLICIES if fields else (None,),
        search.micro_batches(recipe.train),
        search.meshes(recipe.task, recipe.train, devices),
        divides=lambda setting: _divides(_with(recipe, fields, setting), devices),
    )
    reports, left = {}, []
    print(f"{'':56} {'fits':>5} {'peak GiB':>9} {'step s':>8} {'MFU':>5}")
    for setting, report in found:
        if report is None:
            left.append(str(setting))
            continue
        reports[setting] = report
        print(_line(setting, report), flush=True)
    if left:
        minutes = search.SECONDS / 60
        print(f"{minutes:.0f} minutes were over before these: {'; '.join(left)}")
    return reports


def _with(recipe, fields, setting):
    """The recipe with a setting of the search; `fields`: those that name a remat policy."""
    from t2i_jax.config import override
    from t2i_jax.runs.recipe import with_mesh
    from t2i_jax.sharding import mesh_text

    words = [f"{field}={setting.remat}" for field in fields]
    recipe = override(recipe, [*words, f"train.accumulate={setting.accumulate}"])
    if setting.mesh is None:
        return recipe
    recipe = with_mesh(recipe, mesh_text(dict(setting.mesh)))
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, rules=None))


def _divides(recipe, devices):
    """Whether the batch divides into its micro-batches, these over the mesh, and as the task wants
    it.
    """
    from t2i_jax.sharding import make_mesh

    train = recipe.train
    try:
        train.check_batch(make_mesh(train.mesh, devices))
        recipe.task.check_batch(train.batch_size, train.accumulate)
    except UserError:
        return False
    return True


def _line(setting, report):
    """A report as a line of the search's table."""
    if not report.fits:
        return f"{setting!s:56} {'no':>5} {report.peak:9.1f}"
    numbers = f"{report.peak:9.1f} {report.step:8.3f} {report.mfu:5.0%}"
    return f"{setting!s:56} {'yes':>5} {numbers}"


def _policies(task):
    """The remat policies of a task's own networks, by path in its recipe; its parts only infer."""
    from t2i_jax.config import to_dict

    of_parts = {part.field for part in task.parts.values()}
    own = {name: value for name, value in to_dict(task).items() if name not in of_parts}
    return {f"task.{path}": value for path, value in _named("remat", own)}


def _named(name, tree, path=""):
    """The entries of this name that are strings, in stored JSON: (path, value) of each."""
    if isinstance(tree, dict):
        entries = tree.items()
    else:
        entries = enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        if key == name and isinstance(value, str):
            yield f"{path}{key}", value
        yield from _named(name, value, f"{path}{key}.")
