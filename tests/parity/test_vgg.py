"""VGG16 against torchvision with random weights: its features, both ends of a stage, and LPIPS as
written down.
"""

import jax
import numpy as np
import pytest

from t2i_jax import convert
from tests.parity.reference import load

load("parti_pytorch")  # makes torchvision importable
torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torchvision.models.vgg16(weights=None).eval()


@pytest.fixture(scope="module")
def images():
    # real and fake, larger than one pooled bin
    return np.random.default_rng(0).random((2, 1, 64, 64, 3), np.float32)


def test_features_before_the_classifier(network, images):
    model, params = convert.from_torch(network, features="fc2", normalize=False)
    with torch.no_grad():
        flat = [
            network.classifier[:-2](network.avgpool(network.features(_first(x))).flatten(1))
            for x in images
        ]
    wanted = torch.nn.functional.mse_loss(*flat)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, *images), wanted, rtol=1e-4)


def test_stages_and_lpips(network, images):
    convs = network.features.state_dict()
    state = {
        f"net.slice{_slice(int(key.split('.')[0]))}.{key}": value for key, value in convs.items()
    }
    lins = {
        f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1)
        for i, c in enumerate((64, 128, 256, 512, 512))
    }
    model, params = convert.from_torch(
        state | lins | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    )
    assert model.features == "lpips"
    shift, scale = (
        torch.tensor(t).reshape(1, 3, 1, 1)
        for t in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    with torch.no_grad():
        maps = [_stages(network, (2 * _first(x) - 1 - shift) / scale) for x in images]
        apart = [(_unit(a) - _unit(b)) ** 2 for a, b in zip(*maps, strict=True)]
        wanted = sum((d * w).sum(1).mean() for d, w in zip(apart, lins.values(), strict=True))
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, *images), wanted, rtol=1e-4)


def test_grey_images_and_zero_distance(network, images):
    model, params = convert.from_torch(network.state_dict())
    grey, distance = images[0][..., :1], jax.jit(model.apply)
    assert distance({"params": params}, grey, grey) == 0
    assert distance({"params": params}, grey, grey[:, ::-1]) > 0


def _first(x):
    return torch.tensor(x.transpose(0, 3, 1, 2))


def _slice(place):
    return 1 + sum(place >= start for start in (4, 9, 16, 23))


def _stages(network, x):
    maps = []
    for place, layer in enumerate(network.features):
        x = layer(x)
        if place in (3, 8, 15, 22, 29):
            maps.append(x)
    return maps


def _unit(x):
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
