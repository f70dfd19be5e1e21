"""DALL-E 2 on the built-in dataset `digits`: handwritten digits of 16 pixels from their names.

t2i train configs/dalle2/digits.py
"""

import pathlib

import t2i_jax as t2i
from t2i_jax.runs.recipe import load_recipe

_CLIP = pathlib.Path(__file__).resolve().parents[1] / "clip" / "digits.py"


def get_config() -> t2i.Recipe:
    """Three parts, each in a folder of its own; the prior and the decoder inherit CLIP."""
    network = t2i.DiffusionPriorNetwork(dim=64, depth=3, dim_head=32, heads=2, max_text_len=16)
    unet = t2i.DecoderUnet(
        dim=32,
        dim_mults=(1, 2),
        num_resnet_blocks=1,
        cond_on_image_embeds=True,
        image_embed_scale=8.0,  # the root of CLIP's width: numbers of about 1, as in the text
        cond_on_text_encodings=True,
        text_at_levels=True,
        add_text_to_time=True,
        cross_attn=True,
        cross_attn_heads=2,  # of the text; dalle2-pytorch has 8 of 64
        cross_attn_dim_head=32,
        cond_dim=64,
        max_text_len=16,
        memory_efficient=True,
        attn_heads=2,
        attn_dim_head=32,
        init_cross_embed_kernel_sizes=(3, 5),
    )
    stage = t2i.DecoderStage(
        unet,
        image_size=16,
        noise=t2i.Ddpm(objective="v", weighting="plain"),
        resize="area",
        sampler="dpm_solver",
        steps=24,
    )
    options = t2i.DALLE2Options(guidance=2.0)
    return t2i.Recipe(
        task=t2i.DALLE2Task(),
        data=_data(),
        parts={
            "clip": load_recipe(_CLIP),
            "prior": t2i.Recipe(
                t2i.PriorTask(network),
                _data(),
                _train(800),
                evaluation=t2i.Evaluation(pictures=200, options=t2i.PriorOptions(steps=16)),
            ),
            "decoder": t2i.Recipe(
                t2i.DecoderTask(stages=(stage,), text_cond_drop_prob=0.1),
                _data(),
                _train(700),
                evaluation=t2i.Evaluation(options=t2i.DecoderOptions(guidance=2.0)),
            ),
        },
        evaluation=t2i.Evaluation(judge="digits", pictures=400, options=options),
    )


def _data():
    return t2i.DataConfig(source="digits", image_size=16)


def _train(steps):
    return t2i.TrainConfig(
        steps=steps,
        batch_size=64,
        ema_decay=0.99,
        optim=t2i.OptimConfig(
            name="muon",
            learning_rate=2e-3,
            warmup_steps=50,
            schedule="cosine",
            end_ratio=0.02,
            weight_decay=0.03,
        ),
    )
