"""An Inception of random weights in the form of the published file, for what is the same whatever
the weights are: rates, and the agreement of several packages on one network.
"""

from __future__ import annotations

import functools
import os
import pathlib

import numpy as np

from t2i_jax import convert
from t2i_jax.convert import engine, inception, torch_io
from t2i_jax.models.inception import Inception


def write(path: str | os.PathLike, seed: int = 0) -> pathlib.Path:
    """Writes the state dict as a .pth file; activations keep their size from layer to layer, and
    means and deviations of the batch norms differ from 0 and 1.
    """
    rng, model = np.random.default_rng(seed), Inception()
    leaves = engine.flatten(inception.NETWORK.shapes(model))
    made = {name: _random(rng, name[-1], leaf.shape) for name, leaf in leaves.items()}
    torch_io.write(path, convert.to_state(model, engine.unflatten(made)))
    return pathlib.Path(path)


def _random(rng, kind, shape):
    if kind == "kernel":
        fan_in = np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
    if kind in ("scale", "var"):
        return rng.random(shape, np.float32) + np.float32(0.5)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


@functools.cache  # the operators can be declared once
def import_torchvision() -> None:
    """Imports torchvision beside a PyTorch for CPUs, for which its wheel lacks two operators; their
    declarations are enough.
    """
    import contextlib

    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # this build has them
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    import torchvision  # noqa: F401


_kept = []  # the declarations live as long as this
