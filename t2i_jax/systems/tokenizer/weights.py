"""Image tokenizers of parti-pytorch and muse-maskgit-pytorch with their discriminators, and the
VQGAN of taming-transformers and its kin.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import convert
from t2i_jax.convert import arguments, flax_io, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.taming_vqgan import VQGAN
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.tokenizer.task import TokenizerTask

_WITH_DISCRIMINATOR = (VitVQGanVAE, VQGanVAE)
_NETWORKS = (*_WITH_DISCRIMINATOR, VQGAN)
_FLAX = "maskgit VQGAN (Flax)"


def from_torch(file: TorchFile) -> Imported | None:
    """The tokenizer of a file; None where it holds another network."""
    if not isinstance(file.network, _NETWORKS):
        return None
    settings = {**file.told.get("settings", {}), **file.options("tokenizer")}
    return imported(file.network, file.params, settings)


# Arguments of the package's class that are none of the network's.
_SETTINGS: arguments.Rows = dict.fromkeys(
    ("l2_recon_loss", "use_hinge_loss", "use_vgg_and_gan"), arguments.Only(False, True)
)


def imported(
    model: Any, weights: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> Imported:
    """A tokenizer from its network and its weights as `convert.from_torch` gives them.

    Args:
      settings: arguments of the package's class that are none of the network's; `VQGAN` has none.
    """
    settings = settings or {}
    if isinstance(model, VQGAN):
        arguments.check("tokenizer", {}, settings)
    arguments.check("tokenizer", _SETTINGS, settings)
    squared, hinge = settings.get("l2_recon_loss", False), settings.get("use_hinge_loss", True)
    task = TokenizerTask(
        model=model,
        l1_weight=float(not squared),
        l2_weight=float(squared),
        gan_loss="hinge" if hinge else "bce",
    )
    groups = {name: weights[name] for name in ("generator", "discriminator") if name in weights}
    return Imported(
        type(model).__name__,
        task,
        groups,
        weights.get("stats", {}),
        model.image_size,
    )


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a tokenizer's run as a state dict, with the discriminator where the package has a
    place for it; MaskGIT's VQGAN may also go to a .msgpack file, as its own package keeps it.

    Raises:
      UserError: another network for such a file.
    """
    task, params = contents.recipe.task, contents.averaged
    model = task.model
    if isinstance(model, VQGAN):
        params = {"generator": params["generator"]}
    elif isinstance(model, _WITH_DISCRIMINATOR) and task.discriminator is not None:
        own = model.discriminator() if model.discr_layers else None
        kept = ("generator", "discriminator") if task.discriminator == own else ("generator",)
        params = {name: params[name] for name in kept}
    weights = jax.device_get(exported(model, params, contents.stats))
    if path.suffix.lower() != flax_io.ENDING:
        torch_io.write(path, convert.to_state(model, weights))
    elif isinstance(model, VQGAN):
        flax_io.write(path, convert.to_state(model, weights, _FLAX))
    else:
        raise UserError(
            f"out has the ending {path.suffix!r} of Flax, and no package keeps a "
            f"{type(model).__name__} in such a file; give .safetensors or .pt."
        )


def exported(model: Any, groups: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's weights as `convert.to_state` takes them.

    The counts of training have no place there.
    """
    codebook = jax.eval_shape(model.start, jax.random.key(0))
    return {**groups, "stats": {name: stats[name] for name in codebook}}
