"""The networks of MaskGIT and Muse: sizes of the presets."""

import flax.linen as nn
import jax
import pytest

from t2i_jax import config
from t2i_jax.models import maskgit


@pytest.mark.parametrize(
    ("preset", "total", "name"),
    [
        (maskgit.MUSE_632M, 625_507_304, 632e6),
        (maskgit.MUSE_3B, 3_264_561_136, 3e9),
        (maskgit.MUSE_SUPERRES_268M, 260_424_524, 268e6),
    ],
)
def test_presets_have_the_size_they_are_named_after(preset, total, name):
    size = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(maskgit.abstract(preset))))
    assert size == total and abs(size / name - 1) < 0.1


def test_a_network_survives_json():
    known = {"MaskGitTransformer": maskgit.MaskGitTransformer}
    assert config.from_dict(config.to_dict(maskgit.MUSE_3B), known) == maskgit.MUSE_3B
