"""From the bytes of a picture file to RGB pixels, whatever kind of file it is; what can't be used is named."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from t2i_jax.data.source import BadSample

_MOST_PIXELS = 100_000_000  # more is taken for a decompression bomb
_LEAST_SIDE = 4  # pixels


def decode(data: bytes, name: str) -> np.ndarray:
    """uint8 HWC RGB of a picture file.

    The first frame of an animation; turned as EXIF says; gray, palette and CMYK converted, 16 bits scaled to 8,
    transparent parts on white.

    Args:
      data: the whole file. name: for messages.

    Raises:
      BadSample: "empty file", "not a picture", "truncated picture", "too many pixels" or "too small".
    """
    if not data:
        raise BadSample("empty file", name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are checked here
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > _MOST_PIXELS:
                raise BadSample("too many pixels", name)
            if min(picture.size) < _LEAST_SIDE:
                raise BadSample("too small", name)
            picture.seek(0)
            picture.load()
            return _rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise BadSample("too many pixels", name) from None
    except Image.UnidentifiedImageError:
        raise BadSample("not a picture", name) from None
    except BadSample:
        raise
    except Exception:  # decoders raise whatever a damaged file makes them
        raise BadSample("truncated picture", name) from None


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return np.repeat(_eight_bits(np.asarray(picture))[..., None], 3, axis=-1)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    return np.asarray(picture.convert("RGB"), np.uint8)


def _eight_bits(gray_HW: np.ndarray) -> np.ndarray:
    """Gray of more than 8 bits: 16 bits where it goes beyond 255, fractions where it stays within 1."""
    top = float(gray_HW.max(initial=0))
    scale = 255.0 if top <= 1 and gray_HW.dtype.kind == "f" else 1.0 if top <= 255 else 255.0 / 65535.0
    return np.clip(np.rint(gray_HW.astype(np.float64) * scale), 0, 255).astype(np.uint8)
