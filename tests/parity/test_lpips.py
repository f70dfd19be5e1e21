"""LPIPS beside the package of its authors: the real weights of its layers, and trunks of random
weights.
"""

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval.lpips import lpips
from t2i_jax.models.lpips import Lpips
from tests.parity import reference

# float32 sums of up to 4608 products in another order, through as many as 13 convolutions
RELATIVE = 1e-5


@pytest.fixture(scope="module", params=["alex", "vgg"])
def made(request, tmp_path_factory):
    """(the package's module, ours with the same trunk, the file of the trunk)."""
    package = reference.load("lpips")
    import torch

    torch.manual_seed(0)
    theirs = package.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    with torch.no_grad():  # activations that keep their size
        for name, value in theirs.net.named_parameters():
            value.copy_(torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5)
            if name.endswith("bias"):
                value.copy_(0.1 * torch.randn(value.shape))
    trunk = {
        "features." + name.split(".", 1)[1]: value
        for name, value in theirs.net.state_dict().items()
    }
    file = tmp_path_factory.mktemp("lpips") / f"{request.param}.pth"
    torch.save({**trunk, "classifier.1.weight": torch.zeros(2, 2)}, file)
    return theirs, lpips(request.param, file), file


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

    theirs, ours, _ = made
    with torch.no_grad():
        expected = theirs(*(_nchw(x) for x in pairs)).numpy()[:, 0, 0, 0]
    found = ours(*pairs, batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=1e-7)
    assert found[2] == 0 and (found[:2] > 0.001).all()
    assert ours.about["trunk"] == theirs.pnet_type
    assert len(ours.about["heads"]["sha256"]) == 64


def test_the_whole_module_and_its_weights(made):
    theirs, ours, _ = made
    if theirs.pnet_type == "vgg":
        pytest.skip("the whole module of VGG is the loss of tokenizers, see test_vgg")
    model, params = convert.from_torch(theirs)
    assert model == Lpips("alex")
    state = torch_io.arrays(theirs.state_dict())
    for name, value in convert.to_state(model, params).items():
        np.testing.assert_array_equal(value, state[name])


def test_mistakes_are_one_sentence(made, pairs, tmp_path):
    theirs, ours, file = made
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
