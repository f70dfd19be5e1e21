"""Attention within a window of a grid: as with the dense mask, for less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.nn.flops import flops_of
from t2i_jax.nn.grid_window import GridWindow
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.text.learned import LearnedText

_WINDOW = GridWindow(side=4, size=3)


def _seen(side, reach):
    """What each position sees, cell by cell, as the docstring of the class says it."""
    seen = np.zeros((side**2, side**2), bool)
    for position in range(side**2):
        for key in range(position + 1):
            (row, column), (r, c) = divmod(position, side), divmod(key - 1, side)
            near = 0 <= row - r <= reach and abs(column - c) <= reach
            seen[position, key] = key == 0 or near
    return seen


@pytest.mark.parametrize("length", [1, 6, 16])
def test_it_is_attention_with_the_dense_mask_and_so_are_its_gradients(length):
    rng = np.random.default_rng(0)
    qkv = [rng.normal(size=(2, length, 3, 4)).astype(np.float32) for _ in range(3)]
    mask = _seen(4, 1)[None, None, :length, :length]
    weight = rng.normal(size=(2, length, 3, 4))

    def both(attend):
        def of(qkv):
            out = attend(*qkv)
            return jnp.sum(out * weight), out

        (_, out), gradient = jax.jit(jax.value_and_grad(of, has_aux=True))(qkv)
        return [out, *gradient]

    dense = both(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask))
    for one, other in zip(both(_WINDOW.attend), dense, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("length", [16, 6, 13])  # of the cache: whole, and while it is short
def test_the_cache_holds_what_is_seen(length):
    entries = np.arange(length)[None, :, None]
    past = jax.jit(_WINDOW.past)
    for position in range(length):
        mask, (taken,) = past(jnp.int32(position), entries)
        assert taken.shape[1] == min(8, length) + 1
        found = sorted(np.asarray(taken)[0, np.asarray(mask)[0], 0])
        np.testing.assert_array_equal(found, np.flatnonzero(_seen(4, 1)[position]))


def test_the_network_takes_fewer_flops_and_a_mesh_does_not_split_its_sequence():
    model = PartiTransformer(
        dim=16, depth=2, heads=2, mlp_dim=32, fmap_size=8, codebook_size=20, text_embed_dim=8
    )
    text = LearnedText(dim=8, depth=1, heads=2, mlp_dim=16, vocab_size=30, max_length=5)
    whole, window = (PartiTask(one, text) for one in (model, model.clone(window=5)))
    # per layer two products of 64 queries with 64 keys before, with 25 now
    saved = (whole.flops(1) - window.flops(1)) / 3
    assert saved == 2 * 2 * 2 * 64 * (64 - 25) * 16
    assert (whole.sequence_length, window.sequence_length) == (64, None)
    qkv = [jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.float32)] * 3
    assert flops_of(GridWindow(32, 11).attend, *qkv) == 4 * 1024 * (6 * 32 + 1) * 64


def test_an_even_window_is_refused():
    with pytest.raises(UserError, match="window=4 is no odd number.*try 5"):
        GridWindow(8, 4)
    with pytest.raises(UserError, match="window=1 is no odd number.*try 3"):
        GridWindow(8, 1)
