"""t2i_jax on the rows of the comparison with muse-maskgit-pytorch: the same weights, the same
batch, the whole training step, as in jax_parti.py.
"""

from __future__ import annotations

import jax
import numpy as np
from jax_parti import PACKAGES, BlockMeans, decoding, drawn
from jax_parti import Side as PartiSide
from limits import Work

from t2i_jax import convert, sharding
from t2i_jax.models import image_tokenizer, maskgit
from t2i_jax.models.maskgit import MaskGitTransformer
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.nn.flops import flops_of
from t2i_jax.systems.maskgit.options import MaskGitOptions
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.stored import StoredText

__all__ = ["PACKAGES", "Side"]


class Side(PartiSide):
    """One row on one side: `run` does one unit of work and returns when it is done."""

    def _generate(self):
        self._sample({})

    def _superres(self):
        self._sample({"cond_ids": self._batch["cond_ids"]})

    def _sample(self, more):
        size = self._size
        (model, params), (vae, weights) = self._maskgit(), self._tokenizer()
        text = StoredText(size.text_dim, size.text_length)
        cond = size.cond or None
        vae = vae.clone(parent=None, image_size=size.image)
        task = MaskGitTask(model, text, vae, cond_image_size=cond)
        frozen = jax.device_put({"tokenizer": weights})
        passes = 2 * size.steps * size.batch  # guidance
        shapes = sharding.unbox(sharding.parameters_of(task))["maskgit"]["decoder"]
        own = flops_of(lambda p, *x: model.apply({"params": p}, *x), shapes, *task.zeros())
        self.work = Work(passes * own + size.batch * decoding(vae))
        system = MaskGitSystem(task, {"maskgit": {"decoder": jax.device_put(params)}}, frozen)
        options = MaskGitOptions(
            steps=size.steps, guidance=3.0, top_k=0.1, growing=False, plausibility=None
        )
        arrays = {name: self._batch[name] for name in ("text_embeds", "text_mask")} | more
        arrays = jax.device_put(arrays)

        def run():
            self._seed += 1
            keys = jax.random.split(jax.random.key(self._seed), size.batch)
            return np.asarray(system.make(arrays, keys, options).images)

        self.run = run

    def _train_maskgit(self):
        model, params = self._maskgit()
        text = StoredText(self._size.text_dim, self._size.text_length)
        task = MaskGitTask(model, text, cond_drop_prob=0.25)
        entries = ("tokens", "text_embeds", "text_mask")
        self._train(task, {"maskgit": {"decoder": params}}, entries)

    def _train_tokenizer(self):
        vae, weights = self._tokenizer()
        vae = vae.clone(parent=None, image_size=self._size.image)
        self._train(TokenizerTask(vae), {"generator": weights["generator"]}, ("image",))

    def _train_gan(self):
        vae, weights = self._tokenizer()
        vae = vae.clone(parent=None, image_size=self._size.image)
        task = TokenizerTask(
            vae, discriminator=vae.discriminator(), perceptual=BlockMeans(), penalty_every=1
        )
        params = {group: weights[group] for group in ("generator", "discriminator")}
        self._train(task, params, ("image",), {"perceptual": {}})

    def _maskgit(self):
        size = self._size
        if self._reference is not None:
            model, params = convert.from_torch(self._reference[0])
            return model, params
        model = MaskGitTransformer(
            dim=size.dim, depth=size.depth, heads=size.heads, dim_head=size.dim_head,
            fmap_size=round(size.tokens**0.5), codebook_size=size.codebook,
            text_embed_dim=size.text_dim, compat=("no_cond_positions",),
        )  # fmt: skip
        return model, drawn(maskgit.abstract(model))

    def _tokenizer(self):
        size, gan = self._size, self._row == "train_gan"
        if self._reference is not None:
            source = self._reference
            return convert.from_torch(source[1] if isinstance(source, tuple) else source)
        vae = VQGanVAE(
            dim=size.tokenizer_dim, layers=size.layers, image_size=size.image,
            codebook_size=size.codebook,
        )  # fmt: skip
        shapes = image_tokenizer.abstract(vae)
        if gan:
            shapes["discriminator"] = image_tokenizer.abstract_discriminator(
                vae.discriminator(), vae
            )
        return vae, drawn(shapes)
