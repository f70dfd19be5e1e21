"""Images and masks as a user gives them to `generate`: files, Pillow's images, arrays, of any size.

They are read, cut and resized as training reads its images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from PIL import Image

from t2i_jax.data import image_file
from t2i_jax.data.crop import resized
from t2i_jax.errors import UserError
from t2i_jax.systems.notices import tell
from t2i_jax.words import counted, named

_KEPT = 128  # from here on a pixel of a mask is white


class Cut(NamedTuple):
    """The part of an image that is used, and its size afterwards.

    Attributes:
      box: (left, top, right, bottom) in pixels of the image. size: (height, width).
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]


def count_of(**named: Any) -> int:
    """The number of images that a user gives, from the arguments by name; 1 where all stand alone,
    or there are none.
    """
    several = [_several(name, given) for name, given in named.items() if given is not None]
    return next((len(found) for alone, found in several if not alone), 1)


def images(name: str, given: Any, count: int | None, channels: int) -> list[np.ndarray]:
    """uint8 (H, W, channels) of each of the images that a user gives, one per prompt.

    One that stands alone, not in a list, is for all prompts. Transparent parts are on white; gray
    becomes RGB and RGB gray, as the system wants it.

    Args:
      name: of the argument, for messages. given: a path, an image of Pillow, or an array (H, W) or
        (H, W, C), uint8 or floats from 0 to 1; a list of them; or an array (P, H, W, C).
      count: prompts; None: as many as there are images.

    Raises:
      UserError: something else, or another number of images.
    """
    alone, several = _several(name, given)
    read = [_image(_called(name, i, alone), one, channels) for i, one in enumerate(several)]
    if alone:
        return read * (1 if count is None else count)
    if count is not None and len(read) != count:
        raise UserError(
            f"{name} has {counted(len(read), 'image')} for {counted(count, 'prompt')}; give one "
            "image per prompt, or a single one for all."
        )
    return read


def read_once(name: str, given: Any, channels: int | None) -> Any:
    """The images or masks that a user gives, each of them read, for those who look at them more
    than once: an open file has nothing left the second time.

    Args:
      channels: of images; None: they are masks.

    Raises:
      UserError: something else.
    """
    if given is None:
        return None
    alone, several = _several(name, given, is_mask=channels is None)
    called = (_called(name, i, alone) for i in range(len(several)))
    if channels is None:
        read = [_mask(*each) for each in zip(called, several)]
    else:
        read = [_image(*each, channels) for each in zip(called, several)]
    return read[0] if alone else read


def masks(name: str, given: Any, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 (H, W, 1) of a mask for each image, 255 where pixels are kept.

    Args:
      given: as in `images`, white where to keep (transparent parts are on black); or bool arrays
        (H, W) or (P, H, W), True where to keep.
      like: the images that are to be kept, of any sizes.

    Raises:
      UserError: something else, or another number of masks.
    """
    alone, several = _several(name, given, is_mask=True)
    read = [_mask(_called(name, i, alone), one) for i, one in enumerate(several)]
    if not alone and len(read) != len(like):
        raise UserError(
            f"{name} has {counted(len(read), 'mask')} for {counted(len(like), 'image')}; give "
            "one per image, or a single one for all."
        )
    return read * len(like) if alone else read


def fitted(
    name: str, read: Sequence[np.ndarray], size: tuple[int, int], crop: str = "center"
) -> np.ndarray:
    """uint8 (P, *size, C): images cut to the shape of `size` and resampled to it.

    A line on stderr says so where an image has another aspect.

    Args:
      read: of `images`. size: (height, width).
      crop: as `data.crop` of training says; of "random" the middle is taken.
    """
    cuts = [cut_of(image, size, crop) for image in read]
    _tell(name, read, cuts)
    return np.stack([_resampled(image, cut) for image, cut in zip(read, cuts, strict=True)])


def cut(
    name: str, read: Sequence[np.ndarray], size: tuple[int, int], crop: str = "center"
) -> np.ndarray:
    """uint8 (P, H, W, C): images of one size that have the shape of `size` as they are; any others
    as `fitted` makes them.
    """
    if len({image.shape for image in read}) == 1 and _same_aspect(read[0].shape, size):
        return np.stack(read)
    return fitted(name, read, size, crop)


def shaped(
    name: str, read: Sequence[np.ndarray], size: tuple[int, int], crop: str = "center"
) -> list[np.ndarray]:
    """uint8 (H, W, C) of each image: one that has the shape of `size` as it is, any other as
    `fitted` makes it, whatever the images with it are.
    """
    cuts = [
        Cut((0, 0, image.shape[1], image.shape[0]), image.shape[:2])
        if _same_aspect(image.shape, size)
        else cut_of(image, size, crop)
        for image in read
    ]
    _tell(name, read, cuts)
    return [_resampled(image, cut) for image, cut in zip(read, cuts, strict=True)]


def kept(
    name: str,
    read: Sequence[np.ndarray],
    like: Sequence[np.ndarray],
    size: tuple[int, int],
    crop: str = "center",
    made: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """bool (P, *size): masks cut and resampled as their images are, True where pixels are kept.

    A mask belongs to the image as it was given, or to one that is made of it.

    Args:
      read: of `masks`. like: their images, of `images`. size, crop: as in `fitted`. made: the
        (height, width) of what is made of them in other stages.

    Raises:
      UserError: a mask of another shape than its image, or one that keeps nothing.
    """
    found = []
    for mask, image in zip(read, like, strict=True):
        cut = cut_of(image, size, crop)
        if mask.shape[:2] in (size, *made):
            cut = Cut((0, 0, mask.shape[1], mask.shape[0]), size)
        elif not _same_aspect(mask.shape, image.shape):
            (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
            raise UserError(
                f"{name} is {columns}x{rows} pixels and its image {width}x{height}; give a mask as "
                "large as the image or of its aspect, or as what is made of it."
            )
        elif mask.shape[:2] != image.shape[:2]:
            height, width = image.shape[:2]
            mask = resized(mask, (width, height), Image.Resampling.BOX)
        found.append(_resampled(mask, cut, Image.Resampling.BOX)[..., 0] >= _KEPT)
        if not found[-1].any():
            raise UserError(
                f"{name} keeps nothing of its image; give True, or white (255), where to keep, or "
                "leave out both."
            )
    return np.stack(found)


def cut_of(image: np.ndarray, size: tuple[int, int], crop: str = "center") -> Cut:
    """The largest part of an image that has the shape of `size` (height, width), from its middle.

    With crop="resize" all of it.
    """
    height, width = image.shape[:2]
    if crop == "resize":
        return Cut((0, 0, width, height), size)
    wide, high = round(height * size[1] / size[0]), round(width * size[0] / size[1])
    columns, rows = (max(wide, 1), height) if wide < width else (width, min(max(high, 1), height))
    left, top = (width - columns) // 2, (height - rows) // 2
    return Cut((left, top, left + columns, top + rows), size)


def common_size(read: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that all images have where it is one of `sizes`; else the last of these."""
    found = {image.shape[:2] for image in read}
    return next(iter(found)) if len(found) == 1 and found <= set(sizes) else sizes[-1]


def _several(name, given, is_mask=False):
    """(whether it is one image, the images)."""
    if _is_file(given):
        return True, [given]
    if isinstance(given, (list, tuple)):
        if not given:
            raise UserError(f"{name}=[] is empty; give one image, or one per prompt.")
        return False, list(given)
    array = _array(name, given)
    if array.ndim == 2 or (array.ndim == 3 and _has_channels(array, is_mask)):
        return True, [array]
    if not len(array):
        raise UserError(f"{name} has no images; give one, or one per prompt.")
    return False, list(array)


def _is_file(given):
    """Whether it is for the reader of image files."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(given, kinds) or hasattr(given, "read")


def _has_channels(array, is_mask):
    """Whether an array of three axes is one image; one of masks or gray images has no channels."""
    if array.dtype == np.bool_:
        return array.shape[2] == 1
    return array.shape[2] in (1, 2, 3, 4) or not is_mask


def _called(name, i, alone):
    return name if alone else f"{name}[{i}]"


def _array(name, given):
    try:
        array = np.asarray(given)
    except Exception:  # whatever makes an array of itself raises what it likes
        array = np.asarray(None)
    if array.dtype == ml_dtypes.bfloat16:  # NumPy takes it for no float
        array = array.astype(np.float32)
    if array.dtype == object or array.dtype.kind in "USV" or array.ndim not in (2, 3, 4):
        kind = (
            f"{array.dtype} {array.shape}" if array.ndim and array.dtype != object
            else named(given)
        )  # fmt: skip
        raise UserError(
            f"{name} is {kind}; give a file, an image of Pillow, or an array (height, width, "
            "channels), uint8 or floats from 0 to 1."
        )
    return array


def _image(name, given, channels):
    if _is_file(given):
        if channels not in (1, 3, 4):
            raise UserError(f"{name} must have {channels} channels; give an array.")
        return image_file.read(given, channels, name)
    pixels = _pixels(name, _array(name, given), channels)
    if pixels.shape[2] == channels:
        return pixels
    return image_file.read(_as_pil(pixels), channels, name)


def _mask(name, given):
    if _is_file(given):
        return image_file.read_mask(given, name)
    array = _array(name, given)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    pixels = _pixels(name, array, 1)
    if pixels.shape[2] == 1:
        return pixels
    return image_file.read_mask(_as_pil(pixels), name)


def _pixels(name, array, channels):
    """uint8 (H, W, C) of an array (H, W) or (H, W, C)."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4, channels) or not array.size:
        raise UserError(
            f"{name} is {array.dtype} {array.shape}; give (height, width, channels) with 1 to 4 "
            "channels, or (height, width)."
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(
            f"{name} is {array.dtype}; give uint8 from 0 to 255, or floats from 0 to 1."
        )
    if min(array.shape[:2]) < image_file.LEAST_SIDE:
        raise UserError(
            f"{name} is {array.shape[1]}x{array.shape[0]} pixels; give {image_file.LEAST_SIDE} or "
            "more a side, as of files."
        )
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        found = (
            f"values from {low:g} to {high:g}" if np.isfinite(array).all() else "NaN or infinity"
        )
        raise UserError(f"{name} has {found}; give floats from 0 to 1, or uint8 from 0 to 255.")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)


def _as_pil(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _resampled(image, cut, resample=Image.Resampling.BICUBIC):
    height, width = cut.size
    if image.shape[:2] == cut.size and cut.box == (0, 0, width, height):
        return image
    if image.shape[2] in (1, 3, 4):
        return resized(image, (width, height), resample, box=cut.box)
    planes = np.split(image, image.shape[2], axis=2)
    made = [resized(plane, (width, height), resample, box=cut.box) for plane in planes]
    return np.concatenate(made, axis=2)


def _same_aspect(shape, other):
    """Whether one of two sizes is the other, larger or smaller, but for what rounding does."""
    (height, width), (rows, columns) = shape[:2], other[:2]
    return abs(height * columns - width * rows) <= max(height, width, rows, columns)


def _tell(name, read, cuts):
    """Says what is cut off, or squeezed."""
    told, alone = [], all(image is read[0] for image in read)
    for i, (image, cut) in enumerate(zip(read[:1] if alone else read, cuts)):
        (height, width), (left, top, right, bottom) = image.shape[:2], cut.box
        called = _called(name, i, alone)
        if (right - left, bottom - top) != (width, height):
            used = f"the {right - left}x{bottom - top} in its middle are used"
            told.append(f"{called} is {width}x{height} pixels; {used}")
        elif not _same_aspect((height, width), cut.size):
            squeezed = f"it is squeezed into {cut.size[1]}x{cut.size[0]}"
            told.append(f"{called} is {width}x{height} pixels; {squeezed}")
    if told:
        more = len(told) - 1
        tell(told[0] + (f", and likewise {counted(more, 'other')}" if more else ""), "images")
