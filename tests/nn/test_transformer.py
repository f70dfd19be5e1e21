"""The scanned stack: equal to its layers in turn, whatever is recomputed, and causal."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn import transformer
from t2i_jax.nn.transformer import Block, Transformer, layer_fields
from t2i_jax.on_host import initialise

_SIZES = {"dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24, "cross": True, "causal": True}


def _inputs():
    rng = np.random.default_rng(0)
    x, context = (rng.normal(size=size).astype(np.float32) for size in ((2, 4, 16), (2, 5, 10)))
    return x, None, context, np.arange(5)[None] < np.array([[3], [5]])


def _params(model, inputs):
    return initialise(lambda key: model.init(key, *inputs), jax.random.key(1))["params"]


def test_scan_is_the_layers_in_turn():
    model, inputs = Transformer(**_SIZES), _inputs()
    params = _params(model, inputs)
    x, apply = inputs[0], jax.jit(Block(**layer_fields(model, Block)).apply)
    for i in range(3):
        layer = jax.tree.map(operator.itemgetter(i), params["layers"])
        x, _ = apply({"params": layer}, x, *inputs[1:])
    expected = jax.jit(transformer.layer_norm(None).apply)({"params": params["norm"]}, x)
    np.testing.assert_allclose(
        jax.jit(model.apply)({"params": params}, *inputs), expected, atol=1e-5
    )


@functools.partial(jax.jit, static_argnums=1)
def _gradient(params, remat):
    def loss(params):
        network = Transformer(**_SIZES, remat=remat)
        return jnp.sum(network.apply({"params": params}, *_inputs()) ** 2)

    return jax.grad(loss)(params)


@pytest.mark.parametrize("remat", ["full", "attention", "dots"])
def test_recomputing_changes_no_gradient(remat):
    params = _params(Transformer(**_SIZES), _inputs())
    chex.assert_trees_all_close(_gradient(params, "none"), _gradient(params, remat), atol=1e-4)


def test_every_parameter_is_stacked_and_named():
    boxed = jax.eval_shape(Transformer(**_SIZES).init, jax.random.key(0), *_inputs())["params"]
    for leaf in jax.tree.leaves(boxed["layers"], is_leaf=lambda x: hasattr(x, "names")):
        assert leaf.names[0] == "layers" and leaf.value.shape[0] == 3
        assert len(leaf.names) == leaf.value.ndim


def test_masked_positions_and_context_do_not_matter():
    model = Transformer(dim=16, depth=2, heads=2, mlp_dim=24)
    x = np.random.default_rng(0).normal(size=(1, 4, 16)).astype(np.float32)
    mask = np.array([[True, True, False, True]])
    params = _params(model, (x, mask))
    changed = x.copy()
    changed[0, 2] = 7.0
    apply = jax.jit(model.apply)
    a, b = (apply({"params": params}, value, mask) for value in (x, changed))
    seen = np.array([0, 1, 3])
    np.testing.assert_allclose(a[:, seen], b[:, seen], atol=1e-6)


@pytest.mark.parametrize("unrolled", [0, 16])
def test_decoding_is_the_whole_sequence(monkeypatch, unrolled):
    monkeypatch.setattr(transformer, "_UNROLLED", unrolled)
    model, inputs = Transformer(**_SIZES), _inputs()
    params = {"params": _params(model, inputs)}
    whole = jax.jit(model.apply)(params, *inputs)
    cache = jax.jit(lambda params, context: model.apply(params, context, 4, method="init_cache"))(
        params, inputs[2]
    )
    decode = jax.jit(functools.partial(model.apply, method="decode"))
    for t in range(4):
        got, cache = decode(params, inputs[0][:, t], jnp.int32(t), cache, inputs[3])
        np.testing.assert_allclose(got, whole[:, t], atol=1e-5)


@pytest.mark.parametrize(("rows", "laid"), [(2, True), (40, False)])
def test_large_kernels_are_laid_for_few_rows(rows, laid):
    """A step of decoding is the same, with the kernels (out, in) and with them as they were."""
    model = Transformer(dim=512, depth=1, heads=2, mlp_dim=512, cross=True, causal=True)
    rng = np.random.default_rng(0)
    x, text = (rng.normal(size=size).astype(np.float32) for size in ((rows, 512), (rows, 3, 8)))
    seen = np.ones((rows, 3), bool)
    params = {"params": _params(model, (x[:, None], None, text, seen))}

    @jax.jit
    def step(params):
        cache = model.apply(params, text, 4, method="init_cache")
        return model.apply(params, x, jnp.int32(0), cache, seen, method="decode")[0], cache

    got, cache = step(params)
    [layer] = cache["params"]
    assert ("kernel_by_output" in layer["wide"]) is laid
    assert "kernel" in layer["cross_attention"]["k"]  # 8 x 512
    whole = jax.jit(model.apply)(params, x[:, None], None, text, seen)[:, 0]
    np.testing.assert_allclose(got, whole, atol=2e-5)
