"""`dream "a caption"`: an image in the current folder."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Annotated, Any

from t2i_jax import paths
from t2i_jax.cli.arguments import Shown
from t2i_jax.errors import UserError
from t2i_jax.values import Seed
from t2i_jax.words import named

_RUNS = "runs"  # where runs are, as the documentation writes them
_MADE = ("recipe.json", "system.json", "checkpoints")  # one of them is in every run's folder


def start() -> None:
    """Entry point of the console script."""
    from t2i_jax.cli.main import alone, main

    main(alone(_command))


def dream(
    caption: Annotated[str, Shown("CAPTION", positional=True)],
    run: pathlib.Path | None = None,
    guidance: float | None = None,
    seed: Seed = 0,
) -> None:
    """Make an image of a caption and write it into the current folder.

    Args:
        caption: What the image shows.
        run: Folder of the run that makes it. Without it, the one that the environment variable
            T2I_RUN names; without that, the run in the folder runs that was trained last.
        guidance: Scale of classifier-free guidance; the run's own without it.
        seed: The same seed gives the same image.
    """
    import numpy as np

    from t2i_jax import runs
    from t2i_jax.pixels import save_png

    if not caption.strip():
        raise UserError(f"caption={caption!r} says nothing; write what the image shows.")
    folder = _run_of(run)
    options: Any = runs.load_run_recipe(folder).evaluation.options
    _new_file(pathlib.Path.cwd(), caption)  # refused before anything is made
    system = runs.load(folder)
    if not system.generates:
        raise UserError(
            f"run={paths.shown(folder)} makes no images from text, it is of {named(system)}; name "
            "another one with --run FOLDER."
        )
    changes: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    images = np.asarray(system.generate([caption], options, seed=seed, progress=True, **changes))
    path = _new_file(pathlib.Path.cwd(), caption)
    save_png(path, images[0])
    print(f"1 image of {folder}: {path.name}")


def _command(words):
    from t2i_jax.cli.arguments import called
    from t2i_jax.cli.main import start_cache

    start_cache()
    called(dream, words, "dream")


def _run_of(run: pathlib.Path | None) -> pathlib.Path:
    """The folder of the run that is meant.

    Raises:
      UserError: there is none.
    """
    if run is not None:
        return paths.given("run", run)
    if told := os.environ.get("T2I_RUN"):
        chosen = paths.given("T2I_RUN", told)
        if not is_run(chosen):
            raise UserError(
                f"T2I_RUN={paths.shown(told)} is the folder of no run; set this environment "
                "variable to another one, or give --run FOLDER."
            )
        return chosen
    home = pathlib.Path(_RUNS)
    found = [one for one in home.iterdir() if is_run(one)] if home.is_dir() else []
    if not found:
        raise UserError(
            "run is missing: there is no run in the folder runs, and T2I_RUN names none; write "
            "dream CAPTION --run FOLDER."
        )
    return max(found, key=_trained)


def is_run(folder: str | os.PathLike) -> bool:
    """Whether a run's folder is there, or that of an exported system."""
    return any(map(os.path.exists, _made(folder)))


def _made(folder):
    return [os.path.join(os.path.expanduser(folder), name) for name in _MADE]


def _trained(folder):
    """The time at which a run's weights were written last, which measuring it or sampling from it
    does not change.
    """
    return max(os.path.getmtime(path) for path in _made(folder) if os.path.exists(path))


def _new_file(folder: pathlib.Path, caption: str) -> pathlib.Path:
    """A new PNG file that is named by the caption.

    Raises:
      UserError: nothing can be written into the folder, or all such names are taken.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"folder={paths.shown(folder)} is where the image is to be, and nothing can be written "
            "into it; go to another folder."
        )
    name = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:80] or "image"
    for i in range(1, 10_000):
        path = folder / (f"{name}.png" if i == 1 else f"{name}-{i}.png")
        if not path.exists():
            return path
    raise UserError(f"{name}.png and its numbered neighbours exist; go to another folder.")
