"""From the bytes of an image file to RGB pixels, whatever kind of file it is.

What can't be used is named.
"""

from __future__ import annotations

import abc
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from t2i_jax.data.source import BadSample, Record

_MOST_PIXELS = 100_000_000  # more is taken for a decompression bomb
_LEAST_SIDE = 4  # pixels
_ORIENTATION = 0x0112  # the EXIF tag


def decode(data: bytes, name: str) -> np.ndarray:
    """uint8 HWC RGB of an image file.

    The first frame of an animation; turned as EXIF says; gray, palette and CMYK converted, 16 bits
    scaled to 8, transparent parts on white.

    Args:
      data: the whole file. name: for messages.

    Raises:
      BadSample: "empty file", "not an image", "truncated image", "too many pixels" or "too small".
    """
    if not data:
        raise BadSample("empty file", name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are checked here
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > _MOST_PIXELS:
                raise BadSample("too many pixels", name)
            if min(image.size) < _LEAST_SIDE:
                raise BadSample("too small", name)
            image.seek(0)
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise BadSample("too many pixels", name) from None
    except Image.UnidentifiedImageError:
        raise BadSample("not an image", name) from None
    except BadSample:
        raise
    except Exception:  # decoders raise whatever a damaged file makes them
        raise BadSample("truncated image", name) from None


def is_plain(data: bytes) -> bool:
    """Whether an image file that `decode` reads is a common one of 8 bits, RGB or gray, one frame,
    not to be turned.

    Such a file can be stored as it is; of any other kind only what `decode` makes of it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # of damaged notes beside the pixels
        return False
    common = image.format in ("JPEG", "PNG", "WEBP") and image.mode in ("RGB", "L")
    return common and frames == 1 and not turned and "transparency" not in image.info


class ImageFiles(abc.ABC):
    """What sources share whose images are files: they define `__len__`, `file` and `caption`."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abc.abstractmethod
    def file(self, index: int) -> tuple[bytes, str]:
        """The image file of a record as it is stored, and its name; or `BadSample`."""

    @abc.abstractmethod
    def caption(self, index: int) -> str:
        """The caption of a record; or `BadSample`."""

    def __getitem__(self, index: int) -> Record:
        return {"image": decode(*self.file(index)), "caption": self.caption(index)}

    def without_image(self, index: int) -> Record:
        """The record with "image" None; the image is not read."""
        return {"image": None, "caption": self.caption(index)}

    def without_caption(self, index: int) -> Record:
        """The record with "caption" None; it may have none, or a bad one."""
        return {"image": decode(*self.file(index)), "caption": None}


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return np.asarray(image.convert("RGB"), np.uint8)


def _eight_bits(gray_HW: np.ndarray) -> np.ndarray:
    """Gray of more than 8 bits: 16 bits where it goes beyond 255, fractions where it stays within
    1.
    """
    top = float(gray_HW.max(initial=0))
    scale = (
        255.0 if top <= 1 and gray_HW.dtype.kind == "f" else 1.0 if top <= 255 else 255.0 / 65535.0
    )
    return np.clip(np.rint(gray_HW.astype(np.float64) * scale), 0, 255).astype(np.uint8)
