"""Images of every kind, and bytes that are none: what the tests of all sources are fed."""

import io

import numpy as np
from PIL import Image


def encode(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def photo(number=0, size=(20, 16)):
    """An image without two equal pixels side by side, so that a mistake shows."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


_TURNED = Image.Exif()
_TURNED[0x0112] = 6  # as a camera held upright
CONVERTED = {  # ending and bytes of what becomes RGB
    "cmyk": (".jpg", encode(photo().convert("CMYK"), "JPEG")),
    "deep": (".png", encode(Image.fromarray(np.full((8, 8), 32896, np.uint16)))),
    "alpha": (".png", encode(photo().convert("RGBA"))),
    "palette": (".png", encode(photo().convert("P"))),
    "animated": (".gif", encode(photo(1), "GIF", save_all=True, append_images=[photo(2)])),
    "turned": (".jpg", encode(photo(), "JPEG", exif=_TURNED)),
}
BAD = {  # ending, bytes and reason of what can't be used
    "empty": (".png", b"", "empty file"),
    "words": (".png", b"hello", "not an image"),
    "short": (".jpg", encode(photo(size=(64, 64)), "JPEG")[:400], "truncated image"),
    "bomb": (".png", encode(Image.new("1", (20_000, 20_000))), "too many pixels"),
}
BAD_CAPTIONS = {
    b"": "empty caption",
    b" \n\t": "empty caption",
    "caf\xe9".encode("latin-1"): "caption is not UTF-8",
}
