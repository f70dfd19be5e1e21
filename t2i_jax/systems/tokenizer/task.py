"""Training and using an image tokenizer: a `Task` with one or two objectives, and the trained
system.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.models import encoder_side, image_tokenizer
from t2i_jax.models.vgg import Vgg16
from t2i_jax.nn.codebook import NOISE
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import to_float
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.tokenizer import losses
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.types import Array, Batch, Key, Objective, Params, Stats

_TRAINED = ("all", "decoder")
_RECENT = 256  # latents of the last batch that are kept to replace dead codes
_OF_DISCRIMINATOR = (
    "adversarial_weight", "adaptive", "gan_loss", "gan_start", "penalty", "penalty_weight",
    "penalty_every",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerTask(SystemTask):
    """Trains an image tokenizer, alone or against a discriminator.

        TokenizerTask(ViTVQGAN(image_size=32, patch_size=4, dim=96, layers=3, heads=3, mlp_dim=384))
        TokenizerTask(vae, discriminator=vae.discriminator(), perceptual=vgg)  # as parti-pytorch

    Groups: "generator" and, with a discriminator, "discriminator". Stats: the network's codebook
    statistics, "usage" (moving average of each code's share, 1 = its fair share) and "recent"
    (latents of the last batch). `frozen` of the step: {"perceptual": params} when there is a
    perceptual network, else {}.

    Attributes:
      model: the network: `VitVQGanVAE`, `VQGanVAE`, `ViTVQGAN`, `VQGAN`, or another one that fits
        the protocol `ImageTokenizer`.
      discriminator: module from float images to logits; None: no adversarial loss.
      perceptual: module `(real, fake) -> scalar` over images in [0, 1], weights from outside; None:
        no such loss.
      l1_weight, l2_weight: weights of the absolute and of the squared difference from the image.
        logit_laplace_weight: weight of the paper's reconstruction loss, which needs a network with
        output="sigmoid".
      perceptual_weight, adversarial_weight: weights of these two losses.
      adaptive: multiply the adversarial loss by `losses.adaptive_weight`: gradients of the
        perceptual loss, or of the reconstruction loss where there is none, against those of the
        adversarial loss.
      gan_loss: "hinge", "bce" or "softplus". gan_start: step at which the adversarial game begins.
      penalty: on the discriminator's slope at real images, "unit_slope" (parti-pytorch), "r1" or
        "none".
      penalty_weight: weight of that penalty. penalty_every: the penalty is computed at every n-th
        step only; r1 is scaled up by as much.
      usage_decay: decay of the moving average of how often each code is used. revive_below: codes
        that are used less than this share of the average code are replaced by recent latents; 0
        leaves them, and so does a network without a table of codes (LFQ, FSQ).
      trained: "all"; or "decoder", which leaves encoder and codebook as they are, so that tokens
        stay the same bit for bit: a larger decoder on the tokens that a second stage was trained on
        (Yu et al. 2022, section 2.1). Such a run begins with a trained one (`init` of the recipe).
    """

    model: Any
    discriminator: Any = None
    perceptual: Any = None
    l1_weight: float = 1.0
    l2_weight: float = 0.0
    logit_laplace_weight: float = 0.0
    perceptual_weight: float = 1.0
    adversarial_weight: float = 1.0
    adaptive: bool = True
    gan_loss: str = "hinge"
    gan_start: int = 0
    penalty: str = "unit_slope"
    penalty_weight: float = 10.0
    penalty_every: int = 4
    usage_decay: float = 0.95
    revive_below: float = 0.05
    trained: str = "all"

    # a discriminator that learns moves the whole loss
    validated_by: ClassVar[str] = "reconstruction"
    parts: ClassVar[Mapping[str, Part]] = {
        "perceptual": Part(Vgg16, "perceptual", told=("features",))
    }

    def __post_init__(self):
        config.one_of("gan_loss", self.gan_loss, losses.GENERATOR)
        config.one_of("trained", self.trained, _TRAINED)
        config.one_of("penalty", self.penalty, [*losses.PENALTIES, "none"])
        if self.penalty_every < 1:
            raise UserError(
                f"penalty_every={self.penalty_every} is below 1; give 1 for every step."
            )
        if not 0 <= self.usage_decay < 1:
            raise UserError(f"usage_decay={self.usage_decay} is outside [0, 1); try 0.95.")
        if self.logit_laplace_weight and getattr(self.model, "output", "linear") != "sigmoid":
            raise UserError(
                f"logit_laplace_weight={self.logit_laplace_weight} needs a network with "
                "output='sigmoid'; set it."
            )
        if self.discriminator is not None:
            self.discriminator.check(self.model.image_size)

    @property
    def held_as_begun(self) -> str:
        """Encoder and codebook, where the decoder alone is trained."""
        return "" if self.trained == "all" else f"trained={self.trained!r}"

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found: dict[str, str] = {}
        if self.discriminator is None:
            found = dict.fromkeys(_OF_DISCRIMINATOR, "discriminator=None")
        elif self.penalty == "none":
            found = dict.fromkeys(("penalty_weight", "penalty_every"), "penalty='none'")
        return found

    @property
    def network(self) -> Any:
        """The tokenizer's network."""
        return self.model

    def weights_shapes(self) -> Any:
        """Shapes of {"generator", "stats"}."""
        return sharding.unbox(image_tokenizer.abstract(self.model))

    def with_parts(self, parts: Mapping[str, Given]) -> TokenizerTask:
        """The task with the network of the perceptual loss.

        Without weights for it that loss is off.
        """
        if "perceptual" not in parts:
            return dataclasses.replace(self, perceptual=None)
        network = self.perceptual or parts["perceptual"].network
        return dataclasses.replace(self, perceptual=network)

    def without(self, parts: Mapping[str, Given]) -> Sequence[str]:
        """Says that the perceptual loss is off, where there are no weights for it."""
        wanted = self.discriminator is not None or self.perceptual is not None
        if not wanted or "perceptual" in parts:
            return ()
        return (
            "the perceptual loss is off: no weights are given (perceptual=FILE of VGG16 or LPIPS)",
        )

    def system(self, params, stats: Stats, parts, frozen, text_tokenizer) -> TokenizerSystem:
        """The trained tokenizer; usage counts and recent latents stay in the run."""
        codebook = jax.eval_shape(self.model.start, jax.random.key(0))
        statistics = {name: stats[name] for name in codebook}
        return TokenizerSystem(self, {"generator": params["generator"], "stats": statistics})

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The tokenizer's loss, then the discriminator's."""
        generator = Objective("generator", self.generator_loss)
        if self.discriminator is None:
            return (generator,)
        return (generator, Objective("discriminator", self.discriminator_loss))

    @property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """Encoder and codebook, where the decoder alone is trained."""
        if self.trained == "all":
            return {}
        return {"generator": encoder_side.encoder_parameters(self.model)}

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The generator is averaged."""
        return ("generator",)

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats."""
        for_model, for_discriminator, for_recent = jax.random.split(key, 3)
        weights = image_tokenizer.init(self.model, for_model)
        params = {"generator": weights["generator"]}
        if self.discriminator is not None:
            params["discriminator"] = self.discriminator.init(for_discriminator, self._blank())[
                "params"
            ]
        codebook = weights["stats"]
        latents = jax.eval_shape(self._encode, params["generator"], codebook, self._blank()).latents
        recent = jax.random.normal(for_recent, (_RECENT, latents.shape[-1]))
        return params, {
            **codebook,
            "usage": jnp.ones((self.model.codebook_size,)),
            "recent": recent,
        }

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """uint8 images."""
        size = self.model.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, self.model.channels), jnp.uint8)
        }

    def generator_loss(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ):
        """(loss, (metrics, stats)) of the tokenizer: reconstruction, quantiser, perceptual and
        adversarial terms.
        """
        image = to_float(batch["image"], self.model.pixel_range)
        # `_counted` has the key itself
        encoded = self._encoded(params["generator"], stats, image, jax.random.fold_in(key, 1))
        features = self._apply(params["generator"], encoded.fmap, method="features")
        recon = self._apply(params["generator"], features, method="pixels")
        rec = self._reconstruction(recon, image)
        extra, metrics = self._perceptual_and_gan_loss(params, frozen, image, recon, features, step)
        loss = rec + encoded.loss + extra
        stats = self._counted(stats, encoded, key)
        metrics |= {"loss": loss, "reconstruction": rec, "quantizer": encoded.loss}
        metrics |= {
            "psnr": losses.psnr(recon, image, self.model.pixel_range),
            **self._usage(stats["usage"]),
        }
        return loss, (metrics, stats)

    def discriminator_loss(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ):
        """(loss, (metrics, stats)) of the discriminator.

        The tokenizer's parameters get no gradient.
        """
        image = to_float(batch["image"], self.model.pixel_range)
        generator = jax.lax.stop_gradient(params["generator"])
        fmap = self._encode(generator, stats, image).fmap
        fake = jax.lax.stop_gradient(self._apply(generator, fmap, method="decode"))
        logits_of = self._logits(params)
        fake_logits = logits_of(fake)
        # one forward pass of the real images is that of the penalty too, so that the gradients of
        # both go back through it together
        real_logits, pull_back = jax.vjp(logits_of, image)
        game = losses.DISCRIMINATOR[self.gan_loss](fake_logits, real_logits)
        penalty = self._penalty(pull_back, real_logits, step)
        on = jnp.where(step >= self.gan_start, 1.0, 0.0)
        loss = on * (game + penalty)
        metrics = {"discriminator_loss": loss, "penalty": penalty}
        metrics |= {"logit_real": jnp.mean(real_logits), "logit_fake": jnp.mean(fake_logits)}
        return loss, (metrics, stats)

    def after_update(self, params, stats: Stats, batch: Batch, key: Key, step: Array):
        """Replaces the codes that have gone out of use by latents of the last batch.

        Returns (params, stats).
        """
        if not self.revive_below or self.trained == "decoder":
            return params, stats
        dead_K = stats["usage"] < self.revive_below
        fresh_KE = stats["recent"][jax.random.randint(key, dead_K.shape, 0, _RECENT)]
        generator, codebook = self.model.revive(params["generator"], stats, dead_K, fresh_KE)
        if generator is params["generator"] and codebook is stats:
            return params, stats  # nothing was revived, and no code is in use because of it
        usage = jnp.where(dead_K, 1.0, stats["usage"])
        return {**params, "generator": generator}, {**codebook, "usage": usage}

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks.

        A forward and a backward pass count as three forward passes. The discriminator needs one
        more forward pass of the tokenizer; for the tokenizer's loss it is run forward and back
        once, for its own loss on a fake and a real image, and for the penalty back once more, with
        gradients of that.
        """
        image, weights = (
            jax.ShapeDtypeStruct(self._blank().shape, jnp.float32),
            self.weights_shapes(),
        )
        tokenizer = flops_of(self._reconstruct, weights["generator"], weights["stats"], image)
        backward = 2 * tokenizer
        if self.trained == "decoder":
            backward -= 2 * flops_of(self._codes, weights["generator"], weights["stats"], image)
        perceptual = discriminator = 0.0
        if self.perceptual is not None:
            shapes = sharding.unbox(
                jax.eval_shape(self.perceptual.init, jax.random.key(0), image, image)
            )
            # back for one of the two images
            perceptual = 1.5 * flops_of(self.perceptual.apply, shapes, image, image)
        if self.discriminator is not None:
            shapes = sharding.unbox(
                jax.eval_shape(self.discriminator.init, jax.random.key(0), image)
            )
            passes = 8 + (3 / self.penalty_every if self.penalty != "none" else 0)
            discriminator = passes * flops_of(self.discriminator.apply, shapes, image) + tokenizer
        return batch_size * (tokenizer + backward + perceptual + discriminator)

    def _encoded(self, generator, stats, image, key):
        """The encoding of a training batch; with a frozen encoder that of any other batch, whose
        gradient reaches the decoder's side alone.
        """
        if self.trained == "all":
            return self._encode(generator, stats, image, train=True, rngs={NOISE: key})
        encoded = self._encode(jax.lax.stop_gradient(generator), stats, image)
        held = set(self.held["generator"])
        decoder = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                jax.lax.stop_gradient(leaf) if encoder_side.path_of(path) in held else leaf
            ),
            generator,
        )
        return encoded.replace(fmap=self._apply(decoder, encoded.ids, stats, method="lookup"))

    def _codes(self, generator, codebook, image):
        return self._apply(generator, image, codebook, False, method="encode").ids

    def _reconstruct(self, generator, codebook, image):
        fmap = self._apply(generator, image, codebook, False, method="encode").fmap
        return self._apply(generator, fmap, method="decode")

    def _blank(self):
        size = self.model.image_size
        return jnp.zeros((1, size, size, self.model.channels))

    def _apply(self, generator, *args, method, **options):
        return self.model.apply({"params": generator}, *args, method=method, **options)

    def _encode(self, generator, stats, image, train=False, **options):
        return self._apply(
            nn.meta.unbox(generator), image, stats, train, method="encode", **options
        )

    def _reconstruction(self, recon, image):
        weights = self.l1_weight, self.l2_weight, self.logit_laplace_weight
        return losses.reconstruction(recon, image, *weights, self.model.pixel_range)

    def _logits(self, params):
        return lambda image: self.discriminator.apply({"params": params["discriminator"]}, image)

    def _perceptual_and_gan_loss(self, params, frozen, image, recon, features, step):
        """(loss, metrics): one backward pass through each network gives both its gradient and the
        adaptive weight.
        """
        detached, metrics = jax.lax.stop_gradient(recon), {}
        value, gradient = jnp.float32(0), jnp.zeros_like(detached)
        grad_perceptual = None
        if self.perceptual is not None:
            distance, grad_perceptual = jax.value_and_grad(self._perceptual(frozen, image))(
                detached
            )
            value, gradient = (
                self.perceptual_weight * distance,
                self.perceptual_weight * grad_perceptual,
            )
            metrics["perceptual"] = distance
        if self.discriminator is not None:
            logits_of = self._logits(jax.lax.stop_gradient(params))
            gan, grad_gan = jax.value_and_grad(
                lambda fake: losses.GENERATOR[self.gan_loss](logits_of(fake))
            )(detached)
            weight = jnp.where(step >= self.gan_start, self.adversarial_weight, 0.0)
            if self.adaptive:
                against = grad_perceptual
                if against is None:
                    against = jax.grad(lambda fake: self._reconstruction(fake, image))(detached)
                weight *= losses.adaptive_weight(
                    self._to_last_layer(params, features), against, grad_gan
                )
            value, gradient = value + weight * gan, gradient + weight * grad_gan
            metrics |= {"adversarial": gan, "adaptive_weight": weight}
        if not metrics:
            return jnp.float32(0), metrics
        return losses.with_gradient(value, recon, gradient), metrics

    def _perceptual(self, frozen, image):
        if "perceptual" not in (frozen or {}):
            raise UserError(
                "perceptual is set but its weights are not given; pass frozen={'perceptual': "
                "params}."
            )
        low, high = self.model.pixel_range

        def unit(x):
            return (x - low) / (high - low)

        return lambda fake: self.perceptual.apply(
            {"params": frozen["perceptual"]}, unit(image), unit(fake)
        )

    def _to_last_layer(self, params, features):
        """A linear map from a cotangent of the reconstruction to one of the last kernel."""
        path, generator = self.model.last_layer, jax.lax.stop_gradient(params["generator"])
        features = jax.lax.stop_gradient(features)

        def of(kernel):
            return self._apply(_replaced(generator, path, kernel), features, method="pixels")

        kernel = functools.reduce(lambda node, key: node[key], path, generator)
        _, pull_back = jax.vjp(of, kernel)
        return lambda cotangent: pull_back(cotangent)[0]

    def _penalty(self, pull_back, logits, step):
        if self.penalty == "none":
            return jnp.float32(0)
        scale = self.penalty_weight * (self.penalty_every if self.penalty == "r1" else 1)

        def compute():
            return scale * losses.PENALTIES[self.penalty](losses.slopes(pull_back, logits))

        if self.penalty_every == 1:
            return compute()
        return jax.lax.cond(step % self.penalty_every == 0, compute, lambda: jnp.float32(0))

    def _counted(self, stats, encoded, key):
        ids_N, size = encoded.ids.reshape(-1), self.model.codebook_size
        share_K = jnp.bincount(ids_N, length=size) * (size / ids_N.shape[0])
        usage = stats["usage"] * self.usage_decay + share_K * (1 - self.usage_decay)
        latents = encoded.latents.reshape(-1, encoded.latents.shape[-1])
        recent = latents[jax.random.randint(key, (_RECENT,), 0, latents.shape[0])]
        return jax.lax.stop_gradient(
            {**stats, **encoded.codebook, "usage": usage, "recent": recent}
        )

    def _usage(self, usage_K):
        p_K = usage_K / jnp.sum(usage_K)
        perplexity = jnp.exp(-jnp.sum(p_K * jnp.log(p_K + 1e-10)))
        return {
            "codebook_usage": jnp.mean(usage_K > max(self.revive_below, 0.01)),
            "perplexity": perplexity,
        }


def _replaced(tree, path, leaf):
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}
