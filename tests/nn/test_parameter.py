"""A parameter is what Flax's own is: made by its initialiser, boxed, read, and checked."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import NameInUseError, ScopeParamShapeError

from t2i_jax.nn.conv import boxed
from t2i_jax.nn.parameter import parameter

_INIT = boxed(nn.initializers.normal(1.0), "embed")


class Ours(nn.Module):
    """A vector of a given width, of the module's own name."""

    width: int
    names: tuple[str, ...] = ("scale",)

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = x * parameter(self, name, _INIT, (self.width,), jnp.float32)
        return x


class Theirs(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", _INIT, (self.width,), jnp.float32)


def test_it_is_made_boxed_and_read_as_flax_does():
    x = jnp.ones(3)
    ours, theirs = (kind(3).init(jax.random.key(0), x) for kind in (Ours, Theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for variables in (ours, nn.meta.unbox(ours)):
        np.testing.assert_array_equal(Ours(3).apply(variables, x), Theirs(3).apply(variables, x))


def test_a_value_of_another_shape_is_refused():
    variables = Ours(3).init(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ScopeParamShapeError, match=r'"scale".*\(1,\).*\(3,\)'):
        Ours(1).apply(variables, jnp.ones(1))


def test_a_name_is_given_once():
    with pytest.raises(NameInUseError):
        Ours(3, ("scale", "scale")).init(jax.random.key(0), jnp.ones(3))


def test_its_initialiser_is_not_traced_where_it_has_a_value():
    variables = Ours(3).init(jax.random.key(0), jnp.ones(3))
    traced = jax.make_jaxpr(lambda x: Ours(3).apply(variables, x))(jnp.ones(3))
    calls = []

    class Watched(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = lambda *args: calls.append(args) or _INIT(*args)  # noqa: E731
            return x * parameter(self, "scale", init, (3,), jnp.float32)

    assert str(jax.make_jaxpr(lambda x: Watched().apply(variables, x))(jnp.ones(3))) == str(traced)
    assert not calls
