"""Training super-resolution: large images are shrunk, and the network learns to undo it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.models.super_resolution import SuperResolution
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import shrink, to_float
from t2i_jax.systems.base import SystemTask
from t2i_jax.systems.super_resolution.system import SuperResolutionSystem
from t2i_jax.systems.tokenizer import losses
from t2i_jax.types import Array, Batch, Key, Objective, Params, Stats


@dataclasses.dataclass(frozen=True)
class SuperResolutionTask(SystemTask):
    """Trains a super-resolution network on images alone.

        SuperResolutionTask(SuperResolution(scale=2), image_size=64)

    Groups: "super_resolution" and, with a discriminator, "discriminator".

    Attributes:
      model: the network. image_size: side of the large images, a multiple of the scale.
      l1_weight, l2_weight: of the losses against the large image.
      discriminator: module from float images to logits; None: no adversarial loss.
        adversarial_weight: of it.
      gan_loss: "hinge", "bce" or "softplus".
    """

    validated_by: ClassVar[str] = "reconstruction"  # whatever a discriminator does

    model: SuperResolution
    image_size: int
    l1_weight: float = 1.0
    l2_weight: float = 0.0
    discriminator: Any = None
    adversarial_weight: float = 0.1
    gan_loss: str = "hinge"

    def __post_init__(self):
        config.one_of("gan_loss", self.gan_loss, losses.GENERATOR)
        if self.image_size < 1 or self.image_size % self.model.scale:
            near = max(self.image_size // self.model.scale, 1) * self.model.scale
            raise UserError(
                f"image_size={self.image_size} is not a multiple of scale={self.model.scale}; try "
                f"{near}."
            )
        if self.discriminator is not None:
            self.discriminator.check(self.image_size)

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        if self.discriminator is not None:
            return {}
        return dict.fromkeys(("adversarial_weight", "gan_loss"), "discriminator=None")

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The network's loss, then the discriminator's."""
        network = Objective("super_resolution", self.loss)
        if self.discriminator is None:
            return (network,)
        return (network, Objective("discriminator", self.discriminator_loss))

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The network is averaged."""
        return ("super_resolution",)

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats (none)."""
        for_model, for_discriminator = jax.random.split(key)
        blank = jnp.zeros((1, 8, 8, self.model.image_channels))
        params = {"super_resolution": self.model.init(for_model, blank)["params"]}
        if self.discriminator is not None:
            large = jnp.zeros((1, self.image_size, self.image_size, self.model.image_channels))
            params["discriminator"] = self.discriminator.init(for_discriminator, large)["params"]
        return params, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Large uint8 images."""
        shape = (batch_size, self.image_size, self.image_size, self.model.image_channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats)); `psnr` in dB against the large image."""
        large, made = self._made(params, batch)
        loss = losses.reconstruction(
            made, large, self.l1_weight, self.l2_weight, 0.0, self.model.pixel_range
        )
        metrics = {"reconstruction": loss, "psnr": losses.psnr(made, large, self.model.pixel_range)}
        if self.discriminator is not None:
            variables = {"params": jax.lax.stop_gradient(params["discriminator"])}
            metrics["adversarial"] = losses.GENERATOR[self.gan_loss](
                self.discriminator.apply(variables, made)
            )
            loss = loss + self.adversarial_weight * metrics["adversarial"]
        return loss, ({"loss": loss, **metrics}, stats)

    def discriminator_loss(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ):
        """(loss, (metrics, stats)) of the discriminator.

        The network's parameters get no gradient.
        """
        large, made = self._made(jax.lax.stop_gradient(params), batch)
        variables = {"params": params["discriminator"]}
        fake, real = (self.discriminator.apply(variables, image) for image in (made, large))
        loss = losses.DISCRIMINATOR[self.gan_loss](fake, real)
        return loss, ({"discriminator_loss": loss}, stats)

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks.

        A forward and a backward pass count as three forward passes. The discriminator needs one
        more forward pass of the network; for the network's loss it is run forward and back once,
        for its own loss on a fake and a real image.
        """
        shapes = sharding.unbox(sharding.parameters_of(self))
        channels, low = self.model.image_channels, self.image_size // self.model.scale

        def of(side):
            return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)

        network = flops_of(self._apply, shapes["super_resolution"], of(low))
        if self.discriminator is None:
            return 3 * batch_size * network
        variables = {"params": shapes["discriminator"]}
        discriminator = flops_of(self.discriminator.apply, variables, of(self.image_size))
        return batch_size * (4 * network + 8 * discriminator)

    def system(self, params, stats: Stats, parts, frozen, text_tokenizer) -> SuperResolutionSystem:
        """The trained network."""
        return SuperResolutionSystem(self, params)

    def _apply(self, params, small):
        return self.model.apply({"params": params}, small)

    def _made(self, params, batch):
        small = to_float(shrink(batch["image"], self.model.scale), self.model.pixel_range)
        made = self.model.apply({"params": params["super_resolution"]}, small)
        return to_float(batch["image"], self.model.pixel_range), made
