"""CLIP of x-clip, which is that of dalle2-pytorch too."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.models.clip import CLIP
from t2i_jax.systems.clip.masked_words import MaskedWords
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.imported import Imported, TorchFile

# Arguments of the package's class that are none of the network's.
_SETTINGS: arguments.Rows = {
    **{
        name: arguments.X_CLIP[name]
        for name in (
            "decoupled_contrastive_learning", "text_ssl_loss_weight", "multiview_loss_weight",
            "sim_reg_loss_weight", "image_ssl_loss_weight",
        )
    },
    **{
        f"mlm_{name}": arguments.X_CLIP_MLM[name]
        for name in ("mask_prob", "replace_prob", "random_token_prob", "mask_token_id")
    },
}  # fmt: skip


def from_torch(file: TorchFile) -> Imported | None:
    """The CLIP of a file; None where it holds another network."""
    if not isinstance(file.network, CLIP):
        return None
    settings = {**file.told.get("settings", {}), **file.options("clip")}
    return imported(file.network, file.params, settings)


def imported(
    model: Any, params: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> Imported:
    """A CLIP from its network and its parameters as `convert.from_torch` gives them.

    Args:
      settings: arguments of x-clip's class that are the training's.
    """
    settings = settings or {}
    arguments.check("clip", _SETTINGS, settings)
    mlm = None
    if getattr(model, "use_mlm", False):
        words = {
            name.removeprefix("mlm_"): value
            for name, value in settings.items()
            if name.startswith("mlm_")
        }
        mlm = MaskedWords(weight=settings.get("text_ssl_loss_weight", 0.05), **words)
    given = {
        name: settings[name]
        for name in (
            "decoupled_contrastive_learning", "multiview_loss_weight", "sim_reg_loss_weight"
        )
        if name in settings
    }  # fmt: skip
    task = ClipTask(model, mlm=mlm, **given)
    return Imported(type(model).__name__, task, {"clip": params}, {}, model.image_size)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run as a state dict."""
    model, params = contents.recipe.task.model, exported(contents.averaged)
    torch_io.write(path, convert.to_state(model, jax.device_get(params)))


def exported(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The network's parameters as `convert.to_state` takes them; what only self-supervised learning
    uses has no place there.
    """
    return {name: value for name, value in groups["clip"].items() if name != "ssl"}
