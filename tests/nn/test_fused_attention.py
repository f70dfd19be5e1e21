"""Fused attention against the plain one, and that programs for TPUs and GPUs hold the kernel and no
scores.
"""

import importlib.util
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.aot import hlo
from t2i_jax.nn import fused_attention, maskgit_layers, unet_attention
from t2i_jax.nn.flops import flops_of
from t2i_jax.nn.transformer import Transformer


def _inputs(B=1, N=128, H=2, D=16):
    return (jax.random.normal(jax.random.key(i), (B, N, H, D)) for i in range(3))


@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_gives_what_plain_attention_gives(causal):
    q, k, v = _inputs()
    fused = fused_attention.splash(q, k, v, causal, interpret=True)
    np.testing.assert_allclose(
        fused, jax.nn.dot_product_attention(q, k, v, is_causal=causal), atol=2e-6
    )


def test_its_gradients_too():
    q, k, v = _inputs()

    def loss(attend):
        return jax.jit(jax.grad(lambda *t: jnp.sum(attend(*t) ** 2), (0, 1, 2)))(q, k, v)

    fused = loss(lambda *t: fused_attention.splash(*t, causal=True, interpret=True))
    plain = loss(lambda *t: jax.nn.dot_product_attention(*t, is_causal=True))
    chex.assert_trees_all_close(fused, plain, atol=2e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_keys_of_another_number_and_their_mask(masked):
    (q, _, _), (_, k, v) = _inputs(B=2), _inputs(B=2, N=129)
    seen = jax.random.bernoulli(jax.random.key(9), 0.5, (2, 129)).at[:, 0].set(True)
    seen = seen if masked else None

    def value_and_gradients(attend):
        loss = jax.value_and_grad(lambda *t: jnp.sum(attend(*t) ** 2), (0, 1, 2))
        return jax.jit(loss)(q, k, v)

    def fused(*t):
        return fused_attention.splash(*t, interpret=True, scale=1.0, seen_BK=seen)

    def plain(*t):
        mask = None if seen is None else seen[:, None, None]
        return jax.nn.dot_product_attention(*t, mask=mask, scale=1.0)

    # sums of 129 numbers in another order, of values up to 4
    chex.assert_trees_all_close(*map(value_and_gradients, (fused, plain)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("N", [128, 96])
def test_without_a_kernel_it_is_plain_attention(N, causal):
    q, k, v = _inputs(N=N)
    plain = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    np.testing.assert_allclose(fused_attention.attend(q, k, v, causal), plain, atol=1e-6)


def test_without_a_kernel_a_long_sequence_goes_by_blocks_of_queries():
    q, k, v = _inputs(N=2100, H=3, D=4)

    def loss(attend):
        return jax.jit(jax.grad(lambda *t: jnp.sum(attend(*t) ** 2), (0, 1, 2)))

    mine = loss(lambda *t: fused_attention.attend(*t, causal=True))
    plain = loss(lambda *t: jax.nn.dot_product_attention(*t, is_causal=True))
    chex.assert_trees_all_close(mine(q, k, v), plain(q, k, v), atol=1e-5)
    assert "2100,2100]" in plain.lower(q, k, v).compile().as_text()
    assert "2100,2100]" not in mine.lower(q, k, v).compile().as_text()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is installed on Linux x86-64 alone"
)
@pytest.mark.parametrize(("length", "fused"), [(1024, True), (1000, False)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_tpu_program_holds_no_scores_where_there_is_the_kernel(length, fused, causal):
    from t2i_jax.aot.ahead import slice_devices

    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, slice_devices("v5e:2x2"))
    place = jax.NamedSharding(mesh, jax.P(("slice", "data", "fsdp"), None, "tensor", None))
    inputs = [jax.ShapeDtypeStruct((4, length, 4, 64), jnp.bfloat16, sharding=place)] * 3

    def loss(*t):
        return jnp.sum(fused_attention.attend(*t, causal=causal).astype(jnp.float32))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(*inputs).compile().as_text()
    scores = re.search(rf"\[[\d,]*{length},{length}\]", text)
    assert ("tpu_custom_call" in text, scores is None) == (fused, fused)
    # Two products forwards, three more for the queries' gradient; a device has two rows and two
    # heads.
    if fused:
        assert hlo.cost(text, 4).flops == 5 * 2 * 4 * length**2 * 64 / (2 if causal else 1)


def _four_chips():
    """A mesh of four, and what makes inputs whose rows are split over it."""
    from t2i_jax.aot.ahead import slice_devices

    mesh = sharding.make_mesh({"fsdp": 4}, slice_devices("v5e:2x2"))
    place = jax.NamedSharding(mesh, jax.P(("slice", "data", "fsdp")))

    def given(*shape, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    return mesh, given


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is installed on Linux x86-64 alone"
)
def test_a_layer_of_muse_holds_no_scores_on_a_tpu():
    mesh, given = _four_chips()
    layer = maskgit_layers.Layer(
        dim=64, dim_head=64, heads=1, ff_mult=4, compat=(), dtype="bfloat16", fmap_size=64,
        multi_axis=None,
    )  # fmt: skip
    inputs = given(4, 1024, 64), given(4, 1100, 64), given(4, 1100, dtype="bool")
    params = sharding.unbox(jax.eval_shape(layer.init, jax.random.key(0), *inputs, True))

    def loss(params, *inputs):
        return jnp.sum(layer.apply(params, *inputs, True)[0].astype(jnp.float32))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, *inputs).compile().as_text()
    assert "tpu_custom_call" in text and not re.search(r"\[[\d,]*1024,(1025|1101)\]", text)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is installed on Linux x86-64 alone"
)
@pytest.mark.parametrize(("remat", "kernels"), [("full", 4), ("attention", 2)])
def test_a_text_is_attended_to_by_the_kernel_which_a_remat_policy_does_not_run_again(
    remat, kernels
):
    mesh, given = _four_chips()
    # five layers are one loop, whose body is written once
    network = Transformer(dim=128, depth=5, heads=2, mlp_dim=128, cross=True, causal=True,
                          dtype="bfloat16", remat=remat)  # fmt: skip
    x, text, mask = given(4, 512, 128), given(4, 256, 128), given(4, 256, dtype="bool")
    params = sharding.unbox(jax.eval_shape(network.init, jax.random.key(0), x, None, text, mask))

    def loss(params, x, text, mask):
        return jnp.sum(network.apply(params, x, None, text, mask).astype(jnp.float32))

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss)).lower(params, x, text, mask).compile().as_text()
    assert len(re.findall(r"%splash_mha_fwd[\w.]* = ", program)) == kernels
    assert not re.search(r"\[[\d,]*512,256\]\S* (dot|convolution)\(", program)


def _has_card(monkeypatch, capability):
    """A GPU that is not there, to lower for; what JAX asks of cuDNN is made up."""
    card = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )


def _gpu_program(attend, *inputs):
    """(cuDNN's kernels in the program of a gradient, the program)."""

    def loss(*t):
        return jnp.sum(attend(*t).astype(jnp.float32))

    text = jax.jit(jax.grad(loss)).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    return set(re.findall(r"custom_call @(__cudnn\$\w+)", text)), text


_KERNELS = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}


@pytest.mark.parametrize(
    ("capability", "dtype", "length", "width", "fused"),
    [
        ("9.0", "bfloat16", 96, 64, True),
        ("8.0", "float16", 96, 128, True),
        ("7.5", "float16", 96, 64, False),  # a T4
        ("gfx942", "bfloat16", 96, 64, False),
        ("9.0", "float32", 96, 64, False),
        ("9.0", "bfloat16", 96, 136, False),
        ("9.0", "bfloat16", 96, 60, False),
        ("9.0", "bfloat16", 95, 64, False),
    ],
)
def test_a_gpu_program_holds_cudnns_kernel_where_it_takes_it(
    monkeypatch, capability, dtype, length, width, fused
):
    _has_card(monkeypatch, capability)
    inputs = [jax.ShapeDtypeStruct((2, length, 2, width), dtype)] * 3
    kernels, text = _gpu_program(lambda *t: fused_attention.attend(*t, causal=True), *inputs)
    assert kernels == (_KERNELS if fused else set())
    assert (f"{length}x{length}x" in text) is not fused


def test_on_a_mesh_each_gpu_takes_its_rows_and_heads(monkeypatch):
    _has_card(monkeypatch, "8.0")
    tensor, sequence = (
        jax.sharding.AbstractMesh((1, 1, 2, *last), sharding.MESH_AXES) for last in ((1, 2), (2, 1))
    )
    inputs = [jax.ShapeDtypeStruct((4, 96, 4, 64), jnp.bfloat16)] * 3
    with jax.sharding.use_abstract_mesh(tensor):
        kernels, text = _gpu_program(fused_attention.attend, *inputs)
    assert kernels == _KERNELS and "tensor<2x96x2x64xbf16>" in text
    with jax.sharding.use_abstract_mesh(sequence):
        assert not fused_attention.cudnn_takes(inputs[0])


def test_cudnns_kernel_counts_as_the_plain_form_does(monkeypatch):
    def gradient(*inputs):
        return jax.grad(
            lambda *t: jnp.sum(fused_attention.attend(*t).astype(jnp.float32)), (0, 1, 2)
        )(*inputs)

    inputs = [jax.ShapeDtypeStruct((2, 96, 2, 64), jnp.bfloat16)] * 3
    plain = flops_of(fused_attention.attend, *inputs), flops_of(gradient, *inputs)
    _has_card(monkeypatch, "9.0")
    assert (flops_of(fused_attention.attend, *inputs), flops_of(gradient, *inputs)) == plain
    assert plain == (4 * 2 * 2 * 96**2 * 64, 12 * 2 * 2 * 96**2 * 64)


@pytest.mark.parametrize(("side", "fused"), [(32, True), (16, False)])
def test_a_large_map_of_a_unet_takes_cudnns_kernel_too(monkeypatch, side, fused):
    _has_card(monkeypatch, "9.0")
    queries, keys = ((2, side**2, 8, 64), (2, side**2 + 257, 1, 64))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (queries, keys, keys)]
    assert _gpu_program(unet_attention.attend, *inputs)[0] == (_KERNELS if fused else set())
