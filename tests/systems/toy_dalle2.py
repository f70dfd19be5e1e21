"""CLIP and a prior on shapes, so small that only the way through is tested."""

import contextlib
import dataclasses

import pytest

import t2i_jax as t2i
from t2i_jax.text import caption_ids

CLIP = t2i.CLIP(
    dim_text=16,
    dim_image=16,
    dim_latent=16,
    num_text_tokens=64,
    text_enc_depth=1,
    text_seq_len=12,
    text_heads=2,
    text_dim_head=8,
    visual_enc_depth=1,
    visual_heads=2,
    visual_dim_head=8,
    visual_image_size=16,
    visual_patch_size=8,
    visual_patch_dropout=0.0,
)
NETWORK = t2i.DiffusionPriorNetwork(dim=24, depth=1, dim_head=8, heads=2, max_text_len=8)
NOISE = t2i.DiscreteDdpm(20, objective="x_start")
DATA = t2i.DataConfig(source="shapes", image_size=16, threads=0)
TRAIN = t2i.TrainConfig(steps=4, batch_size=8, log_every=2, save_every=2, ema_decay=0.5)


@contextlib.contextmanager
def few_captions():
    """Within it a vocabulary is trained on 500 captions, and not on all that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_ids, "_CAPTIONS_FOR_VOCABULARY", 500)
        yield


def clip() -> t2i.Recipe:
    """CLIP alone; an average is compiled for the prior."""
    train = dataclasses.replace(TRAIN, ema_decay=0.0)
    return t2i.Recipe(t2i.ClipTask(CLIP), DATA, train, evaluation=t2i.Evaluation(pictures=4))


def prior(**fields) -> t2i.Recipe:
    """The prior; its CLIP is the part of the recipe around it."""
    options = t2i.PriorOptions(steps=2)
    evaluation = t2i.Evaluation(pictures=4, preview=4, options=options)
    task = t2i.PriorTask(NETWORK, NOISE, **fields)
    return t2i.Recipe(task, DATA, TRAIN, evaluation=evaluation)


UNET = t2i.DecoderUnet(
    dim=8,
    dim_mults=(1,),
    resnet_groups=4,
    num_resnet_blocks=0,
    attn_heads=1,
    attn_dim_head=8,
    init_cross_embed=False,
    init_conv_kernel_size=3,
    attend_at_middle=False,
    max_text_len=12,
    num_image_tokens=2,
    cond_on_image_embeds=True,
    cond_on_text_encodings=True,
)


def decoder() -> t2i.Recipe:
    """A decoder of 16 pixels, without an average; its CLIP is the part of the recipe around it."""
    train = dataclasses.replace(TRAIN, ema_decay=0.0)
    noise = t2i.DiscreteDdpm(25, objective="v")
    stage = t2i.DecoderStage(UNET, image_size=16, noise=noise, sampler="ddim", steps=2)
    options = t2i.DecoderOptions(steps=2)
    evaluation = t2i.Evaluation(pictures=4, preview=4, options=options)
    return t2i.Recipe(t2i.DecoderTask(stages=(stage,)), DATA, train, evaluation=evaluation)


def dalle2() -> t2i.Recipe:
    """All of it."""
    options = t2i.DALLE2Options(steps=2, prior_steps=2)
    parts = {"clip": clip(), "prior": prior(), "decoder": decoder()}
    evaluation = t2i.Evaluation(judge="shapes", pictures=4, preview=4, options=options)
    return t2i.Recipe(t2i.DALLE2Task(), DATA, None, parts, evaluation)
