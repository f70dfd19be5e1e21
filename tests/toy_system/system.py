"""The trained toy: captions to images of one colour."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.pixels import SIGNED, to_uint8
from t2i_jax.systems import batching, calls, captions, prompting
from t2i_jax.systems.text_to_image import TextToImage
from tests.toy_system.options import ToyOptions


@dataclasses.dataclass(frozen=True)
class ToySystem(TextToImage):
    """A trained toy. `frozen`: {"mean": weights of the part}."""

    frozen: Any = None
    text_tokenizer: Any = None
    mesh: Any = None

    def generate(
        self,
        prompts,
        options=None,
        *,
        seed=0,
        images_per_prompt=1,
        batch_size=None,
        progress=False,
        **changes,
    ):
        """uint8 images (prompts * images_per_prompt, H, W, 3)."""
        options = calls.with_changes(ToyOptions, options, changes)
        prompt = prompting.texts(self.task.text, self.text_tokenizer, prompts, None, guided=True)
        total = images_per_prompt * len(prompt["text_mask"])
        made = []
        for rows in batching.batches(
            prompt, total, images_per_prompt, seed, batch_size, progress=progress
        ):
            with jax.set_mesh(self.mesh):
                images = sample(
                    self.task,
                    self.weights["toy"],
                    self.frozen,
                    rows.arrays,
                    rows.keys_B,
                    options.guidance,
                    options.noise,
                )
                made.append(np.asarray(images)[: rows.count])
        return np.concatenate(made)

    def preview(self, held_out, evaluation):
        """A row of colours, one per caption, and `eval/spread`: how much they differ."""
        judged = self.judge(held_out, evaluation, evaluation.preview)
        sheet = np.concatenate(list(judged.images), axis=1)
        return sheet, {"eval/spread": float(np.std(judged.images.astype(np.float32)))}


@functools.partial(jax.jit, static_argnames="task")
def sample(task, params, frozen, prompt, keys_B, guidance, noise):
    """uint8 images (B, H, W, 3), with noise of this standard deviation."""
    images = paint(task, params, frozen, prompt, keys_B, guidance)
    one = functools.partial(jax.random.normal, shape=images.shape[1:])
    return to_uint8(images + noise * jax.vmap(one)(keys_B), SIGNED)


def paint(task, params, frozen, prompt, keys_B, guidance=1.0):
    """Images (B, H, W, 3) in [-1, 1] of one colour each."""
    embeds = captions.embed(task.text, params, frozen, prompt)
    moved_B3 = task.model.apply({"params": params["net"]}, embeds, prompt["text_mask"])
    colour_B3 = frozen["mean"]["mean"]["colour"] + guidance * moved_B3
    size = (len(keys_B), task.image_size, task.image_size, 3)
    return jnp.broadcast_to(jnp.clip(colour_B3, -1, 1)[:, None, None], size)
