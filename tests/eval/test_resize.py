"""Resizers beside those of clean-fid, torch-fidelity, PyTorch and torchvision."""

import io

import numpy as np
import pytest
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.eval import resize
from tests.parity import reference

SHAPES = ((16, 16), (64, 65), (299, 299), (301, 150), (700, 333), (1, 1), (1, 40), (298, 600))
# Of pixels from 0 to 255: float32 has 1.5e-5 there, and sums of some ten products in another order
# move a few of them.
TIE = 1e-4


def _image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_clean_is_that_of_clean_fid(shape):
    theirs = reference.load("cleanfid.resize").build_resizer("clean")
    image = _image(shape)
    found = resize.INCEPTION["clean"].resized(image)
    np.testing.assert_array_equal(found, theirs(image))
    scaled = resize.INCEPTION["clean"](image)
    np.testing.assert_array_equal(scaled, (theirs(image) - 128) / 128)


@pytest.mark.parametrize("shape", SHAPES)
def test_tf_is_that_of_torch_fidelity(shape):
    module = reference.load("torch_fidelity.interpolate_compat_tensorflow")
    image = _image(shape)
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(
        _nchw(image), size=(299, 299), align_corners=False
    )
    np.testing.assert_allclose(
        resize.INCEPTION["tf"].resized(image), _hwc(expected), rtol=0, atol=TIE
    )


@pytest.mark.parametrize("mode", ["pytorch-fid", "torchmetrics"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_is_that_of_pytorch(shape, mode):
    import torch

    image = _image(shape)
    expected = torch.nn.functional.interpolate(
        _nchw(image), size=(299, 299), mode="bilinear", align_corners=False,
        antialias=mode == "torchmetrics",
    )  # fmt: skip
    # PyTorch has places in float32: those near 300 to 3e-5 of a pixel, between two of 255 levels
    np.testing.assert_allclose(
        resize.INCEPTION[mode].resized(image), _hwc(expected), rtol=0, atol=0.01
    )


def test_the_modes_differ_where_they_should():
    small, same = _image((64, 64)), _image((299, 299))
    inputs = {name: mode.resized(small) for name, mode in resize.INCEPTION.items()}
    names = list(inputs)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if {one, other} != {"pytorch-fid", "torchmetrics"}:  # the same for a smaller image
                assert np.abs(inputs[one] - inputs[other]).max() > 0.4, (one, other)
    for mode in resize.INCEPTION.values():  # nothing to do
        np.testing.assert_array_equal(mode.resized(same), same)
    big = _image((512, 512))
    assert (
        np.abs(
            resize.INCEPTION["pytorch-fid"].resized(big)
            - resize.INCEPTION["torchmetrics"].resized(big)
        ).max()
        > 20
    )


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (23, 24), (300, 224), (9, 200)])
def test_clip_is_that_of_torchvision(shape):
    reference.load("torchvision")
    import torch
    from torchvision import transforms

    mean, std = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)
    theirs = transforms.Compose(
        [
            transforms.Resize(24, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    image = _image(shape)
    found = resize.clip(24, mean, std)(image)
    expected = theirs(Image.fromarray(image))
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 0, 2), atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (50, 50), (9, 20), (24, 24), (200, 15)])
def test_hpsv2_is_that_of_torchvision_on_tensors(shape):
    """The longer side is resized, and black is beside the image; nothing is cut or clipped."""
    reference.load("torchvision")
    from torchvision.transforms import InterpolationMode, functional

    mean, std = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)
    image = _image(shape) // 128 * 255  # edges from 0 to 255, beyond which the filter goes
    sides = [round(side * 24 / max(shape)) for side in shape]
    tensor = functional.to_tensor(Image.fromarray(image))
    tensor = functional.resize(tensor, sides, InterpolationMode.BICUBIC)
    height, width = (24 - side for side in sides)
    around = [width // 2, height // 2, width - width // 2, height - height // 2]
    tensor = functional.normalize(functional.pad(tensor, around), mean, std)
    found = resize.hpsv2(24, mean, std)(image)
    np.testing.assert_allclose(found, np.moveaxis(tensor.numpy(), 0, 2), atol=1e-5)


def test_hpsv2_takes_images_that_are_almost_lines():
    assert resize.hpsv2(24, (0.5,), (0.5,))(_image((200, 3))).shape == (24, 24, 3)


def test_cmmd_crops_first_and_dinov2_not_at_all():
    image = Image.fromarray(_image((31, 48)))
    square = image.crop((8, 0, 39, 31)).resize((28, 28), Image.Resampling.BICUBIC)
    found = resize.cmmd(28, (0.0,) * 3, (1.0,) * 3)(image)
    np.testing.assert_allclose(found, np.asarray(square) / 255, atol=1e-6)
    found = resize.dinov2(28).resized(image)
    squeezed = image.resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(squeezed))
    expected = (np.asarray(squeezed) / 255 - resize.IMAGENET_MEAN) / resize.IMAGENET_STD
    np.testing.assert_allclose(resize.dinov2(28)(image), expected, atol=1e-5)


def test_t2i_benchmark_cuts_and_rounds():
    image = Image.fromarray(_image((400, 310)))
    square = image.crop((0, 45, 310, 355)).resize((299, 299), Image.Resampling.BICUBIC)
    expected = 2 * (np.asarray(square) / 255) - 1
    np.testing.assert_allclose(resize.INCEPTION["t2i-benchmark"](image), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["L", "LA", "P", "RGBA", "1"])
def test_any_kind_of_image_is_that_of_pillow(kind):
    image = Image.fromarray(_image((20, 30))).convert(kind)
    file = io.BytesIO()
    image.save(file, format="PNG")
    opened = Image.open(file)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(resize.rgb(opened), expected)
    if kind in ("L", "LA", "RGBA"):
        np.testing.assert_array_equal(resize.rgb(np.asarray(image)), expected)
    for mode in resize.INCEPTION.values():
        assert mode(opened).shape == (299, 299, 3)
        assert mode(opened).dtype == np.float32


@pytest.mark.parametrize("shape", [(100, 260), (64, 64), (130, 129), (300, 257)])
def test_adm_crop_halves_then_resizes(shape):
    image = _image(shape)
    found = resize.adm_crop(image, 64)
    assert found.shape == (64, 64, 3)
    size = (shape[1], shape[0])
    pil = Image.fromarray(image)
    while min(size) >= 128:
        size = (size[0] // 2, size[1] // 2)
        pil = pil.resize(size, Image.Resampling.BOX)
    short = min(size)
    size = tuple(round(side * 64 / short) for side in size)
    pil = pil.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    np.testing.assert_array_equal(found, np.asarray(pil.crop((left, top, left + 64, top + 64))))


def test_square_is_the_middle_by_lanczos():
    image = Image.fromarray(_image((50, 81)))
    expected = image.crop((15, 0, 65, 50)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize.square(image, 32), np.asarray(expected))


def test_mistakes_are_one_sentence():
    clean = resize.INCEPTION["clean"]
    with pytest.raises(UserError, match=r"an image is float32\(4, 4, 3\); give uint8"):
        clean(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match="give uint8"):
        clean(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match="0x4 has no pixels"):
        clean(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(UserError, match="filter='bicubic'|is bilinear"):
        resize.Preprocessing("x", 8, "tf1", "bicubic")
    with pytest.raises(UserError, match="crop='none' or 'before'"):
        resize.Preprocessing("x", 8, "tf1", "bilinear", crop="padded")
    with pytest.raises(UserError, match="size=0"):
        resize.Preprocessing("x", 0)
    with pytest.raises(UserError, match="filter"):
        resize.square(np.zeros((4, 4, 3), np.uint8), 2, "bicubical")


def _nchw(image):
    import torch

    return torch.from_numpy(np.moveaxis(image, 2, 0)[None].astype(np.float32))


def _hwc(tensor):
    return np.moveaxis(tensor[0].numpy(), 0, 2)
