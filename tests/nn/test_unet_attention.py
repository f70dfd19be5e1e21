import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn.unet_attention import attend


def random(*shapes):
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def loss(q, k, v, max_scores):
    return jnp.sum(jnp.sin(attend(q, k, v, max_scores)))


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_queries_give_the_same_values_and_gradients(shared):
    heads = 1 if shared else 3
    arrays = random((2, 10, 3, 4), (2, 7, heads, 4), (2, 7, heads, 4))
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    whole, by_blocks = run(*arrays, 10 * 21), run(*arrays, 4 * 21)  # blocks of 4, 4 and 2 queries
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, by_blocks
    )


def test_attention_is_a_softmax_over_the_keys():
    q, k, v = random((1, 2, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4))
    wanted = jnp.einsum("BHQK,BKHD->BQHD", jax.nn.softmax(jnp.einsum("BQHD,BKHD->BHQK", q, k)), v)
    np.testing.assert_allclose(attend(q, k, v), wanted, atol=1e-6)


def test_the_scores_of_a_large_map_never_exist_at_once():
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, 128 * 128, 16, 32), *2 * ((1, 16407, 1, 32),))
    ]
    step = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v) ** 2), argnums=(0, 1, 2)))
    memory = step.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.6 * 2**30  # the matrix alone has 17 GB
