"""The relative position bias that begins like a convolution."""

import jax
import numpy as np

from t2i_jax.models.parti import Parti
from t2i_jax.nn import embed
from t2i_jax.on_host import initialise

_SIDE, _HEADS = 5, 6
_PARTI = Parti(
    dim=8, depth=2, heads=_HEADS, dim_head=4, fmap_size=_SIDE, codebook_size=7, text_embed_dim=6
)


def _first(model):
    inputs = np.zeros((1, 1), np.int32), np.zeros((1, 1, 6), np.float32), np.ones((1, 1), bool)
    return initialise(lambda key: model.init(key, *inputs), jax.random.key(0))["params"]


def test_each_head_first_attends_around_its_own_offset():
    params, plain = _first(_PARTI.clone(rel_pos_init="conv")), _first(_PARTI)
    offsets = embed.head_offsets(_HEADS, _SIDE)
    assert len(set(offsets)) == _HEADS and offsets[:2] == [(0, 0), (0, 1)]
    for table in params["layers"]["bias"]:
        bias_QHK = np.asarray(embed.relative_bias(table, _SIDE))
        cells = np.arange(_SIDE**2)
        seen_QK = cells[:, None] >= cells
        weights_QHK = np.where(seen_QK[:, None], np.exp(bias_QHK), 0)
        weights_QHK /= weights_QHK.sum(-1, keepdims=True)
        for head, (rows, columns) in enumerate(offsets):
            for row, column in ((2, 2), (4, 3)):  # cells all of whose neighbours exist
                at = weights_QHK[row * _SIDE + column, head].reshape(_SIDE, _SIDE)
                own = (row - rows, column - columns)
                assert np.unravel_index(at.argmax(), at.shape) == own
                near = [at[r, c] for r, c in np.ndindex(at.shape)
                        if abs(r - own[0]) + abs(c - own[1]) <= 1]  # fmt: skip
                assert sum(near) > 0.7
                far = [at[r, c] for r, c in np.ndindex(at.shape)
                       if (r - own[0]) ** 2 + (c - own[1]) ** 2 > 4]  # fmt: skip
                assert sum(far) < 0.02
    same = {k: v for k, v in params["layers"].items() if k != "bias"}
    for name, leaf in jax.tree_util.tree_leaves_with_path(same):
        other = plain["layers"]
        for key in name:
            other = other[key.key]
        np.testing.assert_array_equal(leaf, other)
    assert np.abs(plain["layers"]["bias"]).max() < 0.2


def test_more_heads_than_cells_begin_again():
    assert embed.head_offsets(5, 2) == [(0, 0), (0, 1), (1, 0), (1, -1), (1, 1)]
    assert embed.head_offsets(6, 2)[5] == (0, 0)
