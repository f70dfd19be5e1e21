"""The decoder of DALL-E 2 on the built-in dataset `shapes`: images of 32 pixels from their CLIP
embeddings and captions.

The captions are read by a text encoder of the decoder's own, as in the paper: what a CLIP embedding
tells of images that CLIP was not trained on is not always which object stands where.

    t2i train configs/dalle2/decoder_shapes.py      # CLIP first; then the decoder
"""

import dataclasses
import pathlib

import t2i_jax as t2i
from t2i_jax.runs.recipe import load_recipe

_CLIP = pathlib.Path(__file__).resolve().parents[1] / "clip" / "shapes.py"


def get_config() -> t2i.Recipe:
    """CLIP is a part, and trained first."""
    text = t2i.LearnedText(
        dim=128, depth=2, heads=4, mlp_dim=512, vocab_size=256, max_length=16, causal=True
    )
    common = dict(
        dim=32,
        dim_mults=(1, 2),
        num_resnet_blocks=1,
        cond_on_image_embeds=True,
        cond_dim=128,
        max_text_len=text.max_length,
        memory_efficient=True,
        attn_heads=4,
        attn_dim_head=32,
        init_cross_embed_kernel_sizes=(3, 7),
    )
    base = t2i.DecoderUnet(
        cond_on_text_encodings=True,
        text_at_levels=True,
        add_text_to_time=True,
        self_attn=True,
        cross_attn=True,
        **common,
    )
    narrow = common | dict(dim=16)  # small images tell nearly all
    larger = t2i.DecoderUnet(lowres_cond=True, cross_attn=False, attend_at_middle=False, **narrow)
    noise = t2i.Ddpm(objective="v", weighting="plain")
    # noise levels at which so small an image is decided
    layout = dataclasses.replace(noise, shift=-2.5)
    solver = dict(resize="area", sampler="dpm_solver", steps=24)
    return t2i.Recipe(
        task=t2i.DecoderTask(
            stages=(
                t2i.DecoderStage(base, image_size=16, noise=layout, **solver),
                t2i.DecoderStage(larger, image_size=32, noise=noise, crop_size=16, **solver),
            ),
            text=text,
            image_cond_drop_prob=0.3,
            text_cond_drop_prob=0.5,
        ),
        data=t2i.DataConfig(source="shapes", image_size=32),
        parts={"clip": load_recipe(_CLIP)},
        train=t2i.TrainConfig(
            steps=4000,
            batch_size=64,
            ema_decay=0.99,
            optim=t2i.OptimConfig(
                name="muon",
                learning_rate=1e-3,
                matrix_rate=0.004,
                warmup_steps=100,
                schedule="cosine",
                end_ratio=0.02,
                weight_decay=0.01,
            ),
        ),
        evaluation=t2i.Evaluation(
            judge="shapes", pictures=400, options=t2i.DecoderOptions(guidance=(2.0, 1.0))
        ),
    )
