"""MaskGit of muse-maskgit-pytorch, with its image tokenizers and its critic; that of
google-research/maskgit is in `flax_weights`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import config, convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import (
    MaskGitAndTokenizer,
    MaskGitTransformer,
    SelfCritic,
    TokenCritic,
)
from t2i_jax.models.maskgit_bert import MaskGitBert
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.systems.imported import LONGEST_TEXT, Imported, TorchFile
from t2i_jax.systems.maskgit import flax_weights
from t2i_jax.systems.maskgit.options import COMPAT, MaskGitOptions
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.systems.tokenizer import weights as tokenizers

# The package's sampling options.
OPTIONS = MaskGitOptions(steps=18, growing=False, top_k=0.1, plausibility=None, compat=COMPAT)
# Arguments of the package's class that belong to no network, with their defaults there.
_DEFAULTS = {
    "cond_drop_prob": 0.5,
    "self_cond_prob": 0.9,
    "no_mask_token_prob": 0.0,
    "critic_loss_weight": 1.0,
}
_SETTINGS = {
    name: arguments.MASKGIT[name]
    for name in (*_DEFAULTS, "image_size", "cond_image_size", "noise_schedule")
}


def from_torch(file: TorchFile) -> Imported | None:
    """The MaskGit of a file; None where it holds another network.

    Raises:
      UserError: a transformer without its image tokenizer, or arguments that do not fit the
        weights.
    """
    model: Any = file.network
    if isinstance(model, (MaskGitTransformer, TokenCritic)):
        raise UserError(
            f"weights={file.path!r} hold a {type(model).__name__} without an image tokenizer, "
            "which makes no images; save the whole MaskGit."
        )
    if isinstance(model, MaskGitBert):
        return flax_weights.from_flax(file, model)
    if not isinstance(model, MaskGitAndTokenizer):
        return None
    return imported(file, model, file.params, file.told, file.options("maskgit"))


def imported(
    file: TorchFile,
    model: MaskGitAndTokenizer,
    params: Mapping[str, Any],
    told: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Imported:
    """A MaskGIT from its networks and their weights as `convert.from_torch` gives them.

    Args:
      file: where they come from. told: settings of a live module. options: arguments of the
        package's class that the user gave.

    Raises:
      UserError: arguments that are not known, or do not fit the weights.
    """
    settings = {**told.get("settings", {}), **options}
    arguments.check("maskgit", _SETTINGS, settings)
    settings.pop("noise_schedule", None)
    for name, value in settings.items():
        config.check(MaskGitTask, name, value, f"maskgit.{name}")
    _check_size(model, settings.pop("image_size", None))
    small_size, parts = settings.pop("cond_image_size", None), {}
    for field, (part, network) in _tokenizers(model, small_size).items():
        said = {**told.get(part, {}).get("settings", {}), **file.options("tokenizer")}
        parts[field] = tokenizers.imported(network, params[part], said)
    width: Any = model.transformer.text_embed_dim
    name = told.get("transformer", {}).get("settings", {}).get("t5_name")
    task = MaskGitTask(
        model=model.transformer,
        text=file.text(width, LONGEST_TEXT, name),
        cond_image_size=small_size,
        critic=model.critic,
        **{field: part.task.model for field, part in parts.items()},
        **{**_DEFAULTS, **settings},
    )
    groups = {"maskgit": {"decoder": params["transformer"]}}
    if isinstance(model.critic, SelfCritic):
        groups["maskgit"]["critic"] = params["critic"]
    elif model.critic is not None:
        groups["critic"] = params["critic"]
    return Imported("MaskGit", task, groups, {}, model.tokenizer.image_size, parts, OPTIONS)


def _check_size(model, size):
    wanted = model.tokenizer.image_size
    if size not in (None, wanted):
        raise UserError(
            f"maskgit.image_size={size} does not fit the weights, whose seq_len="
            f"{model.transformer.num_tokens} is that of images of {wanted} pixels a side; give "
            f"image_size={wanted}, or a transformer of that seq_len."
        )


def _tokenizers(model, small_size):
    """The tokenizers by the task's field: (the part of `MaskGitAndTokenizer`, its network at its
    size).
    """
    if model.cond_tokenizer is None:
        return {"tokenizer": ("tokenizer", model.tokenizer)}
    if small_size is None:
        raise UserError(
            "the weights hold a tokenizer for smaller images and do not tell cond_image_size; "
            f"give maskgit={{'cond_image_size': {model.tokenizer.image_size // 2}}} or what it was."
        )
    return {
        "tokenizer": ("cond_tokenizer", model.cond_tokenizer.clone(image_size=small_size)),
        "superres_tokenizer": ("tokenizer", model.tokenizer),
    }


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run as the state dict of a MaskGit, with its tokenizers and its critic; one of a
    `MaskGitBert` as google-research/maskgit keeps it.

    Raises:
      UserError: a run that the package has no place for.
    """
    if isinstance(contents.recipe.task.model, MaskGitBert):
        flax_weights.to_flax(contents, path)
        return
    model, params = exported(contents)
    torch_io.write(path, convert.to_state(model, params))


def exported(
    contents: Any, within: tuple[str, ...] = ()
) -> tuple[MaskGitAndTokenizer, dict[str, Any]]:
    """A run's networks and their weights as `convert.to_state` takes them.

    Args:
      within: the part of a Muse that it is.

    Raises:
      UserError: a run that the package has no place for.
    """
    task, own = contents.recipe.task, contents.averaged["maskgit"]
    _check_exportable(task, contents.parts)
    found, networks = {"transformer": own["decoder"]}, {"transformer": task.network}
    if isinstance(task.critic, SelfCritic):
        networks["critic"], found["critic"] = task.critic, own["critic"]
    elif task.critic is not None:
        networks["critic"], found["critic"] = task.token_critic, contents.averaged["critic"]
    for part, name in (("tokenizer", task.own_tokenizer), ("cond_tokenizer", "tokenizer")):
        if part == "tokenizer" or task.own_tokenizer != "tokenizer":
            given = contents.parts[name]
            networks[part], found[part] = given.recipe.task.model, tokenizers.exported(given)
            if part == "tokenizer":  # the package keeps no discriminator of it
                found[part].pop("discriminator", None)
            own = () if part == "tokenizer" else (part,)
            tokenizers.tell_range(networks[part], (*within, *own))
    return MaskGitAndTokenizer(**networks), jax.device_get(found)


def _check_exportable(task, parts):
    package = "muse-maskgit-pytorch"
    if task.text is None:
        raise UserError(
            f"run makes images without captions, and {package} always has them; train with a text "
            "encoder."
        )
    if task.text.trainable:
        raise UserError(
            f"run has its own text encoder, and {package} no place for it; train on T5."
        )
    for name in {task.own_tokenizer, "tokenizer"}:
        if name not in parts:
            raise UserError(
                f"run holds no {name}, and {package} saves a MaskGit with it; train with "
                f"parts={{'{name}': RUN}}."
            )
        if not isinstance(network := parts[name].recipe.task.model, VQGanVAE):
            raise UserError(
                f"{name} is a {type(network).__name__}, and {package} has a VQGanVAE alone; train "
                "on one."
            )
