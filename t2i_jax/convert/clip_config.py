"""The configuration that is published beside the weights of a CLIP, read as fields of our network:
that of transformers, or of OpenCLIP.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file
from t2i_jax.models.openai_clip import MEAN, STD

# The names under which weights are published together with a configuration.
FILES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)  # fmt: skip
_TRANSFORMERS, _OPEN_CLIP = "config.json", "open_clip_config.json"
_REMEDY = "fetch it again"


def of_folder(folder: pathlib.Path) -> dict[str, Any]:
    """The fields that a folder's configuration tells and its weights do not; {} where it has none.

    Raises:
      UserError: a configuration that can't be read, or that of another model.
    """
    for file, reader in ((_TRANSFORMERS, _transformers), (_OPEN_CLIP, _open_clip)):
        if (folder / file).is_file():
            return reader(_object(folder / file), f"clip={str(folder / file)!r}", folder)
    return {}


def beside(file: pathlib.Path) -> dict[str, Any]:
    """The result of `of_folder` for the folder of a file of weights; {} for a file under a name of
    its own, whose neighbours may be of anything, and beside the configuration of another model.
    """
    if file.name not in FILES:
        return {}
    theirs = file.parent / _TRANSFORMERS
    if theirs.is_file() and _object(theirs).get("model_type") != "clip":
        return {}
    return of_folder(file.parent)


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
