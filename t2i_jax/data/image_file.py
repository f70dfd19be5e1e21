"""The one reader of images: from a file, its bytes or an image of Pillow to uint8 pixels, whatever
kind of image it is.

What can't be used is named. Nothing outside this process runs: the formats that are read are
listed, and each is decoded by Pillow itself.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import importlib
import io
import os
import threading
import warnings
import zlib
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile

from t2i_jax.data.source import BadSample, Record, Source
from t2i_jax.errors import UserError
from t2i_jax.files import read_regular

ImageLike: TypeAlias = str | os.PathLike | bytes | BinaryIO | Image.Image
"""The forms in which an image can be given: a path, the bytes of a file, an open file, an image of
Pillow."""

MOST_BYTES = 2**29
"""The largest image file that is read."""
LEAST_SIDE = 4
"""Pixels of the smallest side that is read."""
WHITE, BLACK = 255, 0
_ENDINGS = {  # endings of each format that is read; no other is opened
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_WITH_DELEGATE = ("EPS", "WMF", "BUFR", "GRIB", "HDF5")  # others do the work when these are loaded
_MOST_PIXELS = 100_000_000  # more is taken for a decompression bomb
_ORIENTATION = 0x0112  # the EXIF tag
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_LFS = b"version https://git-lfs"
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Png", "Ppm", "Tiff", "WebP")
for _name in _PLUGINS:  # `Image.init` would import those of three dozen other formats too
    with contextlib.suppress(ImportError):  # an older Pillow
        importlib.import_module(f"PIL.{_name}ImagePlugin")
FORMATS = tuple(name for name in _ENDINGS if name in Image.OPEN)
"""Names of the formats that are read, of those that Pillow here can read."""
ENDINGS = tuple(ending for name in FORMATS for ending in _ENDINGS[name])
"""Endings of their files, in small letters."""

# Sizes are checked here, and damage that matters raises. A filter for a while, per image, would not
# do: threads that decode side by side would leave it behind.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(data: bytes, name: str, channels: int = 3) -> np.ndarray:
    """uint8 (height, width, channels) of an image file.

    The first frame of an animation, turned as EXIF says (EXIF that is broken says nothing). Gray,
    palette, CMYK, YCbCr and Lab are converted. 16 bits become 8 by dividing by 257, floats are
    taken to be from 0 to 1. Transparent parts are on white where the result has no alpha.

    Args:
      data: the whole file. name: for messages. channels: 1: gray (luma), 3: RGB, 4: RGB and alpha,
        not premultiplied, 255 where the file has none.

    Raises:
      BadSample: "empty file", "file too large", "not an image", "truncated image", "too many
        pixels", "too small", "gray beyond 16 bits" or "gray beyond 0 to 1".
    """
    return _from_bytes(data, name, channels, WHITE)


def in_channels(image_HWC: np.ndarray, channels: int) -> np.ndarray:
    """An image with another number of channels, converted as `decode` does it.

    Args:
      image_HWC: uint8 with 1, 3 or 4 channels.
    """
    if image_HWC.shape[-1] == channels:
        return image_HWC
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
    return _converted(image, channels, WHITE)


def file_bytes(path: str | os.PathLike, name: str) -> bytes:
    """The bytes of an image file.

    Raises:
      BadSample: "no such file", "unreadable file", "not a regular file" (a pipe, a device, a
        folder) or "file too large".
    """
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        reasons = {
            errno.ENOENT: "no such file",
            errno.EINVAL: "not a regular file",
            errno.EFBIG: "file too large",
        }
        raise BadSample(reasons.get(error.errno or 0, "unreadable file"), name) from None
    except ValueError:
        raise BadSample("unreadable file", name) from None


def read(given: ImageLike, channels: int = 3, field: str = "image") -> np.ndarray:
    """uint8 (height, width, channels) of an image that a person gave, as `decode` makes it.

    Args:
      given: of an open file all that is left is read; of an image of Pillow its present frame.
      channels: as in `decode`. field: where it was given, for the message.

    Raises:
      UserError: it can't be used.
    """
    return _given(given, channels, WHITE, field)


def read_mask(given: ImageLike, field: str = "mask") -> np.ndarray:
    """uint8 (height, width, 1) of a mask that a person gave: 255 where it is white.

    It is read as any image (turned as EXIF says, colours by their luma), but its transparent parts
    are on black: what is not there is not marked.

    Raises:
      UserError: it can't be used.
    """
    return _given(given, 1, BLACK, field)


def is_plain(data: bytes) -> bool:
    """Whether an image file that `decode` reads is a common one of 8 bits, gray, RGB or RGBA, one
    frame, not to be turned.

    Such a file can be stored as it is; of any other kind only what `decode` makes of it.
    """
    try:
        with _whole_files:
            image = _open(data)
            frames = getattr(image, "n_frames", 1)
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            image.load()
    except Exception:  # of damaged notes beside the pixels
        return False
    common = image.format in ("JPEG", "PNG", "WEBP") and image.mode in ("RGB", "L", "RGBA")
    return common and frames == 1 and not turned and "transparency" not in image.info


def looks_like_image(start: bytes) -> bool:
    """Whether a file that begins so is of a format that is read; its first 32 bytes are enough."""
    accepts = [Image.OPEN[name][1] for name in FORMATS if name != "PPM"]  # "P6" may be a text too
    return any(accept is not None and accept(start) is True for accept in accepts)


class ImageFiles(Source):
    """Sources whose images are files: they define `__len__`, `file` and `caption`."""

    @abc.abstractmethod
    def file(self, index: int) -> tuple[bytes, str]:
        """The image file of a record as it is stored, and its name; or `BadSample`."""

    @abc.abstractmethod
    def caption(self, index: int) -> str:
        """The caption of a record; or `BadSample`."""

    def image(self, index: int) -> np.ndarray:
        """The image of a record, uint8 HWC with `channels`; or `BadSample`."""
        return decode(*self.file(index), self.channels)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.image(index), "caption": self.caption(index)}

    def without_image(self, index: int) -> Record:
        """The record with "image" None; the image is not read."""
        return {"image": None, "caption": self.caption(index)}

    def without_caption(self, index: int) -> Record:
        """The record with "caption" None; it may have none, or a bad one."""
        return {"image": self.image(index), "caption": None}


def _given(given, channels, ground, field):
    shown = (
        repr(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else type(given).__name__
    )
    try:
        if isinstance(given, Image.Image):
            return _from_pillow(given, shown, channels, ground)
        if isinstance(given, (str, os.PathLike)):
            data = file_bytes(os.path.expanduser(given), shown)
        else:
            data = given if isinstance(given, (bytes, bytearray, memoryview)) else _rest(given)
        return _from_bytes(bytes(data), shown, channels, ground)
    except BadSample as bad:
        raise UserError(
            f"{field}={shown} can't be used: {bad.reason}; give an image file such as PNG or JPEG."
        ) from None


def _rest(file):
    try:
        data = file.read(MOST_BYTES + 1)
    except (AttributeError, OSError, ValueError):
        data = None
    if not isinstance(data, bytes):
        raise BadSample("neither a path nor an open file of bytes", "")
    return data


def _from_bytes(data, name, channels, ground):
    if not data:
        raise BadSample("empty file", name)
    if len(data) > MOST_BYTES:
        raise BadSample("file too large", name)
    if data.startswith(_LFS):
        raise BadSample("Git LFS pointer in place of the image", name)
    try:
        with _whole_files:
            image = _open(data)
            _check_size(image, name)
            image.seek(0)
            return _pixels(image, name, channels, ground, _depth_of_png(data))
    except Image.DecompressionBombError:
        raise BadSample("too many pixels", name) from None
    except Image.UnidentifiedImageError:
        raise BadSample("not an image", name) from None
    except BadSample:
        raise
    except Exception:  # decoders raise whatever a damaged file makes them
        raise BadSample("truncated image", name) from None


def _from_pillow(image, name, channels, ground):
    if image.format in _WITH_DELEGATE:
        raise BadSample(f"{image.format} is not read", name)
    _check_size(image, name)
    try:
        with _whole_files:
            return _pixels(image, name, channels, ground, 8)
    except BadSample:
        raise
    except Exception:  # a file that is loaded only now
        raise BadSample("truncated image", name) from None


class _WholeFiles(contextlib.AbstractContextManager):
    """A context in which Pillow refuses a file that ends early, as long as any thread is inside.

    Another package of the process may have told it to fill what is missing with gray; as
    muse_maskgit_pytorch does (trainers.py, line 27) when it is imported. That holds again outside.
    """

    def __init__(self):
        self._lock, self._inside, self._fills = threading.Lock(), 0, False

    def __enter__(self):
        with self._lock:
            if self._inside == 0:
                self._fills = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._fills


_whole_files = _WholeFiles()


def _open(data):
    """The image of a file; where its notes are broken, without them."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if data.startswith(_PNG) and image.width * image.height <= _MOST_PIXELS:
            image.load()  # Pillow reads some notes of a PNG file behind its pixels
        return image
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        bare = _without_notes(data)
        if bare == data:
            raise error from None
        return Image.open(io.BytesIO(bare), formats=FORMATS)


def _without_notes(data):
    """A PNG or JPEG file without what does not change its pixels; sound EXIF stays."""
    if data.startswith(_PNG):
        kept = [_PNG]
        for kind, chunk in _chunks(data):
            sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
            if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (kind == b"eXIf" and sound):
                kept.append(chunk)
        return b"".join(kept)
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd8" + b"".join(_segments(data))
    return data


def _chunks(data):
    """Kind and bytes of each chunk of a PNG file."""
    at = len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _segments(data):
    """The segments of a JPEG file but for notes, up to its first scan and with all that follows."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + size]
        is_note = 0xE0 <= marker <= 0xEF or marker == 0xFE
        exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0"
        colours = marker == 0xEE and segment[4:9] == b"Adobe" and size >= 14
        if not is_note or exif or colours:
            yield segment
        at += 2 + size
    yield data[at:]


def _check_size(image, name):
    if image.width * image.height > _MOST_PIXELS:
        raise BadSample("too many pixels", name)
    if min(image.size) < LEAST_SIDE:
        raise BadSample("too small", name)


def _pixels(image, name, channels, ground, depth):
    image.load()
    turn = _TURNS.get(_orientation(image))
    image = _eight_bits(image, name, depth)
    return _converted(image if turn is None else image.transpose(turn), channels, ground)


def _converted(image, channels, ground):
    """uint8 HWC of an image of 8 bits."""
    if channels == 4:
        return np.asarray(image.convert("RGBA"), np.uint8)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (ground, ground, ground, 255))
        image = Image.alpha_composite(under, image)
    if channels == 3:
        return np.asarray(image.convert("RGB"), np.uint8)
    return np.asarray(image.convert("RGB").convert("L"), np.uint8)[..., None]


def _orientation(image):
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the notes are broken, the pixels are not
        return 1


def _eight_bits(image, name, depth):
    """The same image in a mode of 8 bits that Pillow converts to RGBA."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = _gray(image, name)
        if not isinstance(transparent, int):
            return Image.fromarray(gray)
        shown = np.where(np.asarray(image) == transparent, np.uint8(0), np.uint8(255))
        return Image.merge("LA", [Image.fromarray(gray), Image.fromarray(shown)])
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if transparent is not None and depth != 8:
        image = image.copy()
        image.info["transparency"] = _scaled(transparent, image.mode, depth)
    return image


def _gray(image, name):
    """Gray of more than 8 bits as uint8.

    The scale is that of the kind of file, never that of what it shows.
    """
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= -0.5 and values.max() <= 1.5):  # a little more is of resampling
            raise BadSample("gray beyond 0 to 1", name)
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    tags = getattr(image, "tag_v2", {})
    top = 2 ** min(16, tags.get(_BITS, (16,))[0]) - 1
    if values.min() < 0 or values.max() > top:
        raise BadSample("gray beyond 16 bits", name)
    values = values.astype(np.uint32)
    values = top - values if tags.get(_PHOTOMETRIC) == 0 else values
    return ((values * 255 + top // 2) // top).astype(np.uint8)


def _depth_of_png(data):
    """Bits of a channel of a PNG file; 8 for other files."""
    return data[24] if data.startswith(_PNG) and len(data) > 24 else 8


def _scaled(transparent, mode, depth):
    """The transparent colour of a PNG file of `depth` bits, at the 8 bits of its pixels."""
    if mode == "RGB" and isinstance(transparent, tuple):
        return tuple(value >> max(0, depth - 8) for value in transparent)
    if mode == "L" and isinstance(transparent, int) and depth < 8:
        return transparent * 255 // (2**depth - 1)
    return transparent
