"""Images and masks as people give them: whatever the form and the size, one array comes of it."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from PIL import Image

from t2i_jax.data.crop import crop
from t2i_jax.errors import UserError
from t2i_jax.systems import given, notices

_RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
_RGB[0, 0], _RGB[0, 1] = 0, 255


def _read(one, channels=3, count=None):
    return given.images("init_images", one, count, channels)


def test_every_form_of_an_image_is_the_same_image(tmp_path):
    Image.fromarray(_RGB).save(tmp_path / "a.png")
    pil, path = Image.fromarray(_RGB), tmp_path / "a.png"
    alone = (_RGB, _RGB / 255.0, np.float16(_RGB / 255.0), pil, path, str(path), path.read_bytes())
    for one in (*alone, *([one] for one in alone), np.stack([_RGB]), [pil]):
        (found,) = _read(one)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, _RGB)
    for found in _read([_RGB, pil, path], count=3) + _read(pil, count=2):
        np.testing.assert_array_equal(found, _RGB)


def test_bfloat16_is_a_float():
    half = np.full((6, 9, 3), 0.5, ml_dtypes.bfloat16)
    assert (_read(half)[0] == 128).all()


def test_channels_become_those_of_the_system():
    gray, clear = _RGB[..., 0], np.dstack([_RGB, np.full((6, 9), 0, np.uint8)])
    for flat in (gray, gray[..., None]):
        np.testing.assert_array_equal(_read(flat)[0], np.repeat(gray[..., None], 3, axis=2))
        np.testing.assert_array_equal(_read(flat, 1)[0], gray[..., None])
    assert (_read(clear)[0] == 255).all() and (_read(clear, 1)[0] == 255).all()
    np.testing.assert_array_equal(_read(clear, 4)[0], clear)
    luma = np.asarray(Image.fromarray(_RGB).convert("L"))
    np.testing.assert_array_equal(_read(_RGB, 1)[0], luma[..., None])
    many = np.concatenate([_RGB, _RGB], axis=2)
    np.testing.assert_array_equal(_read([many], 6)[0], many)
    assert given.fitted("cond_images", [many], (4, 4)).shape == (1, 4, 4, 6)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        ([], "is empty"),
        (np.zeros((0, 6, 9, 3), np.uint8), "has no images"),
        (np.zeros((2, 0, 9, 3), np.uint8), "height, width, channels"),
        (_RGB.transpose(2, 0, 1), r"is uint8 \(3, 6, 9\); give \(height, width, channels\)"),
        (_RGB.astype(int), "is int64; give uint8 from 0 to 255, or floats from 0 to 1"),
        (_RGB.astype(np.uint16), "is uint16"),
        (_RGB > 9, r"init_images\[0\] is bool"),
        (_RGB / 1.0, "has values from 0 to 255; give floats from 0 to 1"),
        (_RGB / 127.5 - 1, "has values from -1 to 1"),
        ([_RGB, _RGB / 255.0 * np.nan], r"init_images\[1\] has NaN or infinity"),
        (np.full((6, 9, 3), np.inf), "NaN or infinity"),
        (_RGB / 255 * 1j, "is complex128"),
        (None, "is None; give"),
        ([None], r"init_images\[0\] is None"),
        ({"image": 1}, "is a dict"),
        (7, "is an int; give a file"),
        (["no such file.png"], r"init_images\[0\]='no such file.png' can't be used"),
        (np.zeros((1, 1, 3), np.uint8), "init_images is 1x1 pixels; give 4 or more a side"),
        (np.zeros((9, 3)), "init_images is 3x9 pixels"),
        ([[_RGB]], r"init_images\[0\] is uint8 \(1, 6, 9, 3\)"),
    ],
)
def test_anything_else_is_named(one, says):
    with pytest.raises(UserError, match=says) as error:
        _read(one)
    assert "\n" not in str(error.value)


def test_an_image_per_prompt_or_one_for_all():
    assert len(_read([_RGB] * 2, count=2)) == 2 and len(_read(_RGB, count=5)) == 5
    with pytest.raises(UserError, match="has 1 image for 2 prompts; give one image per prompt"):
        _read([_RGB], count=2)
    assert given.count_of(init_images=_RGB, cond_images=[_RGB] * 3) == 3
    assert given.count_of(init_images=None) == given.count_of(init_images=_RGB) == 1


@drawn(
    height=st.integers(4, 40), width=st.integers(4, 40), side=st.integers(4, 24),
    how=st.sampled_from(["center", "resize"]),
)  # fmt: skip
def test_a_square_is_cut_as_training_cuts_it(height, width, side, how):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with notices.quiet():
        (found,) = given.fitted("init_images", [image], (side, side), how)
    np.testing.assert_array_equal(found, crop(image, side, how))


def test_what_is_cut_off_is_told(capsys):
    given.fitted("init_images", [np.zeros((16, 48, 3), np.uint8)] * 2, (16, 16))
    said = "t2i: init_images is 48x16 pixels; the 16x16 in its middle are used.\n"
    assert capsys.readouterr().err == said
    images = [np.zeros((16, w, 3), np.uint8) for w in (16, 48, 8, 32)]
    assert given.fitted("init_images", images, (16, 16)).shape == (4, 16, 16, 3)
    said = "t2i: init_images[1] is 48x16 pixels; the 16x16 in its middle are used, and likewise 2 "
    assert capsys.readouterr().err == said + "others.\n"
    given.fitted("init_images", images[:2], (16, 16), "resize")
    assert "init_images[1] is 48x16 pixels; it is squeezed into 16x16" in capsys.readouterr().err
    assert given.fitted("init_images", [images[1]], (8, 24)).shape == (1, 8, 24, 3)
    assert capsys.readouterr().err == ""


def test_every_form_of_a_mask_is_the_same_mask(tmp_path):
    kept = np.zeros((16, 16), bool)
    kept[4:12, 8:] = True
    white = np.where(kept, np.uint8(255), np.uint8(0))
    Image.fromarray(white).save(tmp_path / "mask.png")
    rgba = np.dstack([np.full_like(white, 255)] * 3 + [white])  # white, transparent outside
    forms = (
        kept, kept[..., None], white, white[..., None], white / 255.0, Image.fromarray(white),
        Image.fromarray(kept), Image.fromarray(rgba), rgba, np.dstack([white] * 3),
        tmp_path / "mask.png",
    )  # fmt: skip
    image = [np.zeros((16, 16, 3), np.uint8)]
    for form in (*forms, *([form] for form in forms), kept[None], white[None]):
        read = given.masks("mask", form, image)
        np.testing.assert_array_equal(given.kept("mask", read, image, (16, 16)), kept[None])


def test_a_mask_goes_the_way_of_its_image():
    image = np.zeros((16, 48, 3), np.uint8)
    left = np.broadcast_to(np.arange(48) < 24, (16, 48))

    def kept(mask, like=image, size=(8, 8)):
        return given.kept("mask", given.masks("mask", mask, [like]), [like], size)[0]

    half = np.broadcast_to(np.arange(8) < 4, (8, 8))
    for mask in (left, left[:, ::2][::2], left.repeat(2, 0).repeat(2, 1), half):
        np.testing.assert_array_equal(kept(mask), half)
    large, made = given.masks("mask", np.repeat(np.repeat(half, 2, 0), 2, 1), [image]), [(16, 16)]
    np.testing.assert_array_equal(given.kept("mask", large, [image], (8, 8), made=made)[0], half)
    with pytest.raises(UserError, match="mask is 16x16 pixels and its image 48x16; give a mask as"):
        given.kept("mask", large, [image], (8, 8))
    with pytest.raises(UserError, match="mask is 48x15 pixels and its image 40x40"):
        kept(left[:15], np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="mask keeps nothing of its image"):
        kept(np.broadcast_to(np.arange(48) < 9, (16, 48)))
    with pytest.raises(UserError, match="white"):
        kept(left.astype(np.uint8))
    with pytest.raises(UserError, match="mask has 2 masks for 1 image"):
        kept(np.stack([left, left]))


def test_several_sizes_become_one_and_one_that_fits_stays():
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    sizes = [(8, 8), (16, 16)]
    assert given.common_size([small, small], sizes) == (8, 8)
    assert given.common_size([small, large], sizes) == (16, 16)
    assert given.common_size([np.zeros((9, 9, 3), np.uint8)], sizes) == (16, 16)
    assert given.cut("start_images", [np.zeros((5, 5, 3))], (8, 8)).shape == (1, 5, 5, 3)
    assert given.cut("start_images", [small, large], (8, 8)).shape == (2, 8, 8, 3)
    wide = np.zeros((16, 32, 3), np.uint8)
    shaped = given.shaped("start_images", [small, large, wide], (8, 8))
    assert [image.shape for image in shaped] == [(8, 8, 3), (16, 16, 3), (8, 8, 3)]
    assert shaped[0] is small and shaped[1] is large
