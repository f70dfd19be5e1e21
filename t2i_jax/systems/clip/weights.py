"""CLIP of x-clip, which is that of dalle2-pytorch too; and that of OpenAI and OpenCLIP."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import convert, paths
from t2i_jax.convert import arguments, engine, openai_clip, torch_io, untold, x_clip, x_clip_ssl
from t2i_jax.errors import UserError
from t2i_jax.models.clip import CLIP
from t2i_jax.models.openai_clip import MEAN, STD, OpenAIClip
from t2i_jax.systems.clip.masked_words import MaskedWords
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.clip.visual_ssl import VisualSsl
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.notices import tell
from t2i_jax.text.padded import without_ends

# Arguments of the package's class that do not belong to the network.
_SETTINGS: arguments.Rows = {
    **{
        name: arguments.X_CLIP[name]
        for name in (
            "decoupled_contrastive_learning", "text_ssl_loss_weight", "multiview_loss_weight",
            "sim_reg_loss_weight", "image_ssl_loss_weight", "simclr_temperature",
        )
    },
    "visual_ssl_hidden_layer": arguments.Only(-1),
    **{
        f"mlm_{name}": arguments.X_CLIP_MLM[name]
        for name in (
            "mask_prob", "replace_prob", "random_token_prob", "mask_token_id",
            "mask_ignore_token_ids", "pad_token_id",
        )
    },
}  # fmt: skip


def from_torch(file: TorchFile) -> Imported | None:
    """The CLIP of a file; None where it holds another network.

    Raises:
      UserError: a vocabulary of another size.
    """
    if not isinstance(file.network, (CLIP, OpenAIClip)):
        return None
    return of_file(file, file.network, file.params, file.told, file.beside)


def of_file(
    file: TorchFile,
    model: Any,
    params: Mapping[str, Any],
    told: Mapping[str, Any],
    beside: Mapping[str, Any],
) -> Imported:
    """The CLIP of a file, which holds it alone or within another system.

    Of the options of "clip" `vocabulary` names the folder of its vocabulary; without one it reads
    token ids. The BPE of CLIP adds no start and no end token to captions of x-clip's network, as
    the tokenizers of x-clip and DALLE2-pytorch add none.

    Args:
      model, params: as `convert.from_torch` gives them. told: settings that a live module tells.
      beside: as of `imported`.

    Raises:
      UserError: a vocabulary of another size, or an argument that has no form here.
    """
    settings = {**told.get("settings", {}), **file.options("clip")}
    folder = settings.pop("vocabulary", None)
    found = imported(model, params, settings, beside)
    if folder is None:
        return found
    ids = dataclasses.replace(model.captions, source=str(paths.given("vocabulary", folder)))
    words = ids.tokenizer()
    if isinstance(model, CLIP):
        words = without_ends(words)
    return dataclasses.replace(found, vocabulary=words)


def within_file(file: TorchFile, read: convert.Weights) -> Imported | None:
    """The CLIP of a prior or a decoder, with what was saved beside its network; None: it has none.

    Args:
      file: where it comes from. read: the prior or the decoder, whose `model.clip` is the network.

    Raises:
      UserError: an argument that has no form here.
    """
    if read.model.clip is None:
        return None
    told, beside = read.told.get("clip", {}), engine.part(read.beside, x_clip.WITHIN)
    return of_file(file, read.model.clip, read.params["clip"], told, beside)


def imported(
    model: Any,
    params: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Imported:
    """A CLIP from its network and its parameters as `convert.from_torch` gives them.

    Args:
      settings: arguments of x-clip's class that are the training's.
      beside: arrays of self-supervised learning that were saved with it, by their names there;
        None: there are none.
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
        pad_id = words.pop("pad_token_id", model.text_pad_id)
        if isinstance(words.get("mask_ignore_token_ids"), list):
            words["mask_ignore_token_ids"] = tuple(words["mask_ignore_token_ids"])
        # There it has a padding of its own, which is a token that is never chosen where the
        # network has another; no caption has one below 0.
        if pad_id != model.text_pad_id and not (type(pad_id) is int and pad_id < 0):
            ignored = words.get("mask_ignore_token_ids", ())
            words["mask_ignore_token_ids"] = (*ignored, pad_id)
        mlm = MaskedWords(weight=settings.get("text_ssl_loss_weight", 0.05), **words)
    given = {
        name: settings[name]
        for name in (
            "decoupled_contrastive_learning", "multiview_loss_weight", "sim_reg_loss_weight"
        )
        if name in settings
    }  # fmt: skip
    found = _of_ssl(model, beside or {})
    if found is not None:
        ssl = VisualSsl(
            found["kind"],
            settings.get("image_ssl_loss_weight", VisualSsl.weight),
            settings.get("simclr_temperature", VisualSsl.temperature),
            found["hidden_dim"],
            found["projection_dim"],
        )
        own = x_clip_ssl.from_state(beside or {}, found, ssl.shapes(model.dim_image))
        given["visual_ssl"], params = ssl, {**params, "ssl": own}
    task = ClipTask(model, mlm=mlm, **given)
    return Imported(type(model).__name__, task, {"clip": params}, {}, model.image_size)


def _of_ssl(model, beside):
    """The settings of self-supervised learning in saved arrays, as `x_clip_ssl.fields` finds them.

    Raises:
      UserError: self-supervised learning of another class, or on vectors that are not those of the
        patches and the class token.
    """
    found = x_clip_ssl.fields(beside)
    if beside and (found is None or found["width"] != model.dim_image):
        of = "no projector" if found is None else f"a projector of {found['width']} numbers"
        raise UserError(
            f"the weights have {of} as visual_ssl, and visual_ssl_hidden_layer=-1 of x-clip's "
            f"SimSiam and SimCLR, which there is here, makes {model.dim_image}; leave out the "
            "arrays that begin with 'visual_ssl.'."
        )
    return found


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run as a state dict, with what its self-supervised learning has where x-clip has the
    network. What its readers take otherwise is told.
    """
    averaged, model = jax.device_get(contents.averaged), contents.recipe.task.model
    state = convert.to_state(model, exported(averaged))
    if isinstance(model, OpenAIClip):
        tell_untold(untold.fields(openai_clip.OPENAI, model, state))
        _tell_of_openai(model, contents.system.text_tokenizer)
    else:
        tell_untold(untold.fields(x_clip.NETWORK, model, state))
    torch_io.write(path, state | ssl_state(contents, state))


def tell_untold(found: Mapping[str, Any]) -> None:
    """Says which fields a reader of an exported file has to be given."""
    if found:
        tell(
            f"the file does not tell {', '.join(found)}; to read it back give `t2i convert "
            f"from-torch` {untold.as_overrides(found)}"
        )


def _tell_of_openai(model, words):
    """Says what the packages that share the names compute otherwise by themselves."""
    own = {"activation": "quick_gelu", "epsilon": 1e-5, "mean": MEAN, "std": STD}
    other = [name for name, value in own.items() if getattr(model, name) != value]
    if other:
        values = " ".join(f"{name}={getattr(model, name)}" for name in other)
        tell(f"OpenAI's CLIP has another {', '.join(other)}; compute there with {values}")
    end = None if words is None else _end_of(words)
    if end is not None and end != words.vocab_size - 1:
        tell(
            "OpenAI's CLIP and OpenCLIP take the highest id of a caption for its end, and the "
            f"run's vocabulary has id {end} for it: captions get other vectors there; in the "
            "package's encode_text take the vector at the last id that is not 0"
        )


def _end_of(words):
    """The id that ends every caption."""
    ids, mask = words(["a"], 3)
    return int(ids[0][mask[0]][-1])


def untold_within(state: Mapping[str, Any], model: CLIP | None, place: str) -> dict[str, Any]:
    """The fields that a reader has to be given of the CLIP of a prior or a decoder.

    Args:
      state: a state dict that holds it, under names that begin with `place`. model: as `within`
        gives it; None: there is none.
    """
    if model is None:
        return {}
    # as its adapter does
    seen = dataclasses.replace(model, text_encode_without_mask=True, text_pad_id=0)
    found = untold.fields(x_clip.NETWORK, seen, engine.part(state, place + x_clip.WITHIN))
    found.pop("text_encode_without_mask", None)
    return found


def ssl_state(contents: Any, state: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The arrays that x-clip saves of self-supervised learning beside its CLIP; {} where there is
    none.

    Args:
      contents: those of a run of a CLIP. state: a state dict that holds its network, under names
        that begin with `place`.
    """
    task = contents.recipe.task
    if task.visual_ssl is None or not isinstance(task.model, CLIP):
        return {}
    params = jax.device_get(contents.averaged["clip"]["ssl"])
    shapes, clip = task.visual_ssl.shapes(task.model.dim_image), engine.part(state, place)
    found = x_clip_ssl.to_state(task.visual_ssl.kind, params, shapes, clip)
    return {place + name: value for name, value in found.items()}


def ssl_within(contents: Any, state: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The arrays of `ssl_state` for the CLIP of a run of a prior or a decoder; {} where the state
    dict has none.

    Args:
      place: how the names of the prior or the decoder begin in the state dict.
    """
    if "clip" not in contents.parts or not engine.part(state, place + x_clip.WITHIN):
        return {}
    return ssl_state(contents.parts["clip"], state, place + x_clip.WITHIN)


def exported(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The network's parameters as `convert.to_state` takes them; what only self-supervised learning
    uses has no place there.
    """
    return {name: value for name, value in groups["clip"].items() if name != "ssl"}


def within(system: Any) -> tuple[CLIP, dict[str, Any]] | None:
    """A CLIP as dalle2-pytorch has it within a prior or a decoder, and its parameters: they see
    pixels of [0, 1]. What its adapter there computes otherwise is told.

    Args:
      system: the part of a run. None: it is of no network that the package has.
    """
    model = system.recipe.task.model
    if not isinstance(model, CLIP):
        return None
    if not model.text_encode_without_mask:
        tell(
            "dalle2-pytorch lets CLIP see the padding of captions, and embeds those that are "
            "padded otherwise than the run; a clip of text_encode_without_mask=True embeds as there"
        )
    if model.text_pad_id:
        tell(
            f"dalle2-pytorch takes id 0 for the padding of captions, and the run "
            f"{model.text_pad_id}: there its encodings are seen, and those of id 0 are not"
        )
    if model.use_all_token_embeds and "cls_of_filip" not in model.compat:
        tell(
            "dalle2-pytorch embeds the class token, and the run all tokens; a clip without "
            "use_all_token_embeds, or with compat=('cls_of_filip',), embeds as there"
        )
    params = _of_unit_pixels(jax.device_get(exported(system.averaged)), *model.pixel_range)
    return dataclasses.replace(model, pixel_range=(0.0, 1.0)), params


def _of_unit_pixels(params, low, high):
    """Parameters that compute of pixels in [0, 1] what these do of pixels in [low, high]."""
    if (low, high) == (0, 1):
        return params
    tokens = params["visual"]["to_tokens"]
    kernel = np.asarray(tokens["kernel"], np.float64)
    moved = {
        "kernel": (kernel * (high - low)).astype(np.float32),
        "bias": (tokens["bias"] + low * kernel.sum(0)).astype(np.float32),
    }
    return {**params, "visual": {**params["visual"], "to_tokens": moved}}
