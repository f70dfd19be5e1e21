"""A CLIP as it is published: a folder of transformers or of OpenCLIP, or a file of weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from t2i_jax.convert import clip_config, torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import weights_file
from t2i_jax.models.openai_clip import SIZES, OpenAIClip
from t2i_jax.text.bpe import ClipBpe, MendingBpe
from t2i_jax.text.tokenizer import check_size, load
from t2i_jax.types import Params

_VOCABULARIES = ("tokenizer.json", "vocab.json")
_MENDING = "CLIP of OpenAI, OpenCLIP"  # whose packages mend captions


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """A CLIP that was read.

    Attributes:
      file: that of the weights. network, params: the network and its parameters, NumPy arrays.
      tokenizer: from captions to ids, as the package reads them whose names the weights have; None:
        the folder has no vocabulary.
    """

    file: pathlib.Path
    network: OpenAIClip
    params: Params
    tokenizer: ClipBpe | None


def read(
    path: str | os.PathLike | None,
    tokenizer: str | os.PathLike | None = None,
    what: str = "clip-vit-b-32",
    **fields: Any,
) -> ClipFiles:
    """A CLIP of a folder or a file.

    Args:
      path: a folder of `save_pretrained` (config.json and model.safetensors) or of OpenCLIP
        (open_clip_config.json), whose configuration tells the activation and the heads; or a file
        of weights. One that lies in such a folder under its name there has that configuration; any
        other needs the activation as a field, and the heads where no published network is so wide.
      tokenizer: folder of the vocabulary; None: `path` itself.
      what: a key of `weights_file.PUBLISHED`, for the sentence about a missing file.
      **fields: of `OpenAIClip`; they go before what a configuration tells.

    Raises:
      UserError: nothing there, a folder without weights or configuration, another network, a file
        alone without its activation, or a vocabulary of something else than a CLIP, or of a larger
        one.
    """
    found = weights_file.find(path, what)
    told = clip_config.of_folder(found) if found.is_dir() else clip_config.beside(found)
    file = _weights(found, what) if found.is_dir() else found
    given = {**told, **fields}
    if "activation" not in given:
        weights_file.check_kind(file, OpenAIClip, what)
        raise UserError(
            f"{what}={os.fspath(found)!r} does not tell its activation; give the folder with its "
            "config.json, or activation='quick_gelu' for weights of OpenAI and 'gelu' for others."
        )
    network = weights_file.network(file, OpenAIClip, what, given)
    vocabulary = _vocabulary(tokenizer, found, what, network.model.vocab_size)
    if vocabulary is not None and network.names == _MENDING:
        vocabulary = MendingBpe(vocabulary)
    return ClipFiles(file, network.model, network.params, vocabulary)


def name(network: OpenAIClip) -> str:
    """The name of a CLIP: "clip-vit-b-32" for the published network of these sizes, else "clip"."""
    for published, sizes in SIZES.items():
        if _sizes(sizes) == _sizes(network):
            letters = published.lower().replace("/", "-").replace("@336px", "-336")
            return f"clip-{letters}"
    return "clip"


def check_sizes(found: ClipFiles, published: str, what: str) -> None:
    """Refuses a CLIP that has not the sizes of a published one.

    Args:
      published: a key of `models.openai_clip.SIZES`. what: a key of `weights_file.PUBLISHED`.

    Raises:
      UserError: it has others.
    """
    wanted, sizes = _sizes(SIZES[published]), _sizes(found.network)
    if others := [field for field in wanted if sizes[field] != wanted[field]]:
        told = (f"{field}={sizes[field]} instead of {wanted[field]}" for field in others)
        raise UserError(
            f"{what}={os.fspath(found.file)!r} holds a CLIP of other sizes than those of "
            f"{published} ({', '.join(told)}); fetch {weights_file.PUBLISHED[what]}."
        )


def _sizes(network):
    """The sizes by which a published network is known."""
    known = ("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size")
    return {field: getattr(network, field) for field in known}


def _weights(folder, what):
    for one in clip_config.FILES:
        if (folder / one).is_file():
            return folder / one
    torch_io.check_whole(folder, what)
    raise UserError(
        f"{what}={str(folder)!r} has none of {', '.join(clip_config.FILES)}; fetch "
        f"{weights_file.PUBLISHED[what]}."
    )


def _vocabulary(given, found, what, rows):
    if given is None:
        folder = found if found.is_dir() else found.parent
        if not any((folder / one).is_file() for one in _VOCABULARIES):
            return None
        given = folder
    tokenizer, where = load(given), f"{what}: tokenizer={os.fspath(given)!r}"
    if not isinstance(tokenizer, ClipBpe):
        raise UserError(
            f"{where} has the vocabulary of another network than a CLIP; give that of a CLIP, for "
            "hpsv2 as clip."
        )
    check_size(tokenizer, rows, where)
    return tokenizer
