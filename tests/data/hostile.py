"""Images of every kind, and bytes that are none: what the tests of all sources are fed."""

import io

import numpy as np
from hypothesis import strategies as st
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


def _clear():
    """An image that fades from left to right."""
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    return image


_TURNED = Image.Exif()
_TURNED[0x0112] = 6  # as a camera held upright
CONVERTED = {  # ending and bytes of what becomes RGB
    "cmyk": (".jpg", encode(photo().convert("CMYK"), "JPEG")),
    "deep": (".png", encode(Image.fromarray(np.full((8, 8), 32896, np.uint16)))),
    "alpha": (".png", encode(_clear())),
    "clear": (
        ".png",
        encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), transparency=9),
    ),
    "notes": (".png", encode(photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "other": (".jfif", encode(photo(), "JPEG")),
    "palette": (".png", encode(photo().convert("P"))),
    "animated": (".gif", encode(photo(1), "GIF", save_all=True, append_images=[photo(2)])),
    "turned": (".jpg", encode(photo(), "JPEG", exif=_TURNED)),
}
BAD = {  # ending, bytes and reason of what can't be used
    "empty": (".png", b"", "empty file"),
    "words": (".png", b"hello", "not an image"),
    "script": (".png", encode(photo(), "EPS"), "not an image"),
    "pointer": (
        ".png",
        b"version https://git-lfs.github.com/spec/v1\n",
        "Git LFS pointer in place of the image",
    ),
    "short": (".jpg", encode(photo(size=(64, 64)), "JPEG")[:400], "truncated image"),
    "bomb": (".png", encode(Image.new("1", (20_000, 20_000))), "too many pixels"),
}
BAD_CAPTIONS = {
    b"": "empty caption",
    b" \n\t": "empty caption",
    "caf\xe9".encode("latin-1"): "caption is not UTF-8",
    **{
        "a red cat".encode(wide): "caption is not UTF-8"
        for wide in ("utf-16-le", "utf-16-be", "utf-32-le")  # without its mark
    },
}


@st.composite
def damaged(draw, *files):
    """One of some files, with bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at, few = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.binary(max_size=8))
        gone = draw(st.sampled_from([0, len(few), 1, 30]))
        data[at : at + gone] = few
    return bytes(data)
