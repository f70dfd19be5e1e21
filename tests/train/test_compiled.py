"""How a training step is compiled."""

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
