"""Protocols: the crops pixel by pixel, and results of different ones are refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval.protocol import PROTOCOLS, differences, protocol, require_same
from t2i_jax.eval.resize import adm_crop
from t2i_jax.eval.resize import square as square_crop


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "height,width,halvings,then,cut",
    [
        # (width, height) after each step, and the corner (left, top) of the cut
        (70, 100, [(50, 35), (25, 17)], (24, 16), (4, 0)),
        (64, 31, [], (16, 33), (0, 8)),
        (129, 300, [(150, 64), (75, 32), (37, 16)], (37, 16), (10, 0)),
        (16, 16, [], (16, 16), (0, 0)),
        (9, 12, [], (21, 16), (2, 0)),
    ],
)
def test_adms_crop_step_by_step(height, width, halvings, then, cut):
    image = noise(height, width)
    wanted = Image.fromarray(image)
    for size in halvings:
        wanted = wanted.resize(size, Image.Resampling.BOX)
    wanted = wanted.resize(then, Image.Resampling.BICUBIC)
    left, top = cut
    wanted = wanted.crop((left, top, left + 16, top + 16))
    np.testing.assert_array_equal(adm_crop(image, 16), np.asarray(wanted))


def test_halving_by_box_is_the_mean_of_four_pixels():
    image = noise(32, 32)
    means = image.astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(adm_crop(image, 16) - means).max() <= 1  # Pillow rounds in each direction


def test_the_square_is_cut_before_it_is_resized():
    image = noise(40, 60)
    image[:, :10], image[:, 50:] = 0, 255  # outside the square: none of it may bleed in
    cut = Image.fromarray(image[:, 10:50])
    for name, resample in (("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.BICUBIC)):
        np.testing.assert_array_equal(
            square_crop(image, 16, name), np.asarray(cut.resize((16, 16), resample))
        )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_brings_every_image_to_its_size(name):
    one = protocol(name)
    for image in (noise(333, 500), noise(100, 41), noise(20, 20)[..., :1]):
        brought = one.bring(image)
        assert brought.shape == (one.size, one.size, 3) and brought.dtype == np.uint8
    ready = noise(one.size, one.size)
    assert one.bring(ready) is ready


def test_coco30k_is_what_the_papers_leave_open_said():
    one = protocol("coco30k")
    assert (one.count, one.reference_count, one.size) == (30_000, 40_504, 256)
    assert (one.crop, one.filter, one.modes) == ("square", "lanczos", ("clean", "tf"))
    assert one.about()["modes"] == ["clean", "tf"] and "chosen" not in one.about()


def test_results_of_different_protocols_are_refused_with_the_field():
    a, b = PROTOCOLS["coco30k"].about(), PROTOCOLS["coco30k-t2ibench"].about()
    require_same("fid_clean_inception", a, dict(a))
    with pytest.raises(UserError, match="size=256 in the first and 299 in the second;"):
        require_same("fid", a, {**a, "size": 299})
    with pytest.raises(UserError, match=r"name='coco30k' .* more fields differ"):
        require_same("fid", a, b)


def test_differences_look_inside_and_tuples_are_lists():
    a = {"extractor": {"sha256": "1", "layer": "pool3"}, "n": (1, 2), "only": 1}
    b = {"extractor": {"sha256": "2", "layer": "pool3"}, "n": [1, 2]}
    assert differences(a, b) == {"extractor.sha256": ("1", "2"), "only": (1, None)}


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="coco30k"):
        protocol("coco3k")
    with pytest.raises(UserError, match="crop='none' with size=256"):
        dataclasses.replace(PROTOCOLS["coco30k"], crop="none")
    with pytest.raises(UserError, match="filter='none' with crop='square'"):
        dataclasses.replace(PROTOCOLS["coco30k"], filter="none")
    with pytest.raises(UserError, match="uint8"):
        PROTOCOLS["coco30k"].bring(np.zeros((4, 4, 3)))
