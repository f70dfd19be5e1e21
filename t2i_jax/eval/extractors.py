"""Networks that turn images into the features that metrics compare."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t2i_jax import config, sharding
from t2i_jax.compiler import Program
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import clip_files, resize, weights_file
from t2i_jax.foreign import torch_file
from t2i_jax.models.dinov2 import Dinov2
from t2i_jax.models.inception import Inception
from t2i_jax.models.openai_clip import SIZES
from t2i_jax.text.tokenizer import TextTokenizer
from t2i_jax.types import Array, Params

_BATCHES_AHEAD = 2  # whose images are resized while another is computed
_THREADS = min(8, os.cpu_count() or 1)
_TRIED = (64, 64)  # pixels of an image of which only the shape is of interest


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, on all devices of this process: float32, products
    of the precision "highest", whatever the training uses.

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
        bit in any batch of this size, on one device or on several that are alike.

        Args:
          batch_size: images of a batch on each device.
          layers: whose features to give; None: all.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not positive; give 1 or more.")
        mesh, program, params = self._placed
        size = batch_size * mesh.size
        wanted = None if layers is None else tuple(layers)
        place, waiting = sharding.batch_sharding(mesh), None
        for inputs, count in _inputs(images, self.prepare, size):
            computed = program(params, jax.device_put(inputs, place))
            if waiting is not None:
                yield _given(*waiting, wanted)
            waiting = computed, count
        if waiting is not None:
            yield _given(*waiting, wanted)

    def width(self, layer: str) -> int:
        """The width D of a layer's features; nothing is computed."""
        image_HWC = self.prepare(np.zeros((*_TRIED, 3), np.uint8))
        batch = jax.ShapeDtypeStruct((1, *image_HWC.shape), np.float32)
        return jax.eval_shape(self.apply, self.params, batch)[layer].shape[-1]

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

        return mesh, Program(program, out_shardings=sharding.batch_sharding(mesh)), params


@dataclasses.dataclass(frozen=True)
class ClipExtractor(Extractor):
    """A CLIP: images to the layer "image", captions to vectors of the same space; both projected
    and not divided by their length.

    Attributes:
      apply_text: (params, ids (B, L), mask (B, L)) -> (B, D).
      text_length: L, tokens of a caption; longer ones are cut before the end token.
      tokenizer: from captions to ids; None: no vocabulary was there.
      logit_scale: by which cosines are multiplied in PickScore, e to the learnt logarithm.
    """

    apply_text: Callable[[Params, Array, Array], Array]
    text_length: int
    tokenizer: TextTokenizer | None
    logit_scale: float

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """The number of tokens of each caption uncut, both ends included: those above `text_length`
        are cut.

        Raises:
          UserError: no vocabulary.
        """
        return np.asarray(self._vocabulary.lengths(list(captions)))

    def text_features(
        self, captions: Sequence[str], batch_size: int = 64, keeps_end: bool = True
    ) -> np.ndarray:
        """The features of captions in their order, (N, D) float32.

        Args:
          batch_size: captions of a batch on each device.
          keeps_end: whether a caption that is cut keeps its end token, whose vector is that of the
            caption. Without it transformers takes that of the start token, which all such captions
            share.

        Raises:
          UserError: no caption, or no vocabulary.
        """
        captions, tokenizer = list(captions), self._vocabulary
        if not captions:
            raise UserError("captions are empty; give one or more.")
        mesh, _, params = self._placed
        size = batch_size * mesh.size
        place, found = sharding.batch_sharding(mesh), []
        for start in range(0, len(captions), size):
            part = captions[start : start + size]
            part += [""] * (size - len(part))
            ids_BL, mask_BL = tokenizer(part, self.text_length)
            if not keeps_end:
                mask_BL[self.lengths(part) > self.text_length, 1:] = False
            ids_BL, mask_BL = jax.device_put((ids_BL, mask_BL), place)
            found.append(np.asarray(self._text_program(params, ids_BL, mask_BL), np.float32))
        return np.concatenate(found)[: len(captions)]

    @property
    def mends(self) -> bool:
        """Whether captions are mended before they are read, see `text.bpe.MendingBpe`."""
        return getattr(self.tokenizer, "mends", False)

    @property
    def _vocabulary(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} came without a vocabulary; give the folder that has vocab.json and "
                "merges.txt, or tokenizer.json (for hpsv2 that of any CLIP, as clip)."
            )
        return self.tokenizer

    @functools.cached_property
    def _text_program(self):
        def program(params, ids_BL, mask_BL):
            with jax.default_matmul_precision("highest"):
                return self.apply_text(params, ids_BL, mask_BL)

        return Program(program)


def inception(path: str | os.PathLike | None, mode: str = "clean") -> Extractor:
    """The Inception of FID, KID and the Inception Score: layers "pool1", "pool2", "spatial" (that
    of sFID), "aux", "pool3" (2048, that of FID), "logits" and "logits_unbiased".

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
    if torch_file.is_program(found):
        raise UserError(
            f"inception={os.fspath(found)!r} is a TorchScript archive, as clean-fid and StyleGAN "
            f"read it; give {weights_file.PUBLISHED['inception']}, which has the same weights."
        )
    network = weights_file.network(found, Inception, "inception")
    preprocessing = resize.INCEPTION[mode]
    return Extractor(
        f"inception-{mode}",
        _about(found, preprocessing),
        preprocessing,
        lambda params, batch: network.model.apply({"params": params}, batch),
        network.params,
    )


def clip(
    path: str | os.PathLike | None,
    preprocessing: str = "clip",
    tokenizer: str | os.PathLike | None = None,
    what: str = "clip-vit-b-32",
    **fields: Any,
) -> ClipExtractor:
    """A CLIP, for CLIP score, CLIP-FID and CMMD.

    Args:
      path: folder of transformers or OpenCLIP, or a file of weights; see `clip_files.read`, which
        has the other arguments too.
      what: as there; "pickscore" and "hpsv2" must have the sizes of the CLIP they began as.
      preprocessing: "clip", the shorter side resized and the middle cut out; "cmmd", the middle
        square resized; "hpsv2", the whole image with black beside it.

    Raises:
      UserError: as `clip_files.read`, or a CLIP of other sizes.
    """
    modes = {"clip": resize.clip, "cmmd": resize.cmmd, "hpsv2": resize.hpsv2}
    config.one_of("preprocessing", preprocessing, modes)
    read = clip_files.read(path, tokenizer, what, **fields)
    network = read.network
    if what in _SIZES:
        clip_files.check_sizes(read, _SIZES[what], what)
    prepare = modes[preprocessing](network.image_resolution, network.mean, network.std)
    return ClipExtractor(
        clip_files.name(network) if what.startswith("clip") else what,
        {**_about(read.file, prepare), "activation": network.activation},
        prepare,
        lambda params, batch: {"image": network.image_vectors(params, batch)},
        read.params,
        network.text_vectors,
        network.context_length,
        read.tokenizer,
        float(np.exp(np.float64(read.params["logit_scale"]))),
    )


def pickscore(path: str | os.PathLike | None) -> ClipExtractor:
    """PickScore v1 (Kirstain et al. 2023): a CLIP-H; the score of an image is `logit_scale` times
    the cosine with its caption.

    Args:
      path: the folder of yuvalkirstain/PickScore_v1, with a tokenizer in it.
    """
    return clip(path, what="pickscore")


def hpsv2(path: str | os.PathLike | None, tokenizer: str | os.PathLike | None) -> ClipExtractor:
    """HPS v2 or v2.1 (Wu et al. 2023): a CLIP-H of OpenCLIP; the score of an image is the cosine
    with its caption. The two versions are not comparable: `about` has the file's hash.

    Args:
      path: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt.
      tokenizer: folder of any CLIP's vocabulary.
    """
    huge = SIZES[_SIZES["hpsv2"]]
    return clip(
        path, "hpsv2", tokenizer, "hpsv2", activation=huge.activation,
        vision_heads=huge.vision_heads, transformer_heads=huge.transformer_heads,
    )  # fmt: skip


def dinov2(
    path: str | os.PathLike | None, size: int = 224, positions: str = "offset", **fields: Any
) -> Extractor:
    """A DINOv2, for FD-DINOv2: layer "cls", the class token after the last norm.

    Args:
      path: a folder of transformers with model.safetensors, a file with the same names or Meta's.
      size: pixels per side that images are squeezed to.
      positions: how positions are interpolated: "offset" as Meta's code and dgm-eval, or "size" as
        transformers; `models.dinov2.Dinov2` tells more.
      **fields: of `Dinov2`; published ones need none.

    Raises:
      UserError: no such file, or another network's weights.
    """
    found = weights_file.find(path, "dinov2")
    file = found / "model.safetensors" if found.is_dir() else found
    if not file.is_file():
        torch_io.check_whole(found, "dinov2")
        raise UserError(
            f"dinov2={os.fspath(found)!r} has no model.safetensors; fetch "
            f"{weights_file.PUBLISHED['dinov2']}."
        )
    told = {"positions": positions, **fields}
    network = weights_file.network(file, Dinov2, "dinov2", told)
    model, prepare = network.model, resize.dinov2(size)
    return Extractor(
        f"dinov2-{_DINO.get(model.width, model.width)}{model.patch_size}",
        {**_about(file, prepare), "positions": positions},
        prepare,
        lambda params, batch: {"cls": model.apply({"params": params}, batch)},
        network.params,
    )


_SIZES = {"pickscore": "ViT-H-14", "hpsv2": "ViT-H-14"}  # of what is fine-tuned from such a CLIP
_DINO = {384: "vits", 768: "vitb", 1024: "vitl", 1536: "vitg"}  # by their width


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
    """The batches of inputs, one after the other: (inputs (size, ...), how many of them are
    images), the last filled up with zeros.
    """
    prepared = _ahead(images, prepare, _BATCHES_AHEAD * size)
    while batch := list(itertools.islice(prepared, size)):
        inputs = np.zeros((size, *batch[0].shape), np.float32)
        for row, one in zip(inputs, batch, strict=False):
            row[...] = one
        yield inputs, len(batch)


def _ahead(images, prepare, most):
    """The results of `map(prepare, images)`, computed by threads with at most `most` images begun
    ahead.
    """
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
