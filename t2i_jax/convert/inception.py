"""The Inception-v3 of FID under the names of pytorch-fid and torch-fidelity, whose files are one
and the same.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from t2i_jax.convert.engine import CONV, LINEAR, Entry, Network, Row, State, Unused
from t2i_jax.errors import UserError
from t2i_jax.models.inception import CLASSES, SIDE, Inception, convolutions
from t2i_jax.tracing import traced_once

# The weights that pytorch-fid, torch-fidelity and torchmetrics read.
FILE = "pt_inception-2015-12-05-6726825d.pth"
SIZE = "96 MB"
HASH = "6726825d"  # the first digits of its SHA-256
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"


def table(model: Inception) -> list[Row]:
    """The entries: a kernel and the four vectors of a batch norm for every convolution."""
    rows: list[Row] = [
        Entry("fc.weight", "kernel", LINEAR),
        Entry("fc.bias", "bias"),
    ]
    for path, _ in convolutions():
        torch = ".".join(path)
        rows.append(Entry(f"{torch}.conv.weight", (*path, "kernel"), CONV))
        for theirs, own in (
            ("weight", "scale"),
            ("bias", "bias"),
            ("running_mean", "mean"),
            ("running_var", "var"),
        ):
            rows.append(Entry(f"{torch}.bn.{theirs}", (*path, own)))
        # newer state dicts count the batches of training; the published file does not
        rows.append(Unused(f"{torch}.bn.num_batches_tracked", np.array(0, np.int64)))
    return rows


def _fields(state: State, module: Any) -> dict[str, Any]:
    outputs = len(state["fc.bias"])
    if outputs != CLASSES:
        raise UserError(
            f"the weights are an Inception of {outputs} outputs, and that of FID has {CLASSES}; "
            f"give {FILE}."
        )
    return {}


@traced_once
def _shapes(model):
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


NETWORK = Network(
    model=Inception,
    recognise=lambda state: "Mixed_7c.branch_pool.conv.weight" in state and "fc.bias" in state,
    fields=_fields,
    table=table,
    shapes=_shapes,
    ignore=("AuxLogits.",),
)
