"""How programs are compiled."""

import jax
import jax.numpy as jnp
import pytest

from t2i_jax import compiler


@pytest.mark.parametrize(
    ("platform", "flags", "level"),
    [
        ("cpu", "", 1),
        ("cpu", "--xla_force_host_platform_device_count=8", 1),
        ("cpu", "--xla_backend_optimization_level=3", None),
        ("gpu", "", None),
    ],
)
def test_a_cpu_gets_a_low_level_unless_xla_flags_give_one(monkeypatch, platform, flags, level):
    monkeypatch.setenv("XLA_FLAGS", flags)
    options = compiler.options_for(platform) or {}
    assert options.get("xla_backend_optimization_level") == level
    assert ("xla_cpu_scheduler_type" in options) == (platform == "cpu")


@pytest.mark.parametrize("flags", ["", "--xla_cpu_experimental_ynn_fusion_type="])
@pytest.mark.parametrize("is_known", [True, False])
def test_no_option_is_given_twice_nor_where_the_compiler_has_it_not(monkeypatch, flags, is_known):
    monkeypatch.setenv("XLA_FLAGS", flags)
    if not is_known:
        monkeypatch.setattr(compiler, "_is_known", lambda *_: False)
    options = compiler.options_for("cpu") or {}
    assert ("xla_cpu_experimental_ynn_fusion_type" in options) == (is_known and not flags)


def test_only_an_option_of_the_compiler_is_known():
    assert compiler._is_known("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT")
    assert not compiler._is_known("xla_cpu_experimental_ynn_fusion_type", "convolutions")
    assert not compiler._is_known("xla_cpu_ynn", "LIBRARY_FUSION_TYPE_DOT")


def test_the_compiler_takes_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    options = compiler.options_for("cpu")
    lowered = jax.jit(jnp.sin).lower(1.0)
    assert lowered.compile(compiler_options=options)(0.0) == 0
    with pytest.raises(Exception, match="xla_backend_optimization_lvl"):
        lowered.compile(compiler_options={"xla_backend_optimization_lvl": 1})


def test_a_program_is_compiled_with_them_but_not_inside_another(monkeypatch):
    program = compiler.Program(_scaled, static_argnames="times")
    inside = jax.jit(lambda x: program(x, times=3) + 1)(2.0)  # JAX refuses options there
    assert inside == 7
    assert program.lower(2.0, times=3).compile()(2.0) == 6
    monkeypatch.setattr(compiler, "options_for", lambda _: {"xla_no_such_option": 1})
    with pytest.raises(Exception, match="xla_no_such_option"):
        program(2.0, times=3)


def _scaled(x, *, times):
    return x * times
