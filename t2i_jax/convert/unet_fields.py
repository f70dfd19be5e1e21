"""The configuration of an imagen-pytorch U-Net, inferred from the shapes of its weights and from a
live module.
"""

from __future__ import annotations

import re
from typing import Any

from t2i_jax.convert.engine import State
from t2i_jax.errors import UserError


def fields(state: State, module: Any) -> dict[str, Any]:
    """The configuration of a U-Net.

    Shapes do not determine `scale_skip_connection`, `resize_mode` and `use_linear_cross_attn`; nor
    the inputs where the first convolution has channels beyond those of the image and a smaller one.
    A live module determines all.

    Raises:
      UserError: weights of a version before 2.0.0, whose networks normalise in another way.
    """
    for key in ("mid_block1.block1.norm.gamma", "mid_block1.cross_attn.q_scale"):
        if key not in state:
            raise UserError(
                f"the weights have no {key}: they are older than imagen-pytorch 2.0.0; train anew."
            )
    lowres, texts = "to_lowres_time_hiddens.1.weight" in state, "text_to_cond.weight" in state
    features, cond_dim = state["to_time_hiddens.1.weight"].shape, state["norm_cond.weight"].shape[0]
    dim, levels = features[0] // (8 if lowres else 4), 1 + _last(state, r"downs\.(\d+)\.")
    widths = [
        state[f"ups.{levels - 1 - i}.0.block1.project.weight"].shape[0] for i in range(levels)
    ]
    found = {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "cond_dim": cond_dim,
        "num_time_tokens": state["to_time_tokens.0.weight"].shape[0] // cond_dim,
        "learned_sinu_pos_emb_dim": features[1] - 1,
        "lowres_cond": lowres,
        "cond_on_text": texts,
        "max_text_len": state["null_text_embed"].shape[1],
        "attn_pool_text": "attn_pool.latents" in state,
        "memory_efficient": "init_resnet_block.block1.norm.gamma" in state,
        "attend_at_middle": "mid_attn.layers.0.0.null_kv" in state,
        "final_resnet_block": "final_res_block.block1.norm.gamma" in state,
        "combine_upsample_fmaps": "upsample_combiner.fmap_convs.0.norm.gamma" in state,
        "channels_out": state["final_conv.weight"].shape[0],
        "final_conv_kernel_size": state["final_conv.weight"].shape[-1],
    }
    if texts:
        found["text_embed_dim"] = state["text_to_cond.weight"].shape[1]
    if found["attn_pool_text"]:
        found["attn_pool_num_latents"] = state["attn_pool.latents"].shape[0]
    if found["attend_at_middle"]:
        found["layer_mid_attns_depth"] = 1 + _last(state, r"mid_attn\.layers\.(\d+)\.")
    found |= _first_conv(state) | _levels(state, levels) | _inputs(state, found, module)
    found |= _attention(state, found, module) | _end(state, found)
    return found | (_live(module, levels) if module is not None else {})


def _first_conv(state):
    if "init_conv.weight" in state:
        weight = state["init_conv.weight"]
        return {
            "init_cross_embed": False,
            "init_conv_kernel_size": weight.shape[-1],
            "init_dim": weight.shape[0],
        }
    weights = [
        state[key] for key in sorted(state) if re.fullmatch(r"init_conv\.convs\.\d+\.weight", key)
    ]
    kernels = tuple(sorted(weight.shape[-1] for weight in weights))
    return {
        "init_cross_embed_kernel_sizes": kernels,
        "init_dim": sum(weight.shape[0] for weight in weights),
    }


def _levels(state, levels):
    def count(pattern):
        return 1 + _last(state, pattern)

    blocks = tuple(count(rf"downs\.{i}\.2\.(\d+)\.") for i in range(levels))
    full = tuple(f"downs.{i}.3.layers.0.0.null_kv" in state for i in range(levels))
    linear = tuple(f"downs.{i}.3.layers.0.0.to_q.1.weight" in state for i in range(levels))
    found = {
        "num_resnet_blocks": blocks,
        "layer_attns": full,
        "use_linear_attn": linear,
        "layer_attns_depth": tuple(
            max(count(rf"downs\.{i}\.3\.layers\.(\d+)\."), 1) for i in range(levels)
        ),
        "layer_cross_attns": tuple(
            f"downs.{i}.1.cross_attn.null_kv" in state for i in range(levels)
        ),
    }
    for i in range(levels):
        wide = state.get(f"downs.{i}.3.layers.0.1.1.weight")
        if wide is not None:
            found["ff_mult"] = wide.shape[0] / wide.shape[1]
    gates = [
        key
        for key in state
        if key.endswith("gca.to_k.bias") and not key.startswith("final_res_block")
    ]
    if any(blocks) or "init_resnet_block.block1.norm.gamma" in state:
        found["use_global_context_attn"] = bool(gates)
    if any(re.match(r"ups\.\d+\.3\.", key) for key in state):
        found["pixel_shuffle_upsample"] = any(re.match(r"ups\.\d+\.3\.net\.", key) for key in state)
    kernels = [
        state[key].shape[-1]
        for key in sorted(state)
        if re.match(r"downs\.0\.[04]\.convs\.\d+\.weight", key)
    ]
    if kernels:
        found |= {
            "cross_embed_downsample": True,
            "cross_embed_downsample_kernel_sizes": tuple(kernels),
        }
    return found


def _inputs(state, found, module):
    """The inputs of the first convolution, as far as they are certain."""
    if module is not None:
        return {
            name: getattr(module, name)
            for name in ("channels", "self_cond", "cond_images_channels")
        }
    total = next(
        state[k] for k in ("init_conv.weight", "init_conv.convs.0.weight") if k in state
    ).shape[1]
    if found["lowres_cond"]:
        own = found["dim"] if found["final_resnet_block"] else None
        channels = (
            found["channels_out"] if own is None else state["final_conv.weight"].shape[1] - own
        )
    else:
        channels = found["channels_out"]
    if total == channels * (2 if found["lowres_cond"] else 1):
        return {"channels": channels, "self_cond": False, "cond_images_channels": 0}
    return {"channels": channels} if found["lowres_cond"] else {}


def _attention(state, found, module):
    """Heads, as any attention with scales has them; those of the middle may be others."""
    sizes = {}
    for key in state:
        if key.endswith(".q_scale"):
            dim_head, inner = (
                state[key].shape[0],
                state[key.removesuffix("q_scale") + "to_q.weight"].shape[0],
            )
            sizes[key.startswith("mid_block")] = (inner // dim_head, dim_head)
    if False not in sizes and module is not None and any(found["use_linear_attn"]):
        sizes[False] = _live_heads(module)
    own = sizes.get(False, sizes[True])
    compat = ("mid_heads",) if own != sizes[True] else ()
    compat += () if found["cond_on_text"] else ("unused_weights",)
    return {"attn_heads": own[0], "attn_dim_head": own[1], "compat": compat}


def _end(state, found):
    """Whether the end sees the first convolution's output, by the channels it has."""
    dim, last = found["dim"], "final_res_block.block1.norm.gamma"
    low = found["channels_out"] if "channels" not in found else found["channels"]
    width = state[last].shape[0] if last in state else state["final_conv.weight"].shape[1]
    width -= low if found["lowres_cond"] and last not in state else 0
    up = found["init_dim"] if found["memory_efficient"] else dim * found["dim_mults"][0]
    combined = dim * len(found["dim_mults"]) if found["combine_upsample_fmaps"] else 0
    return {"init_conv_to_final_conv_residual": width > up + combined}


def _live(module, levels):
    def linear(i):
        return type(module.downs[i][1].cross_attn).__name__ == "LinearCrossAttention"

    return {
        "scale_skip_connection": module.skip_connect_scale != 1,
        "resize_mode": module.resize_mode,
        "use_linear_cross_attn": tuple(linear(i) for i in range(levels)),
    }


def _live_heads(module):
    """Heads and width of linear attention, whose weights give only their product."""
    for level in module.downs:
        for attention, _ in getattr(level[3], "layers", ()):
            return attention.heads, round(attention.scale**-2)
    raise KeyError("a module without attention has no heads to tell")


def _last(state, pattern):
    """The highest number that a pattern finds at the start of a key; -1: none."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)
