"""A small extractor in the place of Inception and CLIP, a small tokenizer, and folders of images,
for the tests of `t2i evaluate`.
"""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t2i_jax.convert import inception
from t2i_jax.eval.extractors import Extractor
from tests.e2e.command import inside, refused

ALL = "fid,fid_infinity,kid,is,pr,dc,clip,clip_hessel,clip_fid,cmmd,fdd,pickscore"
"""Metrics of all the networks that the toy is in the place of."""

SHA256 = inception.HASH.ljust(64, "0")
"""Of the toy's weights, which pass for the published ones."""

_WIDTH = 6


class ToyExtractor(Extractor):
    """Means of colours through random weights; captions by their letters."""

    logit_scale, text_length, mends = 100.0, 77, False

    def lengths(self, captions):
        """One token for each letter."""
        return np.array([len(text) for text in captions], np.int32)

    def text_features(self, captions, keeps_end=True):
        """(N, 6) of letters."""
        rng = np.random.default_rng(1)
        letters = rng.normal(size=(128, _WIDTH))
        return np.stack([letters[[ord(one) % 128 for one in text]].sum(0) for text in captions])


def toy_extractor(name: str = "inception-clean", file: str = "toy") -> ToyExtractor:
    """An extractor with the layers of all networks."""
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(12, _WIDTH)).astype(np.float32)}

    def prepare(image):
        found = Image.fromarray(np.asarray(image)).resize((2, 2), Image.Resampling.BOX)
        return np.asarray(found, np.float32) / 255

    def apply(params, batch):
        values = jnp.tanh(batch.reshape(len(batch), -1) @ params["in"])
        layers = {"pool3": values, "logits_unbiased": 3 * values, "image": values, "cls": values}
        return {**layers, "spatial": values[:, :2]}

    about = {"file": file, "sha256": SHA256, "preprocessing": {"resize": "toy"}}
    return ToyExtractor(name, about, prepare, apply, params)


def convolutions(look=None) -> Extractor:
    """An extractor of three convolutions, for images of 24 pixels: its rounding is that of a real
    one.

    Args:
      look: is given the network's input when it is traced.
    """
    rng = np.random.default_rng(0)
    shapes = (3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 32)
    kernels = [
        rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[:3])) for shape in shapes
    ]

    def apply(params, x_BHWC):
        if look is not None:
            look(x_BHWC)
        for kernel in params:
            x_BHWC = jax.nn.relu(jax.lax.conv_general_dilated(
                x_BHWC, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ))  # fmt: skip
        return {"pool3": x_BHWC.mean((1, 2))}

    return Extractor(
        "convolutions", {}, lambda image: np.asarray(image, np.float32) / 128 - 1, apply, kernels
    )


@dataclasses.dataclass
class Levels:
    """A tokenizer with a code for each pixel: its mean level in steps of 16."""

    weights: dict
    task = types.SimpleNamespace(model=types.SimpleNamespace(image_size=12, codebook_size=16))

    def encode(self, images):
        """(B, 144) of the first channel."""
        return (images[..., 0] // 16).reshape(len(images), -1).astype(jnp.int32)

    def decode(self, ids):
        """Gray images."""
        gray = (ids * 16 + 8).astype(jnp.uint8).reshape(len(ids), 12, 12, 1)
        return jnp.repeat(gray, 3, axis=-1)


def use(patch) -> None:
    """Puts it in the place of all networks.

    Args:
      patch: pytest's.
    """
    where = "t2i_jax.eval.extractors"
    patch.setattr(f"{where}.inception", lambda path, mode: toy_extractor(f"inception-{mode}"))
    for name in ("clip", "dinov2", "pickscore", "hpsv2"):
        patch.setattr(f"{where}.{name}", lambda *_, name=name, **__: toy_extractor(f"{name}-toy"))


@pytest.fixture(autouse=True, scope="module")
def in_place():
    """Puts it there for all tests of a file, which names this fixture."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        yield patch


def write_images(folder: pathlib.Path, count: int, seed: int = 0, size: int = 8) -> pathlib.Path:
    """A folder of PNGs with captions beside them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for row in range(count):
        colour = rng.integers(0, 256, 3)
        noise = rng.integers(-20, 20, (size, size, 3))
        image = np.clip(colour + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{row:03d}.png")
        (folder / f"{row:03d}.txt").write_text(f"a picture of {colour[0]}")
    return folder


def with_rows(folder, home, each):
    """A folder whose table names every image so many times."""
    rows = [
        f"{path.name},caption {i} of {path.stem}"
        for path in sorted(folder.glob("*.png"))
        for i in range(each)
    ]
    shutil.copytree(folder, home)
    (home / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    return home


def evaluate(folders, out, *more, shard=10):
    """What is printed where generated and real images are compared."""
    made, real = folders
    common = ("--images", made, "--reference", real, "--out", out, "--shard-size", shard)
    return inside("evaluate", *common, *more).stdout


def features_of(folder):
    """What the toy computes of a folder's PNGs, (N, 6)."""
    images = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return toy_extractor().features(images, 32)["pool3"]


def metrics_in(out):
    """Results by name, and all of the file."""
    results = json.loads((out / "results.json").read_text())
    return {one["name"]: one for one in results["metrics"]}, results


def refused_captions(folders, file, place):
    """The sentence by which captions of a file are refused for generated images."""
    return refused(
        "evaluate", "--images", folders[0], "--captions", file, "--metrics", "clip", "--out", place
    )
