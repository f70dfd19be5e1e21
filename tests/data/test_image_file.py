"""The one reader of images: what it makes of every mode, depth and orientation is compared with
arithmetic on the pixels that were saved.
"""

import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from t2i_jax.data import image_file
from t2i_jax.data.crop import crop, resized, told
from t2i_jax.data.image_file import decode, file_bytes, looks_like_image, read, read_mask
from t2i_jax.data.source import BadSample
from t2i_jax.errors import UserError
from tests.data.hostile import CONVERTED, damaged, encode, photo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:Image size")


def _red(mode="RGB", size=(20, 16)):
    return Image.new("RGB", size, (200, 30, 30)).convert(mode)


def _chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _png(samples_HWC, depth, colour, *chunks):
    """A PNG file of samples of 1 to 16 bits; `colour`: 0 gray, 2 RGB, 4 and 6 with alpha."""
    height, width, channels = samples_HWC.shape
    if depth == 16:
        rows = samples_HWC.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples_HWC.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=-1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    all_chunks = [
        _chunk(b"IHDR", header),
        *chunks,
        _chunk(b"IDAT", zlib.compress(lines)),
        _chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(all_chunks)


def _reason(act, *arguments):
    with pytest.raises(BadSample) as caught:
        act(*arguments)
    return caught.value.reason


# What is expected, written without Pillow: (RGB of 8 bits, alpha 0 to 255).
def _luma(rgb):
    return rgb.astype(float) @ [0.299, 0.587, 0.114]


def _expected(rgb, alpha, channels, ground=255):
    if channels == 4:
        return np.concatenate([rgb, alpha[..., None]], -1)
    share = alpha[..., None].astype(float) / 255
    flat = rgb * share + ground * (1 - share)
    return flat if channels == 3 else _luma(flat)[..., None]


_TURNED = {  # what each EXIF orientation asks for
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
_SAVED = {  # format, mode of what is saved in it without loss
    "RGB": ("PNG", "TIFF", "WEBP", "BMP"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "L": ("PNG", "TIFF", "BMP"),
    "LA": ("PNG", "TIFF"),
    "1": ("PNG", "TIFF", "BMP"),
    "P": ("PNG", "GIF", "BMP"),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
    "CMYK": ("TIFF",),
}


@st.composite
def _images(draw):
    """An image file, and the RGB and alpha that it shows before it is turned."""
    mode = draw(st.sampled_from(sorted(_SAVED)))
    kind = draw(st.sampled_from(_SAVED[mode]))
    width, height = draw(st.integers(4, 13)), draw(st.integers(4, 13))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    deep = rng.integers(0, 2 ** draw(st.integers(1, 16)), (height, width), dtype=np.uint16)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = rng.choice(np.array([0, 1, 100, 254, 255], np.uint8), (height, width))
    full = np.full_like(alpha, 255)
    gray = rgb[..., :1].repeat(3, -1)
    if mode == "RGB":
        made, shown = Image.fromarray(rgb), (rgb, full)
    elif mode == "RGBA":
        made, shown = Image.fromarray(np.dstack([rgb, alpha])), (rgb, alpha)
    elif mode == "L":
        made, shown = Image.fromarray(gray[..., 0]), (gray, full)
    elif mode == "LA":
        made, shown = Image.fromarray(np.dstack([gray[..., 0], alpha])), (gray, alpha)
    elif mode == "1":
        made, shown = Image.fromarray(gray[..., 0] > 99), ((gray > 99) * np.uint8(255), full)
    elif mode == "P":
        index, palette = rng.integers(0, 7, (height, width), np.uint8), rgb[0].repeat(9, 0)[:7]
        made = Image.fromarray(index)
        made.putpalette(palette.tobytes())
        shown = palette[index], full
    elif mode == "CMYK":
        made = Image.fromarray(np.dstack([rgb, np.zeros_like(alpha)]), "CMYK")
        shown = 255 - rgb, full
    else:
        eight = np.rint(deep / 257)
        made = Image.fromarray(deep)
        if mode == "I":
            made = Image.fromarray(deep.astype(np.int32))
        if mode == "F":
            made, eight = Image.fromarray(deep / np.float32(65535)), np.rint(deep / 65535 * 255)
        shown = eight.astype(np.uint8)[..., None].repeat(3, -1), full
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    orientation = draw(st.integers(1, 8)) if kind in ("PNG", "TIFF", "WEBP") else 1
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    return encode(made, kind, **options), shown, orientation


@given(_images(), st.sampled_from([1, 3, 4]))
def test_an_image_of_any_mode_size_and_orientation_is_what_was_saved(image, channels):
    data, (rgb, alpha), orientation = image
    wanted = _TURNED[orientation](_expected(rgb, alpha, channels))
    found = decode(data, "x", channels)
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    seen = np.ones(wanted.shape, bool)
    if channels == 4:  # the colour behind what can't be seen is free
        seen[..., :3] = wanted[..., 3:] > 0
    assert np.abs(found - wanted.astype(float))[seen].max(initial=0) <= (
        1.0 if channels != 4 else 0
    )


@given(st.integers(0, 65535), st.integers(0, 65535), st.sampled_from(["PNG", "TIFF"]))
def test_gray_of_sixteen_bits_has_one_scale_whatever_else_is_in_the_image(value, other, kind):
    samples = np.full((6, 6), value, np.uint16)
    samples[0, 0] = other
    assert (decode(encode(Image.fromarray(samples), kind), "x")[1:] == round(value / 257)).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 2])
def test_the_transparent_colour_of_a_png_file_is_white_at_every_depth(depth, colour):
    if colour == 2 and depth < 8:
        return  # there are no such files
    channels, top = (1, 3)[colour // 2], 2**depth - 1
    samples = np.zeros((8, 8, channels), np.uint16)
    samples[0], samples[1] = top, top // 3
    for value in {0, top // 3, top}:
        clear = _chunk(b"tRNS", struct.pack(">H", value) * channels)
        found = decode(_png(samples, depth, colour, clear), "x")
        wanted = np.where(samples == value, 255, np.round(samples / top * 255))
        assert np.abs(found.astype(int) - wanted).max() <= (1 if depth == 16 else 0)
        whole = decode(_png(samples, depth, colour, clear), "x", 4)[..., 3]
        np.testing.assert_array_equal(whole == 0, (samples == value).all(-1))


def test_transparency_of_palettes_and_premultiplied_colours():
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([10, 20, 30, 40, 50, 60])
    data = encode(clear, transparency=1)
    assert decode(data, "x").min() == 255 and decode(data, "x", 4)[..., 3].max() == 0
    half = Image.new("RGBA", (8, 8), (200, 100, 0, 128))
    palette = Image.new("PA", (8, 8), (1, 128))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    for image in (palette, half, half.convert("RGBa")):
        assert np.abs(read(image)[0, 0] - np.array([227.4, 177.2, 127])).max() < 2, image.mode
    for image in (half.convert("LA"), half.convert("LA").convert("La")):
        assert np.abs(read(image)[0, 0] - 186.7).max() < 2, image.mode


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colour_spaces_become_rgb(mode):
    # L* 43.2, a* 64.0, b* 42.5, as colour pages give it for this red; Pillow adds 128 to a* and b*
    lab = Image.new("LAB", (20, 16), (110, 192, 170))
    image = lab if mode == "LAB" else _red(mode)
    assert np.abs(read(image).reshape(-1, 3).mean(0) - [200, 30, 30]).max() < 8


def test_a_jpeg_file_of_any_colour_space():
    for mode in ("RGB", "CMYK", "L"):
        pixels = decode(encode(_red(mode), "JPEG"), "x")
        wanted = [82] * 3 if mode == "L" else [200, 30, 30]
        assert np.abs(pixels.reshape(-1, 3).mean(0) - wanted).max() < 12


def test_an_animation_gives_its_first_frame():
    frames = [_red(), Image.new("RGB", (20, 16), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x")[0, 0, 0] > 150


def test_values_beyond_their_scale_are_refused_instead_of_guessed():
    for image, reason in (
        (Image.fromarray(np.full((8, 8), 200.0, np.float32)), "gray beyond 0 to 1"),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "gray beyond 0 to 1"),
        (Image.fromarray(np.full((8, 8), 70_000, np.int32)), "gray beyond 16 bits"),
        (Image.fromarray(np.full((8, 8), -1, np.int32)), "gray beyond 16 bits"),
    ):
        assert _reason(decode, encode(image, "TIFF"), "x") == reason


@pytest.mark.parametrize(
    "kind", [b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"pHYs", b"acTL"]
)
def test_broken_notes_do_not_lose_a_png_file(kind):
    good = encode(photo())
    bomb = b"x\0\0" + zlib.compress(bytes(3_000_000))
    for body in (b"", b"Exif\0\0II*\0\xff\xff", b"\xff" * 30, bomb):
        for crc in (None, 1):
            data = good[:33] + _chunk(kind, body, crc) + good[33:]
            np.testing.assert_array_equal(decode(data, "x"), np.asarray(photo()))


def test_broken_notes_do_not_lose_a_jpeg_file():
    good = encode(photo(), "JPEG")
    for marker in range(0xE0, 0xF0):
        for note in (b"Exif\0\0MM\0*", b"JFIF\0", b"ICC_PROFILE\0", b"Adobe", b"MPF\0II*\0", b"\0"):
            segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(note) + 2) + note
            data = good[:2] + segment + good[2:]
            np.testing.assert_array_equal(decode(data, "x"), decode(good, "x"))


@pytest.mark.parametrize("orientation", _TURNED)
def test_sound_exif_turns_a_file_also_where_other_notes_are_broken(orientation, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # which packages set
    exif = Image.Exif()
    exif[0x0112] = orientation
    note = b"\xff\xe0" + struct.pack(">H", 7) + b"JFIF\0"
    size = 14, 9
    for kind, at, broken in (("JPEG", 2, note), ("PNG", 33, _chunk(b"zTXt", b"x\0\0abc", 1))):
        wanted = _TURNED[orientation](decode(encode(photo(size=size), kind), "x"))
        data = encode(photo(size=size), kind, exif=exif)
        np.testing.assert_array_equal(decode(data, "x"), wanted)
        data = data[:at] + broken + data[at:]
        with pytest.raises(Exception), Image.open(io.BytesIO(data)) as opened:  # noqa: B017
            opened.load()
        np.testing.assert_array_equal(decode(data, "x"), wanted)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM"]
)
@pytest.mark.parametrize("filled", [False, True])
def test_a_truncated_file_is_refused_wherever_it_ends(kind, filled, monkeypatch):
    """Also where another package has told Pillow to fill what is missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled)
    if kind not in image_file.FORMATS:
        pytest.skip(f"Pillow here reads no {kind}")
    data = encode(photo(size=(12, 9)).resize((48, 36)), kind)
    whole = decode(data, "x")
    for end in range(0, len(data), max(1, len(data) // 40)):
        try:
            np.testing.assert_array_equal(
                decode(data[:end], "x"), whole
            )  # an end that says nothing
        except BadSample as bad:
            assert bad.reason in ("empty file", "not an image", "truncated image")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is filled


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer in place of the image"),
        (encode(_red(size=(64, 64)), "JPEG")[:400], "truncated image"),
        (encode(Image.new("L", (2, 2))), "too small"),
        (encode(Image.new("1", (20_000, 20_000))), "too many pixels"),
        (encode(Image.new("1", (12_000, 12_000))), "too many pixels"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    assert _reason(decode, data, "x") == reason


_FILES = [encode(photo(), kind) for kind in image_file.FORMATS]


@given(damaged(*_FILES, *(data for _, data in CONVERTED.values())), st.sampled_from([1, 3, 4]))
def test_a_damaged_file_is_an_image_or_a_bad_sample(data, channels):
    try:
        pixels = decode(data, "x", channels)
    except BadSample as bad:
        assert bad.name == "x"
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (channels,)


def test_no_other_program_is_started_for_a_strangers_file(monkeypatch):
    def started(*_, **__):
        raise AssertionError("another program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("os.system", started)
    script = encode(_red(), "EPS")
    assert _reason(decode, script, "a.png") == "not an image"
    with pytest.raises(UserError, match="EPS is not read"):
        read(Image.open(io.BytesIO(script)))
    assert not {"EPS", "WMF", "PDF"} & set(image_file.FORMATS)


def test_only_regular_files_of_a_sane_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "folder.png").mkdir()
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(100 * 2**30)
    for name, reason in {
        "pipe.png": "not a regular file", "zero.png": "not a regular file",
        "folder.png": "not a regular file", "self.png": "unreadable file",
        "sparse.png": "file too large", "none.png": "no such file", "a\0.png": "unreadable file",
    }.items():  # fmt: skip
        assert _reason(file_bytes, tmp_path / name, name) == reason
        with pytest.raises(UserError, match=f"init=.*can't be used: {reason}; give") as caught:
            read(str(tmp_path / name), field="init")
        assert "\n" not in str(caught.value)
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    photo().save(tmp_path / "real.png")
    np.testing.assert_array_equal(read(tmp_path / "link.png"), np.asarray(photo()))


def test_an_image_is_given_in_any_way(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    with Image.open(tmp_path / "a.png") as opened, open(tmp_path / "a.png", "rb") as file:
        ways = [tmp_path / "a.png", str(tmp_path / "a.png"), "~/a.png", data, file, opened]
        for way in [*ways, io.BytesIO(data), photo(), pathlib.PurePath(tmp_path, "a.png")]:
            np.testing.assert_array_equal(read(way), np.asarray(photo()))
    for way in (3, None, io.StringIO("words"), b"words"):
        with pytest.raises(UserError, match="can't be used"):
            read(way)


def test_what_a_mask_does_not_show_is_not_marked():
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[:, 4:] = 255  # white, and the rest is transparent
    mask[:2, :, :3] = 255
    found = read_mask(Image.fromarray(mask))
    assert found.shape == (8, 8, 1)
    np.testing.assert_array_equal(found[..., 0] == 255, mask[..., 3] == 255)


def test_the_start_of_a_file_says_whether_it_is_an_image():
    for kind in image_file.FORMATS:
        assert looks_like_image(encode(photo(), kind)[:32]) == (kind != "PPM")
    assert not any(map(looks_like_image, (b"", b"hello", b"%!PS-Adobe-3.0 EPSF", b"{}", b"P6 x")))


def test_every_number_of_channels_is_cut_and_resized():
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        image = rng.integers(0, 256, (16, 48, channels), dtype=np.uint8)
        np.testing.assert_array_equal(crop(image, 16, "center"), image[:, 16:32])
        assert crop(image, 8, "resize").shape == (8, 8, channels)
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = [200, 100, 50, 255]
    small = resized(clear, (3, 3))
    assert np.abs(small[small[..., 3] > 8][:, :3].astype(int) - [200, 100, 50]).max() <= 10
    assert (
        told(np.zeros((16, 48, 3)), "center") == "is 48x16 pixels; the 16x16 in its middle are used"
    )
    assert "squeezed" in told(np.zeros((16, 48, 3)), "resize")
    assert told(np.zeros((16, 16, 3)), "center") == ""
