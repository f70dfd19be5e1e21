"""DINOv2 beside transformers' Dinov2Model: class tokens, positions interpolated both ways, weights
under transformers' names and Meta's.
"""

import jax
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors
from t2i_jax.models.dinov2 import Dinov2, cubic
from tests.parity import reference
from tests.parity.products import check_highest

NETWORK = 1e-5  # float32 through a few layers, products in another order
FIELDS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=20,
              patch_size=4, mlp_ratio=2)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["mlp", "gated"])
def made(request, tmp_path_factory):
    """(the package's model, a folder that it wrote)."""
    transformers = reference.load("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.Dinov2Config(**FIELDS, use_swiglu_ffn=request.param)
    theirs = transformers.Dinov2Model(config).eval()
    with torch.no_grad():  # so that norms, biases and scales show
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("dinov2")
    theirs.save_pretrained(folder)
    return theirs, folder


def _by_offset(positions_1NC, height, width):
    """Positions for an image of so many pixels as Meta's code interpolates them."""
    import torch

    first, grid = positions_1NC[:, :1], positions_1NC[:, 1:].unflatten(1, (5, 5)).movedim(3, 1)
    scale = [(side // 4 + 0.1) / 5 for side in (height, width)]
    grid = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([first, grid.flatten(2).movedim(1, 2)], dim=1)


@pytest.mark.parametrize(("size", "given"), [(20, "size"), (12, "size"), (12, None)])
def test_class_tokens(made, size, given, monkeypatch):
    import torch

    theirs, folder = made
    if given is None:  # as in FD-DINOv2
        embeddings = theirs.embeddings
        monkeypatch.setattr(
            embeddings, "interpolate_pos_encoding",
            lambda _, *sides: _by_offset(embeddings.position_embeddings, *sides),
        )  # fmt: skip
    ours = extractors.dinov2(folder, size, **({"positions": given} if given else {}), heads=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 31, 23, 3), dtype=np.uint8)
    found = ours.features(images, batch_size=3)["cls"]
    pixels = np.stack([ours.prepare(image) for image in images]).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels)).pooler_output.numpy()
    assert np.abs(found - expected).max() < NETWORK * np.abs(expected).max()
    assert ours.about["positions"] == (given or "offset")


def test_the_highest_precision_is_asked_for(made):
    ours = extractors.dinov2(made[1], 12, heads=2)
    batch = jax.ShapeDtypeStruct((1, 12, 12, 3), np.float32)
    check_highest(ours._placed[1].lower(ours.params, batch), least=9)


@pytest.mark.parametrize(("n", "size"), [(37, 16), (5, 3), (5, 9)])
def test_positions_both_ways(n, size):
    import torch

    grid = torch.randn(1, 2, n, n, generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(grid, size=(size, size), mode="bicubic")
    weights = cubic(n, size, size / n)
    found = np.einsum("ph,qw,hwc->pqc", weights, weights, grid[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(found, resized[0].permute(1, 2, 0).numpy(), atol=1e-5)
    scale = (size + 0.1) / n
    scaled = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    weights = cubic(n, size, scale)
    other = np.einsum("ph,qw,hwc->pqc", weights, weights, grid[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(other, scaled[0].permute(1, 2, 0).numpy(), atol=1e-5)
    assert np.abs(other - found).max() > 0.01


def test_weights_under_all_names(made):
    theirs, folder = made
    state = torch_io.read(folder / "model.safetensors")
    model, params = convert.from_torch(folder / "model.safetensors", heads=2)
    again = convert.to_state(model, params)
    assert again.keys() == state.keys()
    for name, value in state.items():
        if "mask_token" not in name:
            np.testing.assert_array_equal(again[name], value)
    meta = convert.to_state(model, params, "DINOv2 (Meta)")
    assert meta["blocks.1.attn.qkv.weight"].shape == (96, 32)
    same, others = convert.from_torch(meta, heads=2)
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, params, others)
    same, others = convert.from_torch(theirs)  # a module in memory has other names than its file
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, params, others)


def test_published_sizes():
    """304 million parameters, as transformers has them without the token of masks."""
    sizes = {"width": 384, "depth": 12, "mlp_dim": 1536}, {}
    for fields, count in zip(sizes, (22_056_192, 304_367_616), strict=True):
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
        shapes = jax.eval_shape(Dinov2(**fields).init, jax.random.key(0), image)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_mistakes_are_one_sentence(made, tmp_path):
    with pytest.raises(UserError, match="fetch the folder with model.safetensors.*dinov2-large"):
        extractors.dinov2(tmp_path / "none")
    with pytest.raises(UserError, match="has no model.safetensors"):
        extractors.dinov2(tmp_path)
    with pytest.raises(UserError, match="no multiple of patch_size=4"):
        extractors.dinov2(made[1], 22, heads=2).features([np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(UserError, match="positions='sizes'"):
        extractors.dinov2(made[1], positions="sizes")
    with pytest.raises(UserError, match="heads=5 does not divide"):
        Dinov2(heads=5)
