"""One Inception of random weights, given to pytorch-fid, torch-fidelity, torchmetrics and ours."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, resize
from tests.parity import reference
from tests.parity.products import check_highest

# float32 sums of up to 3456 products after one another through 94 convolutions: their rounding is
# 1e-6 of a feature's size
RELATIVE = 1e-5
LAYERS = {"64": "pool1", "192": "pool2", "768": "aux", "2048": "pool3"}
LOGITS = {"logits": "logits", "logits_unbiased": "logits_unbiased"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file like the published one; deviations and means of the batch norms differ from 1 and 0,
    and activations keep their size from layer to layer.
    """
    reference.load("torch_fidelity")
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    state = {}
    for name, shape in _shapes(FeatureExtractorInceptionV3).items():
        if name.endswith("conv.weight"):
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape) * (2 / fan_in) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.rand(shape) + 0.5
        elif name == "fc.weight":
            state[name] = torch.randn(shape) / 2048**0.5
        else:
            state[name] = torch.randn(shape) * 0.1
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(state, path)
    return path


def _shapes(extractor):
    """Of the 472 arrays of the published file, from the class without its weights."""
    import torch

    shapes = {}
    load = extractor.load_state_dict
    extractor.load_state_dict = lambda self, state: shapes.update(
        {key: value.shape for key, value in self.state_dict().items() if value.ndim}
    )
    opened, torch.load = torch.load, lambda *args, **kwargs: {}
    try:
        extractor("inception", ["2048"], feature_extractor_weights_path="none")
    finally:
        extractor.load_state_dict, torch.load = load, opened
    assert len(shapes) == 472
    return shapes


@pytest.fixture(scope="module")
def images():
    """Two of 299 pixels, smooth and noisy, uint8 NHWC."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    y, x = np.mgrid[:299, :299]
    noise[0] = np.stack([y * 255 // 298, x * 255 // 298, (x + y) * 255 // 596], -1)
    return noise


@pytest.fixture(scope="module")
def ours(path):
    return extractors.inception(path, "tf")


@pytest.fixture(scope="module")
def found(ours, images):
    return ours.features(images, batch_size=2)


def _close(found, expected, relative=RELATIVE):
    expected = np.asarray(expected)
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def test_torch_fidelity(path, images, found):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = {**LAYERS, **LOGITS}
    theirs = FeatureExtractorInceptionV3("x", list(names), feature_extractor_weights_path=path)
    with torch.no_grad():
        expected = theirs(_nchw(images))
    for name, value in zip(names, expected, strict=True):
        _close(found[names[name]], value)


def test_float64_is_that_of_torch_fidelity_to_ten_digits(path, images, ours):
    """Its mode of that name computes float32 (0.4.0, `text_to_dtype`) and rounds what it returns,
    so that the mode is set here and layers are looked at. Images have 139 pixels, which leave 3 x 3
    places to the last blocks: XLA has no quick convolutions of float64.
    """
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("x", ["logits"], feature_extractor_weights_path=path)
    theirs = theirs.to(torch.float64)
    theirs.feature_extractor_internal_dtype, theirs.INPUT_IMAGE_SIZE = torch.float64, 139
    layers = {"MaxPool_1": "pool1", "MaxPool_2": "pool2", "Mixed_6e": "aux", "AvgPool": "pool3"}
    expected = {}
    for module, layer in layers.items():
        getattr(theirs, module).register_forward_hook(
            lambda *hooked, layer=layer: expected.update({layer: hooked[-1].mean((2, 3))})
        )
    theirs.fc.register_forward_hook(lambda *hooked: expected.update(logits=hooked[-1]))
    small = images[:1, :139, :139]
    theirs(_nchw(small))
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, ours.params)
        found = jax.device_get(jax.jit(ours.apply)(params, (small.astype(np.float64) - 128) / 128))
    for layer in (*layers.values(), "logits"):
        assert found[layer].dtype == np.float64
        _close(found[layer], expected[layer], 1e-10)


def test_the_spatial_features_are_those_of_adms_evaluator(path, images, found):
    """`mixed_6/conv` of its graph is the first branch of Mixed_6d; of that 7 channels, as NHWC."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=path)
    seen = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *hooked: seen.append(hooked[-1]))
    with torch.no_grad():
        theirs(_nchw(images))
    expected_NHWC = seen[0][:, :7].movedim(1, -1)
    assert expected_NHWC.shape == (2, 17, 17, 7)
    _close(found["spatial"], expected_NHWC.reshape(2, -1))


def test_torchmetrics_reads_the_same_features(path, images, found):
    import torch
    from torchmetrics.image.fid import NoTrainInceptionV3

    theirs = NoTrainInceptionV3("x", ["2048"], str(path), antialias=False)
    with torch.no_grad():
        _close(found["pool3"], theirs(_nchw(images)))


def test_pytorch_fid(path, images, found, ours, monkeypatch):
    import torch

    pytorch_fid = reference.load("pytorch_fid.inception")
    state = torch.load(path, weights_only=True)
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = pytorch_fid.InceptionV3([0, 1, 2, 3]).eval()
    with torch.no_grad():
        expected = theirs(_nchw(images).float() / 255)
    mode = resize.INCEPTION["pytorch-fid"]
    program = ours._placed[1]  # compiled already
    mine = program(ours.params, jnp.stack([mode(image) for image in images]))
    for layer, value in zip(LAYERS.values(), expected, strict=True):
        _close(mine[layer], value.mean((2, 3)))
    # and the scaling alone moves them by more than that
    assert np.abs(mine["pool3"] - found["pool3"]).max() > RELATIVE * np.abs(found["pool3"]).max()


def test_weights_go_there_and_back(path):
    state = torch_io.read(path)
    model, params = convert.from_torch(path)
    again = convert.to_state(model, params)
    assert all(np.array_equal(again[name], value) for name, value in state.items())
    assert {name for name in again if name not in state} == {
        name.replace("running_var", "num_batches_tracked") for name in state if "_var" in name
    }


def test_what_results_keep(path, ours):
    assert ours.about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ours.about["preprocessing"]["mode"] == "tf"
    assert (ours.about["dtype"], ours.about["precision"]) == ("float32", "highest")


def test_batches_of_one_shape_give_the_same_bits(ours, images, found):
    three = ours.features([images[0], images[1], images[0]], batch_size=2, layers=["pool3"])
    assert list(three) == ["pool3"]
    for row, image in enumerate((0, 1, 0)):
        np.testing.assert_array_equal(three["pool3"][row], found["pool3"][image])


def test_mistakes_are_one_sentence(tmp_path, path, ours):
    with pytest.raises(UserError, match=r"6726825d\.pth \(96 MB, SHA-256 6726825d.*https"):
        extractors.inception(tmp_path / "none.pth")
    with pytest.raises(UserError, match="needs weights; fetch"):
        extractors.inception(None)
    with pytest.raises(UserError, match="did you mean 'clean'"):
        extractors.inception(path, "claen")
    with pytest.raises(UserError, match="images are empty"):
        ours.features([])
    with pytest.raises(UserError, match="batch_size=0"):
        ours.features([], batch_size=0)
    state = torch_io.read(path)
    state["fc.bias"] = state["fc.bias"][:1000]
    torch_io.write(tmp_path / "torchvision.safetensors", state)
    with pytest.raises(UserError, match="Inception of 1000 outputs"):
        extractors.inception(tmp_path / "torchvision.safetensors")


def test_a_torchscript_archive_is_refused_with_the_file_that_has_the_same_weights(tmp_path):
    """What clean-fid and StyleGAN read is a program."""
    import torch

    path = tmp_path / "inception-2015-12-05.pt"
    traced = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1), check_trace=False)
    traced.save(path)
    with pytest.raises(
        UserError, match=r"is a TorchScript archive, .* 6726825d\.\.\.\) from"
    ) as error:
        extractors.inception(path)
    assert "which has the same weights" in str(error.value)
    with pytest.raises(
        UserError, match="a TorchScript archive, .* is not run; save its state_dict"
    ):
        torch_io.read(path)


def _nchw(images):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, 3, 1)))


def test_the_highest_precision_is_asked_for(ours):
    batch = jax.ShapeDtypeStruct((1, 299, 299, 3), np.float32)
    check_highest(jax.jit(ours.apply).lower(ours.params, batch), least=60)
