"""The networks of MaskGIT and Muse: sizes of the presets."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import maskgit
from t2i_jax.nn import maskgit_layers
from t2i_jax.nn.multi_axis import MultiAxis


@pytest.mark.parametrize(
    ("preset", "total", "name"),
    [
        (maskgit.MUSE_632M, 625_507_304, 632e6),
        (maskgit.MUSE_3B, 3_264_561_136, 3e9),
        (maskgit.MUSE_SUPERRES_268M, 260_424_524, 268e6),
        (maskgit.MUSE_SUPERRES_MULTI_AXIS, 763_966_432, 764e6),
    ],
)
def test_presets_have_the_size_they_are_named_after(preset, total, name):
    size = sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(maskgit.abstract(preset))))
    assert size == total and abs(size / name - 1) < 0.1


def test_a_network_survives_json():
    known = {"MaskGitTransformer": maskgit.MaskGitTransformer}
    assert config.from_dict(config.to_dict(maskgit.MUSE_3B), known) == maskgit.MUSE_3B


def test_a_token_sees_its_block_and_its_grid():
    """By the gradient of one token's attention, of 6 x 6 tokens with blocks of 3 x 3: the token in
    row 1 and column 4.
    """
    attention = maskgit_layers.Attention(8, 2, 4, 1.0, axes=MultiAxis(6, 3))
    x = jax.random.normal(jax.random.key(0), (1, 36, 8))

    @jax.jit
    def slope(x):
        params = attention.init(jax.random.key(1), x)
        return jax.grad(lambda x: jnp.sum(attention.apply(params, x)[0, 1 * 6 + 4] ** 2))(x)

    moves = np.abs(np.asarray(slope(x))).sum(-1).reshape(6, 6) > 0
    wanted = np.zeros((6, 6), bool)
    wanted[:3, 3:] = True  # the block
    wanted[1::3, 1::3] = True  # the grid: the same place within each block
    np.testing.assert_array_equal(moves, wanted)


def test_one_block_is_attention_to_all_in_half_of_the_heads():
    """The grid of a token is then the token itself; both halves have the learnt key too."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 9, 2, 4)).astype(np.float32)
    null = np.ones((2, 1, 2, 4), np.float32)
    k, v = (np.concatenate([null, t], axis=1) for t in (k, v))
    attend = jax.jit(functools.partial(maskgit_layers._attend, mask_BK=None))
    whole = attend(q, k, v)
    parted = jax.jit(functools.partial(maskgit_layers._along, MultiAxis(3, 3)))(q, k, v, None)
    np.testing.assert_allclose(parted[:, :, 0], whole[:, :, 0], atol=1e-6)
    alone = attend(q[:, 4:5], k[:, [0, 5]], v[:, [0, 5]])
    np.testing.assert_allclose(parted[:, 4:5, 1], alone[:, :, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"multi_axis": 5}, "multi_axis=5 is no part of fmap_size=8; try 4"),
        ({"multi_axis": 4, "heads": 3}, "heads=3 are no two halves.*try heads=4"),
        ({"cond_depth": -1}, "cond_depth=-1 is below 0"),
        ({"cond_depth": 1}, "cond_depth=1 is of layers over .*; give cond_fmap_size"),
    ],
)
def test_what_does_not_fit_is_said(fields, told):
    sizes = dict(dim=16, depth=1, dim_head=8, heads=2, fmap_size=8, codebook_size=8)
    with pytest.raises(UserError, match=told):
        maskgit.abstract(maskgit.MaskGitTransformer(**{**sizes, "text_embed_dim": 4, **fields}))
