"""Image tokenizers of parti-pytorch and muse-maskgit-pytorch with their discriminators, and the
VQGAN of taming-transformers and its kin.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import convert
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments, flax_io, quantizer, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.taming_vqgan import VQGAN
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.notices import tell
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


# Arguments of the package's class that do not belong to the network.
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
    for name in settings:
        if name in fields_of(type(model)):
            raise UserError(
                f"tokenizer.{name} is a field of its network; write {name}=VALUE alone."
            )
    arguments.check("tokenizer", _SETTINGS, settings)
    squared, hinge = settings.get("l2_recon_loss", False), settings.get("use_hinge_loss", True)
    adversary = _adversary(model) if "discriminator" in weights else None
    kept = ("generator",) if adversary is None else ("generator", "discriminator")
    task = TokenizerTask(
        model=model,
        discriminator=adversary,
        l1_weight=float(not squared),
        l2_weight=float(squared),
        gan_loss="hinge" if hinge else "bce",
    )
    return Imported(
        type(model).__name__,
        task,
        {name: weights[name] for name in kept},
        weights.get("stats", {}),
        model.image_size,
    )


def _adversary(model):
    """The discriminator that was saved; None where such images are too small for it."""
    saved = model.discriminator()
    if model.image_size >= saved.smallest_image:
        return saved
    tell(
        f"the discriminator is left out: images of {model.image_size} pixels are too small "
        f"for its {model.discr_layers} layers (at least {saved.smallest_image}), so that it can't "
        "train; a tokenizer that takes the weights back needs use_vgg_and_gan=False"
    )
    return None


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a tokenizer's run as a state dict, with the discriminator where the package has a
    place for it; MaskGIT's VQGAN may also go to a .msgpack file, as its own package keeps it.

    Raises:
      UserError: another network for such a file.
    """
    model, weights = contents.recipe.task.model, jax.device_get(exported(contents))
    flax = path.suffix.lower() == flax_io.ENDING
    if flax and not isinstance(model, VQGAN):
        raise UserError(
            f"out has the ending {path.suffix!r} of Flax, and no package keeps a "
            f"{type(model).__name__} in such a file; give .safetensors or .pt."
        )
    state = convert.to_state(model, weights, _FLAX if flax else None)
    (flax_io if flax else torch_io).write(path, state)
    known = {name: getattr(model, name) for name in fields_of(type(model))}
    del known["pixel_range"]  # and nothing else is to be found
    tell_range(model, usual=convert.inferred(state, known).get("pixel_range"))


def tell_range(model: Any, within: tuple[str, ...] = (), usual: Any = None) -> None:
    """Says which values the images of an exported tokenizer have, where its reader takes others.

    Args:
      within: the networks of which the tokenizer is a part, as `convert.from_torch` names them.
      usual: what the reader takes; None: as by default.
    """
    own, usual = tuple(model.pixel_range), tuple(usual or type(model).pixel_range)
    if own == usual:
        return
    path, value = (*within, "pixel_range"), repr(own).replace(" ", "")
    for name in reversed(path[2:]):  # the command knows two names before the "="
        value = f"{{'{name}':{value}}}"
    tell(
        f"the tokenizer's images are in {own}, which the file can't tell, and not in {usual}: "
        "map them so in PyTorch, and give `t2i convert from-torch` "
        f'"{".".join(path[:2])}={value}"'
    )


def exported(contents: Any) -> dict[str, Any]:
    """The weights of a tokenizer's run as `convert.to_state` takes them, with its discriminator
    where that is the package's own.

    The counts of training have no place there.
    """
    task, model = contents.recipe.task, contents.recipe.task.model
    groups = {"generator": contents.averaged["generator"]}
    theirs = quantizer.discriminator(model) if isinstance(model, _WITH_DISCRIMINATOR) else None
    if theirs is not None and theirs == task.discriminator and "discriminator" in contents.averaged:
        groups |= {"discriminator": contents.averaged["discriminator"]}
    codebook = jax.eval_shape(model.start, jax.random.key(0))
    return {**groups, "stats": {name: contents.stats[name] for name in codebook}}
