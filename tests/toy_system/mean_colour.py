"""The part: a task that learns the mean colour of the images, and its trained system."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems.base import Findings, System, SystemTask
from t2i_jax.types import Objective
from tests.toy_system.network import MeanColour


class MeanColourSystem(System):
    """The mean colour."""

    def preview(self, held_out, evaluation):
        """A square of the colour."""
        colour = np.asarray(self.weights["mean"]["colour"])
        square = np.clip((colour + 1) * 127.5, 0, 255).astype(np.uint8)
        return np.broadcast_to(square, (8, 8, 3)).copy(), {}

    def evaluate(self, held_out, evaluation):
        """`error`: the mean absolute difference from the pixels of held-out images."""
        images = to_float(jnp.asarray(held_out(evaluation.pictures, ("image",))["image"]), SIGNED)
        error = jnp.mean(jnp.abs(images - self.weights["mean"]["colour"]))
        return Findings({"error": float(error)}, {"heldout": self.preview(held_out, evaluation)[0]})


@dataclasses.dataclass(frozen=True)
class MeanColourTask(SystemTask):
    """Learns one colour for all images."""

    model: MeanColour = MeanColour()
    image_size: int = 8

    @property
    def objectives(self):
        return (Objective("mean", self.loss),)

    @property
    def ema_groups(self):
        return ("mean",)

    @property
    def network(self):
        return self.model

    def init(self, key):
        return {"mean": self.model.init(key)["params"]}, {}

    def batch_spec(self, batch_size):
        return {
            "image": jax.ShapeDtypeStruct(
                (batch_size, self.image_size, self.image_size, 3), jnp.uint8
            )
        }

    def loss(self, params, stats, frozen, batch, key, step):
        colour = self.model.apply({"params": params["mean"]})
        loss = jnp.mean((to_float(batch["image"], SIGNED) - colour) ** 2)
        return loss, ({"loss": loss}, stats)

    def flops(self, batch_size):
        return 0.0  # it multiplies no matrices

    def system(self, params, stats, parts, frozen, text_tokenizer):
        return MeanColourSystem(self, params)
