"""Preprocessing of an image of any size into the input of a network, in the ways of the packages
whose numbers are quoted.

They differ by filter, antialiasing and rounding, which alone moves an FID by more than many papers
improve it (Parmar et al. 2022): each has a name here, and results keep it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from t2i_jax import config
from t2i_jax.errors import UserError

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
# pillow, unclipped: antialiased; tf1, half_pixel: bilinear between the two nearest pixels
RESIZERS = ("pillow", "unclipped", "tf1", "half_pixel")
CROPS = ("none", "before", "after", "padded")
_WHITE = 255


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of one extractor: resizes an image and scales its pixels; called with one
    image, gives float32 (size, size, 3).

    Attributes:
      mode: the name that results keep.
      size: pixels per side.
      resize: "pillow", with antialiasing; "unclipped", the same of float32 that may end below 0 or
        above 255, as PyTorch's of tensors; "tf1", bilinear at `i * scale` without half a pixel's
        shift, as TensorFlow 1; "half_pixel", bilinear at `(i + 1/2) * scale - 1/2`, as PyTorch.
      filter: of the two with antialiasing: "bicubic", "bilinear", "lanczos" or "box".
      rounded: of "pillow", whether pixels are uint8 again after resizing; otherwise they are
        float32, clipped to [0, 255].
      crop: the middle square of the image "before" resizing; "after" the shorter side got its
        size; "none": the whole image is squeezed into a square; "padded": the longer side gets the
        size, and the whole image is in the middle of a black square.
      mean, std: per channel, for pixels from 0 to 255: the result is (x - mean) / std.
    """

    mode: str
    size: int
    resize: str = "pillow"
    filter: str = "bicubic"
    rounded: bool = False
    crop: str = "none"
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)

    def __post_init__(self):
        config.one_of("resize", self.resize, RESIZERS)
        config.one_of("filter", self.filter, FILTERS)
        config.one_of("crop", self.crop, CROPS)
        if self.size < 1:
            raise UserError(f"size={self.size} is not positive; give 1 or more pixels.")
        if not self._antialias and (self.filter != "bilinear" or self.crop in ("after", "padded")):
            raise UserError(
                f"resize={self.resize!r} is bilinear and of whole images; give filter='bilinear' "
                "and crop='none' or 'before'."
            )

    def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """The input (size, size, 3), float32, of an image as `rgb` takes it."""
        pixels = self.resized(image)
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def resized(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """The resized and cropped image before scaling: float32 pixels from 0 to 255."""
        image_HWC = rgb(image)
        if self.crop == "before":
            image_HWC = middle(image_HWC, min(image_HWC.shape[:2]), lower=True)
        if not self._antialias:
            return bilinear(image_HWC, self.size, 0.5 if self.resize == "half_pixel" else 0.0)
        shape = (self.size, self.size)
        if self.crop == "after":
            shape = _short_side(image_HWC.shape[:2], self.size)
        if self.crop == "padded":
            shape = _long_side(image_HWC.shape[:2], self.size)
        found = self._whole(image_HWC, shape).astype(np.float32)
        return _padded(found, self.size) if self.crop == "padded" else middle(found, self.size)

    def _whole(self, image_HWC, shape):
        if self.rounded:
            return pillow(image_HWC, shape, self.filter)
        return pillow_float(image_HWC, shape, self.filter, clipped=self.resize == "pillow")

    @property
    def _antialias(self):
        return self.resize in ("pillow", "unclipped")

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that results keep, as plain values."""
        return {
            "mode": self.mode,
            "resize": self.resize,
            "size": self.size,
            "filter": self.filter,
            "antialias": self._antialias,
            "rounded": self.rounded,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
        }


_TF = (128.0,)  # as the graph of TensorFlow: (x - 128) / 128
# The modes of Inception, by the package whose numbers they give.
INCEPTION: Mapping[str, Preprocessing] = {
    "clean": Preprocessing("clean", 299, mean=_TF, std=_TF),  # clean-fid
    # TTUR, ADM's evaluator, torch-fidelity, torchmetrics with antialias=False
    "tf": Preprocessing("tf", 299, "tf1", "bilinear", mean=_TF, std=_TF),
    "pytorch-fid": Preprocessing("pytorch-fid", 299, "half_pixel", "bilinear"),
    "torchmetrics": Preprocessing(
        "torchmetrics", 299, "pillow", "bilinear", mean=_TF, std=_TF
    ),  # since 1.9
    # text2image-benchmark, which calls it clean
    "t2i-benchmark": Preprocessing("t2i-benchmark", 299, rounded=True, crop="before"),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clip(size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """The preprocessing of CLIP: the shorter side resized by Pillow's bicubic filter, the middle
    cut out; `mean` and `std` of pixels from 0 to 1.
    """
    return Preprocessing("clip", size, rounded=True, crop="after", **_of_255(mean, std))


def cmmd(size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """The preprocessing of CMMD (Jayasumana et al. 2023): the middle square, resized by Pillow's
    bicubic filter.
    """
    return Preprocessing("cmmd", size, rounded=True, crop="before", **_of_255(mean, std))


def hpsv2(size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    """The preprocessing of HPSv2 (Wu et al. 2023, `light_augmentation` of its OpenCLIP): the longer
    side resized, by a bicubic filter on floats, and black beside the image; `mean` and `std` of
    pixels from 0 to 1.

    As torchvision resizes tensors from 0.17 on; before, it did so without antialiasing.
    """
    # Theirs leaves an image whose longer side has the size already as it is, and can't use it
    # where it is not square.
    return Preprocessing("hpsv2", size, "unclipped", crop="padded", **_of_255(mean, std))


def dinov2(size: int = 224) -> Preprocessing:
    """The preprocessing of FD-DINOv2 (Stein et al. 2023, dgm-eval): the whole image squeezed into a
    square by Pillow's bicubic filter.
    """
    return Preprocessing("dinov2", size, rounded=True, **_of_255(IMAGENET_MEAN, IMAGENET_STD))


def _of_255(mean, std):
    return {
        "mean": tuple(_WHITE * float(m) for m in mean),
        "std": tuple(_WHITE * float(s) for s in std),
    }


def rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """An image as uint8 (H, W, 3): grey is repeated, a palette looked up, transparency left out, as
    Pillow's convert("RGB") does in all the packages.

    Args:
      image: a Pillow image, or uint8 (H, W) or (H, W, C) with 1 to 4 channels: grey, grey and
        alpha, RGB, RGBA.

    Raises:
      UserError: an array of another type or shape, or without pixels.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise UserError(
            f"an image is {pixels.dtype}{pixels.shape}; give uint8 (height, width, channels)."
        )
    if not pixels.size:
        raise UserError(f"an image of {pixels.shape[0]}x{pixels.shape[1]} has no pixels; leave it.")
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return pixels[..., :3]


def pillow_float(
    image_HWC: np.ndarray, shape: Sequence[int], filter: str, clipped: bool = True
) -> np.ndarray:
    """An image resized by Pillow's antialiasing filters channel by channel in float32 and not
    rounded.

    Args:
      clipped: to [0, 255]; otherwise bicubic and Lanczos go beyond them at edges.
    """
    height, width = shape
    floats = np.ascontiguousarray(np.moveaxis(image_HWC, 2, 0), np.float32)
    if floats.shape[1:] != (height, width):
        floats = np.stack(
            [
                np.asarray(Image.fromarray(channel).resize((width, height), FILTERS[filter]))
                for channel in floats
            ]
        )
    found = np.moveaxis(floats, 0, 2)
    return found.clip(0, _WHITE) if clipped else found


def pillow(image_HWC: np.ndarray, shape: Sequence[int], filter: str) -> np.ndarray:
    """An image resized by Pillow as uint8."""
    if image_HWC.shape[:2] == tuple(shape):
        return image_HWC
    height, width = shape
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    return np.asarray(image.resize((width, height), FILTERS[filter]))


def bilinear(image_HWC: np.ndarray, size: int, shift: float) -> np.ndarray:
    """An image resized by interpolation between the two nearest pixels of each axis, at `(i +
    shift) * scale - shift`; float32.

    Args:
      shift: 0 as TensorFlow 1 (and torch-fidelity), 1/2 as PyTorch.
    """
    height, width = image_HWC.shape[:2]
    top, below, weight_y = _neighbours(height, size, shift)
    left, right, weight_x = _neighbours(width, size, shift)
    rows, place = np.unique(np.concatenate([top, below]), return_inverse=True)
    lines = image_HWC[rows].astype(np.float32)
    lines = _between(lines[:, left], lines[:, right], weight_x[:, None])
    top, below = np.split(place.reshape(-1), 2)
    return _between(lines[top], lines[below], weight_y[:, None, None])


def _neighbours(n, size, shift):
    """The two pixels of n between which each of `size` lies, and the weight of the second."""
    scale, places = np.float32(n / size), np.arange(size, dtype=np.float32)
    at = np.maximum((places + np.float32(shift)) * scale - np.float32(shift), 0)
    low = np.minimum(at.astype(np.int64), n - 1)
    return low, np.minimum(low + 1, n - 1), at - low.astype(np.float32)


def _between(a, b, weight):
    return a + (b - a) * weight


def middle(image_HWC: np.ndarray, size: int, lower: bool = False) -> np.ndarray:
    """The middle square of `size` pixels of an image that has as many or more a side.

    Args:
      lower: half pixels are rounded down, as in CMMD; otherwise to the even number, as torchvision
        does it.
    """
    spare = [side - size for side in image_HWC.shape[:2]]
    top, left = (side // 2 if lower else round(side / 2) for side in spare)
    return image_HWC[top : top + size, left : left + size]


def _short_side(shape, size):
    """The (height, width) of which the shorter is `size`, the other rounded down."""
    short = min(shape)
    height, width = (size if side == short else int(size * side / short) for side in shape)
    return height, width


def _long_side(shape, size):
    """The (height, width) of which the longer is `size`, the other rounded, with 1 pixel or
    more.
    """
    scale = size / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    return height, width


def _padded(image_HWC, size):
    """A square of `size` pixels with the image in the middle of zeros."""
    spare = [size - side for side in image_HWC.shape[:2]]
    return np.pad(image_HWC, [*((n // 2, n - n // 2) for n in spare), (0, 0)])


def square(image: np.ndarray | Image.Image, size: int, filter: str = "lanczos") -> np.ndarray:
    """The middle square of an image, resized by Pillow to `size` pixels a side: uint8 (size, size,
    3).
    """
    config.one_of("filter", filter, FILTERS)
    image_HWC = rgb(image)
    return pillow(middle(image_HWC, min(image_HWC.shape[:2]), lower=True), (size, size), filter)


def adm_crop(image: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """The crop of guided-diffusion's ImageNet references (Dhariwal & Nichol 2021): halved by the
    box filter while the shorter side is twice the size or more, then bicubic to the size, then the
    middle square: uint8 (size, size, 3).
    """
    image_HWC = rgb(image)
    while min(image_HWC.shape[:2]) >= 2 * size:
        image_HWC = pillow(image_HWC, [side // 2 for side in image_HWC.shape[:2]], "box")
    scale = size / min(image_HWC.shape[:2])
    shape = [round(side * scale) for side in image_HWC.shape[:2]]
    return middle(pillow(image_HWC, shape, "bicubic"), size, lower=True)
