"""Both networks over image tokens: causal, cached = uncached, text dropped = no text, sizes of the
presets.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.decoding import autoregressive
from t2i_jax.errors import UserError
from t2i_jax.models import parti_transformer
from t2i_jax.models.parti import COMPAT, Parti
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.nn import transformer
from t2i_jax.on_host import initialise
from tests.weights import moved

_SIZES = {"fmap_size": 3, "codebook_size": 20, "text_embed_dim": 6}
_PARTI = Parti(dim=16, depth=2, heads=2, dim_head=8, **_SIZES)
_PAPER = PartiTransformer(dim=16, depth=2, heads=2, mlp_dim=32, **_SIZES)
_MODELS = {
    "parti": _PARTI,
    "parti compat": _PARTI.clone(compat=COMPAT),
    "parti deep": _PARTI.clone(depth=5, remat="dots"),  # a loop over layers
    "paper": _PAPER,
    "paper learned positions": _PAPER.clone(positions="learned"),
    "paper window": _PAPER.clone(window=3),
    "paper window deep": _PAPER.clone(window=3, depth=5),
}


def _inputs(rows=2):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 20, (rows, 9))
    mask = np.arange(4)[None] < np.array([[2], [4], [3], [1]])[:rows]
    return ids, rng.normal(size=(rows, 4, 6)).astype(np.float32), mask


def _first(model):
    ids, embeds, mask = _inputs()
    return initialise(lambda key: model.init(key, ids[:, :1], embeds, mask), jax.random.key(0))


@functools.cache
def _variables(model):
    # Larger than at the start, so that everything matters in the comparisons below.
    return moved(_first(model), 0.1)


@pytest.mark.parametrize("name", _MODELS)
def test_decoding_token_by_token_gives_the_same_logits(monkeypatch, name):
    monkeypatch.setattr(transformer, "_UNROLLED", 4)
    model, (ids, embeds, mask) = _MODELS[name], _inputs()
    variables, keep = _variables(model), np.array([True, False])
    whole = jax.jit(model.apply)(variables, ids[:, :-1], embeds, mask, keep)
    assert whole.shape == (2, 9, 20) and whole.dtype == jnp.float32
    cache = jax.jit(functools.partial(model.apply, method="init_cache"))(
        variables, embeds, mask, keep
    )
    decode = jax.jit(
        lambda before, t, cache: model.apply(variables, before, t, cache, method="decode")
    )
    before = np.array([7, 7])
    for t in range(9):
        logits, cache = decode(before, jnp.int32(t), cache)
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-4)
        before = ids[:, t]


@pytest.mark.parametrize("name", ["parti", "parti deep", "paper", "paper window"])
def test_a_cache_that_grows_gives_the_same_tokens(monkeypatch, name):
    monkeypatch.setattr(transformer, "_UNROLLED", 4)
    model, (_, embeds, mask) = _MODELS[name], _inputs()
    variables, keys = _variables(model), jax.random.split(jax.random.key(3), 2)

    def tokens(short):
        monkeypatch.setattr(autoregressive, "_SHORT", short)
        lengths = autoregressive.cache_lengths(9)

        def decode(ids, position, cache):
            return model.apply(variables, ids, position, cache, method="decode")

        sampling = autoregressive.Sampling(guided=False)

        @jax.jit
        def draw(variables):
            cache = model.apply(variables, embeds, mask, None, lengths[0], method="init_cache")
            return autoregressive.generate(
                decode, cache, keys, 9, sampling=sampling, grow=model.grow_cache
            )

        return lengths, np.asarray(draw(variables))

    (lengths, grown), (all_at_once, whole) = tokens(8), tokens(9)
    assert (lengths, all_at_once) == ([5, 9], [9])
    np.testing.assert_array_equal(grown, whole)


@pytest.mark.parametrize("name", ["parti", "parti compat", "paper"])
def test_a_token_changes_only_what_comes_after_it(name):
    model, (ids, embeds, mask) = _MODELS[name], _inputs()
    variables = _variables(model)

    def of_embedding(shift):  # the gradient of every position's logits by the embedding of token 4
        params = dict(variables["params"])
        params["embedding"] = jnp.concatenate(
            [params["embedding"], params["embedding"][ids[0, 4]][None] + shift]
        )
        changed = model.clone(codebook_size=21)
        if "to_logits" in params:

            def widen(leaf):
                return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, 1)])

            params["to_logits"] = jax.tree.map(widen, params["to_logits"])
        row = np.where(np.arange(9) == 4, 20, ids[0])[None]
        return changed.apply({"params": params}, row[:, :-1], embeds[:1], mask[:1])[0, :, :20].sum(
            -1
        )

    depends = np.abs(jax.jit(jax.jacobian(of_embedding))(jnp.zeros(16))).max(-1)
    assert (depends[:5] == 0).all() and (depends[5:] > 0).all()


@pytest.mark.parametrize("name", ["parti", "paper"])
def test_a_dropped_text_has_no_influence_and_a_kept_one_has(name):
    model, (ids, embeds, mask) = _MODELS[name], _inputs()
    variables = _variables(model)
    apply = jax.jit(model.apply)

    def logits(embeds, mask, keep):
        return apply(variables, ids[:, :-1], embeds, mask, np.full(2, keep))

    np.testing.assert_array_equal(
        logits(embeds, mask, False), logits(embeds + 1, np.ones_like(mask), False)
    )
    assert np.abs(logits(embeds, mask, True) - logits(embeds + 1, mask, True)).max() > 1e-3
    padded = np.where(mask[..., None], embeds, 5.0)
    np.testing.assert_allclose(logits(embeds, mask, True), logits(padded, mask, True), atol=1e-5)


@pytest.mark.parametrize("tokens", [4, 1])
@pytest.mark.parametrize("name", ["parti", "paper"])
def test_a_text_without_a_token_is_a_dropped_text(name, tokens):
    """Also where it has room for one alone, as a class label: beside nothing else even a masked key
    would have all the weight.
    """
    model, (ids, embeds, mask) = _MODELS[name], _inputs()
    embeds, mask = embeds[:, :tokens], mask[:, :tokens]
    variables, apply = _variables(model), jax.jit(model.apply)
    start = jax.jit(functools.partial(model.apply, method="init_cache"))  # of `decode`
    one = np.array([True, False])
    dropped, cache = (
        apply(variables, ids[:, :-1], embeds, mask, one),
        start(variables, embeds, mask, one),
    )
    mask = mask & one[:, None]
    for keep in (np.ones(2, bool), None):
        unseen = apply(variables, ids[:, :-1], embeds, mask, keep)
        np.testing.assert_array_equal(unseen, dropped)
        jax.tree.map(np.testing.assert_array_equal, start(variables, embeds, mask, keep), cache)


def test_the_first_loss_is_that_of_guessing():
    ids, embeds, mask = _inputs()
    for model in (_PARTI, _PAPER):
        params = _first(model)
        logits = jax.jit(model.apply)(params, ids[:, :-1], embeds, mask)
        nats = -np.take_along_axis(
            np.asarray(jax.nn.log_softmax(logits)), ids[..., None], -1
        ).mean()
        assert abs(nats - np.log(20)) < 0.3


def test_dropout_acts_in_training_only():
    ids, embeds, mask = _inputs()
    for model in (_PARTI.clone(dropout=0.5), _PAPER.clone(dropout=0.5)):
        variables = _variables(model)
        apply = jax.jit(functools.partial(model.apply, deterministic=False))
        rngs = ({"dropout": jax.random.key(seed)} for seed in range(2))
        one, other = (apply(variables, ids[:, :-1], embeds, mask, rngs=rng) for rng in rngs)
        assert not np.allclose(one, other)


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits():
    ids, embeds, mask = _inputs()
    for model in (_PARTI, _PAPER):
        variables = _variables(model)
        both = (model, model.clone(dtype="bfloat16"))
        fine, coarse = (jax.jit(m.apply)(variables, ids[:, :-1], embeds, mask) for m in both)
        assert coarse.dtype == jnp.float32
        assert np.abs(fine - coarse).max() < 0.1 * np.abs(fine).max()


def test_configurations_survive_json():
    known = {"Parti": Parti, "PartiTransformer": PartiTransformer}
    for model in (_PARTI.clone(compat=("unit_init",)), _PAPER):
        assert config.from_dict(config.to_dict(model), known) == model


@pytest.mark.parametrize(
    ("preset", "total", "name"),
    [
        (parti_transformer.PARTI_350M, 385_939_456, 350e6),
        (parti_transformer.PARTI_750M, 788_862_976, 750e6),
        (parti_transformer.PARTI_3B, 3_087_667_200, 3e9),
        (parti_transformer.PARTI_20B, 20_538_032_128, 20e9),
    ],
)
def test_presets_have_the_size_they_are_named_after(preset, total, name):
    text, decoder = preset
    ids, embeds = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, text.dim))
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), ids, embeds, jnp.ones((1, 1), bool))[
        "params"
    ]
    of_text = jax.eval_shape(text.init, jax.random.key(0))

    def size(*trees):
        return sum(leaf.size for leaf in jax.tree.leaves(trees))

    assert size(shapes, of_text) == total
    # the names leave embeddings out
    assert abs(size(shapes["decoder"], of_text["transformer"]) / name - 1) < 0.03
    assert decoder.num_tokens == 1024 and text.max_length == 128


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Parti(dim=0, depth=1), "dim=0"),
        (lambda: Parti(dim=8, depth=1, dropout=1.0), "dropout=1.0"),
        (lambda: Parti(dim=8, depth=1, compat=("unit_ini",)), "unit_init"),
        (lambda: Parti(dim=8, depth=1, compat="unit_init"), "tuple"),
        (lambda: Parti(dim=8, depth=1, rel_pos_init="cnv"), "'conv'"),
        (lambda: PartiTransformer(dim=10, depth=1, heads=3, mlp_dim=8), "dim=9"),
        (
            lambda: PartiTransformer(dim=8, depth=1, heads=2, mlp_dim=8, positions="sinus"),
            "positions",
        ),
        (lambda: PartiTransformer(dim=8, depth=1, heads=2, mlp_dim=8, remat="dot"), "'dots'"),
        (lambda: PartiTransformer(dim=8, depth=1, heads=2, mlp_dim=8, window=4), "window=4.*try 5"),
        (lambda: Parti(dim=8, depth=1).init(jax.random.key(0), *_inputs()), "fmap_size=None"),
        (
            lambda: _PARTI.init(jax.random.key(0), _inputs()[0], np.zeros((2, 4, 7)), _inputs()[2]),
            "text_embed_dim=6",
        ),
    ],
)
def test_nonsense_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
