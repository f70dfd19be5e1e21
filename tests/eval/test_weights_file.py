"""Weights of the metrics' networks, as a user names them."""

import functools

import jax
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, weights_file
from t2i_jax.models.dinov2 import Dinov2
from t2i_jax.models.inception import Inception
from t2i_jax.models.openai_clip import OpenAIClip

_NETWORKS = {
    "inception": Inception(),
    "clip": OpenAIClip(
        embed_dim=8, image_resolution=16, vision_layers=1, vision_width=24, vision_patch_size=8,
        vision_heads=2, context_length=8, vocab_size=20, transformer_width=16, transformer_heads=2,
        transformer_layers=1,
    ),
    "dinov2": Dinov2(width=64, depth=1, heads=1, mlp_dim=16, patch_size=4, grid=2),
    "tokenizer": t2i.VitVQGanVAE(
        dim=8, image_size=8, patch_size=4, layers=1, heads=1, dim_head=8, ff_mult=1,
        codebook_size=16, discr_layers=0,
    ),
}  # fmt: skip
_EXTRACTORS = {
    "inception": ("inception", extractors.inception),
    "clip-vit-b-32": ("clip", extractors.clip),
    "clip-vit-l-14-336": (
        "clip", functools.partial(extractors.clip, preprocessing="cmmd", what="clip-vit-l-14-336")
    ),
    "dinov2": ("dinov2", extractors.dinov2),
    "pickscore": ("clip", extractors.pickscore),
    "hpsv2": ("clip", functools.partial(extractors.hpsv2, tokenizer=None)),
}  # fmt: skip
"""By the name of the weights: the network that they are of, and their reader."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each network, without a configuration beside it."""
    home = tmp_path_factory.mktemp("files")
    for name, network in _NETWORKS.items():
        table = next(one for one in convert.NETWORKS.values() if type(network) is one.model)
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), table.shapes(network))
        torch_io.write(home / f"{name}.safetensors", convert.to_state(network, zeros))
    return home


@pytest.mark.parametrize("held", _NETWORKS)
@pytest.mark.parametrize("what", _EXTRACTORS)
def test_another_network_is_named_whatever_else_is_wrong_with_it(what, held, files):
    network, read = _EXTRACTORS[what]
    path = files / f"{held}.safetensors"
    if held == network:
        try:
            read(path)
        except UserError as error:
            assert f" holds a {type(_NETWORKS[held]).__name__}" not in str(error)
        return
    with pytest.raises(UserError) as error:
        read(path)
    kind = type(_NETWORKS[held]).__name__
    assert str(error.value) == (
        f"{what}='{path}' holds a {kind}; give {weights_file.PUBLISHED[what]}."
    )


@pytest.mark.parametrize("what", weights_file.PUBLISHED)
def test_weights_are_found_from_the_home_folder(what, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.pth").write_bytes(b"weights")
    for path in ("folder/a.pth", "folder"):
        assert weights_file.find(f"~/{path}", what) == tmp_path / path
        assert weights_file.find(tmp_path / path, what) == tmp_path / path
    with pytest.raises(UserError, match=f"{what}='~/none.pth' is not there; fetch "):
        weights_file.find("~/none.pth", what)


@pytest.mark.parametrize("name", ["afile", "a.msgpack", "a.safetensors", "a.pth", "a.txt"])
def test_a_file_of_something_else_is_told_by_the_name_of_its_option(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(UserError) as error:
        extractors.inception(path)
    assert str(error.value).startswith(f"inception={str(path)!r} ")
    assert "weights=" not in str(error.value)
