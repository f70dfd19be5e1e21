"""Convolutions as sums of products, against XLA's own: values, gradients, and gradients of
gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn import convolution, cpu_convolution, row_sums, winograd
from t2i_jax.nn.conv import depthwise
from t2i_jax.nn.convolution import convolve


def _whole(x, kernel, stride, padding):
    pad = ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _grouped(x, kernel, bias):
    pad, groups = kernel.shape[0] // 2, x.shape[-1]
    return bias + jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _penalty(f):
    """A loss with the gradient of the input inside, as gradient penalties have it."""

    def slope(x, *rest):
        return jax.grad(lambda x: jnp.sum(jnp.sin(f(x, *rest))))(x)

    return lambda x, *rest: jnp.sum(slope(x, *rest) ** 2) + jnp.sum(f(x, *rest) ** 3)


def _close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        # float32, sums of up to 700 products in another order, through two derivatives
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize(
    "size, side, stride, padding, channels",
    [
        (9, 3, 1, 1, 3),
        (8, 4, 2, 1, 3),
        (9, 4, 2, 1, 3),
        (10, 3, 2, 1, 3),
        (7, 15, 1, 7, 3),
        (8, 1, 2, 0, 3),
        (10, 5, 3, 2, 3),
        (4, 4, 1, 0, 3),
        (6, 3, 1, 1, 200),
        (6, 4, 2, 1, 70),
        (2, 3, 1, 1, 7),  # few positions, with which the gradient is one product
        (6, 3, 1, 0, 3),
        (1, 3, 1, 3, 3),
        (9, 3, 1, 4, 3),
    ],
)
def test_convolution_and_its_derivatives(size, side, stride, padding, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size, channels)).astype(np.float32)
    kernel = rng.normal(size=(side, side, channels, 5)).astype(np.float32) / np.float32(
        side * channels**0.5
    )

    def ours(x, kernel):
        return convolve(x, kernel, stride, padding)

    def theirs(x, kernel):
        return _whole(x, kernel, stride, padding)

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, x, kernel):
        return f(x, kernel), jax.grad(_penalty(f), (0, 1))(x, kernel)

    _close(run(ours, x, kernel), run(theirs, x, kernel))


@pytest.mark.parametrize(
    ("size", "features"),
    [(3, 4), (5, 2)],  # few positions for the features, which are products for each tap; many
)
def test_a_transposed_convolution_and_its_derivatives(key, size, features):
    keys = jax.random.split(key, 2)
    x = jax.random.normal(keys[0], (2, size, size, 3))
    kernel = jax.random.normal(keys[1], (4, 4, 3, features)) / 7

    def theirs(x, kernel):
        like = jax.ShapeDtypeStruct((2, 2 * size, 2 * size, features), jnp.float32)
        strided = kernel.swapaxes(2, 3)
        return jax.linear_transpose(lambda y: _whole(y, strided, 2, 1), like)(x)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def run(f):
        return f(x, kernel), jax.grad(_penalty(f), (0, 1))(x, kernel)

    _close(run(convolution.enlarge), run(theirs))
    assert cpu_convolution.are_few(x, features) == (size == 3)


def test_the_gradient_of_a_kernel_over_either_channels(key):
    # a large image with twice the channels goes over its features, see `_kernel_in_turn`
    keys = jax.random.split(key, 3)
    x, y = (
        jax.random.normal(each, (2, size, size, channels)) / size
        for each, size, channels in ((keys[0], 66, 6), (keys[1], 64, 3))
    )
    either = [
        jax.jit(cpu_convolution._kernel_in_turn, static_argnums=2)(x, y, last) for last in (0, 1)
    ]
    back = jax.linear_transpose(lambda k: _whole(x, k, 1, 0), jnp.zeros((3, 3, 6, 3)))
    _close(either, [back(y)[0]] * 2)


@pytest.mark.parametrize(("rows", "columns", "padding"), [(6, 8, 1), (7, 6, 0), (5, 7, 2)])
def test_a_convolution_by_fewer_products(key, monkeypatch, rows, columns, padding):
    keys = jax.random.split(key, 2)
    x = jax.random.normal(keys[0], (2, rows, columns, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 4)) / 5
    whole, asked = functools.partial(_whole, stride=1, padding=padding), []

    def pays(x, kernel_shape, of_kernel=False):
        asked.append((x.shape[3], kernel_shape, of_kernel))
        return True

    @functools.partial(jax.jit, static_argnums=0)
    def run(f):
        return f(x, kernel), jax.grad(_penalty(f), (0, 1))(x, kernel)

    monkeypatch.setattr(winograd, "pays", pays)
    _close(run(lambda x, kernel: convolve(x, kernel, 1, padding)), run(whole))
    shape = (3, 3, 3, 4)
    assert {(3, shape, False), (4, shape, False), (3, shape, True)} <= set(asked)


@pytest.mark.parametrize(
    ("shape", "side", "features", "both"),
    [
        ((4, 34, 34, 128), 3, 128, (True, True)),
        ((4, 66, 66, 64), 3, 64, (True, False)),  # beside which the sums of a gradient are many
        ((4, 18, 18, 64), 3, 64, (False, False)),  # too few products
        ((4, 10, 10, 1024), 3, 2048, (False, False)),  # too few positions for the kernel's sums
        ((4, 10, 10, 512), 3, 512, (True, True)),
        ((4, 36, 36, 128), 5, 128, (False, False)),
    ],
)
def test_when_fewer_products_pay(shape, side, features, both):
    kernel = side, side, shape[3], features

    def pays(dtype):
        x = jax.ShapeDtypeStruct(shape, dtype)
        return winograd.pays(x, kernel), winograd.pays(x, kernel, of_kernel=True)

    assert pays(jnp.float32) == both
    assert pays(jnp.bfloat16) == (False, False)


@pytest.mark.parametrize("features", [3, 6])
def test_a_product_over_rows_with_few_columns_and_many(key, features):
    keys = jax.random.split(key, 3)
    x, kernel = jax.random.normal(keys[0], (40, 7)), jax.random.normal(keys[1], (7, features)) / 3

    def run(product):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(product(*a) ** 3), (0, 1)))(x, kernel)

    _close(run(row_sums.to_few), run(jnp.matmul))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 3)])
def test_a_window_whose_columns_are_channels(key, stride, padding):
    # TPUs take this form; here it only runs as a function of its own.
    x = jax.random.normal(key, (2, 9 + stride, 9, 3))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (7, 7, 3, 5)) / 12

    def run(form):
        return jax.jit(lambda: form(x, kernel, stride, padding))()

    _close(run(convolution._columns_first), run(cpu_convolution.whole))


@pytest.mark.parametrize("size", [5, 6])
def test_depthwise_and_its_gradients(key, size):
    keys = jax.random.split(key, 3)
    x, kernel = (
        jax.random.normal(keys[0], (2, size, size, 4)),
        jax.random.normal(keys[1], (3, 3, 4)),
    )
    inputs = x, kernel, jax.random.normal(keys[2], (4,))
    _close(*(jax.jit(f)(*inputs) for f in (depthwise, _grouped)))

    def cubed(f):
        return lambda *inputs: jnp.sum(f(*inputs) ** 3)

    _close(*(jax.jit(jax.grad(cubed(f), (0, 1, 2)))(*inputs) for f in (depthwise, _grouped)))
