"""The projector, and SimSiam's predictor, with which x-clip 0.14.4 trains its image transformer by
itself (visual_ssl.py); the package saves them with its CLIP, and the transformer again beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax.convert import engine
from t2i_jax.convert.engine import LINEAR, Entry, Row, State, Unused

PREFIX = "visual_ssl."
_PROJECTOR = {"simclr": "net.projector", "simsiam": "online_encoder.projector"}
_AGAIN = {"simclr": ("net.net.",), "simsiam": ("net.", "online_encoder.net.")}
_PREDICTOR, _TRUNK = "online_predictor", "visual_transformer."


def fields(state: State) -> dict[str, Any] | None:
    """The fields of the self-supervised loss that a CLIP was saved with: {"kind", "width",
    "hidden_dim", "projection_dim"}; `width` is that of the vectors that are projected. None: it was
    saved without one.
    """
    for kind, place in _PROJECTOR.items():
        first, last = (state.get(f"{PREFIX}{place}.{i}.weight") for i in (0, 6))
        if first is not None and last is not None:
            hidden, width = first.shape
            return {
                "kind": kind, "width": width, "hidden_dim": hidden, "projection_dim": last.shape[0]
            }  # fmt: skip
    return None


def table(kind: str, hidden_dim: int, projection_dim: int) -> list[Row]:
    """The entries of one kind."""
    place = PREFIX + _PROJECTOR[kind]
    rows: list[Row] = [
        Entry(f"{place}.0.weight", "wide/kernel", LINEAR),
        *_norm(f"{place}.1", "norm_wide", hidden_dim),
        Entry(f"{place}.3.weight", "middle/kernel", LINEAR),
        *_norm(f"{place}.4", "norm_middle", hidden_dim),
        Entry(f"{place}.6.weight", "out/kernel", LINEAR),
        *_statistics(f"{place}.7", projection_dim),
    ]
    if kind == "simclr":
        return rows
    place = PREFIX + _PREDICTOR
    return [
        *rows,
        Entry(f"{place}.0.weight", "predictor/kernel", LINEAR),
        Entry(f"{place}.0.bias", "predictor/bias"),
        *_norm(f"{place}.1", "norm_predictor", hidden_dim),
        Entry(f"{place}.3.weight", "prediction/kernel", LINEAR),
        Entry(f"{place}.3.bias", "prediction/bias"),
    ]


def _norm(torch, ours, width):
    return [
        Entry(f"{torch}.weight", f"{ours}_scale"),
        Entry(f"{torch}.bias", f"{ours}_bias"),
        *_statistics(torch, width),
    ]


def _statistics(torch, width):
    """The running means and variances, which training never reads and nothing else has a use
    for.
    """
    return [
        Unused(f"{torch}.running_mean", np.zeros(width, np.float32)),
        Unused(f"{torch}.running_var", np.ones(width, np.float32)),
        Unused(f"{torch}.num_batches_tracked", np.array(0)),
    ]


def from_state(state: State, found: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the projector and predictor, from the state dict of a CLIP.

    Args:
      found: of `fields`. shapes: of the parameters.

    Raises:
      UserError: arrays that are missing or of another shape.
    """
    rows = table(found["kind"], found["hidden_dim"], found["projection_dim"])
    again = tuple(PREFIX + name for name in _AGAIN[found["kind"]])
    own = {
        name: value
        for name, value in state.items()
        if name.startswith(PREFIX) and not name.startswith(again)
    }
    return engine.to_ours(rows, own, shapes)


def to_state(
    kind: str, params: Mapping[str, Any], shapes: Mapping[str, Any], clip: State
) -> dict[str, Any]:
    """The entries that the package saves beside the state dict of its CLIP, from our parameters.

    Args:
      clip: the state dict of the CLIP.
    """
    hidden, projected = (shapes[name]["kernel"].shape[1] for name in ("wide", "out"))
    found = engine.to_torch(table(kind, hidden, projected), params, shapes)
    for again in _AGAIN[kind]:
        found |= {
            PREFIX + again + name.removeprefix(_TRUNK): value
            for name, value in clip.items()
            if name.startswith(_TRUNK)
        }
    return found
