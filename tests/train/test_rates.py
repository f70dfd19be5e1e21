"""Learning rates in the log: those of the optimisers' own counts, for every kind and schedule."""

import jax
import jax.numpy as jnp
import pytest

from t2i_jax.train import optim
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.rates import Rates, shown

_SCHEDULES = {
    "constant": OptimConfig(learning_rate=0.5),
    "cosine": OptimConfig(learning_rate=0.5, warmup_steps=2, schedule="cosine"),
    "adafactor": OptimConfig(name="adafactor", learning_rate=0.5, schedule="linear"),
    "muon": OptimConfig(name="muon", learning_rate=0.5, matrix_rate=0.1, schedule="linear"),
}


def _after(config, updates, steps=8):
    """The optimiser's state after some updates, traced so that nothing compiles twice."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}
    rule = optim.make(config, steps)

    def one(_, state):
        return rule.update(params, state, params)[1]

    return jax.jit(lambda n: jax.lax.fori_loop(0, n, one, rule.init(params)))(updates)


@pytest.mark.parametrize("name", _SCHEDULES)
def test_the_rate_is_that_of_the_newest_update(name):
    config = _SCHEDULES[name]
    rates = Rates({"net": config}, ["net"], 8)
    schedule = optim.learning_rate(config, 8)
    for updates in (1, 3, 6):
        state = _after(config, updates)
        assert optim.updates_made(state, None) == updates
        found = rates.of({"net": state})
        assert found["learning_rate/net"] == pytest.approx(float(schedule(updates - 1)))
        if name == "muon":
            ratio = found["matrix_rate/net"] / found["learning_rate/net"]
            assert ratio == pytest.approx(0.1 / 0.5)


def test_each_group_goes_by_its_own_count_and_only_trained_ones_are_shown():
    configs = dict.fromkeys(("one", "two", "rest"), _SCHEDULES["cosine"])
    rates = Rates(configs, ["one", "two"], 8)
    found = rates.of({name: _after(configs[name], n) for name, n in zip(configs, (1, 5, 2))})
    schedule = optim.learning_rate(_SCHEDULES["cosine"], 8)
    assert found == pytest.approx(
        {"learning_rate/one": 0.0, "learning_rate/two": float(schedule(4))}
    )


def test_the_progress_line_shows_both_of_every_group():
    of_step = {"loss": 1.0, "grad_norm/generator": 0.25, "grad_norm/discriminator": 3.0}
    rates = {"learning_rate/generator": 1e-3, "learning_rate/discriminator": 2e-4}
    metrics = jax.tree.map(float, of_step) | rates  # sorted by name, as a compiled step gives them
    assert list(metrics)[0] == "grad_norm/discriminator"
    assert shown(metrics) == {"lr": "0.001/0.0002", "grad": "0.25/3"}
    assert shown({"loss": 1.0}) == {}
