"""Files that training has left in a run's folder, for readers: nothing is written, and the run may
still be going on.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax import paths
from t2i_jax.errors import UserError
from t2i_jax.train import best as bests
from t2i_jax.train.checkpoint import FOLDER, Checkpoints


def load_params(
    workdir: str | pathlib.Path,
    places: Mapping[str, Any] | None = None,
    step: int | str | None = None,
) -> tuple[Mapping[str, Any], Any, Any, Any]:
    """The parameters of a run's newest checkpoint: (configuration as a dict, params by group, EMA
    by group, stats).

    `places`, `step`: see `Checkpoints.weights`.

    Raises:
      UserError: there is none.
    """
    config, weights = _read_only(workdir, lambda checkpoints: checkpoints.weights(places, step))
    return config, weights["params"], weights["ema"], weights["stats"]


def load_config(workdir: str | pathlib.Path) -> Mapping[str, Any]:
    """The configuration of a run's newest checkpoint, as a dict.

    Raises:
      UserError: there is none.
    """
    return _read_only(workdir, Checkpoints.config)


def last_step(workdir: str | pathlib.Path) -> int | None:
    """The newest step of which a run's folder has a finished checkpoint; None without any.

    No array is read.

    Raises:
      UserError: the folder of checkpoints is a link to what is not there.
    """
    folder = paths.given("run", workdir) / FOLDER
    paths.check_link("run", folder)
    return max(bests.steps_in(folder), default=None)


def chosen_step(workdir: str | pathlib.Path, step: int | str | None) -> int | None:
    """The number of a step that `load_params` finds by "best" or None (the newest) too; None
    without any.
    """
    if step is None:
        return last_step(workdir)
    if step == "best":
        return bests.best_of(bests.scores(paths.given("run", workdir) / FOLDER))
    return int(step)


def _read_only(workdir, read):
    folder = paths.given("run", workdir) / FOLDER
    paths.check_link("run", folder)
    if folder.is_file():
        raise UserError(
            f"run={str(workdir)!r}: {str(folder)!r} is a file where a folder belongs; restore the "
            "folder from a copy, or give another run."
        )
    if not folder.is_dir():
        raise UserError(
            f"run={str(workdir)!r} holds no checkpoint; train it first, or give another folder."
        )
    checkpoints = Checkpoints(workdir, keep=None)
    found = read(checkpoints)
    checkpoints.close()
    if found is None:
        raise UserError(
            f"run={str(workdir)!r} holds no finished checkpoint; let it train until the first save."
        )
    return found
