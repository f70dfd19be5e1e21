"""Fused causal attention against the plain one, and that a compiled TPU program holds the kernel and no scores."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.nn import fused_attention


def _inputs(B=1, N=128, H=2, D=16):
    return (jax.random.normal(jax.random.key(i), (B, N, H, D)) for i in range(3))


def test_the_kernel_gives_what_plain_attention_gives():
    q, k, v = _inputs()
    fused = fused_attention.splash(q, k, v, interpret=True)
    np.testing.assert_allclose(fused, jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=2e-6)


def test_its_gradients_too():
    q, k, v = _inputs()
    loss = lambda attend: jax.grad(lambda *t: jnp.sum(attend(*t) ** 2), (0, 1, 2))(q, k, v)
    fused = loss(lambda *t: fused_attention.splash(*t, interpret=True))
    plain = loss(lambda *t: jax.nn.dot_product_attention(*t, is_causal=True))
    for mine, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("N", [128, 96])
def test_without_a_kernel_it_is_plain_attention(N):
    q, k, v = _inputs(N=N)
    plain = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(fused_attention.attend_causally(q, k, v), plain, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is installed on Linux x86-64 alone")
@pytest.mark.parametrize(("length", "fused"), [(1024, True), (1000, False)])
def test_a_tpu_program_holds_no_scores_where_there_is_the_kernel(length, fused):
    from t2i_jax.train.ahead import slice_devices

    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, slice_devices("v5e:2x2"))
    place = jax.NamedSharding(mesh, jax.P(("slice", "data", "fsdp"), None, "tensor", None))
    inputs = [jax.ShapeDtypeStruct((4, length, 4, 64), jnp.bfloat16, sharding=place)] * 3
    loss = lambda *t: jnp.sum(fused_attention.attend_causally(*t).astype(jnp.float32))
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(*inputs).compile().as_text()
    scores = re.search(rf"\[[\d,]*{length},{length}\]", text)
    assert ("tpu_custom_call" in text, scores is None) == (fused, fused)
