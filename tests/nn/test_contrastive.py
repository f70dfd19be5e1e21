"""Contrastive losses: in blocks as at once, with gradients; the decoupled and the sigmoid form by
their definitions; at the size of a batch of 32,768.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn import contrastive

_B, _D, _T, _I = 12, 5, 4, 3


def _unit(key, *shape):
    x = jax.random.normal(key, shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@jax.jit
def _inputs(key):
    keys = jax.random.split(key, 4)
    whole = _unit(keys[0], _B, _D), _unit(keys[1], _B, _D)
    mask = jnp.arange(_T) < jnp.arange(_B)[:, None] % _T + 1
    tokens = (_unit(keys[2], _B, _T, _D), mask), _unit(keys[3], _B, _I, _D)
    return whole, tokens


def _losses(whole, text_BTD, mask, image_BID, scale, rows):
    """Every loss, each as one number."""
    text, image = whole
    tokens = (text_BTD, mask)
    by_tokens, by_patches = contrastive.text_by_tokens, contrastive.image_by_patches
    pairs = [(contrastive.cosine, text, image), (contrastive.cosine, image, text),
             (by_tokens, tokens, image_BID), (by_patches, image_BID, tokens)]  # fmt: skip
    found = [
        jnp.mean(contrastive.cross_entropy(*one, scale, decoupled=decoupled, rows=rows).nats_B)
        for one in pairs
        for decoupled in (False, True)
    ]
    found += [jnp.mean(contrastive.sigmoid(*pairs[0], scale, -3.0, rows).nats_B)]
    return jnp.stack([*found, contrastive.similarity_regulariser(text, image, rows)])


def test_in_blocks_as_at_once_with_gradients(key):
    whole, ((text, mask), image) = _inputs(key)

    @jax.jit
    def run(whole, text, image, scale):
        weights = jnp.arange(1.0, 11.0)

        def total(whole, text, image, scale, rows):
            found = _losses(whole, text, mask, image, scale, rows)
            return found @ weights, found

        of = [
            jax.value_and_grad(lambda *a, r=rows: total(*a, r), argnums=(0, 1, 2, 3), has_aux=True)(
                whole, text, image, scale
            )
            for rows in (None, 4)
        ]
        return of

    at_once, in_blocks = run(whole, text, image, 5.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), at_once, in_blocks
    )
    (_, found), _ = at_once
    text_BD, image_BD = (np.asarray(one, np.float64) for one in whole)
    logits = 5.0 * text_BD @ image_BD.T
    rest = np.where(np.eye(_B, dtype=bool), -np.inf, logits)
    own = np.diagonal(logits)
    signs = 2 * np.eye(_B) - 1
    wanted = {
        0: np.mean(np.log(np.exp(logits).sum(1)) - own),
        1: np.mean(np.log(np.exp(rest).sum(1)) - own),
        2: np.mean(np.log(np.exp(logits).sum(0)) - own),
        8: np.sum(np.log1p(np.exp(-signs * (logits - 3.0)))) / _B,
    }
    for place, value in wanted.items():
        assert float(found[place]) == pytest.approx(float(value), rel=1e-5)


def test_fine_grained_scores_are_means_of_the_best(key):
    _, ((text, mask), image) = _inputs(key)
    by_text = jax.jit(contrastive.text_by_tokens)((text, mask), image)
    by_image = jax.jit(contrastive.image_by_patches)(image, (text, mask))
    for x, y in ((0, 0), (3, 7), (6, 2)):
        seen = np.asarray(text[x])[np.asarray(mask[x])] @ np.asarray(image[y]).T
        assert float(by_text[x, y]) == pytest.approx(seen.max(1).mean(), abs=1e-6)
        assert float(by_image[y, x]) == pytest.approx(seen.max(0).mean(), abs=1e-6)


def test_a_batch_of_32768_holds_no_matrix_of_scores():
    one = jax.ShapeDtypeStruct((32768, 64), jnp.float32)

    def loss(text, image):
        matches = contrastive.cross_entropy(contrastive.cosine, text, image, jnp.float32(10))
        return jnp.mean(matches.nats_B)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(one, one).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 0.2 * 32768**2 * 4  # the matrix would be 4 GiB


def test_all_is_right_where_partners_are_alike(key):
    (text, _), _ = _inputs(key)

    @jax.jit
    def run(text):
        found = contrastive.cross_entropy(contrastive.cosine, text, text, jnp.float32(100))
        one, scale = text[:1], jnp.float32(1)
        alone = contrastive.cross_entropy(contrastive.cosine, one, one, scale, decoupled=True)
        return found, alone

    found, alone = run(text)
    assert found.hit_B.all() and float(jnp.max(found.nats_B)) < 1
    assert np.isfinite(alone.nats_B).all()  # no partner but the own one
