"""How a training step is compiled."""

import jax
import jax.numpy as jnp
import pytest

from t2i_jax.train import compiled


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
    options = compiled.options_for(platform) or {}
    assert options.get("xla_backend_optimization_level") == level
    assert ("xla_cpu_scheduler_type" in options) == (platform == "cpu")


@pytest.mark.parametrize("flags", ["", "--xla_cpu_experimental_ynn_fusion_type="])
@pytest.mark.parametrize("is_known", [True, False])
def test_no_option_is_given_twice_nor_where_the_compiler_has_it_not(monkeypatch, flags, is_known):
    monkeypatch.setenv("XLA_FLAGS", flags)
    if not is_known:
        monkeypatch.setattr(compiled, "_is_known", lambda *_: False)
    options = compiled.options_for("cpu") or {}
    assert ("xla_cpu_experimental_ynn_fusion_type" in options) == (is_known and not flags)


def test_only_an_option_of_the_compiler_is_known():
    assert compiled._is_known("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT")
    assert not compiled._is_known("xla_cpu_experimental_ynn_fusion_type", "convolutions")
    assert not compiled._is_known("xla_cpu_ynn", "LIBRARY_FUSION_TYPE_DOT")


def test_the_compiler_takes_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    options = compiled.options_for("cpu")
    lowered = jax.jit(jnp.sin).lower(1.0)
    assert lowered.compile(compiler_options=options)(0.0) == 0
    with pytest.raises(Exception, match="xla_backend_optimization_lvl"):
        lowered.compile(compiler_options={"xla_backend_optimization_lvl": 1})
