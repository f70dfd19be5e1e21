"""The toy's weights to and from a state dict {"hidden", "out", "colour"}, with matrices as PyTorch
has them.
"""

import numpy as np

from t2i_jax.convert import torch_io
from t2i_jax.systems.imported import Imported
from tests.toy_system.mean_colour import MeanColourTask
from tests.toy_system.network import ColourNet
from tests.toy_system.task import ToyTask


def from_torch(file):
    """The toy of a file; None where it holds something else."""
    if not isinstance(file.loaded, dict) or set(file.loaded) != {"hidden", "out", "colour"}:
        return None
    state = torch_io.arrays(file.loaded)
    dim, width = state["hidden"].shape
    size = file.options("toy").get("image_size", 8)
    mean = Imported(
        "MeanColour",
        MeanColourTask(image_size=size),
        {"mean": {"colour": state["colour"]}},
        {},
        size,
    )
    task = ToyTask(ColourNet(dim), file.text(width), MeanColourTask().model, size)
    net = {"hidden": state["hidden"].T, "out": state["out"].T}
    return Imported("toy", task, {"toy": {"net": net}}, {}, size, {"mean": mean})


def to_torch(contents, path):
    """Writes a run as that state dict."""
    net = contents.averaged["toy"]["net"]
    state = {name: np.asarray(net[name]).T for name in ("hidden", "out")}
    torch_io.write(
        path, {**state, "colour": np.asarray(contents.parts["mean"].averaged["mean"]["colour"])}
    )
