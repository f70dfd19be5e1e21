"""The first state computed on the host is, bit for bit, what the compiled program gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import on_host
from t2i_jax.train import state as states
from tests.e2e import tiny, tiny_imagen, tiny_maskgit

_INITIALISERS = {
    "normal": jax.nn.initializers.normal(0.02),
    "lecun_normal": jax.nn.initializers.lecun_normal(),
    "truncated": jax.nn.initializers.truncated_normal(0.3),
    "he_uniform": jax.nn.initializers.he_uniform(),
    "range": lambda key, shape: jax.random.uniform(key, shape, minval=-0.3, maxval=0.7),
    "third": lambda key, shape: jax.random.uniform(key, shape, minval=0.1, maxval=0.4) / 3 + 1,
    "scaled twice": lambda key, shape: jax.random.uniform(key, shape) * 0.7 * 0.3 - 0.1,
    "bfloat16": lambda key, shape: jax.random.normal(key, shape).astype(jnp.bfloat16),
    "integers": lambda key, shape: jax.random.bits(key, shape),
    "layers": lambda key, shape: jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1))(
        jax.random.split(key, 3)
    ),
    "loop": lambda key, shape: jax.lax.scan(
        lambda x, key: (jnp.tanh(x), jax.random.uniform(key, shape)),
        jnp.ones(shape),
        jax.random.split(key, 3),
    )[1],
    "loop of normals": lambda key, shape: jax.lax.scan(
        lambda x, key: (x + jax.random.normal(key, shape[:1]).sum(), jax.random.normal(key, shape)),
        jnp.float32(0),
        jax.random.split(key, 4),
    )[1],
    "orthogonal": jax.nn.initializers.orthogonal(),  # left to the compiler, almost whole
}


def _same(mine, theirs):
    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert plain(one).tobytes() == plain(other).tobytes()


def test_all_initialisers_give_the_same_bits(key):
    def start(key):
        first, *_ = jax.random.split(jax.random.fold_in(key, 2**31 + 7), 2)
        made = {
            name: init(jax.random.fold_in(first, number), (37, 11))
            for number, (name, init) in enumerate(_INITIALISERS.items())
        }
        zeros = {name: jnp.zeros_like(leaf) for name, leaf in made.items()}
        return made, zeros, jax.tree.map(jnp.copy, made), first, jnp.int32(0)

    _same(on_host.evaluate(start, key), jax.jit(start)(key))


@pytest.mark.parametrize("of", [tiny, tiny_imagen, tiny_maskgit])
def test_the_states_of_real_tasks_give_the_same_bits(of):
    recipes = [of.get_config()]
    recipes += [part for part in recipes[0].parts.values() if not isinstance(part, str)]
    for recipe in recipes:
        optimisers = states.optimisers_of(recipe.task, recipe.train)
        start = states.start_of(recipe.task, optimisers, recipe.train.ema_decay)
        key = jax.random.key(2**40 + 1)
        found = on_host.evaluate(start, key)
        _same(found, jax.jit(start)(key))
        on_host_alone = sum(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
        assert on_host_alone > len(jax.tree.leaves(found)) / 2


def test_another_generator_is_left_to_the_compiler():
    with pytest.raises(on_host.Unable):
        on_host.evaluate(lambda key: jax.random.uniform(key, (3,)), jax.random.key(0, impl="rbg"))
