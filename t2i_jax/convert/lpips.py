"""LPIPS from two files: the trunk as torchvision publishes it and the weights of its layers, which
lie within the package `lpips` (weights/v0.1/alex.pth, vgg.pth); or from the state dict of its
module, which has both.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from t2i_jax.convert import vgg
from t2i_jax.convert.engine import CONV, Entry, Network, Row, State, reshaped, to_ours
from t2i_jax.models.lpips import WIDTHS, Lpips
from t2i_jax.models.vgg import Vgg16
from t2i_jax.tracing import traced_once

_PLACES = (0, 3, 6, 8, 10)  # of AlexNet's convolutions within torchvision's `features`


def table(model: Lpips) -> list[Row]:
    """The entries under the names of the module of `lpips`."""
    if model.trunk == "vgg":
        return list(vgg.table(Vgg16(features="lpips")))
    rows: list[Row] = []
    for i, place in enumerate(_PLACES):
        rows += [
            Entry(f"net.slice{i + 1}.{place}.weight", f"conv_{i}/kernel", CONV),
            Entry(f"net.slice{i + 1}.{place}.bias", f"conv_{i}/bias"),
        ]
    for i, width in enumerate(WIDTHS["alex"]):
        layout = reshaped((1, width, 1, 1), (width,))
        rows.append(Entry(f"lin{i}.model.1.weight", f"lin_{i}", layout))
    return rows


def from_states(trunk: str, features: State, heads: State) -> tuple[Lpips, dict[str, Any]]:
    """The network and its parameters from the two files' arrays.

    Args:
      trunk: "alex" or "vgg". features: of torchvision's network, its classifier or not.
      heads: of the file within `lpips`.

    Raises:
      UserError: arrays that do not fit; all are listed.
    """
    model = Lpips(trunk)
    rows = table(model)
    names = {_place(row.torch): row.torch for row in rows if row.torch.startswith("net.")}
    state = {
        names.get(name, name): value
        for name, value in features.items()
        if not name.startswith("classifier.")
    }
    state |= {name: value for name, value in heads.items() if not name.startswith("lins.")}
    return model, to_ours(rows, state, _shapes(model))


def _place(name):
    """The name in torchvision of a weight of the trunk: "features.3.weight" of
    "net.slice2.3.weight".
    """
    return "features." + name.split(".", 2)[2]


@traced_once
def _shapes(model: Lpips) -> Any:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image, image)["params"]


def _fields(state: State, module: Any) -> dict[str, Any]:
    return {"trunk": "alex"}


NETWORK = Network(
    model=Lpips,
    recognise=lambda state: "net.slice5.10.weight" in state and "lin4.model.1.weight" in state,
    fields=_fields,
    table=table,
    shapes=_shapes,
    ignore=("lins.", "scaling_layer."),
)
