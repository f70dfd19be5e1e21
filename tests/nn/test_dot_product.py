"""`nn.dot_product`: the form of a CPU is the attention that JAX has, its gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn import cpu_attention, dot_product

BATCH, QUERIES, KEYS, HEADS, WIDTH = 2, 5, 7, 4, 8


def _arrays(groups, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(QUERIES, HEADS), (KEYS, groups), (KEYS, groups), (QUERIES, HEADS)]
    return [
        jax.random.normal(key, (BATCH, length, heads, WIDTH), dtype)
        for key, (length, heads) in zip(keys, shapes, strict=True)
    ]


def _by_hand(q, k, v, seen=None, bias=None, scale=None):
    """The softmax of scores in float64, one head after the other."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    scale = WIDTH**-0.5 if scale is None else scale
    out = np.zeros(q.shape)
    for head in range(HEADS):
        group = min(head, k.shape[2] - 1)
        scores = scale * np.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, group])
        if bias is not None:
            scores = scores + np.asarray(bias, np.float64)[head]
        if seen is not None:
            whole = np.broadcast_to(seen, (BATCH, HEADS, QUERIES, KEYS))
            scores = np.where(whole[:, head], scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[:, :, head] = np.einsum("bqk,bkd->bqd", weights, v[:, :, group])
    return out


def _options():
    rows = jnp.arange(KEYS) < jnp.array([[3], [6]])
    before = jnp.tril(jnp.ones((QUERIES, KEYS), bool), 1)
    bias = jax.random.normal(jax.random.key(9), (HEADS, QUERIES, KEYS))
    return {
        "all": {},
        "scaled": {"scale": 1.0},
        "rows": {"seen": rows[:, None, None]},
        "causal": {"seen": before[None, None]},
        "none seen": {"seen": jnp.zeros((BATCH, 1, QUERIES, KEYS), bool)},
        "bias": {"bias_HQK": bias},
        "bias, masked": {"bias_HQK": bias, "seen": rows[:, None, None] & before},
    }


@pytest.fixture(
    scope="module",
    params=[(HEADS, None), (1, None), (HEADS, 100), (1, 100)],
    ids=["heads", "one_key", "heads_in_blocks", "one_key_in_blocks"],
)
def results(request):
    """(arrays, what the form of a CPU gives with each of the options, and that of JAX), each with
    gradients of q, k, v and the bias.
    """
    groups, scores = request.param
    arrays = _arrays(groups)

    def of(form):
        def with_options(arrays, options):
            q, k, v, g = arrays
            bias = options.get("bias_HQK", jnp.zeros((HEADS, QUERIES, KEYS)))

            def attended(q, k, v, bias):
                own = bias if "bias_HQK" in options else None
                return form(options.get("scale", WIDTH**-0.5), q, k, v, options.get("seen"), own)

            out, back = jax.vjp(attended, q, k, v, bias)
            return out, back(g)

        return jax.jit(
            lambda arrays: {name: with_options(arrays, o) for name, o in _options().items()}
        )(arrays)

    with pytest.MonkeyPatch.context() as patch:
        if scores is not None:
            patch.setattr(cpu_attention, "_MOST_SCORES", scores)
            first, second = (
                jax.ShapeDtypeStruct((2, n, m, 8), "float32") for n, m in ((4, 5), (4, 7))
            )
            assert cpu_attention._blocks(first, second) == 4
        ours = of(cpu_attention.attention)
    return arrays, ours, of(dot_product._whole)


@pytest.mark.parametrize("name", list(_options()))
def test_is_the_softmax_of_the_scores(results, name):
    arrays, ours, _ = results
    options = dict(_options()[name])
    bias = options.pop("bias_HQK", None)
    expected = _by_hand(*arrays[:3], bias=bias, **options)
    # Sums of 7 products of float32: a few units in the last place.
    np.testing.assert_allclose(ours[name][0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(_options()))
def test_gradients_are_those_of_jax(results, name):
    _, ours, theirs = results
    for one, other in zip(ours[name][1], theirs[name][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_a_masked_key_changes_nothing(results):
    (q, k, v, _), _, _ = results
    seen = _options()["rows"]["seen"]
    attend = jax.jit(lambda k, v: dot_product.attention(q, k, v, seen))
    unseen = ~np.asarray(seen)[:, 0, 0][:, :, None, None]
    other = attend(jnp.where(unseen, 1e4, k), jnp.where(unseen, -1e4, v))
    np.testing.assert_array_equal(attend(k, v), other)


def test_bfloat16_keeps_its_dtype_and_a_float32_softmax():
    q, k, v, _ = _arrays(HEADS, jnp.bfloat16)
    out = jax.jit(dot_product.attention)(q, k, v)
    assert out.dtype == jnp.bfloat16
    # Weights and values have 8 bits: the sum is right to about one of them.
    np.testing.assert_allclose(out.astype(jnp.float32), _by_hand(q, k, v), rtol=2**-6, atol=2**-6)
