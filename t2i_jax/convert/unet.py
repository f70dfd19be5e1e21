"""The U-Nets of imagen-pytorch from 2.0.0 on; earlier ones normalise in another way and have no
form here.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import unet_fields
from t2i_jax.convert.engine import (
    CONV,
    CONV1X1,
    DEPTHWISE,
    LINEAR,
    SAME,
    Constant,
    Entry,
    Layout,
    Network,
)
from t2i_jax.convert.unet_fields import fields
from t2i_jax.models import unet_sizes as sizes
from t2i_jax.models.unet import MID_HEADS, NullUnet, Unet
from t2i_jax.nn.conditioning import POSITIONS
from t2i_jax.tracing import traced_once

_MAP_CHANNEL = Layout(
    "channels (C, 1, 1) <-> (C)", lambda a: a[:, 0, 0], lambda a: a[:, None, None]
)
_WITH_FEED_FORWARD = ("layer_attns", "use_linear_attn")  # of a level
_FIRST_ROW = Layout("one row (1, ...) <-> (...)", lambda a: a[0], lambda a: a[None])


def table(model: Unet) -> list[Entry | Constant]:
    """The entries of one configuration."""
    first = _cross_embed if model.init_cross_embed else _conv
    entries = [
        *_condition(model),
        *first("init_conv", "first_conv", model.init_cross_embed_kernel_sizes),
    ]
    if model.memory_efficient:
        entries += _block("init_resnet_block", "first_block", False, model.use_global_context_attn)
    for i in range(len(model.dim_mults)):
        entries += [*_down(model, i), *_up(model, i)]
    return [*entries, *_middle(model), *_end(model)]


def unlike(model: Unet) -> list[str]:
    """The settings of a network that no Unet of the package has, so that its weights do not load
    there: a sentence each, with field, value and remedy.
    """
    found, heads = [], (model.attn_heads, model.attn_dim_head)
    if "mid_heads" not in model.compat and heads != MID_HEADS:
        found.append(
            f"attn_heads={heads[0]} and attn_dim_head={heads[1]} hold for the middle blocks too, "
            "which have 8 of 64 there: train with compat=('mid_heads',)"
        )
    if not model.cond_on_text and "unused_weights" not in model.compat:
        found.append(
            "it has no weights for absent texts, which every network has there: train with "
            "compat=('unused_weights',)"
        )
    per_level = (sizes.per_level(model, one) for one in ("ff_mult", *_WITH_FEED_FORWARD))
    if len({mult for mult, *attends in zip(*per_level, strict=True) if any(attends)}) > 1:
        found.append(f"ff_mult={model.ff_mult} differs by level: train with one number")
    if model.attn_heads < 2:
        found.append("attn_heads=1 is refused there: train with 2 or more")
    has_pool = model.attn_pool_text and (model.cond_on_text or "unused_weights" in model.compat)
    if has_pool and model.max_text_len > POSITIONS:
        found.append(
            f"max_text_len={model.max_text_len} is more than the {POSITIONS} positions of the "
            f"resampler there: train with {POSITIONS}, or attn_pool_text=False"
        )
    if model.cross_embed_downsample:
        found.append("cross_embed_downsample=True is an error there: train with False")
    if sizes.final_width(model) != _final_width_there(model):
        found.append(
            f"init_dim={model.init_dim} and dim_mults={model.dim_mults} end in another width than "
            f"dim={model.dim}, with which the last block is built there: train with both the same"
        )
    return found


def _final_width_there(model):
    combined = len(model.dim_mults) * model.combine_upsample_fmaps
    return model.dim * (1 + combined + model.init_conv_to_final_conv_residual)


def _condition(model):
    yield from _level_condition("to_", "level")
    if model.lowres_cond:
        yield from _level_condition("to_lowres_", "lowres_level")
    yield from _norm("norm_cond", "context_norm")
    if model.cond_on_text or "unused_weights" in model.compat:
        yield Entry("null_text_embed", "text/null_tokens", _FIRST_ROW)
        yield Entry("null_text_hidden", "text/null_vector", _FIRST_ROW)
        yield from _resampler("attn_pool", "text/pool") if model.attn_pool_text else ()
    if model.cond_on_text:
        yield from _linear("text_to_cond", "text/to_tokens")
        yield from _norm("to_text_non_attn_cond.0", "text/vector_norm")
        yield from _linear("to_text_non_attn_cond.1", "text/vector_hidden")
        yield from _linear("to_text_non_attn_cond.3", "text/vector")


def _level_condition(torch, ours):
    yield Entry(f"{torch}time_hiddens.0.weights", f"{ours}/frequencies")
    yield from _linear(f"{torch}time_hiddens.1", f"{ours}/hidden")
    yield from _linear(f"{torch}time_cond.0", f"{ours}/vector")
    yield from _linear(f"{torch}time_tokens.0", f"{ours}/tokens")


def _resampler(torch, ours):
    yield Entry(f"{torch}.pos_emb.weight", f"{ours}/positions")
    yield Entry(f"{torch}.latents", f"{ours}/latents")
    yield Entry(f"{torch}.to_latents_from_mean_pooled_seq.0.g", f"{ours}/mean_norm/scale")
    yield from _linear(f"{torch}.to_latents_from_mean_pooled_seq.1", f"{ours}/from_mean")
    for j in range(2):
        layer, attention = f"{torch}.layers.{j}", f"{ours}/attention_{j}"
        yield from _norm(f"{layer}.0.norm", f"{attention}/norm")
        yield from _norm(f"{layer}.0.norm_latents", f"{attention}/norm_latents")
        for theirs, name in (("to_q", "to_q"), ("to_kv", "to_kv"), ("to_out.0", "to_out")):
            yield Entry(f"{layer}.0.{theirs}.weight", f"{attention}/{name}/kernel", LINEAR)
        yield from (
            Entry(f"{layer}.0.{name}", f"{attention}/{name}") for name in ("q_scale", "k_scale")
        )
        yield from _norm(f"{layer}.0.to_out.1", f"{attention}/out_norm")
        yield from _feed_forward(f"{layer}.1", f"{ours}/mlp_{j}")


def _down(model, i):
    torch, ours = f"downs.{i}", f"down_{i}"
    shrink = _cross_embed if model.cross_embed_downsample else _shrink
    kernels = model.cross_embed_downsample_kernel_sizes
    if model.memory_efficient:
        yield from shrink(f"{torch}.0", f"{ours}_before", kernels)
    yield from _level(model, i, torch, ours, place=1)
    if not model.memory_efficient and i < len(model.dim_mults) - 1:
        yield from shrink(f"{torch}.4", f"{ours}_after", kernels)
    elif not model.memory_efficient:
        yield from _conv(f"{torch}.4.fns.0", f"{ours}_after/conv3")
        yield from _conv(f"{torch}.4.fns.1", f"{ours}_after/conv1", layout=CONV1X1)


def _up(model, i):
    torch, ours = f"ups.{len(model.dim_mults) - 1 - i}", f"up_{i}"
    yield from _level(model, i, torch, ours, place=0)
    if i > 0 or model.memory_efficient:
        if model.pixel_shuffle_upsample:
            yield from _conv(f"{torch}.3.net.0", f"{ours}_after/conv", layout=CONV1X1)
        else:
            yield from _conv(f"{torch}.3.1", f"{ours}_after/conv")


def _level(model, i, torch, ours, place):
    """The rows of one level; `place` is where its first block stands in the package's list, 0 on
    the way up.
    """

    def at(field):
        return sizes.per_level(model, field)[i]

    widened = place == 0  # by what comes across
    cross = (
        "linear" if at("use_linear_cross_attn") else "softmax" if at("layer_cross_attns") else None
    )
    yield from _block(
        f"{torch}.{place}", f"{ours}_first", widened, False, cross, model.attn_dim_head
    )
    for n in range(at("num_resnet_blocks")):
        yield from _block(
            f"{torch}.{place + 1}.{n}", f"{ours}_block_{n}", widened, model.use_global_context_attn
        )
    if at("layer_attns") or at("use_linear_attn"):
        for j in range(at("layer_attns_depth")):
            layer, attention = f"{torch}.{place + 2}.layers.{j}", f"{ours}_attention"
            own = _attention if at("layer_attns") else _linear_attention
            yield from own(f"{layer}.0", f"{attention}/attention_{j}", True)
            yield from _feed_forward(f"{layer}.1", f"{attention}/mlp_{j}", not at("layer_attns"))


def _middle(model):
    dim_head = 64 if "mid_heads" in model.compat else model.attn_dim_head
    yield from _block("mid_block1", "mid_first", False, False, "softmax", dim_head)
    yield from _block("mid_block2", "mid_second", False, False, "softmax", dim_head)
    for j in range(model.layer_mid_attns_depth if model.attend_at_middle else 0):
        yield from _attention(f"mid_attn.layers.{j}.0", f"mid_attention/attention_{j}", False)
        yield from _feed_forward(f"mid_attn.layers.{j}.1", f"mid_attention/mlp_{j}")


def _end(model):
    last = len(model.dim_mults) - 1
    for i in range(last + 1) if model.combine_upsample_fmaps else ():
        yield from _norm_conv(f"upsample_combiner.fmap_convs.{last - i}", f"combine_{i}")
    if model.final_resnet_block:
        yield from _block(
            "final_res_block", "final_block", sizes.final_width(model) != model.dim, True
        )
    yield from _conv("final_conv", "final_conv")


def _block(torch, ours, widened, gate, cross=None, dim_head=64):
    yield from _linear(f"{torch}.time_mlp.1", f"{ours}/time")
    for name in ("block1", "block2"):
        yield from _norm_conv(f"{torch}.{name}", f"{ours}/{name}")
    if cross:
        yield from _cross_attention(
            f"{torch}.cross_attn", f"{ours}/cross_attention", cross == "linear", dim_head
        )
    if gate:
        for theirs, name in (("to_k", "scores"), ("net.0", "hidden"), ("net.2", "gate")):
            yield from _conv(f"{torch}.gca.{theirs}", f"{ours}/gate/{name}", layout=CONV1X1)
    if widened:
        yield from _conv(f"{torch}.res_conv", f"{ours}/residual", layout=CONV1X1)


def _norm_conv(torch, ours):
    yield Entry(f"{torch}.norm.gamma", f"{ours}/norm/scale", _MAP_CHANNEL)
    yield from _conv(f"{torch}.project", f"{ours}/conv")


def _cross_attention(torch, ours, linear, dim_head):
    yield Entry(f"{torch}.null_kv", f"{ours}/null_kv")
    for name in ("q_scale", "k_scale"):  # linear attention has them and never uses them
        theirs, ones = f"{torch}.{name}", np.ones((dim_head,), np.float32) if linear else None
        yield Constant(theirs, ones) if linear else Entry(theirs, f"{ours}/{name}")
    yield Entry(f"{torch}.norm.g", f"{ours}/norm/scale")
    yield from (
        Entry(f"{torch}.{name}.weight", f"{ours}/{name}/kernel", LINEAR)
        for name in ("to_q", "to_kv")
    )
    yield Entry(f"{torch}.to_out.0.weight", f"{ours}/to_out/kernel", LINEAR)
    yield Entry(f"{torch}.to_out.1.g", f"{ours}/out_norm/scale")


def _attention(torch, ours, context):
    yield from _cross_attention(torch, ours, False, None)
    if context:
        yield from _norm(f"{torch}.to_context.0", f"{ours}/context_norm")
        yield from _linear(f"{torch}.to_context.1", f"{ours}/context_kv")


def _linear_attention(torch, ours, context):
    yield Entry(f"{torch}.norm.g", f"{ours}/norm/scale", _MAP_CHANNEL)
    for name in "qkv":
        yield Entry(f"{torch}.to_{name}.1.weight", f"{ours}/to_{name}/kernel", CONV1X1)
        yield Entry(f"{torch}.to_{name}.2.weight", f"{ours}/{name}_conv", DEPTHWISE)
    yield from _norm(f"{torch}.to_context.0", f"{ours}/context_norm")
    yield Entry(f"{torch}.to_context.1.weight", f"{ours}/context_kv/kernel", LINEAR)
    yield Entry(f"{torch}.to_out.0.weight", f"{ours}/to_out/kernel", CONV1X1)
    yield Entry(f"{torch}.to_out.1.g", f"{ours}/out_norm/scale", _MAP_CHANNEL)


def _feed_forward(torch, ours, on_maps=False):
    vector, matrix = (_MAP_CHANNEL, CONV1X1) if on_maps else (SAME, LINEAR)
    yield Entry(f"{torch}.0.g", f"{ours}/norm/scale", vector)
    yield Entry(f"{torch}.1.weight", f"{ours}/wide/kernel", matrix)
    yield Entry(f"{torch}.3.g", f"{ours}/inner_norm/scale", vector)
    yield Entry(f"{torch}.4.weight", f"{ours}/narrow/kernel", matrix)


def _linear(torch, ours):
    return _conv(torch, ours, layout=LINEAR)


def _norm(torch, ours):
    return [Entry(f"{torch}.weight", f"{ours}/scale"), Entry(f"{torch}.bias", f"{ours}/bias")]


def _conv(torch, ours, kernels=None, layout=CONV):
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", layout),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


def _cross_embed(torch, ours, kernels):
    return [
        entry
        for k in range(len(kernels))
        for entry in _conv(f"{torch}.convs.{k}", f"{ours}/conv_{k}")
    ]


def _shrink(torch, ours, kernels):
    return _conv(f"{torch}.1", f"{ours}/conv", layout=CONV1X1)


@traced_once
def _shapes(model):
    image = jnp.zeros((1, model.multiple, model.multiple, model.channels))
    more = {}
    if model.cond_images_channels:
        more["cond_image_BHWC"] = jnp.zeros((*image.shape[:3], model.cond_images_channels))
    if model.lowres_cond:
        more |= {"lowres_BHWC": image, "lowres_condition_B": jnp.zeros((1,))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros((1,)), **more)
    return sharding.unbox(shapes["params"])


def _is_unet(state):
    """Whether the weights are of a U-Net for images; that for videos has kernels of five axes."""
    return (
        "to_time_hiddens.0.weights" in state
        and "null_text_embed" in state
        and state["final_conv.weight"].ndim == 4
    )


def _stored(loaded):
    """The fields that `Unet.persist_to_file` writes beside the weights."""
    stored = loaded.get("config") if isinstance(loaded, Mapping) else None
    return unet_fields.configured(stored) if isinstance(stored, Mapping) else {}


NETWORK = Network(
    model=Unet,
    recognise=_is_unet,
    fields=fields,
    table=table,
    shapes=_shapes,
    told=unet_fields.live,
    stored=_stored,
    same=unet_fields.same,
)

NULL = Network(
    model=NullUnet,
    recognise=lambda state: set(state) == {"dummy_parameter"},
    fields=lambda state, told: {},
    told=lambda module: {},
    table=lambda model: [Entry("dummy_parameter", "dummy_parameter")],
    shapes=lambda model: {"dummy_parameter": jax.ShapeDtypeStruct((1,), np.float32)},
)
