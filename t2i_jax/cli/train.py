"""`t2i train CONFIG`: train a recipe, or resume it."""

from __future__ import annotations

import pathlib
from typing import Annotated

from t2i_jax.cli import measuring
from t2i_jax.cli.arguments import Shown, check_said_once


def train(
    config: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    workdir: Annotated[
        pathlib.Path | None, Shown(default="runs/FAMILY-RECIPE, of the recipe's path")
    ] = None,
    mesh: Annotated[str | None, Shown("AXIS=SIZE,...")] = None,
    profile: Annotated[str | None, Shown("FIRST:LAST")] = None,
) -> None:
    """Train a recipe; a run that was stopped resumes by itself.

    Several processes train together, see docs/training.md.

    Args:
        config: A recipe file with get_config(), such as configs/parti/shapes.py.
        overrides: Fields to change, as train.steps=1000 data.source=folder:photos; init=RUN begins
        with the weights of another run. `t2i config CONFIG` lists all.
        workdir: Folder of the run.
        mesh: Sizes of the axes over which devices are laid, as data=2,fsdp=4,tensor=2; all on data
        where none are given.
        profile: Steps to trace, as 10:15; WORKDIR/profile then opens in TensorBoard, a
        file in it in Perfetto.
    """
    from t2i_jax import paths, runs
    from t2i_jax.cluster import lock, processes
    from t2i_jax.runs import begin
    from t2i_jax.runs.recipe import changed, load_recipe, reach, with_mesh
    from t2i_jax.train.profile import Profile

    traced = Profile.parse(profile) if profile is not None else None
    with processes.joined():
        check_said_once(overrides, "train.mesh", "mesh", mesh)
        recipe = with_mesh(changed(load_recipe(config), overrides), mesh)
        home = paths.given("config", config).resolve().parent
        usual = pathlib.Path("runs") / f"{home.name}-{config.stem}"
        workdir = paths.folder("workdir", workdir or usual)
        with lock.held(workdir):
            begin.check_named(recipe, overrides, workdir)
            notes = tuple(reach(recipe, overrides))
            system = runs.train(recipe, workdir, profile=traced, notes=notes)
            metrics = runs.evaluate(recipe, system, workdir)
        if processes.is_first():
            measuring.print_metrics(metrics)
            print(f"done: {workdir} (images in {workdir / 'samples'})")
