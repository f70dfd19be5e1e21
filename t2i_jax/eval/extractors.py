"""Networks that turn images into the features that metrics compare."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import config, sharding
from t2i_jax.convert import weights as converted
from t2i_jax.errors import UserError
from t2i_jax.eval import resize, weights_file
from t2i_jax.models.inception import Inception
from t2i_jax.types import Array, Params

_BATCHES_AHEAD = 2  # whose images are resized while another is computed
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Images to features, on all devices of this process: float32, products of the precision
    "highest", whatever the training uses.

    Attributes:
      name: the network with its preprocessing, as "inception-clean".
      about: what results keep, as plain values: file, sha256, dtype, precision, preprocessing.
      prepare: one uint8 image (H, W, C) of any size -> the network's float32 input, on the host.
      apply: (params, batch of inputs) -> {name of a layer: (B, D)}.
      params: of the network, NumPy arrays.
    """

    name: str
    about: Mapping[str, Any]
    prepare: Callable[[Any], np.ndarray]
    apply: Callable[[Params, Array], Mapping[str, Array]]
    params: Params

    def features(
        self, images: Iterable[Any], batch_size: int = 64, layers: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The features of all images in their order, float32 (N, D) for each layer.

        Args:
          images: uint8 (H, W, C) or Pillow images, of any sizes; read one after the other.
          batch_size, layers: as in `batches`.

        Raises:
          UserError: no image, an unknown layer, or an image that is none.
        """
        found: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        for batch in self.batches(images, batch_size, layers):
            for layer, values in batch.items():
                found[layer].append(values)
        if not found:
            raise UserError("images are empty; give one image or more.")
        return {layer: np.concatenate(parts) for layer, parts in found.items()}

    def batches(
        self, images: Iterable[Any], batch_size: int = 64, layers: Iterable[str] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The features batch by batch, so that memory does not grow with their number.

        Images are resized by threads while the devices compute. Every batch has one shape: the last
        is filled up, and what filled it is left out; the same image has the same features to the
        bit in any batch of this size.

        Args:
          batch_size: images of a batch, made a multiple of the number of devices.
          layers: whose features to give; None: all.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not positive; give 1 or more.")
        mesh, program, params = self._placed
        size = -(-batch_size // mesh.size) * mesh.size
        wanted = None if layers is None else tuple(layers)
        place, waiting = sharding.batch_sharding(mesh), None
        for inputs, count in _inputs(images, self.prepare, size):
            computed = program(params, jax.device_put(inputs, place))
            if waiting is not None:
                yield _given(*waiting, wanted)
            waiting = computed, count
        if waiting is not None:
            yield _given(*waiting, wanted)

    @functools.cached_property
    def _placed(self):
        """The mesh of this process's devices, the compiled function and the parameters on them."""
        mesh = sharding.make_mesh(devices=jax.local_devices())
        params = sharding.put(
            self.params, jax.tree.map(lambda _: sharding.replicated(mesh), self.params)
        )

        def program(params, batch):
            with jax.default_matmul_precision("highest"):
                return self.apply(params, batch)

        return mesh, jax.jit(program, out_shardings=sharding.batch_sharding(mesh)), params


def inception(path: str | os.PathLike | None, mode: str = "clean") -> Extractor:
    """The Inception of FID, KID and the Inception Score: layers "pool1", "pool2", "aux", "pool3"
    (2048, that of FID), "logits" and "logits_unbiased".

    Args:
      path: the state dict that pytorch-fid and torch-fidelity read, .pth or .safetensors.
      mode: how images are resized, a key of `resize.INCEPTION`: "clean" as clean-fid, "tf" as
        TensorFlow 1 and torch-fidelity, "pytorch-fid", "torchmetrics" or "t2i-benchmark".

    Raises:
      UserError: an unknown mode, no such file (the sentence says where it comes from), or another
        network's weights.
    """
    config.one_of("mode", mode, resize.INCEPTION)
    found = weights_file.find(path, "inception")
    network = _network(found, Inception, "inception")
    preprocessing = resize.INCEPTION[mode]
    return Extractor(
        f"inception-{mode}",
        _about(found, preprocessing),
        preprocessing,
        lambda params, batch: network.model.apply({"params": params}, batch),
        network.params,
    )


def _network(path, kind, field, **fields):
    """The network of a file, which must be of a kind."""
    found = converted(path, fields)
    if not isinstance(found.model, kind):
        raise UserError(
            f"{field}={os.fspath(path)!r} holds a {type(found.model).__name__}; give "
            f"{weights_file.PUBLISHED[field]}."
        )
    return found


def _about(path, preprocessing):
    return {
        **weights_file.about(path),
        "dtype": "float32",
        "precision": "highest",
        "preprocessing": preprocessing.about,
    }


def _given(computed, count, layers):
    """The rows of a batch that are images, of the layers that are asked for."""
    layers = computed if layers is None else layers
    for layer in layers:
        config.one_of("layer", layer, computed)
    return {layer: np.asarray(computed[layer], np.float32)[:count] for layer in layers}


def _inputs(images, prepare, size):
    """(inputs (size, ...), how many of them are images) of one batch after the other, the last
    filled up with zeros.
    """
    prepared = _ahead(images, prepare, _BATCHES_AHEAD * size)
    while batch := list(itertools.islice(prepared, size)):
        inputs = np.zeros((size, *batch[0].shape), np.float32)
        for row, one in zip(inputs, batch, strict=False):
            row[...] = one
        yield inputs, len(batch)


def _ahead(images, prepare, most):
    """`map(prepare, images)` by threads, with at most so many images begun before their turn."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "resize") as pool:
        begun: collections.deque[Any] = collections.deque()
        try:
            for image in images:
                begun.append(pool.submit(prepare, image))
                if len(begun) >= most:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for one in begun:
                one.cancel()
