"""LPIPS of pairs of images, for tokenizers: how far reconstructions look from their originals."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import config, sharding
from t2i_jax.compiler import Program
from t2i_jax.convert import lpips as converted
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import weights_file
from t2i_jax.models.lpips import TRUNKS, Lpips
from t2i_jax.types import Params


@dataclasses.dataclass(frozen=True)
class LpipsMetric:
    """LPIPS with its weights, float32 and of the precision "highest", on this process's devices.

    Attributes:
      network, params: as `convert.lpips.from_states` gives them.
      about: what results keep: trunk, both files with their hashes.
    """

    network: Lpips
    params: Params
    about: Mapping[str, Any]

    def __call__(
        self, images_NHWC: np.ndarray, again_NHWC: np.ndarray, batch_size: int = 8
    ) -> np.ndarray:
        """The distance of each pair, (N,) float32.

        Args:
          images_NHWC, again_NHWC: uint8 of one shape with three channels.
          batch_size: pairs of a batch on each device.

        Raises:
          UserError: images of another type, or of two shapes, or too small.
        """
        for name, array in (("images", images_NHWC), ("reconstructions", again_NHWC)):
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
                raise UserError(
                    f"{name} are {array.dtype}{array.shape}; give uint8 images as (N, H, W, 3)."
                )
        mesh, params = self._placed
        size = batch_size * mesh.size
        place, found = sharding.batch_sharding(mesh), []
        for start in range(0, len(images_NHWC), size):
            pair = [_signed(x[start : start + size], size) for x in (images_NHWC, again_NHWC)]
            found.append(np.asarray(self._program(params, *jax.device_put(pair, place))))
        return np.concatenate(found)[: len(images_NHWC)]

    @functools.cached_property
    def _placed(self):
        mesh = sharding.make_mesh(devices=jax.local_devices())
        places = jax.tree.map(lambda _: sharding.replicated(mesh), self.params)
        return mesh, sharding.put(self.params, places)

    @functools.cached_property
    def _program(self):
        def program(params, one, other):
            with jax.default_matmul_precision("highest"):
                return self.network.apply({"params": params}, one, other)

        return Program(program)


def lpips(
    trunk: str,
    features: str | os.PathLike | None,
    heads: str | os.PathLike | None = None,
) -> LpipsMetric:
    """The LPIPS metric from the two files it is published as.

    Args:
      trunk: "alex", by which results are reported, or "vgg".
      features: alexnet-owt-7be5be79.pth or vgg16-397923af.pth of torchvision.
      heads: weights/v0.1/alex.pth or vgg.pth of the package `lpips`; None: they are found where it
        is installed.

    Raises:
      UserError: no such file (the sentence says where it comes from), or arrays that do not fit.
    """
    config.one_of("trunk", trunk, TRUNKS)
    files = [weights_file.find(features, f"lpips-{trunk}"), _heads(trunk, heads)]
    states = [torch_io.read(file) for file in files]
    network, params = converted.from_states(trunk, *states)
    about: dict[str, Any] = {"name": "lpips", "version": "0.1", "trunk": trunk}
    for name, file in zip(("features", "heads"), files, strict=True):
        about[name] = dict(weights_file.about(file))
    return LpipsMetric(network, params, about)


def _heads(trunk, given):
    """The file that is given, or that of the installed package."""
    if given is None:
        given = installed_heads(trunk)
    if given is None:
        raise UserError(
            f"lpips needs the weights of its layers; install lpips 0.1.4, whose wheel has weights/"
            f"v0.1/{trunk}.pth, or give the path of that file as heads."
        )
    return weights_file.find(given, f"lpips-{trunk}")


def installed_heads(trunk: str) -> pathlib.Path | None:
    """The weights of a trunk's layers in the package lpips, which is not imported; None: it is not
    installed, or has none.
    """
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        return None
    file = pathlib.Path(spec.origin).parent / "weights" / "v0.1" / f"{trunk}.pth"
    return file if file.is_file() else None


def _signed(images_BHWC, size):
    """The images as floats in [-1, 1], filled up with zeros to `size` of them."""
    found = np.zeros((size, *images_BHWC.shape[1:]), np.float32)
    found[: len(images_BHWC)] = images_BHWC.astype(np.float32) / 127.5 - 1
    return found
