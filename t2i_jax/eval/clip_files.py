"""A CLIP as it is published: a folder of transformers or of OpenCLIP, or a file of weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.convert import weights as converted
from t2i_jax.errors import UserError
from t2i_jax.eval import weights_file
from t2i_jax.foreign import json_file
from t2i_jax.models.openai_clip import MEAN, SIZES, STD, OpenAIClip
from t2i_jax.text.bpe import ClipBpe
from t2i_jax.text.tokenizer import check_size, load
from t2i_jax.types import Params

_REMEDY = "fetch it again"
_FILES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "vocab.json")


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """A CLIP that was read.

    Attributes:
      file: that of the weights. network, params: the network and its parameters, NumPy arrays.
      tokenizer: from captions to ids; None: the folder has no vocabulary.
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
        of weights alone, which needs them as `fields`.
      tokenizer: folder of the vocabulary; None: `path` itself.
      what: a key of `weights_file.PUBLISHED`, for the sentence about a missing file.
      **fields: of `OpenAIClip`, for a file alone.

    Raises:
      UserError: nothing there, a folder without weights or configuration, another network, a file
        alone without its activation, or a vocabulary of something else than a CLIP, or of a larger
        one.
    """
    found = weights_file.find(path, what)
    told = _configured(found) if found.is_dir() else {}
    file = _weights(found, what) if found.is_dir() else found
    given = {**told, **fields}
    if "activation" not in given:
        raise UserError(
            f"{what}={os.fspath(found)!r} does not tell its activation; give the folder with its "
            "config.json, or activation='quick_gelu' for weights of OpenAI and 'gelu' for others."
        )
    network = converted(file, given)
    if not isinstance(network.model, OpenAIClip):
        raise UserError(
            f"{what}={os.fspath(file)!r} holds a {type(network.model).__name__}; give the weights "
            "of a CLIP."
        )
    vocabulary = _vocabulary(tokenizer, found, what, network.model.vocab_size)
    return ClipFiles(file, network.model, network.params, vocabulary)


def name(network: OpenAIClip) -> str:
    """ "clip-vit-b-32" for the published network of these sizes, else "clip"."""
    known = ("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size")
    for published, sizes in SIZES.items():
        if all(getattr(sizes, field) == getattr(network, field) for field in known):
            letters = published.lower().replace("/", "-").replace("@336px", "-336")
            return f"clip-{letters}"
    return "clip"


def _weights(folder, what):
    for one in _FILES:
        if (folder / one).is_file():
            return folder / one
    raise UserError(
        f"{what}={str(folder)!r} has none of {', '.join(_FILES)}; fetch "
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


def _configured(folder):
    """The fields that a folder's configuration tells and its weights do not."""
    for file, reader in (("config.json", _transformers), ("open_clip_config.json", _open_clip)):
        if (folder / file).is_file():
            return reader(_object(folder / file), f"clip={str(folder / file)!r}", folder)
    return {}


def _object(path):
    where = f"clip={str(path)!r}"
    return json_file.an_object(json_file.read(path, "clip", _REMEDY), where, _REMEDY)


def _part(config, key, where):
    return json_file.an_object(config.get(key) or {}, f"{where}: {key}", _REMEDY)


def _transformers(config: Mapping[str, Any], where: str, folder: pathlib.Path) -> dict[str, Any]:
    """The fields of config.json; what it leaves out has the default of transformers' CLIPConfig."""
    if config.get("model_type") != "clip":
        raise UserError(f"{where} is of a model of type {config.get('model_type')!r}; give a CLIP.")
    text, vision = (_part(config, f"{side}_config", where) for side in ("text", "vision"))
    activations = {one.get("hidden_act", "quick_gelu") for one in (text, vision)}
    epsilons = {one.get("layer_norm_eps", 1e-5) for one in (text, vision)}
    if len(activations) > 1 or len(epsilons) > 1:
        raise UserError(
            f"{where} has another activation or epsilon for text than for images, which no "
            "published CLIP has; give another one."
        )
    found = {
        "activation": activations.pop(),
        "epsilon": epsilons.pop(),
        "transformer_heads": text.get("num_attention_heads", 8),
        "vision_heads": vision.get("num_attention_heads", 12),
    }
    pixels = folder / "preprocessor_config.json"
    scaled = _object(pixels) if pixels.is_file() else {}
    return found | _pixels(scaled.get("image_mean", MEAN), scaled.get("image_std", STD))


def _open_clip(config: Mapping[str, Any], where: str, folder: pathlib.Path) -> dict[str, Any]:
    """The fields of open_clip_config.json; what it leaves out has open_clip's default."""
    model = _part(config, "model_cfg", where)
    text, vision = _part(model, "text_cfg", where), _part(model, "vision_cfg", where)
    scaled = _part(config, "preprocess_cfg", where)
    return {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "transformer_heads": text.get("heads", 8),
        "vision_heads": vision.get("width", 768) // vision.get("head_width", 64),
        **_pixels(scaled.get("mean", MEAN), scaled.get("std", STD)),
    }


def _pixels(mean, std):
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
