"""A cascade so small that only its logic is tested, and batches for it."""

import jax.numpy as jnp
import numpy as np

from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Edm
from t2i_jax.models.unet import Unet
from t2i_jax.systems.cascade.stage import Stage
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.text.stored import StoredText
from tests.train.toy import ToyBatches

UNET = Unet(
    dim=8,
    dim_mults=(1, 2),
    attn_heads=2,
    attn_dim_head=4,
    layer_attns=False,
    layer_cross_attns=(False, True),
    attn_pool_text=False,
    max_text_len=4,
    learned_sinu_pos_emb_dim=4,
    num_resnet_blocks=0,
    attend_at_middle=False,
    init_cross_embed=False,
    init_conv_kernel_size=3,
    use_global_context_attn=False,
    final_resnet_block=False,
)
# where levels are beside the point too
LEAN = UNET.clone(dim_mults=(1,), layer_cross_attns=False)
TEXT = StoredText(dim=6, max_length=3)


def cascade_of(unet):
    """Two stages of this network."""
    larger = dict(noise=Edm(), lowres=LowresNoise(per_row=True), steps=2)
    second = Stage(unet.clone(memory_efficient=True), image_size=16, **larger)
    return ImagenTask(stages=(Stage(unet, image_size=8, steps=3), second), text=TEXT)


TASK = cascade_of(UNET)
PLAIN = ImagenTask(stages=(Stage(UNET, image_size=8, sampler="ddim", steps=2),))


def batch_of(task, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for name, spec in task.batch_spec(rows).items():
        made[name] = (
            rng.integers(0, 256, spec.shape)
            if spec.dtype == jnp.uint8
            else rng.normal(size=spec.shape)
        )
        made[name] = (
            np.ones(spec.shape, bool) if name == "text_mask" else made[name].astype(spec.dtype)
        )
    return made


class Batches(ToyBatches):
    """Batches that depend only on their number; the text of batch `poison` holds a NaN."""

    def __init__(self, task, rows, poison=()):
        super().__init__(rows, poison)
        self.task = task

    def __next__(self):
        batch = batch_of(self.task, self.batch_size, self.number)
        if self.number in self.poison:
            batch["text_embeds"][:, 0, 0] = np.nan
        self.number += 1
        return batch
