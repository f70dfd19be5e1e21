"""The sampling options of all systems: whatever they are given is taken as what it is, or refused
in a sentence that names the option.
"""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax
from t2i_jax import config, systems
from t2i_jax.errors import UserError
from t2i_jax.systems import calls

_OPTIONS = sorted(
    name for name in systems.names()
    if name.endswith("Options") and getattr(t2i_jax, name).__module__.startswith("t2i_jax.")
)  # fmt: skip
_ODD = (
    "no", "False", "", b"x", 1, 0, -1, 10**400, 2.5, np.nan, float("inf"), 1j, (), {}, object(),
    type, [()], ((1, 2),), np.str_("no"), np.zeros(0), np.zeros(2), np.zeros((9, 9)), [np.zeros(2)],
    jnp.ones(2),
)  # fmt: skip


def _fields():
    for name in _OPTIONS:
        kind = getattr(t2i_jax, name)
        hints = typing.get_type_hints(kind)
        for field in config.fields_of(kind):
            yield pytest.param(kind, field, hints[field], id=f"{name}.{field}")


@pytest.mark.parametrize("kind, field, hint", _fields())
def test_a_value_that_an_option_cannot_have_is_refused_in_a_sentence(kind, field, hint):
    accepted = []
    for value in _ODD:
        try:
            calls.with_changes(kind, None, {field: value}, {})
            accepted.append(value)
        except UserError as error:
            assert str(error).startswith(f"{field}="), error
            assert "\n" not in str(error) and len(str(error)) < 250
    if bool in (hint, *typing.get_args(hint)):
        assert accepted == []
        for value in (np.True_, False, *([None] if hint is not bool else [])):
            made = calls.with_changes(kind, None, {field: value}, {})
            assert getattr(made, field) is (value if value is None else bool(value))


def test_options_of_another_system_are_named_by_their_class():
    other = t2i_jax.ImagenOptions()
    for options, told in ((other, "ImagenOptions(...)"), ({"a": 1}, "{'a': 1}")):
        with pytest.raises(UserError) as error:
            calls.with_changes(t2i_jax.PartiOptions, options, {})
        assert str(error.value) == (
            f"options={told} are those of another system; give PartiOptions(...)."
        )
