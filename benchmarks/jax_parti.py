"""t2i_jax on the rows of the comparison with parti-pytorch: the same weights, the same batch, the
whole training step.

Training goes through `train.step.train_step` as the trainer compiles it (state donated, metrics,
the guard against non-finite updates); generation and encoding go through the systems that a user
calls.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from limits import Work, read_per_token

from t2i_jax import convert, sharding
from t2i_jax.models import image_tokenizer
from t2i_jax.models.parti import Parti
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.parti.system import PartiSystem
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.stored import StoredText
from t2i_jax.train import optim
from t2i_jax.train.compiled import CompiledStep
from t2i_jax.train.state import init_state
from t2i_jax.train.step import train_step

PACKAGES = ("jax", "jaxlib", "flax", "optax")
_ADAM = optim.OptimConfig(learning_rate=3e-4, b1=0.9, b2=0.99, clip_norm=0.0)


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done; `work` is the
    least that it has to do.

    Without a `reference` module to take the weights from they are drawn: for the processes in which
    nothing but this side is loaded.
    """

    name = "t2i_jax"

    def __init__(self, row, size, batch, reference=None):
        self._row, self._size, self._batch = row, size, batch
        self._reference = reference
        self._seed = 0
        getattr(self, f"_{row}")()
        self._reference = None

    def warm_up(self):
        """Compiles."""
        self.run()

    def _generate(self):
        parti, vae, weights = self._parti_and_tokenizer()
        task = PartiTask(parti, StoredText(self._size.text_dim, self._size.text_length), vae)
        frozen = jax.device_put({"tokenizer": weights["tokenizer"]})
        system = PartiSystem(task, {"parti": {"decoder": jax.device_put(weights["parti"])}}, frozen)
        prompts = self._batch["text_embeds"], self._batch["text_mask"]
        alone = PartiTask(parti, task.text)
        rows = 2 * self._size.batch  # guidance
        self.work = Work(
            rows * forward(alone) + self._size.batch * decoding(vae),
            size_in_bytes(read_per_token(weights["parti"])) * parti.num_tokens,
        )

        def run():
            self._seed += 1
            return system.generate(prompts, seed=self._seed, guidance=3.0, top_k=0.1)

        self.run = run

    def _train_parti(self):
        parti, _, weights = self._parti_and_tokenizer()
        text = StoredText(self._size.text_dim, self._size.text_length)
        task = PartiTask(parti, text, cond_drop_prob=0.25)
        self._train(
            task, {"parti": {"decoder": weights["parti"]}}, ("tokens", "text_embeds", "text_mask")
        )

    def _train_tokenizer(self):
        vae, weights = self._tokenizer()
        self._train(TokenizerTask(vae), {"generator": weights["generator"]}, ("image",))

    def _train_gan(self):
        vae, weights = self._tokenizer()
        task = TokenizerTask(
            vae, discriminator=vae.discriminator(), perceptual=BlockMeans(), penalty_every=1
        )
        params = {group: weights[group] for group in ("generator", "discriminator")}
        self._train(task, params, ("image",), {"perceptual": {}})

    def _encode(self):
        vae, weights = self._tokenizer()
        system = TokenizerSystem(TokenizerTask(vae), jax.device_put(weights))
        self.work = Work(self._size.batch * image_tokenizer.flops(vae, "encode"))
        self.run = lambda: np.asarray(system.encode(self._batch["image"]))

    def _train(self, task, params, entries, frozen=None):
        self.work = Work(task.flops(self._size.batch))
        optimisers = {group: optim.make(_ADAM, 1000) for group in params}
        shapes = jax.eval_shape(
            functools.partial(init_state, task=task, optimisers=optimisers, ema_decay=0.0),
            jax.random.key(0),
        )
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes.opt_state, shapes.stats)
        )
        state = shapes.replace(
            step=jnp.int32(0),
            params=jax.tree.map(jnp.array, params),
            opt_state=zeros[0],
            stats=zeros[1],
            skipped=jnp.zeros((2,), jnp.int32),
            key=jax.random.key(0),
        )
        step = functools.partial(train_step, task=task, optimisers=optimisers)
        step = CompiledStep(step, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
        batch = {name: self._batch[name] for name in entries}

        def run():
            nonlocal state
            state, metrics = step(state, frozen or {}, placed(batch))
            loss = float(metrics["loss"])
            step.settle()
            return loss

        self.run = run

    def _tokenizer(self):
        size, gan = self._size, self._row == "train_gan"
        if self._reference is not None:
            vae = self._reference
            return convert.from_torch(vae if hasattr(vae, "enc_dec") else vae.vae)
        vae = VitVQGanVAE(
            dim=size.dim,
            image_size=size.image,
            layers=size.tokenizer_layers,
            patch_size=size.patch,
            codebook_size=size.codebook,
        )
        shapes = image_tokenizer.abstract(vae)
        if gan:
            shapes["discriminator"] = image_tokenizer.abstract_discriminator(
                vae.discriminator(), vae
            )
        return vae, drawn(shapes)

    def _parti_and_tokenizer(self):
        if self._reference is not None:
            models, weights = convert.from_torch(self._reference)
            return models.parti, models.tokenizer, weights
        size = self._size
        parti = Parti(
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            dim_head=size.dim_head,
            fmap_size=size.image // size.patch,
            codebook_size=size.codebook,
            text_embed_dim=size.text_dim,
            compat=("misaligned_bias",),
        )
        ids, text = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, size.text_dim))
        shapes = jax.eval_shape(parti.init, jax.random.key(0), ids, text, jnp.ones((1, 1), bool))[
            "params"
        ]
        vae, weights = self._tokenizer() if self._row == "generate" else (None, None)
        return parti, vae, {"parti": drawn(shapes), "tokenizer": weights}


class BlockMeans(nn.Module):
    """The stand-in for a perceptual network: mean squared difference of the means over blocks of 16
    x 16 pixels.
    """

    def __call__(self, real_BHWC, fake_BHWC):
        def means(x):
            return reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=16, j=16)

        return jnp.mean((means(real_BHWC) - means(fake_BHWC)) ** 2)


def forward(task):
    """FLOPs of one pass of the network that a task trains on tokens or embeddings, for one row."""
    return task.flops(1) / 3


def decoding(tokenizer):
    """FLOPs that make one image of its tokens."""
    return image_tokenizer.flops(tokenizer) - image_tokenizer.flops(tokenizer, "encode")


def size_in_bytes(params):
    """Of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def placed(batch):
    """A batch on the device and there, as the trainer gives it to a step."""
    return jax.block_until_ready(jax.device_put(batch))


def drawn(shapes):
    """Random weights of these shapes, with the spread that initialisers give to kernels."""
    draw = np.random.default_rng(0)

    def normal(leaf):
        return 0.02 * draw.standard_normal(leaf.shape, dtype=np.float32)

    return jax.tree.map(normal, nn.meta.unbox(shapes))
