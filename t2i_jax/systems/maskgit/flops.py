"""FLOPs of a training step of MaskGIT, for MFU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from t2i_jax import sharding
from t2i_jax.models import image_tokenizer
from t2i_jax.nn.flops import flops_of
from t2i_jax.systems import captions

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


def of_image(task: MaskGitTask) -> float:
    """FLOPs of one step for each image, from the traced networks: 3 forward passes of what is
    trained, one of what is frozen, and of a self-conditioned network the pass that makes its
    vectors.
    """
    shapes = sharding.unbox(sharding.parameters_of(task))
    own, trained, once, frozen = shapes["maskgit"], "maskgit" in task.trained, 0.0, 0.0
    network = flops_of(functools.partial(_apply, task.network), own["decoder"], *task.zeros())
    passes = task.self_cond_prob if task.network.self_cond else 0.0
    if trained:
        once, frozen = once + network, frozen + passes * network
        if "critic" in own:
            once += network
    if "critic" in task.trained:
        critic = functools.partial(_apply, task.token_critic)
        once += flops_of(critic, shapes["critic"], *task.zeros())
        frozen += (1 + passes) * network
    texts = captions.spec(task.text, 1).values()
    if "text" in own:
        rate = flops_of(task.text.embed, own["text"], *texts)
        once += rate * trained
        frozen += rate * ("critic" in task.trained)
    elif task.text is not None and (encoder := task.text.frozen_shapes()):
        frozen += flops_of(task.text.embed, encoder["text"], *texts)
    if not task.on_tokens:
        frozen += sum(
            image_tokenizer.flops(one, "encode") for one in task.tokenizers if one is not None
        )
    return 3 * once + frozen


def _apply(network, params, *inputs):
    return network.apply({"params": params}, *inputs)
