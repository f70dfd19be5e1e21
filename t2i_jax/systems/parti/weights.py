"""Parti of parti-pytorch, with its image tokenizer."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from t2i_jax import config, convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.parti import Parti, PartiAndTokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.imported import LONGEST_TEXT, Imported, TorchFile
from t2i_jax.systems.notices import tell
from t2i_jax.systems.parti.options import PartiOptions
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.systems.tokenizer import weights as tokenizers

# Arguments of the package's class that do not belong to the network.
_SETTINGS = {name: arguments.PARTI[name] for name in ("cond_drop_prob", "t5_name", "ignore_index")}


def from_torch(file: TorchFile) -> Imported | None:
    """The Parti of a file; None where it holds another network.

    Raises:
      UserError: a Parti without its image tokenizer.
    """
    model: Any = file.network
    if isinstance(model, Parti):
        raise UserError(
            f"weights={file.path!r} hold a Parti without its image tokenizer, which makes no "
            "images; save the whole Parti."
        )
    if not isinstance(model, PartiAndTokenizer):
        return None
    width: Any = model.parti.text_embed_dim
    told = {name: file.told.get(name, {}).get("settings", {}) for name in ("parti", "tokenizer")}
    given = file.options("parti")
    settings = {**told["parti"], **given}
    arguments.check("parti", _SETTINGS, settings)
    arguments.check_kinds("parti", {"t5_name": str}, given)
    file.check_t5_name("parti.t5_name", given.get("t5_name"))
    dropped = settings.get("cond_drop_prob", 0.25)
    config.check(PartiTask, "cond_drop_prob", dropped, "parti.cond_drop_prob")
    tokenizer = tokenizers.imported(
        model.tokenizer,
        file.params["tokenizer"],
        {**told["tokenizer"], **file.options("tokenizer")},
    )
    # Encoded whole, and cut by the network, as in the package.
    longest = max(model.parti.max_text_len, LONGEST_TEXT)
    task = PartiTask(
        model=model.parti,
        text=file.text(width, longest, settings.get("t5_name")),
        tokenizer=model.tokenizer,
        cond_drop_prob=dropped,
    )
    params = {"parti": {"decoder": file.params["parti"]}}
    size, parts = model.tokenizer.image_size, {"tokenizer": tokenizer}
    options = PartiOptions(plausibility=None)  # the package has no such limit
    return Imported("Parti", task, params, {}, size, parts, options)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run as a state dict, with its tokenizer under "vae." where the run holds it; a line
    on stderr says that a jointly trained text encoder is left out.

    Raises:
      UserError: a tokenizer that the package does not have.
    """
    network = model = contents.recipe.task.network
    params: Any = contents.averaged["parti"]["decoder"]
    if isinstance(model, Parti) and "tokenizer" in contents.parts:
        part = contents.parts["tokenizer"]
        tokenizer = part.recipe.task.model
        if not isinstance(tokenizer, VitVQGanVAE):
            raise UserError(
                f"tokenizer is a {type(tokenizer).__name__}, and parti-pytorch has a VitVQGanVAE "
                "alone; train on one."
            )
        model = PartiAndTokenizer(parti=model, tokenizer=tokenizer)
        params = {"parti": params, "tokenizer": tokenizers.exported(part)}
        tokenizers.tell_range(tokenizer)
    torch_io.write(path, convert.to_state(model, jax.device_get(params)))
    if contents.recipe.task.text.trainable:
        tell(
            "the run has its own text encoder, and parti-pytorch no place for it, so it is left "
            "out; there give the embeddings that it makes of captions, as text_token_embeds"
        )
    if "misaligned_bias" not in network.compat:
        tell(
            "parti-pytorch takes the start token for the first cell, which moves the relative "
            f"position bias, and these weights were trained without that (compat={network.compat}"
            "): logits and images differ there; train with compat=('misaligned_bias',), and to "
            f'read this file back give `t2i convert from-torch` "compat={network.compat}"'
        )
