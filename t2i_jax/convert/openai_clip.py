"""CLIP with a vision transformer: OpenAI's names, which are OpenCLIP's too, and those of
`CLIPModel` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from einops import rearrange

from t2i_jax import sharding
from t2i_jax.convert import clip_config
from t2i_jax.convert.engine import LINEAR, SAME, Entry, Layout, Network, Row, State
from t2i_jax.errors import UserError
from t2i_jax.models.openai_clip import OpenAIClip
from t2i_jax.tracing import traced_once


def _patches(model):
    """The kernel of a convolution whose windows are the patches, as that of a linear layer."""
    side = model.vision_patch_size
    return Layout(
        "patches (O, I, H, W) <-> (H W I, O)",
        lambda a: rearrange(a, "o i h w -> (h w i) o"),
        lambda a: rearrange(a, "(h w i) o -> o i h w", h=side, w=side),
    )


def openai_table(model: OpenAIClip) -> list[Row]:
    """The entries under OpenAI's names."""
    entries: list[Row] = [
        Entry("logit_scale", "logit_scale"),
        Entry("token_embedding.weight", "text/embedding"),
        Entry("positional_embedding", "text/positions"),
        Entry("text_projection", "text/projection"),
        *_norm("ln_final", "text/norm"),
        Entry("visual.class_embedding", "visual/cls"),
        Entry("visual.positional_embedding", "visual/positions"),
        Entry("visual.conv1.weight", "visual/to_tokens/kernel", _patches(model)),
        Entry("visual.proj", "visual/projection"),
        *_norm("visual.ln_pre", "visual/norm_in"),
        *_norm("visual.ln_post", "visual/norm"),
        *_openai_layers("transformer", "text", model.transformer_layers),
        *_openai_layers("visual.transformer", "visual", model.vision_layers),
    ]
    return entries + _bias(model)


def _openai_layers(torch, ours, depth):
    for i in range(depth):
        layer, place = f"{torch}.resblocks.{i}", f"{ours}/transformer/layers"
        yield from _norm(f"{layer}.ln_1", f"{place}/norm_attention", i)
        yield from _norm(f"{layer}.ln_2", f"{place}/norm_mlp", i)
        yield Entry(f"{layer}.attn.in_proj_weight", f"{place}/qkv/kernel", LINEAR, i)
        yield Entry(f"{layer}.attn.in_proj_bias", f"{place}/qkv/bias", SAME, i)
        for name, own in (("attn.out_proj", "out"), ("mlp.c_fc", "wide"), ("mlp.c_proj", "narrow")):
            yield from _linear(f"{layer}.{name}", f"{place}/{own}", i)


def transformers_table(model: OpenAIClip) -> list[Row]:
    """The entries under the names of transformers' CLIPModel."""
    text, vision = "text_model", "vision_model"
    entries: list[Row] = [
        Entry("logit_scale", "logit_scale"),
        Entry(f"{text}.embeddings.token_embedding.weight", "text/embedding"),
        Entry(f"{text}.embeddings.position_embedding.weight", "text/positions"),
        Entry("text_projection.weight", "text/projection", LINEAR),
        *_norm(f"{text}.final_layer_norm", "text/norm"),
        Entry(f"{vision}.embeddings.class_embedding", "visual/cls"),
        Entry(f"{vision}.embeddings.position_embedding.weight", "visual/positions"),
        Entry(
            f"{vision}.embeddings.patch_embedding.weight",
            "visual/to_tokens/kernel",
            _patches(model),
        ),
        Entry("visual_projection.weight", "visual/projection", LINEAR),
        *_norm(f"{vision}.pre_layrnorm", "visual/norm_in"),  # the package's spelling
        *_norm(f"{vision}.post_layernorm", "visual/norm"),
        *_transformers_layers(text, "text", model.transformer_layers),
        *_transformers_layers(vision, "visual", model.vision_layers),
    ]
    return entries + _bias(model)


def _transformers_layers(torch, ours, depth):
    for i in range(depth):
        layer, place = f"{torch}.encoder.layers.{i}", f"{ours}/transformer/layers"
        yield from _norm(f"{layer}.layer_norm1", f"{place}/norm_attention", i)
        yield from _norm(f"{layer}.layer_norm2", f"{place}/norm_mlp", i)
        for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
            key, share = f"{layer}.self_attn.{name}", (j, 3)
            yield Entry(f"{key}.weight", f"{place}/qkv/kernel", LINEAR, i, share)
            yield Entry(f"{key}.bias", f"{place}/qkv/bias", SAME, i, share)
        for name, own in (
            ("self_attn.out_proj", "out"),
            ("mlp.fc1", "wide"),
            ("mlp.fc2", "narrow"),
        ):
            yield from _linear(f"{layer}.{name}", f"{place}/{own}", i)


def _norm(torch, ours, layer=None):
    return [
        Entry(f"{torch}.weight", f"{ours}/scale", SAME, layer),
        Entry(f"{torch}.bias", f"{ours}/bias", SAME, layer),
    ]


def _linear(torch, ours, layer):
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", LINEAR, layer),
        Entry(f"{torch}.bias", f"{ours}/bias", SAME, layer),
    ]


def _bias(model):
    return [] if model.logit_bias is None else [Entry("logit_bias", "logit_bias")]


def openai_fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the shapes under OpenAI's names show, with those of `_beside_shapes`."""
    conv, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    found = {
        **_sizes(conv, positions, state["token_embedding.weight"], state["positional_embedding"]),
        "embed_dim": state["text_projection"].shape[1],
        "transformer_layers": _depth(state, "transformer.resblocks."),
        "vision_layers": _depth(state, "visual.transformer.resblocks."),
        "vision_mlp_dim": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "transformer_mlp_dim": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        **_bias_of(state),
    }
    return found | _beside_shapes(found, told)


def transformers_fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the shapes under transformers' names show, with those of `_beside_shapes`."""
    vision, text = "vision_model", "text_model"
    found = {
        **_sizes(
            state[f"{vision}.embeddings.patch_embedding.weight"],
            state[f"{vision}.embeddings.position_embedding.weight"],
            state[f"{text}.embeddings.token_embedding.weight"],
            state[f"{text}.embeddings.position_embedding.weight"],
        ),
        "embed_dim": state["text_projection.weight"].shape[0],
        "transformer_layers": _depth(state, f"{text}.encoder.layers."),
        "vision_layers": _depth(state, f"{vision}.encoder.layers."),
        "vision_mlp_dim": state[f"{vision}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "transformer_mlp_dim": state[f"{text}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        **_bias_of(state),
    }
    return found | _beside_shapes(found, told)


def _beside_shapes(found, told):
    """The fields that no shape shows: as told, else the heads of the published networks of these
    widths.

    Raises:
      UserError: nobody tells the activation, or the heads of a width that no published network
        has.
    """
    known = {name: told[name] for name in _TOLD if name in told}
    wanted = []
    if "activation" not in known:
        wanted.append(
            "do not tell their activation; give activation='quick_gelu' for those of OpenAI and "
            "'gelu' for others"
        )
    for name, of in (("transformer_heads", "transformer_width"), ("vision_heads", "vision_width")):
        heads = _heads(name, found[of])
        if name not in known and heads is None:
            wanted.append(f"do not tell the heads of {of}={found[of]}; give {name}")
        elif name == "transformer_heads" or found[of] in _SIXTEEN:  # the rest is the network's rule
            known.setdefault(name, heads)
    if wanted:
        raise UserError(f"the weights {', and '.join(wanted)}.")
    return known


_TOLD = ("activation", "epsilon", "transformer_heads", "vision_heads")
_SIXTEEN = (1280, 1408, 1664, 1792)  # widths of OpenCLIP's image transformers H, g, bigG and e


def _heads(name, width):
    """The heads of every network of OpenAI and of OpenCLIP that is so wide: 64 channels each, and
    16 of the largest image transformers. None for a width that none of them has.
    """
    if name == "vision_heads" and width in _SIXTEEN:
        return 16
    if width % 64 or (name == "vision_heads" and width > 1024):
        return None
    return width // 64


def _sizes(conv, positions, embedding, text_positions):
    width, _, patch, _ = conv.shape
    length, text_width = text_positions.shape
    return {
        "image_resolution": patch * math.isqrt(positions.shape[0] - 1),
        "vision_width": width,
        "vision_patch_size": patch,
        "context_length": length,
        "vocab_size": embedding.shape[0],
        "transformer_width": text_width,
    }


def _bias_of(state):
    return {"logit_bias": float(state["logit_bias"])} if "logit_bias" in state else {}


def _depth(state, start):
    return 1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start))


@traced_once
def _shapes(model: OpenAIClip) -> Mapping[str, Any]:
    return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0)))


def _same(name, found, value):
    """Whether a field has this value; a width that is None is compared as what it stands for."""
    wide = {"vision_mlp_dim": "vision_width", "transformer_mlp_dim": "transformer_width"}
    return found[name] == (4 * found[wide[name]] if value is None and name in wide else value)


OPENAI = Network(
    model=OpenAIClip,
    recognise=lambda state: "visual.class_embedding" in state and "token_embedding.weight" in state,
    fields=openai_fields,
    told=clip_config.of_open_clip,
    configured=clip_config.beside,
    table=openai_table,
    shapes=_shapes,
    same=_same,
    # numbers that OpenAI's files hold beside the weights
    ignore=("input_resolution", "context_length", "vocab_size", "attn_mask"),
)
TRANSFORMERS = Network(
    model=OpenAIClip,
    recognise=lambda state: (
        "vision_model.pre_layrnorm.weight" in state and "text_projection.weight" in state
    ),
    fields=transformers_fields,
    told=clip_config.of_transformers,
    configured=clip_config.beside,
    table=transformers_table,
    shapes=_shapes,
    same=_same,
    ignore=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
)
