"""Muse of muse-maskgit-pytorch: two MaskGits saved as one."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax import convert, values
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import BaseAndSuperres
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.maskgit import weights as maskgit
from t2i_jax.systems.maskgit.options import MaskGitOptions
from t2i_jax.systems.muse.options import MuseOptions
from t2i_jax.systems.muse.task import MuseTask

# The package's sampling options.
OPTIONS = MuseOptions(
    **{name: getattr(maskgit.OPTIONS, name) for name in fields_of(MaskGitOptions)},
    superres_steps=maskgit.OPTIONS.steps,
)


def from_torch(file: TorchFile) -> Imported | None:
    """The Muse of a file; None where it holds another network.

    Raises:
      UserError: arguments that do not fit the weights, or stages that do not fit each other.
    """
    model: Any = file.network
    if not isinstance(model, BaseAndSuperres):
        return None
    given = _given(file.options("muse"))
    base = _stage(file, "base", given["base"])
    size, told = base.image_size, file.told.get("superres", {})
    own = {**told.get("settings", {}), **given["superres"]}
    if own.get("cond_image_size", size) != size:
        raise UserError(
            f"muse.superres has cond_image_size={own['cond_image_size']}, and is given the base's "
            f"images of {size} pixels a side; write muse.superres={{'cond_image_size': {size}}}."
        )
    superres = _stage(file, "superres", {**given["superres"], "cond_image_size": size})
    parts = {"base": base, "superres": superres}
    return Imported("Muse", MuseTask(), {}, {}, superres.image_size, parts, OPTIONS)


def _given(options):
    """The arguments of each MaskGit that the user gave."""
    arguments.check("muse", arguments.MUSE, options)
    for name, value in options.items():
        if not isinstance(value, Mapping):
            raise UserError(
                f"muse.{name}={values.shown(value)} are no arguments of a MaskGit; write "
                f"muse.{name}={{'cond_drop_prob': 0.25}}."
            )
    return {name: options.get(name, {}) for name in arguments.MUSE}


def _stage(file, name, options):
    model, told = getattr(file.network, name), file.told.get(name, {})
    return maskgit.imported(file, model, file.params[name], told, options)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run as the state dict of a Muse, with the tokenizers of each stage.

    Raises:
      UserError: a run that the package has no place for.
    """
    stages = {
        name: maskgit.exported(contents.parts[name], (name,)) for name in ("base", "superres")
    }
    model = BaseAndSuperres(**{name: model for name, (model, _) in stages.items()})
    params = {name: params for name, (_, params) in stages.items()}
    torch_io.write(path, convert.to_state(model, params))
