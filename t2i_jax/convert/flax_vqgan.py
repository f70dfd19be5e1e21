"""The VQGAN of MaskGIT under the names of google-research/maskgit, which keeps it as Flax does.

Layers are numbered as they are called, and arrays are laid out as here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t2i_jax import sharding
from t2i_jax.convert import taming_vqgan
from t2i_jax.convert.engine import SAME, Entry, Layout, Network, Row, State
from t2i_jax.models import image_tokenizer
from t2i_jax.models.taming_vqgan import VQGAN, preset

_NAMES = dataclasses.replace(taming_vqgan.OPEN_MUSE_NAMES, package="maskgit")
_POINTWISE = Layout("1x1 conv (1, 1, I, O) <-> (I, O)", lambda a: a[0, 0], lambda a: a[None, None])
_PUBLIC = preset("maskgit-f16")
_TOLD = (  # not by the arrays
    "groups", "pixel_range", "commitment_weight", "codebook_weight", "entropy_weight",
    "entropy_temperature",
)  # fmt: skip


def table(model: VQGAN) -> list[Row]:
    """The entries of one configuration.

    Raises:
      UserError: a network that the package does not have.
    """
    taming_vqgan.check_writable(_NAMES, model)
    levels = len(model.dim_mults)
    entries = [Entry("encoder.Conv_0.kernel", "generator/encoder/first/kernel")]
    blocks = [(f"block_{i}_{j}", i > 0 and j == 0) for i in range(levels) for j in range(2)]
    entries += _blocks(model, "encoder", [*blocks, *_MIDDLE])
    entries += _pair("encoder.GroupNorm_0", "generator/encoder/norm", "scale")
    entries += _pair("encoder.Conv_1", "generator/encoder/last")
    entries += [Entry("quantizer.codebook", "generator/quantizer/embedding")]
    entries += _pair("decoder.Conv_0", "generator/decoder/first")
    upwards = range(levels)[::-1]
    blocks = [(f"block_{i}_{j}", i < levels - 1 and j == 0) for i in upwards for j in range(2)]
    entries += _blocks(model, "decoder", [*_MIDDLE, *blocks])
    for number, i in enumerate(upwards[:-1], 1):
        entries += _pair(f"decoder.Conv_{number}", f"generator/decoder/up_{i}/conv")
    entries += _pair("decoder.GroupNorm_0", "generator/decoder/norm", "scale")
    return [*entries, *_pair(f"decoder.Conv_{levels}", "generator/to_pixels")]


_MIDDLE = (("middle_0", False), ("middle_1", False))


def _blocks(model, half, names):
    """Residual blocks in the order in which they are called; each with whether another level comes
    before it.
    """
    entries, mults = [], model.dim_mults
    for number, (name, changes) in enumerate(names):
        theirs, ours = f"{half}.ResBlock_{number}", f"generator/{half}/{name}"
        for k in range(2):
            entries += _pair(f"{theirs}.GroupNorm_{k}", f"{ours}/norm_{k}", "scale")
            entries.append(Entry(f"{theirs}.Conv_{k}.kernel", f"{ours}/conv_{k}/kernel", SAME))
        if changes:
            level = int(name.split("_")[1])
            before = mults[level - 1] if half == "encoder" else mults[level + 1]
            if before != mults[level]:
                entries.append(
                    Entry(f"{theirs}.Conv_2.kernel", f"{ours}/shortcut/kernel", _POINTWISE)
                )
    return entries


def _pair(theirs, ours, first="kernel"):
    return [Entry(f"{theirs}.{name}", f"{ours}/{name}") for name in (first, "bias")]


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network that the arrays and `told` determine, and the package's training
    settings.

    Args:
      told: fields that the user tells. The other fields that leave no trace in the arrays are
        as in the public files.
    """
    base, channels = state["encoder.Conv_0.kernel"].shape[:1:-1]
    blocks = sum(
        name.startswith("encoder.ResBlock_") and name.endswith(".Conv_1.kernel") for name in state
    )
    if blocks % 2 or blocks < 4:
        raise ValueError(f"{blocks} residual blocks are not two of each level")
    widths = [
        state[f"encoder.ResBlock_{2 * i}.Conv_1.kernel"].shape[-1] for i in range(blocks // 2 - 1)
    ]
    if any(width % base for width in widths):
        raise ValueError(f"levels of {widths} channels are no multiples of {base}")
    size, width = state["quantizer.codebook"].shape
    published = {name: getattr(_PUBLIC, name) for name in (*_NAMES.has, *_TOLD)}
    return published | {
        "dim": base,
        "channels": channels,
        "dim_mults": tuple(width // base for width in widths),
        "codebook_size": size,
        "codebook_dim": width,
        **{name: told[name] for name in _TOLD if name in told},
    }


NETWORK = Network(
    model=VQGAN,
    recognise=lambda state: "encoder.ResBlock_0.Conv_0.kernel" in state,
    fields=fields,
    table=table,
    shapes=lambda model: sharding.unbox(image_tokenizer.abstract(model)),
    told=lambda module: {},
    writes=lambda model: not taming_vqgan.unwritable(_NAMES, model),
)
