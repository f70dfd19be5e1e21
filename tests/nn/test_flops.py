import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
from t2i_jax.nn.attention import MultiHeadAttention
from t2i_jax.nn.convolution import convolve
from t2i_jax.nn.flops import flops_of

_NHWC = ("NHWC", "HWIO", "NHWC")


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def conv(x, kernel, stride=1, padding="SAME", **options):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, dimension_numbers=_NHWC, **options
    )


def squared(x):
    return x @ x


SQUARED = 2 * 4**3  # of a 4 x 4 matrix


@pytest.mark.parametrize(
    ("function", "shapes", "wanted"),
    [
        (jnp.matmul, (shape(3, 5, 4), shape(4, 7)), 2 * 15 * 4 * 7),
        (
            functools.partial(jnp.einsum, "BQHD,BKHD->BHQK"),
            (shape(2, 5, 3, 4), shape(2, 6, 3, 4)),
            2 * 2 * 3 * 5 * 6 * 4,
        ),
        (conv, (shape(2, 5, 6, 3), shape(3, 3, 3, 7)), 2 * 2 * 30 * 7 * 9 * 3),
        (
            functools.partial(conv, stride=2),
            (shape(1, 8, 8, 3), shape(4, 4, 3, 5)),
            2 * 16 * 5 * 16 * 3,
        ),
        (
            functools.partial(conv, padding="VALID"),
            (shape(1, 8, 8, 3), shape(3, 3, 3, 5)),
            2 * 36 * 5 * 9 * 3,
        ),
        (
            functools.partial(conv, feature_group_count=2),
            (shape(1, 5, 5, 4), shape(3, 3, 2, 6)),
            2 * 25 * 6 * 9 * 2,
        ),
        (
            functools.partial(conv, feature_group_count=4),
            (shape(1, 5, 5, 4), shape(3, 3, 1, 4)),
            2 * 25 * 4 * 9,
        ),
        (
            functools.partial(conv, rhs_dilation=(2, 2)),
            (shape(1, 5, 5, 4), shape(3, 3, 4, 6)),
            2 * 25 * 6 * 9 * 4,
        ),
        (
            lambda x, kernel: jax.lax.conv_transpose(
                x, kernel, (2, 2), "SAME", dimension_numbers=_NHWC
            ),
            (shape(1, 4, 4, 3), shape(4, 4, 3, 5)),
            2 * 16 * 16 * 3 * 5,  # every one of 16 places meets every one of 16 taps
        ),
        (
            functools.partial(convolve, stride=2, padding=1),
            (shape(1, 8, 8, 2), shape(3, 3, 2, 4)),
            2 * 16 * 4 * 9 * 2,
        ),
        (
            functools.partial(convolve, stride=1, padding=3),
            (shape(1, 8, 8, 3), shape(7, 7, 3, 4)),
            2 * 64 * 4 * 49 * 3,
        ),
    ],
)
def test_products_and_convolutions(function, shapes, wanted):
    assert flops_of(function, *shapes) == wanted


def test_gradients_of_a_strided_convolution_cost_as_much_as_itself():
    def loss(x, kernel):
        return jnp.sum(conv(x, kernel, stride=2, padding="VALID") ** 2)

    x, kernel = shape(1, 8, 8, 3), shape(2, 2, 3, 5)
    assert flops_of(jax.grad(loss, (0, 1)), x, kernel) == 3 * flops_of(loss, x, kernel)


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (lambda x: jax.lax.scan(lambda x, _: (squared(x), None), x, None, length=3)[0], 3),
        (
            lambda x: jax.lax.scan(
                lambda x, _: (jax.lax.map(squared, jnp.stack([x] * 5))[0], None), x, None, 3
            )[0],
            15,
        ),
        (lambda x: jax.lax.fori_loop(0, 4, lambda i, x: squared(x), x), 4),
        (lambda x: jax.lax.fori_loop(0, jnp.int32(4), lambda i, x: squared(x), x), 4),
        (
            lambda x: jax.lax.while_loop(
                lambda c: c[0] < 7, lambda c: (c[0] + 1, squared(c[1])), (2, x)
            )[1],
            5,
        ),
        (
            lambda x: jax.lax.while_loop(
                lambda c: c[0] < 7, lambda c: (c[0] + 2, squared(c[1])), (2, x)
            )[1],
            1,
        ),
        (lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 7, squared, x), 1),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: squared(squared(x)), lambda: squared(x)), 2),
        (
            lambda x: jax.lax.platform_dependent(
                x, cpu=lambda x: squared(squared(x)), default=squared
            ),
            1,
        ),
        (jax.checkpoint(squared), 1),
        (jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(squared(x)))(x))), 4),
        (jax.jit(jax.vmap(squared)), 6),
    ],
)
def test_operations_around_a_product(function, times):
    x = shape(6, 4, 4) if times == 6 else shape(4, 4)
    assert flops_of(function, x) == times * SQUARED


def test_a_custom_gradient_counts_what_it_runs():
    @jax.custom_vjp
    def f(x):
        return squared(x)

    f.defvjp(lambda x: (squared(x), x), lambda x, g: (squared(squared(squared(x))) * g,))
    assert flops_of(f, shape(4, 4)) == SQUARED
    assert flops_of(jax.grad(lambda x: jnp.sum(f(x))), shape(4, 4)) == 4 * SQUARED


def test_what_each_device_of_a_mesh_runs_counts_once_per_device():
    mesh = jax.sharding.AbstractMesh((2, 3), ("data", "tensor"))
    spec = jax.sharding.PartitionSpec("data", "tensor")
    whole = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
    )
    assert flops_of(whole, shape(8, 6), shape(4, 9)) == 6 * 2 * 4 * 2 * 3


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 7)])
def test_attention(queries, keys):
    batch, dim, heads, dim_head = 2, 6, 3, 4
    attention = MultiHeadAttention(dim, heads, dim_head)
    x, context = shape(batch, queries, dim), shape(batch, keys, dim)
    inputs = (x,) if queries == keys else (x, context)
    params = jax.eval_shape(attention.init, jax.random.key(0), *inputs)
    inner = heads * dim_head
    projections = 2 * batch * dim * inner * (2 * queries + 2 * keys)  # q and out, k and v
    assert (
        flops_of(attention.apply, params, *inputs)
        == projections + 4 * batch * queries * keys * inner
    )


def test_a_network_of_any_size_is_counted_without_computing():
    model = ViTVQGAN(image_size=1024, dim=4096, layers=48, heads=32, mlp_dim=16384, scan=True)
    weights = image_tokenizer.abstract(model)
    image = shape(1, 1024, 1024, 3)
    counted = flops_of(
        lambda params, image: model.apply({"params": params}, image, {}),
        weights["generator"],
        image,
    )
    stack = 2 * (4 * 4096**2 + 2 * 4096 * 16384) * model.num_tokens + 4 * model.num_tokens**2 * 4096
    quantizer = 2 * model.num_tokens * (2 * 4096 * 32 + 8192 * 32)
    assert counted == 2 * 48 * stack + 2 * 2 * model.num_tokens * 4096 * 3 * 64 + quantizer


def test_a_convolutional_tokenizer_costs_what_its_layers_do():
    vae = VitVQGanVAE(
        dim=8, image_size=16, patch_size=4, layers=1, heads=2, dim_head=4, codebook_size=16
    )
    weights = image_tokenizer.abstract(vae)
    counted = flops_of(
        lambda params, fmap: vae.apply({"params": params}, fmap, method="decode"),
        weights["generator"],
        shape(2, 4, 4, 8),
    )
    tokens, dim, inner = 2 * 16, 8, 8
    layer = (
        tokens * (2 * dim * 3 * inner + 2 * inner * dim + 2 * 2 * dim * 32) + 4 * 2 * 16**2 * inner
    )
    # of the map, of the positions
    widen = tokens * 2 * 9 * dim * 32 + 2 * 9 * 2 * 4 * dim * 32 + 4 * 2 * 4 * 4 * 3 * 32
    pixels = tokens * 2 * 32 * 3 * 16
    # positions: products of a few vectors
    assert counted == pytest.approx(layer + widen + pixels, rel=0.05)
    assert np.isfinite(counted)
