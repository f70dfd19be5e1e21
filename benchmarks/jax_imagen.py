"""t2i_jax on the rows of the comparison with imagen-pytorch: the same weights, the same batch, the
whole training step.

Training goes through `train.step.train_step` as the trainer compiles it; sampling through the
system that a user calls, with the package's samplers, thresholds and guidance.
"""

from __future__ import annotations

import functools

import imagen_rows
import jax
import jax.numpy as jnp
from jax_parti import drawn, forward, placed
from limits import Work

from t2i_jax import convert, sharding
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.samplers import Churn
from t2i_jax.models.unet import Unet
from t2i_jax.systems.cascade.stage import Stage
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.text.stored import StoredText
from t2i_jax.train import optim
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.state import init_state
from t2i_jax.train.step import train_step

PACKAGES = ("jax", "jaxlib", "flax", "optax")
_ADAM = optim.OptimConfig(learning_rate=1e-4, b1=0.9, b2=0.99, clip_norm=0.0)


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done; `work` is the
    least that it has to do.

    Without a `reference` module to take the weights from they are drawn: for the processes in which
    nothing but this side is loaded.
    """

    name = "t2i_jax"

    def __init__(self, row, size, batch, reference=None):
        self._size, self._batch, self._seed = size, batch, 0
        unets = [Unet(**options) for options in imagen_rows.unets(size)]
        weights = None
        if reference is not None:
            cascade, weights = convert.from_torch(reference)
            unets = cascade.unets
        kind = dict(noise=Ddpm(), steps=size.ddpm_steps)
        if row == "sample_edm":
            kind = dict(noise=Edm(), churn=Churn(), steps=size.edm_steps)
        stages = [
            Stage(unet, side, resize="nearest", **kind)
            for unet, side in zip(unets, size.images, strict=True)
        ]
        number = {"train_base": 1, "train_larger": 2}.get(row)
        self.task = ImagenTask(
            tuple(stages),
            StoredText(size.text_dim, size.text_length),
            train_stages=(number,) if number else None,
        )
        if weights is None:
            shapes = sharding.unbox(jax.eval_shape(self.task.init, jax.random.key(0))[0])
            weights = {group: drawn(tree["unet"]) for group, tree in shapes.items()}
        params = {group: {"unet": tree} for group, tree in weights.items()}
        if number:
            self.work = Work(self.task.flops(size.batch))
            self._train(params, number)
        else:
            # Heun's method asks the network twice, but for the last step; guidance doubles it
            calls = 2 * size.edm_steps - 1 if row == "sample_edm" else size.ddpm_steps
            self.work = Work(2 * calls * size.batch * forward(self.task))
            self._sample(params)

    def warm_up(self):
        """Compiles."""
        self.run()

    def _train(self, params, number):
        # the other one rests, with the package too
        params = {f"stage_{number}": params[f"stage_{number}"]}
        optimisers = {group: optim.make(_ADAM, 1000) for group in params}
        start = functools.partial(
            init_state, task=self.task, optimisers=_All(optimisers), ema_decay=0.0
        )
        shapes = jax.eval_shape(start, jax.random.key(0))

        def zeros(tree):
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

        state = shapes.replace(
            step=jnp.int32(0), params=jax.tree.map(jnp.array, params), stats=zeros(shapes.stats),
            opt_state={group: zeros(shapes.opt_state[group]) for group in params},
            skipped=jnp.zeros((2,), jnp.int32), key=jax.random.key(0),
        )  # fmt: skip
        step = functools.partial(train_step, task=self.task, optimisers=optimisers)
        step = CompiledStep(step, mesh=sharding.make_mesh(devices=jax.devices()[:1]))

        def run():
            nonlocal state
            state, metrics = step(state, {}, placed(self._batch))
            loss = float(metrics["loss"])
            step.settle()
            return loss

        self.run = run

    def _sample(self, params):
        updates = dict.fromkeys(params, 1)
        system = ImagenSystem(self.task, jax.device_put(params), updates)
        prompts = self._batch["text_embeds"], self._batch["text_mask"]

        def run():
            self._seed += 1
            return system.generate(prompts, seed=self._seed, guidance=3.0, parallel=0.0)

        self.run = run


class _All(dict):
    """The optimiser that is there, for every group: shapes of those that rest are not looked at."""

    def __missing__(self, group):
        return next(iter(self.values()))
