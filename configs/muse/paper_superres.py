"""Muse's super-resolution of 268 million parameters: the 64 x 64 tokens of 512 pixels from the
16 x 16 tokens of 256 (Chang et al. 2023, section 2.4). Not yet run.

    t2i compile configs/muse/paper_superres.py --topology v4:4x4x8
    t2i train configs/muse/paper_superres.py tokenizer=runs/vqgan superres_tokenizer=runs/vqgan_f8

It trains on images, of which both tokenizers make the tokens: f=16 of the small ones, f=8 of the
large ones, 8192 codes each. Without runs of these they are trained first. With them it may train on
tokens of both sizes that are stored once, by task.stored_tokens=True:

    t2i data encode-images packed runs/vqgan --cond-image-size 256 \\
        --superres-tokenizer runs/vqgan_f8
"""

import dataclasses
import pathlib

from t2i_jax import (
    Evaluation,
    MaskGitOptions,
    MaskGitTask,
    PatchDiscriminator,
    Recipe,
    StoredText,
    TokenizerTask,
)
from t2i_jax.models.maskgit import MUSE_SUPERRES_268M
from t2i_jax.models.taming_vqgan import preset
from t2i_jax.runs.recipe import load_recipe


def get_config() -> Recipe:
    """The recipe of paper_632m.py with this network, and images of 512 pixels."""
    recipe = load_recipe(pathlib.Path(__file__).with_name("paper_632m.py"))
    small, large = preset("muse-f16", image_size=256), preset("muse-f8", image_size=512)
    task = MaskGitTask(
        MUSE_SUPERRES_268M.clone(dtype="bfloat16", remat="full"),
        StoredText(4096, 128),
        tokenizer=small,
        superres_tokenizer=large,
        cond_image_size=256,
        label_smoothing=0.1,
    )
    return dataclasses.replace(
        recipe,
        task=task,
        data=dataclasses.replace(recipe.data, image_size=512),
        parts={
            "tokenizer": _tokenizer(recipe, small),
            "superres_tokenizer": _tokenizer(recipe, large),
        },
        evaluation=Evaluation(options=MaskGitOptions(steps=8)),
    )


def _tokenizer(recipe, network):
    """A tokenizer against a discriminator."""
    discriminator = PatchDiscriminator((128, 128, 256, 512, 1024), network.channels)
    optim = dataclasses.replace(recipe.train.optim, name="adamw")
    return Recipe(
        task=TokenizerTask(network, discriminator=discriminator, gan_start=20_000),
        data=dataclasses.replace(recipe.data, image_size=network.image_size),
        train=dataclasses.replace(
            recipe.train, steps=1_000_000, batch_size=256, ema_decay=0.9999, optim=optim
        ),
    )
