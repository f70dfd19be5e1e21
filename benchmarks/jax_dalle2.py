"""t2i_jax on the rows of the comparison with x-clip and dalle2-pytorch: the same weights, the same
batch, the whole training step, as in jax_parti.py.
"""

from __future__ import annotations

import dataclasses
import tempfile

import dalle2_rows
import jax
from jax_parti import PACKAGES, drawn, forward
from jax_parti import Side as PartiSide
from limits import Work

import t2i_jax as t2i
from t2i_jax import runs, sharding
from t2i_jax.systems.decoder.system import DecoderSystem
from t2i_jax.systems.prior.system import PriorSystem, TextEmbedding

__all__ = ["PACKAGES", "Side"]


class Side(PartiSide):
    """One row on one side: `run` does one unit of work and returns when it is done."""

    def _train_clip(self):
        task, params = self._taken(t2i.ClipTask(t2i.CLIP(**dalle2_rows.clip(self._size))))
        self._train(task, params, ("image", "text", "text_mask"))

    def _train_prior(self):
        task, params = self._prior()
        self._train(task, params, ("image_embeds", "caption_embeds", "text_embeds", "text_mask"))

    def _sample_prior(self):
        task, params = self._prior()
        system = PriorSystem(task, jax.device_put(params), {})
        self.work = Work(2 * self._size.timesteps * self._size.batch * forward(task))
        batch = self._batch
        text = TextEmbedding(batch["caption_embeds"], batch["text_embeds"], batch["text_mask"])

        def run():
            self._seed += 1
            return system.embed(text, seed=self._seed, sampler="ancestral", guidance=2.0,
                                num_samples=1)  # fmt: skip

        self.run = run

    def _train_decoder(self):
        task, params = self._decoder()
        self._train(task, params, ("image", "image_embeds"))

    def _decoder_ddpm(self):
        self._sample(sampler="ancestral")

    def _decoder_ddim(self):
        self._sample(sampler="ddim", steps=self._size.ddim)

    def _sample(self, **options):
        task, params = self._decoder()
        system = DecoderSystem(task, jax.device_put(params), dict.fromkeys(params, 1))
        steps = options.get("steps", self._size.timesteps)
        self.work = Work(2 * steps * self._size.batch * forward(task))

        def run():
            self._seed += 1
            return system.generate(image_embeds=self._batch["image_embeds"], seed=self._seed,
                                   guidance=2.0, parallel=0.0, **options)  # fmt: skip

        self.run = run

    def _prior(self):
        size = self._size
        return self._taken(
            t2i.PriorTask(
                t2i.DiffusionPriorNetwork(**dalle2_rows.prior(size)),
                t2i.DiscreteDdpm(size.timesteps, objective="x_start"),
                text_drop_prob=0.2, image_drop_prob=0.2, stored=True,
            )
        )  # fmt: skip

    def _decoder(self):
        size = self._size
        unet = t2i.DecoderUnet(cond_on_image_embeds=True, **dalle2_rows.unet(size))
        return self._taken(
            t2i.Decoder(
                unet, image_size=size.image, timesteps=size.timesteps, image_cond_drop_prob=0.2,
                image_embed_dim=size.dim,
            )
        )  # fmt: skip

    def _taken(self, task):
        """(task, params) of the other side's module, or this task with drawn weights."""
        if self._reference is None:
            shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0))[0])
            return task, {group: drawn(tree) for group, tree in shapes.items()}
        with tempfile.TemporaryDirectory() as folder:
            system = t2i.load(runs.import_torch(self._reference, f"{folder}/run"))
            params = jax.device_get(system.weights)
        if hasattr(task, "stages"):  # the module does not tell the width of embeddings
            return dataclasses.replace(system.task, image_embed_dim=self._size.dim), params
        return system.task, params
