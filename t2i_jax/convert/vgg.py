"""VGG16 of torchvision (its whole state dict, or the convolutions alone) and the whole of
`lpips.LPIPS(net="vgg")`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from einops import rearrange

from t2i_jax.convert.engine import CONV, LINEAR, Entry, Layout, Network, State, reshaped
from t2i_jax.models.vgg import STAGES, Vgg16
from t2i_jax.tracing import traced_once

_CONVS = [(i, j) for i, widths in enumerate(STAGES) for j in range(len(widths))]
# Within torchvision's `features`.
_PLACES = [sum(len(w) * 2 + 1 for w in STAGES[:i]) + 2 * j for i, j in _CONVS]
# Its first linear layer reads a feature map (512, 7, 7), ours (7, 7, 512).
_FC1 = Layout(
    "linear after a feature map",
    lambda a: rearrange(a, "o (c h w) -> (h w c) o", h=7, w=7),
    lambda a: rearrange(a, "(h w c) o -> o (c h w)", h=7, w=7),
)


def table(model: Vgg16) -> list[Entry]:
    """The entries for the layers that `model.features` needs."""
    entries = []
    for place, (i, j) in zip(_PLACES, _CONVS, strict=True):
        name = f"net.slice{i + 1}.{place}" if model.features == "lpips" else f"features.{place}"
        entries += [
            Entry(f"{name}.weight", f"conv_{i}_{j}/kernel", CONV),
            Entry(f"{name}.bias", f"conv_{i}_{j}/bias"),
        ]
    if model.features == "fc2":
        for i, (place, layout) in enumerate(((0, _FC1), (3, LINEAR))):
            entries += [
                Entry(f"classifier.{place}.weight", f"fc_{i}/kernel", layout),
                Entry(f"classifier.{place}.bias", f"fc_{i}/bias"),
            ]
    if model.features == "lpips":
        for i, widths in enumerate(STAGES):
            layout = reshaped((1, widths[-1], 1, 1), (widths[-1],))
            entries.append(Entry(f"lin{i}.model.1.weight", f"lin_{i}", layout))
    return entries


def _fields(state: State, module: Any) -> dict[str, Any]:
    return {"features": "lpips"} if "lin0.model.1.weight" in state else {}


@traced_once
def _shapes(model):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image, image)["params"]


NETWORK = Network(
    model=Vgg16,
    recognise=lambda state: "features.28.weight" in state or "net.slice5.28.weight" in state,
    fields=_fields,
    table=table,
    shapes=_shapes,
    ignore=("classifier.", "lins.", "scaling_layer."),
)
