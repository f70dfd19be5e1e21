"""A small task with two groups, and a source of batches whose position can be set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.types import Objective


class Net(nn.Module):
    """One hidden layer, with logical axes."""

    width: int

    @nn.compact
    def __call__(self, x_BC):
        init = nn.initializers.lecun_normal()
        wide = self.param(
            "wide",
            nn.with_logical_partitioning(init, ("embed", "mlp")),
            (x_BC.shape[-1], self.width),
        )
        back = self.param(
            "back",
            nn.with_logical_partitioning(init, ("mlp", "embed")),
            (self.width, x_BC.shape[-1]),
        )
        return jnp.tanh(x_BC @ wide) @ back


@dataclasses.dataclass(frozen=True)
class ToyTask:
    """Two nets: "first" predicts the target, "second" what "first" left, shifted by `noise` times a
    normal number.
    """

    width: int = 16
    noise: float = 0.01
    ema_groups: tuple = ("first",)

    sequence_length: ClassVar[int | None] = None
    idle_groups: ClassVar[tuple[str, ...]] = ()
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    def objectives(self):
        return (Objective("first", self.first), Objective("second", self.second))

    def init(self, key):
        a, b = jax.random.split(key)
        x = jnp.zeros((1, 8))
        params = {
            "first": Net(self.width).init(a, x)["params"],
            "second": Net(self.width).init(b, x)["params"],
        }
        return params, {"seen": jnp.zeros(())}

    def batch_spec(self, batch_size):
        def of(*shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)

        return {"x": of(8), "y": of(8)}

    def first(self, params, stats, frozen, batch, key, step):
        error = Net(self.width).apply({"params": params["first"]}, batch["x"]) - batch["y"]
        loss = jnp.mean(error**2)
        return loss, ({"loss": loss}, {"seen": stats["seen"] + batch["x"].shape[0]})

    def second(self, params, stats, frozen, batch, key, step):
        rest = batch["y"] - Net(self.width).apply({"params": params["first"]}, batch["x"])
        noise = self.noise * jax.random.normal(key, ())
        loss = jnp.mean(
            (Net(self.width).apply({"params": params["second"]}, batch["x"]) - rest + noise) ** 2
        )
        return loss, ({"second": loss}, stats)

    def after_update(self, params, stats, batch, key, step):
        return params, stats

    def frozen_shapes(self):
        return {}

    def sampling_programs(self, count):
        return {}

    def flops(self, batch_size):
        return 12.0 * batch_size * 8 * self.width


class ToyBatches:
    """Batches that depend only on their number; batch `poison` holds a NaN."""

    def __init__(self, batch_size=16, poison=()):
        self.number, self.batch_size, self.poison = 0, batch_size, poison

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.number)
        x = rng.normal(size=(self.batch_size, 8)).astype(np.float32)
        y = np.roll(x, 1, axis=1)
        if self.number in self.poison:
            y[0, 0] = np.nan
        self.number += 1
        return {"x": x, "y": y, "caption": ["not for the device"] * self.batch_size}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, states):
        self.number = states[0]["number"]
