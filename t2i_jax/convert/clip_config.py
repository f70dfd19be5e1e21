"""The configuration of a CLIP, read as fields of our network: that of transformers or of OpenCLIP,
published beside the weights or within a live module. Options that have no form here are refused.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.convert import arguments, patches
from t2i_jax.errors import UserError
from t2i_jax.foreign import json_file
from t2i_jax.models.openai_clip import MEAN, STD
from t2i_jax.terminal import say

# The names under which weights are published together with a configuration.
FILES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)  # fmt: skip
_TRANSFORMERS, _OPEN_CLIP = "config.json", "open_clip_config.json"
_REMEDY = "fetch it again"
# By option of a published image processor the values for which images are prepared as here; None
# where it leaves the option out.
_OPEN_CLIP_PREPARES = {
    "mode": (None, "RGB"), "interpolation": (None, "bicubic"), "resize_mode": (None, "shortest"),
}  # fmt: skip
_TRANSFORMERS_PREPARES = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), (None, True)),
    "resample": (None, 3),
    "rescale_factor": (None, 1 / 255),
}


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
    return json_file.an_object(config.get(key) or {}, f"{where}{key}", _REMEDY)


def of_transformers(module: Any) -> dict[str, Any]:
    """The fields that a live CLIPModel tells beside its weights.

    Raises:
      UserError: options that have no form here.
    """
    return _of_transformers(module.config.to_dict(), "CLIPModel: ")


def of_open_clip(module: Any) -> dict[str, Any]:
    """The fields that a live CLIP of OpenCLIP or of OpenAI tells beside its weights.

    Raises:
      UserError: options that have no form here.
    """
    text = arguments.readable(_TEXT, module)
    vision = arguments.readable(_VISION, module.visual)
    kinds = {_mlp(tower).gelu.__class__.__name__ for tower in (module, module.visual)}
    known = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    return {
        **_of_open_clip(text, vision, "CLIP: "),
        "transformer_heads": _block(module).attn.num_heads,
        "vision_heads": _block(module.visual).attn.num_heads,
        **({"activation": known[0]} if len(kinds) == len(known) == 1 else {}),
    }


def _block(tower):
    return tower.transformer.resblocks[0]


def _mlp(tower):
    return _block(tower).mlp


_KINDS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
# How the arguments of each tower are read from a live one; the weights show the others.
_TOWER = {
    "act_kwargs": lambda tower: {"approximate": _mlp(tower).gelu.approximate},
    "norm_kwargs": lambda tower: {"eps": _block(tower).ln_1.eps},
}
_TEXT = {
    **_TOWER,
    "pool_type": lambda module: module.text_pool_type,
    "no_causal_mask": lambda module: module.attn_mask is None,
    "embed_cls": lambda module: len(module.positional_embedding) != module.context_length,
}
_VISION = {
    **_TOWER,
    "pool_type": lambda visual: visual.pool_type,
    "attentional_pool": lambda visual: visual.attn_pool is not None,
    "image_size": lambda visual: visual.image_size,
    "patch_size": lambda visual: visual.patch_size,
}


def _transformers(config: Mapping[str, Any], where: str, folder: pathlib.Path) -> dict[str, Any]:
    """The fields of config.json."""
    if config.get("model_type") != "clip":
        raise UserError(f"{where} is of a model of type {config.get('model_type')!r}; give a CLIP.")
    pixels = folder / "preprocessor_config.json"
    scaled = _object(pixels) if pixels.is_file() else {}
    _tell_prepared(f"clip={str(pixels)!r}", _TRANSFORMERS_PREPARES, scaled)
    return _of_transformers(config, f"{where}: ") | _pixels(
        scaled.get("image_mean", MEAN), scaled.get("image_std", STD)
    )


def _of_transformers(config, where):
    """The fields of a CLIPConfig; what it leaves out has transformers' default."""
    sides = [  # a "text_config_dict" of early releases goes before "text_config", in whole
        f"{side}_config" if config.get(f"{side}_config_dict") is None else f"{side}_config_dict"
        for side in ("text", "vision")
    ]
    text, vision = (_part(config, side, where) for side in sides)
    _check(f"{where}{sides[0]}", arguments.CLIP_TEXT_CONFIG, text)
    _check(f"{where}{sides[1]}", arguments.CLIP_VISION_CONFIG, vision)
    patches.check(f"{where}{sides[1]}", vision.get("image_size"), vision.get("patch_size"))
    alike = {
        ours: _alike(where, name, text.get(name, default), vision.get(name, default))
        for ours, name, default in (
            ("activation", "hidden_act", "quick_gelu"), ("epsilon", "layer_norm_eps", 1e-5)
        )
    }  # fmt: skip
    return {
        **alike,
        "transformer_heads": text.get("num_attention_heads", 8),
        "vision_heads": vision.get("num_attention_heads", 12),
    }


def _check(kind, rows, said):
    """Checks the arguments that have a row: what all configurations of transformers hold, and its
    releases differ in, is none of the network's.
    """
    arguments.check(kind, rows, {name: value for name, value in said.items() if name in rows})


def _alike(where, name, text, vision):
    if text != vision:
        raise UserError(
            f"{where}{name} is {text!r} for text and {vision!r} for images, and the network here "
            "has one of both; give another CLIP."
        )
    return text


def _open_clip(config: Mapping[str, Any], where: str, folder: pathlib.Path) -> dict[str, Any]:
    """The fields of open_clip_config.json; what it leaves out has open_clip's default."""
    model, before = _part(config, "model_cfg", f"{where}: "), f"{where}: model_cfg."
    arguments.check(
        f"{where}: model_cfg", {**arguments.OPEN_CLIP, **arguments.OPEN_CLIP_IN_A_CONFIG}, model
    )
    text, vision = _part(model, "text_cfg", before), _part(model, "vision_cfg", before)
    scaled = _part(config, "preprocess_cfg", f"{where}: ")
    _tell_prepared(f"{where}: preprocess_cfg", _OPEN_CLIP_PREPARES, scaled)
    return {
        **_of_open_clip(text, vision, before),
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "transformer_heads": text.get("heads", 8),
        "vision_heads": vision.get("width", 768) // vision.get("head_width", 64),
        **_pixels(scaled.get("mean", MEAN), scaled.get("std", STD)),
    }


def _of_open_clip(text, vision, where):
    """The fields of both towers' arguments."""
    arguments.check(f"{where}text_cfg", arguments.CLIP_TEXT_CFG, text)
    arguments.check(f"{where}vision_cfg", arguments.CLIP_VISION_CFG, vision)
    patches.check(f"{where}vision_cfg", vision.get("image_size"), vision.get("patch_size"))
    epsilons = [_part(side, "norm_kwargs", where).get("eps", 1e-5) for side in (text, vision)]
    return {"epsilon": _alike(where, "norm_kwargs.eps", *epsilons)}


def _tell_prepared(where, as_here, said):
    """Writes a line to stderr where images are prepared otherwise than here."""
    others = [f"{name}={said[name]!r}" for name in as_here if said.get(name) not in as_here[name]]
    if others:
        say(
            f"t2i: {where} prepares images with {', '.join(others)}; here the shorter side is "
            "resized with a bicubic filter, the middle is cut out and normalized, so that "
            "embeddings differ where that matters."
        )


def _pixels(mean, std):
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
