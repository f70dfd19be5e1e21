"""Shapes that tracing finds are those of the network, found once for equal ones."""

import jax
import jax.numpy as jnp
import pytest

from t2i_jax.models import image_tokenizer
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.tracing import traced_once


def counted():
    """(a function of shapes that is traced once, the arguments that it was really called with)."""
    calls = []

    def shapes(width, names=()):
        calls.append((width, names))
        dtype = jnp.zeros((), float).dtype
        return {name: {"kernel": jax.ShapeDtypeStruct((width,), dtype)} for name in names}

    return traced_once(shapes), calls


def test_equal_arguments_are_traced_once_and_others_again():
    once, calls = counted()
    first = once(3, ("a", "b"))
    assert once(3, ("a", "b")) == first and calls == [(3, ("a", "b"))]
    assert once(4, ("a", "b")) != first and len(calls) == 2


def test_what_a_caller_changes_is_its_own():
    once, _ = counted()
    del once(3, ("a",))["a"]["kernel"]
    assert once(3, ("a",))["a"]["kernel"].shape == (3,)


def test_arguments_that_cannot_be_hashed_are_traced_each_time():
    once, calls = counted()
    assert once(3, ["a"]) == once(3, ["a"]) and len(calls) == 2


def test_the_width_of_numbers_counts():
    once, _ = counted()
    narrow = once(3, ("a",))
    with jax.enable_x64(True):
        assert once(3, ("a",))["a"]["kernel"].dtype == jnp.float64
    assert once(3, ("a",)) == narrow


def test_what_cannot_be_traced_is_told_each_time():
    once = traced_once(lambda width: 1 // width)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            once(0)


def test_networks_of_other_sizes_have_other_shapes():
    small = VQGanVAE(dim=8, image_size=8, layers=1, resnet_groups=2, codebook_size=4)
    large = small.clone(codebook_size=8)
    found = [jax.tree.leaves(image_tokenizer.abstract(model)) for model in (small, large, small)]
    assert found[0] == found[2] != found[1]
