"""The toy's task: the colour of a caption's scene, as a difference from the mean colour."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems import captions
from t2i_jax.systems.base import Part, SystemTask
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.types import Objective, SamplingProgram
from tests.toy_system.mean_colour import MeanColourTask
from tests.toy_system.network import ColourNet
from tests.toy_system.options import ToyOptions
from tests.toy_system.system import ToySystem, paint


@dataclasses.dataclass(frozen=True)
class ToyTask(SystemTask):
    """Learns how a caption moves the colour of an image away from the mean colour.

    Attributes:
      model: the network. text: a text encoder. mean: the network of the part. image_size: side of
        the images.
    """

    model: ColourNet
    text: Any
    mean: Any = None
    image_size: int = 8
    channels: int = 3

    parts: ClassVar = {"mean": Part(MeanColourTask, "mean")}
    options: ClassVar[type] = ToyOptions
    makes_images: ClassVar[bool] = True

    @property
    def objectives(self):
        return (Objective("toy", self.loss),)

    @property
    def ema_groups(self):
        return ("toy",)

    @property
    def samples(self):
        return samples_of(self.text)

    def init(self, key):
        for_net, for_text = jax.random.split(key)
        embeds, mask = jnp.zeros((1, 1, self.text.dim)), jnp.ones((1, 1), bool)
        params = {"net": self.model.init(for_net, embeds, mask)["params"]}
        if self.text.trainable:
            params["text"] = self.text.init(for_text)
        return {"toy": params}, {}

    def batch_spec(self, batch_size):
        image = jax.ShapeDtypeStruct((batch_size, self.image_size, self.image_size, 3), jnp.uint8)
        return {"image": image, **captions.spec(self.text, batch_size)}

    def loss(self, params, stats, frozen, batch, key, step):
        made = paint(self, params["toy"], frozen, batch, jnp.zeros(len(batch["text_mask"])))
        loss = jnp.mean((to_float(batch["image"], SIGNED) - made) ** 2)
        return loss, ({"loss": loss}, stats)

    def flops(self, batch_size):
        params = sharding.unbox(jax.eval_shape(self.init, jax.random.key(0))[0])["toy"]
        frozen = {"mean": {"mean": {"colour": jax.ShapeDtypeStruct((3,), jnp.float32)}}}
        keys = jax.ShapeDtypeStruct((1,), jnp.float32)
        forward = functools.partial(paint, self)
        return 3 * batch_size * flops_of(forward, params, frozen, captions.spec(self.text, 1), keys)

    def sampling_programs(self, batch_size):
        prompt = captions.spec(self.text, batch_size)
        return {"images": SamplingProgram("toy", functools.partial(paint, self), prompt)}

    def system(self, params, stats, parts, frozen, text_tokenizer):
        return ToySystem(self, params, frozen, text_tokenizer)
