"""The VQGAN of taming-transformers and those that came of it, under the names of four packages:
taming-transformers (and latent-diffusion), diffusers, open-muse, LlamaGen.

They name the same layers differently; a `Names` says how, and one table serves all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import (
    CONV,
    CONV1X1,
    LINEAR,
    SAME,
    Entry,
    Layout,
    Network,
    Row,
    State,
    Unused,
)
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.taming_vqgan import VQGAN

_USED = 65536  # recent codes that LlamaGen saves to count their use


@dataclasses.dataclass(frozen=True)
class Names:
    """The names that a package gives the layers.

    Attributes:
      package: for messages. down: what a level of the encoder begins with. up: the same for the
        decoder, from the level and the number of levels.
      block, shortcut: a level's residual blocks, and their 1x1 convolution. attention: a level's
        attentions. attended: their norm, q, k, v and output; projection: the layout of the last
        four.
      middle: its first block, attention and second block. downsample, upsample: a level's
        convolution. norm: the last one of encoder and decoder.
      has: the values of fields with which the package has the network, where they are not those of
        taming-transformers.
    """

    package: str
    down: Callable[[int], str]
    up: Callable[[int, int], str]
    block: str = "block"
    shortcut: str = "nin_shortcut"
    attention: str = "attn"
    attended: tuple[str, ...] = ("norm", "q", "k", "v", "proj_out")
    projection: Layout = CONV1X1
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    downsample: str = "downsample.conv"
    upsample: str = "upsample.conv"
    norm: str = "norm_out"
    has: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict, hash=False)


_TAMING = Names(
    "taming-transformers",
    lambda i: f"encoder.down.{i}",
    lambda i, levels: f"decoder.up.{i}",
    has={"assignment": ("nearest", "gumbel")},
)
_DIFFUSERS = Names(
    "diffusers",
    lambda i: f"encoder.down_blocks.{i}",
    lambda i, levels: f"decoder.up_blocks.{levels - 1 - i}",
    "resnets",
    "conv_shortcut",
    "attentions",
    ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    LINEAR,
    ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "conv_norm_out",
    {"middle_attention": (True, False)},
)
OPEN_MUSE_NAMES = dataclasses.replace(
    _TAMING,
    package="open-muse",
    middle=("mid.0", "", "mid.1"),
    upsample="upsample_conv",
    has={
        "encoder_blocks": (2,),  # its middle has as many
        "decoder_blocks": (2,),
        "attention": ((),),
        "middle_attention": (False,),
        "downsampling": ("mean",),
        "biased": (False,),
        "projected": (False,),
        "compat": (("shortcut_of_output",),),
    },
)
_LLAMAGEN = dataclasses.replace(
    _TAMING,
    package="LlamaGen",
    down=lambda i: f"encoder.conv_blocks.{i}",
    up=lambda i, levels: f"decoder.conv_blocks.{levels - 1 - i}",
    block="res",
    middle=("mid.0", "mid.1", "mid.2"),
    has={"assignment": ("unit",)},
)


# The table ----------------------------------------------------------------------------------------


def _table(names: Names, model: VQGAN) -> list[Row]:
    """The entries of one configuration.

    Raises:
      UserError: a network that the package does not have.
    """
    check_writable(names, model)
    levels, entries = len(model.dim_mults), []
    for half, ours in (("encoder", "generator/encoder"), ("decoder", "generator/decoder")):
        blocks = model.encoder_blocks if half == "encoder" else model.decoder_blocks
        biased = model.biased or half == "decoder"
        entries += _conv(f"{half}.conv_in", f"{ours}/first", CONV, biased)
        for i in range(levels):
            at = names.down(i) if half == "encoder" else names.up(i, levels)
            entries += _level(names, model, i, blocks, at, half)
        entries += _middle(names, model, half)
        entries += _norm(f"{half}.{names.norm}", f"{ours}/norm")
    entries += _conv("encoder.conv_out", "generator/encoder/last", CONV)
    entries += _conv("decoder.conv_out", "generator/to_pixels", CONV)
    return [*entries, *_quantizer(names, model)]


def _level(names, model, i, blocks, at, half):
    ours, entries = f"generator/{half}", []
    for j in range(blocks):
        entries += _block(names, model, half, i, j, f"{at}.{names.block}.{j}")
        if i in model.attention_levels:
            entries += _attention(names, f"{at}.{names.attention}.{j}", f"{ours}/attention_{i}_{j}")
    if half == "encoder" and i < len(model.dim_mults) - 1 and model.downsampling == "conv":
        entries += _conv(f"{at}.{names.downsample}", f"{ours}/down_{i}", CONV)
    if half == "decoder" and i:
        entries += _conv(f"{at}.{names.upsample}", f"{ours}/up_{i}/conv", CONV)
    return entries


def _block(names, model, half, i, j, torch):
    mults, levels = model.dim_mults, len(model.dim_mults)
    before = max(i - 1, 0) if half == "encoder" else min(i + 1, levels - 1)
    came = 1 if half == "encoder" and i == 0 else mults[before]
    changes = j == 0 and came != mults[i]
    ours = f"generator/{half}/block_{i}_{j}"
    return _layers(names, model, torch, ours, changes)


def _middle(names, model, half):
    first, attention, second = (f"{half}.{name}" for name in names.middle)
    ours = f"generator/{half}/middle"
    entries = _layers(names, model, first, f"{ours}_0", False)
    if model.middle_attention:
        entries += _attention(names, attention, f"{ours}_attention")
    return entries + _layers(names, model, second, f"{ours}_1", False)


def _layers(names, model, torch, ours, changes):
    """The rows of a residual block; `changes`: its width changes."""
    entries = []
    for k in range(2):
        entries += _norm(f"{torch}.norm{k + 1}", f"{ours}/norm_{k}")
        entries += _conv(f"{torch}.conv{k + 1}", f"{ours}/conv_{k}", CONV, model.biased)
    if changes:
        entries += _conv(f"{torch}.{names.shortcut}", f"{ours}/shortcut", CONV1X1, model.biased)
    return entries


def _attention(names, torch, ours):
    norm, *others = names.attended
    entries = _norm(f"{torch}.{norm}", f"{ours}/norm")
    for name, our in zip(others, ("q", "k", "v", "out"), strict=True):
        entries += _conv(f"{torch}.{name}", f"{ours}/{our}", names.projection)
    return entries


def _quantizer(names, model):
    ours, entries = "generator/quantizer", []
    if model.projected:
        entries += _conv("quant_conv", f"{ours}/project_in", CONV1X1)
        entries += _conv("post_quant_conv", f"{ours}/project_out", CONV1X1)
    if model.assignment == "gumbel":
        entries += _conv("quantize.proj", f"{ours}/to_logits", CONV1X1)
        return [*entries, Entry("quantize.embed.weight", f"{ours}/embedding")]
    entries.append(Entry("quantize.embedding.weight", f"{ours}/embedding"))
    if names is _LLAMAGEN:
        entries.append(Unused("quantize.codebook_used", np.zeros(_USED, np.float32)))
    return entries


def _conv(torch, ours, layout, biased=True):
    entries = [Entry(f"{torch}.weight", f"{ours}/kernel", layout)]
    return [*entries, Entry(f"{torch}.bias", f"{ours}/bias")] if biased else entries


def _norm(torch, ours):
    return [
        Entry(f"{torch}.weight", f"{ours}/scale", SAME),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def check_writable(names: Names, model: VQGAN) -> None:
    """Refuses a network that a package does not have."""
    if wrong := unwritable(names, model):
        raise UserError(
            f"{'; '.join(wrong)}: the network of {names.package} is another one; t2i export writes "
            "the system as it is."
        )


def unwritable(names: Names, model: VQGAN) -> list[str]:
    """The fields of a network that its package can't express, as field=value."""
    wanted: dict[str, tuple[Any, ...]] = {
        "fsq_levels": (None,),
        "assignment": ("nearest",),
        "decoder_dim": (None, model.dim),
        "decoder_blocks": (model.encoder_blocks + 1,),
        "middle_attention": (True,),
        "downsampling": ("conv",),
        "biased": (True,),
        "projected": (True,),
        "compat": ((),),
        **names.has,
    }
    if names is _LLAMAGEN:
        wanted["attention_levels"] = ((len(model.dim_mults) - 1,),)
    return [
        f"{field}={getattr(model, field)!r}"
        for field, values in wanted.items()
        if getattr(model, field) not in values
    ]


# The fields --------------------------------------------------------------------------------------


def _fields(names: Names, state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays and `told` determine.

    Args:
      told: fields that a live module or the user tells. `groups` and `pixel_range` leave no trace
        in the arrays.

    Raises:
      UserError: a network of this family without a codebook, or one that has no form here.
    """
    _refuse_others(state)
    base, channels = state["encoder.conv_in.weight"].shape[:2]
    levels = _count(state, names.down(0).removesuffix("0"))
    mults = []
    for i in range(levels):
        width = state[f"{names.down(i)}.{names.block}.0.conv2.weight"].shape[0]
        if width % base:
            raise ValueError(f"levels of {width} channels are no multiples of {base}")
        mults.append(width // base)
    maskgit = names is OPEN_MUSE_NAMES
    attention = [i for i in range(levels) if _any(state, f"{names.down(i)}.{names.attention}.")]
    found = {
        "dim": base,
        "channels": channels,
        "dim_mults": tuple(mults),
        "encoder_blocks": _count(state, f"{names.down(0)}.{names.block}."),
        "decoder_blocks": _count(state, f"{names.up(0, levels)}.{names.block}."),
        # by the last level, as the presets have it
        "attention": (-1,) if attention == [levels - 1] else tuple(attention),
        "middle_attention": bool(names.middle[1]) and _any(state, f"encoder.{names.middle[1]}."),
        "groups": told.get("groups", 32),
        "pixel_range": tuple(told.get("pixel_range", _pixel_range(names, state))),
        **{name: told[name] for name in _TOLD if name in told},
    }
    if maskgit:
        found |= {"downsampling": "mean", "biased": False, "projected": False}
        found["compat"] = ("shortcut_of_output",)
    else:
        found["z_channels"] = state["encoder.conv_out.weight"].shape[0]
    return found | _codes(names, state, told)


_TOLD = ("commitment_weight", "codebook_weight", "temperature", "kl_weight")


def _codes(names, state, told):
    gumbel = "quantize.embed.weight" in state
    table = state["quantize.embed.weight" if gumbel else "quantize.embedding.weight"]
    assignment = "unit" if names is _LLAMAGEN else "gumbel" if gumbel else "nearest"
    size, width = table.shape
    found = {"assignment": assignment, "codebook_size": size, "codebook_dim": width}
    if names is _LLAMAGEN and "commitment_weight" not in told:
        found |= {"commitment_weight": 0.25, "codebook_weight": 1.0}
    return found


def _pixel_range(names, state):
    """The pixel range of the public weights: [0, 1] of MaskGIT, and of aMUSEd, which has no
    attention in the middle.
    """
    plain = not _any(state, f"encoder.{names.middle[1]}.")
    return (0.0, 1.0) if names in (OPEN_MUSE_NAMES, _DIFFUSERS) and plain else VQGAN.pixel_range


def _refuse_others(state):
    if any(".conv_y." in name for name in state):
        raise UserError(
            "the weights are of a MoVQ (norm_type='spatial'), whose decoder is normalised by the "
            "codes and has no form here; give those of a VQGAN."
        )
    if not _any(state, "quantize."):
        raise UserError(
            "the weights are of an autoencoder without a codebook (KL), which makes no tokens; "
            "give those of a VQGAN."
        )


def _any(state, begins):
    return any(name.startswith(begins) for name in state)


def _count(state, begins):
    """The number of modules of a list whose names begin so."""
    return 1 + max(_indices(state, begins), default=-1)


def _indices(state, begins) -> Iterator[int]:
    for name in state:
        if name.startswith(begins):
            number = name[len(begins) :].split(".")[0]
            if number.isdecimal():
                yield int(number)


# Live modules ------------------------------------------------------------------------------------


def _live(module: Any) -> dict[str, Any]:
    """The fields that a live module tells beside its shapes."""
    norms = [m for m in module.modules() if type(m).__name__ == "GroupNorm"]
    found: dict[str, Any] = {"groups": norms[0].num_groups} if norms else {}
    quantize = getattr(module, "quantize", None)
    beta = getattr(quantize, "beta", getattr(quantize, "commitment_cost", None))
    if isinstance(beta, (int, float)):
        weights = (1.0, float(beta)) if getattr(quantize, "legacy", True) else (float(beta), 1.0)
        found |= {"commitment_weight": weights[0], "codebook_weight": weights[1]}
    return found


def _live_vq_model(module: Any) -> dict[str, Any]:
    """The fields that a live `VQModel` of diffusers tells.

    Raises:
      UserError: an argument that has no form here.
    """
    if hasattr(module, "quantize"):  # an autoencoder without a codebook is refused for that
        said = {name: value for name, value in module.config.items() if name[0] != "_"}
        arguments.check("VQModel", arguments.VQ_MODEL, said)
    return _live(module)


# The names of attentions in diffusers before 0.14.
_BEFORE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _renamed(state: State) -> dict[str, np.ndarray]:
    """The state dict with the names of today's diffusers."""
    found = {}
    for name, value in state.items():
        *path, layer, kind = name.rsplit(".", 2)
        inside = ".attentions." in name and layer in _BEFORE
        found[".".join([*path, _BEFORE[layer], kind]) if inside else name] = value
    return found


def _is(names: Names, extra: str) -> Callable[[State], bool]:
    """Whether a state dict is under these names: the first block of the encoder, and one more."""
    first = f"{names.down(0)}.{names.block}.0.conv1.weight"
    return lambda state: first in state and extra in state


def _network(names: Names, extra: str, **own: Any) -> Network:
    whole: dict[str, Any] = {"told": _live, **own}
    return Network(
        model=VQGAN,
        recognise=_is(names, extra),
        fields=lambda state, told: _fields(names, state, told),
        table=lambda model: _table(names, model),
        shapes=lambda model: sharding.unbox(image_tokenizer.abstract(model)),
        ignore=("loss.",),
        writes=lambda model: not unwritable(names, model),
        **whole,
    )


TAMING = _network(_TAMING, "encoder.mid.block_1.conv1.weight")
DIFFUSERS = _network(
    _DIFFUSERS,
    "encoder.mid_block.resnets.0.conv1.weight",
    upgrade=_renamed,
    told=_live_vq_model,
)
OPEN_MUSE = _network(OPEN_MUSE_NAMES, "encoder.mid.1.conv1.weight")
LLAMAGEN = _network(_LLAMAGEN, "encoder.mid.2.conv1.weight")
