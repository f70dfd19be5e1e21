"""Writing weights as Flax keeps them; `torch_io.load` reads such files too."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import flax.serialization
import numpy as np

from t2i_jax import paths
from t2i_jax.convert.engine import unflatten

ENDING = ".msgpack"


def write(path: str | pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as `flax.serialization.to_bytes` does: nested dicts under "params",
    one for each part of a name between its dots.
    """
    path = paths.new("weights", path)
    params = unflatten({tuple(name.split(".")): np.asarray(one) for name, one in state.items()})
    path.write_bytes(flax.serialization.msgpack_serialize({"params": params}))
