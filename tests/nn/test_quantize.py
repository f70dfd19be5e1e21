import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.nn import codebook, quantize


def _brute_force(z_ND):
    codes = np.array(list(itertools.product((-1.0, 1.0), repeat=z_ND.shape[1])))
    logits = 200 * z_ND.astype(np.float64) @ codes.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)

    def entropy(q):
        return -np.sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0), axis=-1)

    return entropy(p).mean(), entropy(p.mean(0))


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_entropies_are_those_over_all_codes(bits):
    z = np.random.default_rng(bits).normal(scale=0.005, size=(40, bits)).astype(np.float32)
    found = jax.jit(quantize.lfq_entropies)(z)
    np.testing.assert_allclose(found, _brute_force(z), rtol=2e-4)


@functools.partial(jax.jit, static_argnums=0)
def _made(quantiser, key):
    """(vectors, statistics of the codebook, variables)."""
    x = jax.random.normal(key, (2, 3, 3, 12))
    codebook = quantiser.start(key)
    return x, codebook, sharding.unbox(quantiser.init(key, x, codebook))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _applied(quantiser, variables, x, codebook, train=False, rngs=None):
    return quantiser.apply(variables, x, codebook, train, rngs=rngs)


def test_entropy_of_affinities_is_that_of_the_formula():
    """In float64; and near its bound -log K where each token is sure and all codes are used."""
    rng = np.random.default_rng(0)
    z, codes, temperature = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), 0.5
    affinities = -((z[:, :, None] - codes) ** 2).sum(-1)
    p = np.exp(affinities.reshape(-1, 5) / temperature)
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(0)
    wanted = -(p * np.log(p)).sum(-1).mean() + (mean * np.log(mean + 1e-5)).sum()
    entropy = jax.jit(codebook.affinity_entropy, static_argnums=1)
    found = entropy(jnp.asarray(affinities, jnp.float32), temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    sure = entropy(np.eye(5, dtype=np.float32) * 100, 1.0)
    np.testing.assert_allclose(sure, -np.log(5), atol=1e-3)

    plain = codebook.NearestVq(4, 5, 4, projected=False)
    variables = {"params": {"embedding": jnp.asarray(codes, jnp.float32)}}
    x = jnp.asarray(z[None], jnp.float32)
    more = plain.clone(entropy_weight=0.3, entropy_temperature=temperature)
    losses = [_applied(one, variables, x, {}, True).loss for one in (plain, more)]
    np.testing.assert_allclose(losses[1] - losses[0], 0.3 * wanted, rtol=1e-4)


QUANTISERS = {
    "lfq": quantize.Lfq(12, 64),
    "lfq without projections": quantize.Lfq(12, 4096),
    "fsq": quantize.Fsq(12, (8, 5, 4)),
    "fsq without projections": quantize.Fsq(12, (3,) * 6 + (4,) * 3 + (5,) * 3),
    "cosine": quantize.CosineVq(12, 16, 4, kmeans_init=False),
    "cosine, k-means": quantize.CosineVq(12, 16, 12),
    "factorised": quantize.FactorisedVq(12, 16, 4),
    "nearest": codebook.NearestVq(12, 16, 4),
    "nearest without projections": codebook.NearestVq(12, 16, 12, projected=False),
    "gumbel": codebook.GumbelVq(12, 16, 4),
}


@pytest.fixture(scope="module", params=QUANTISERS)
def passed(request):
    """What each quantiser makes of the same vectors, as one program: with and without training,
    what looking its indices up gives, and the gradient with respect to the vectors.
    """
    quantiser = QUANTISERS[request.param]

    @jax.jit
    def run(key):
        x, codebook, variables = _made(quantiser, key)

        def trained(x):
            out = quantiser.apply(variables, x, codebook, True)
            return jnp.sum(out.fmap), out

        gradient, out = jax.grad(trained, has_aux=True)(x)
        assigned = _before(codebook, out, quantiser)
        again = quantiser.apply(variables, out.ids, assigned, method="lookup")
        plain = quantiser.apply(variables, x, codebook)
        return dict(codebook=codebook, out=out, again=again, plain=plain, gradient=gradient)

    return types.SimpleNamespace(quantiser=quantiser, **run(jax.random.key(0)))


def _before(codebook, out, quantiser):
    """The codes that were assigned: k-means replaces the first ones, and the call reports only the
    moved ones.
    """
    if not (isinstance(quantiser, quantize.CosineVq) and quantiser.kmeans_init):
        return codebook
    return quantize._kmeans(out.latents.reshape(-1, quantiser.codebook_dim), codebook)


def test_lookup_gives_what_the_call_gave(passed):
    out = passed.out
    np.testing.assert_allclose(passed.again, out.fmap, atol=1e-5)
    assert out.ids.shape == (2, 3, 3) and out.ids.dtype == jnp.int32
    assert int(out.ids.min()) >= 0 and int(out.ids.max()) < passed.quantiser.codebook_size


def test_outside_training_nothing_moves_and_nothing_is_lost(passed):
    assert passed.plain.loss == 0
    after, before = dict(passed.plain.codebook), dict(passed.codebook)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, before))


def test_the_gradient_passes_straight_through(passed):
    assert np.abs(passed.gradient).min(axis=(0, 1, 2)).max() > 0


def test_the_first_channel_is_the_most_significant_bit():
    quantiser = quantize.Lfq(3, 8)
    out = quantiser.apply({}, jnp.array([[[[0.5, -0.5, 0.0]]]]), {})
    assert out.ids.item() == 4  # zero counts as off
    np.testing.assert_array_equal(out.fmap[0, 0, 0], [1, -1, -1])


def test_kmeans_finds_clusters_and_runs_once(key):
    directions = jnp.eye(4)
    x = directions[np.arange(64) % 4] + 0.05 * jax.random.normal(key, (64, 4))
    quantiser = quantize.CosineVq(4, 4, 4, decay=1.0)
    first = _applied(quantiser, {}, x.reshape(4, 4, 4, 4), quantiser.start(key), True).codebook
    assert bool(first["started"])
    similar = first["embed"] @ directions.T
    # every true direction has a code near it, or a tie was split
    assert float(similar.max(axis=0).min()) > 0.5
    second = _applied(quantiser, {}, -x.reshape(4, 4, 4, 4), first, True).codebook
    np.testing.assert_allclose(second["embed"], first["embed"], atol=1e-5)


def test_lfq_refuses_sizes_that_are_no_power_of_two():
    with pytest.raises(UserError, match="codebook_size=1000 is no power of 2.*1024"):
        quantize.Lfq(8, 1000)


def test_the_nearest_code_is_the_nearest(key):
    quantiser = QUANTISERS["nearest without projections"]
    x, statistics, variables = _made(quantiser, key)
    table = jax.random.normal(key, (16, 12)) * jnp.arange(1, 17)[:, None]  # of any length
    out = _applied(quantiser, {"params": {"embedding": table}}, x, statistics, True)
    x, table = np.asarray(x), np.asarray(table)
    apart = np.linalg.norm(x[..., None, :] - table, axis=-1)
    np.testing.assert_array_equal(out.ids, apart.argmin(-1))
    squared = np.mean((np.asarray(out.latents) - table[np.asarray(out.ids)]) ** 2)
    np.testing.assert_allclose(out.loss, (1.0 + 0.25) * squared, rtol=1e-5)


def test_gumbel_noise_comes_from_its_key(key):
    quantiser = QUANTISERS["gumbel"]
    x, statistics, variables = _made(quantiser, key)

    def ids(train, **keys):
        return np.asarray(_applied(quantiser, variables, x, statistics, train, keys).ids)

    noisy = ids(True, codes=jax.random.key(1))
    np.testing.assert_array_equal(noisy, ids(True, codes=jax.random.key(1)))
    assert np.any(noisy != ids(True, codes=jax.random.key(2)))
    np.testing.assert_array_equal(ids(True), ids(False))
    np.testing.assert_array_equal(ids(False, codes=jax.random.key(1)), ids(False))


def test_fsq_counts_every_code_once():
    """Latents that reach everywhere give all codes, each its own; the first channel is the least
    significant digit, and 0 is the middle value, above the half of an even number.
    """
    quantiser = quantize.Fsq(3, (4, 5, 3))
    axis = np.linspace(-4, 4, 41)
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, 1, -1, 3)
    out = _applied(quantiser, {}, jnp.asarray(grid), {})
    assert set(np.unique(out.ids)) == set(range(60)) and quantiser.codebook_size == 60
    codes = quantiser.apply({}, jnp.arange(60), {}, method="lookup")
    assert len(np.unique(np.asarray(codes), axis=0)) == 60
    np.testing.assert_array_equal(np.unique(codes[:, 0]), [-1, -0.5, 0, 0.5])
    np.testing.assert_allclose(codes[1] - codes[0], [0.5, 0, 0])
    assert quantiser.apply({}, jnp.zeros((1, 1, 1, 3)), {}).ids.item() == 2 + 4 * 2 + 20 * 1


@pytest.mark.parametrize(
    "levels, sentence",
    [
        ((8, 2), r"fsq_levels=\(8, 2\) are no whole numbers of 3 or more"),
        ((), "fsq_levels=\\(\\) are no whole numbers"),
        (8, "fsq_levels=8 are no whole numbers"),
        ((1000,) * 4, "make 1000000000000 codes; give fewer"),
    ],
)
def test_levels_that_make_no_fsq_are_refused(levels, sentence):
    with pytest.raises(UserError, match=sentence):
        quantize.Fsq(8, levels)
