"""The U-Net of dalle2-pytorch 1.15.6; those of releases that compute otherwise under the same names
are refused where their names or shapes tell them.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import decoder_unet_fields
from t2i_jax.convert.engine import (
    CHANNEL,
    CONV,
    CONV1X1,
    LINEAR,
    Entry,
    Layout,
    Network,
    Refused,
    Row,
    Unused,
)
from t2i_jax.errors import UserError
from t2i_jax.models import decoder_unet_sizes as sizes
from t2i_jax.models.decoder_unet import DecoderUnet
from t2i_jax.tracing import traced_once

# fields that are as by default for every network of the package
_NOT_THERE = {
    "text_at_levels": "the middle alone sees the text",
    "add_text_to_time": "the middle alone sees the text",
    "cross_attn_heads": f"it is {DecoderUnet.cross_attn_heads}",
    "cross_attn_dim_head": f"it is {DecoderUnet.cross_attn_dim_head}",
    "image_embed_scale": f"it is {DecoderUnet.image_embed_scale}",
}
_FIRST = Layout("one row (1, ...) <-> (...)", lambda a: a[0], lambda a: a[None])


def _queries(model) -> Layout:
    """The package divides scores of self-attention by their width, a network that is trained here
    by the root of it; its queries take the other root with them.
    """
    if "squared_scale" in model.compat or model.cosine_sim_self_attn:
        return LINEAR
    root = model.attn_dim_head**0.5
    return Layout(
        f"linear (out, in) <-> (in, out), {root:.4g} <-> 1",
        lambda a: LINEAR.to_ours(a) / root,
        lambda a: LINEAR.to_torch(a) * root,
    )


def table(model: DecoderUnet) -> list[Row]:
    """The entries of one configuration.

    Raises:
      UserError: a text that levels or the timestep see, other heads of cross-attention, scaled
        embeddings, or a projection of embeddings as wide as tokens, which the package does not
        have.
    """
    for name, there in _NOT_THERE.items():
        if (value := getattr(model, name)) != getattr(DecoderUnet, name):
            raise UserError(
                f"{name}={value} of the DecoderUnet has no form in dalle2-pytorch, where {there}; "
                "t2i export writes the system as it is."
            )
    _check_tokens(model)
    rows: list[Row] = [*_refused(model), *_condition(model), *_nulls(model)]
    kernels = len(model.init_cross_embed_kernel_sizes) if model.init_cross_embed else 0
    rows += _convs("init_conv", "first_conv", kernels)
    if model.memory_efficient:
        rows += _block("init_resnet_block", "first_block", False)
    for i in range(len(model.dim_mults)):
        rows += [*_down(model, i), *_up(model, i)]
    rows += [*_block("mid_block1", "mid_first", False, True)]
    if model.attend_at_middle:
        rows += _attention("mid_attn.fn.fn", "mid_attention", _queries(model))
    else:
        rows += _attends_to_nothing("mid_attn.fn.fn", model)
    rows += [*_block("mid_block2", "mid_second", False, True)]
    last = len(model.dim_mults) - 1
    for i in range(last + 1) if model.combine_upsample_fmaps else ():
        rows += _norm_conv(f"upsample_combiner.fmap_convs.{last - i}", f"combine_{i}")
    return [
        *rows,
        *_block("final_resnet_block", "final_block", True),
        *_both("to_out", "final_conv"),
    ]


def _refused(model) -> Iterator[Row]:
    """The settings that no network of the package has, which export refuses."""
    levels, first = len(model.dim_mults), model.init_dim or model.dim
    last = first if model.memory_efficient else model.dim * model.dim_mults[0]
    usual, end = tuple(i > 0 for i in range(levels)), "t2i export writes the system as it is."
    if sizes.cross_levels(model) != usual:
        yield Refused(
            f"cross_attn={model.cross_attn} of the DecoderUnet has no form in dalle2-pytorch, "
            f"where it is {usual}; {end}"
        )
    for name, wide in (("init_dim", first), ("dim_mults", last)):
        if wide != model.dim:
            yield Refused(
                f"{name}={getattr(model, name)} of the DecoderUnet has no form in dalle2-pytorch, "
                f"whose last block is made for {model.dim} channels, and here gets {wide}; {end}"
            )


def _attends_to_nothing(torch, model) -> Iterator[Row]:
    """Self-attention that adds zeros, as the gain of its last norm is 0: the package always has it
    at the bottom.
    """
    width, head = model.dim * model.dim_mults[-1], model.attn_dim_head
    inner = model.attn_heads * head
    for name, shape in (
        ("null_kv", (2, head)), ("norm.g", (width,)), ("to_q.weight", (inner, width)),
        ("to_kv.weight", (2 * head, width)), ("to_out.0.weight", (width, inner)),
        ("to_out.1.g", (width,)),
    ):  # fmt: skip
        yield Unused(f"{torch}.{name}", np.zeros(shape, np.float32))


def _check_tokens(model):
    width = model.cond_dim or model.dim
    projected = model.cond_on_image_embeds and "image_tokens" not in model.compat
    if projected and model.image_embed_dim == width:
        raise UserError(
            f"image_embed_dim={width} of the DecoderUnet is as wide as its tokens, where "
            "dalle2-pytorch does not project the embedding; train with compat=('image_tokens',) "
            f"or with another cond_dim than {width}."
        )


def _condition(model) -> Iterator[Row]:
    yield from _both("to_time_hiddens.1", "time/hidden", LINEAR)
    yield from _both("to_time_tokens.0", "time/tokens", LINEAR)
    yield from _both("to_time_cond.0", "time/vector", LINEAR)
    if model.lowres_noise_cond:
        yield from _both("to_lowres_noise_cond.1", "lowres_time/hidden", LINEAR)
        yield from _both("to_lowres_noise_cond.3", "lowres_time/vector", LINEAR)
    if model.cond_on_image_embeds and "image_tokens" not in model.compat:
        yield from _both("image_to_tokens.0", "image/to_tokens", LINEAR)
    if model.cond_on_image_embeds and model.add_image_embeds_to_time:
        yield from _both("to_image_hiddens.0", "image/to_vector", LINEAR)
    if model.cond_on_text_encodings:
        yield from _both("text_to_cond", "text/to_tokens", LINEAR)
    for theirs, ours in (("norm_cond", "context_norm"), ("norm_mid_cond", "middle_context_norm")):
        yield Entry(f"{theirs}.weight", f"{ours}/scale")
        yield Entry(f"{theirs}.bias", f"{ours}/bias")


def _nulls(model) -> Iterator[Row]:
    """The learned embeddings of absent conditions, which the package also has for conditions that a
    network never reads.
    """
    unused, width = "unused_weights" in model.compat, model.cond_dim or model.dim
    for used, theirs, ours, shape in (
        (model.cond_on_image_embeds, "null_image_embed", "image/null_tokens",
         (1, model.num_image_tokens, width)),
        (model.cond_on_image_embeds, "null_image_hiddens", "image/null_vector", (1, 4 * model.dim)),
        (model.cond_on_text_encodings, "null_text_embed", "text/null_tokens",
         (1, model.max_text_len, width)),
    ):  # fmt: skip
        if used or unused:
            yield Entry(theirs, ours, _FIRST)
        else:
            yield Unused(theirs, np.zeros(shape, np.float32))


def _down(model, i) -> Iterator[Row]:
    torch, ours, last = f"downs.{i}", f"down_{i}", i == len(model.dim_mults) - 1
    if model.memory_efficient:
        yield from _shrink(model, f"{torch}.0", f"{ours}_before")
    yield from _block(f"{torch}.1", f"{ours}_first", False)
    for n in range(sizes.per_level(model, "num_resnet_blocks")[i]):
        cross = sizes.cross_levels(model)[i]
        yield from _block(f"{torch}.2.{n}", f"{ours}_block_{n}", False, cross)
    yield from _level_attention(model, i, f"{torch}.3", f"{ours}_attention")
    if model.memory_efficient or last:
        yield from _both(f"{torch}.4", f"{ours}_after", CONV1X1)
    else:
        yield from _shrink(model, f"{torch}.4", f"{ours}_after")


def _up(model, i) -> Iterator[Row]:
    torch, ours = f"ups.{len(model.dim_mults) - 1 - i}", f"up_{i}"
    cross = sizes.cross_levels(model)[i]
    yield from _block(f"{torch}.0", f"{ours}_first", True, cross)
    for n in range(sizes.per_level(model, "num_resnet_blocks")[i]):
        yield from _block(f"{torch}.1.{n}", f"{ours}_block_{n}", True, cross)
    yield from _level_attention(model, i, f"{torch}.2", f"{ours}_attention")
    if i > 0 or model.memory_efficient:
        if model.pixel_shuffle_upsample:
            yield from _both(f"{torch}.3.net.0", f"{ours}_after/conv", CONV1X1)
        else:
            yield from _both(f"{torch}.3.1", f"{ours}_after/conv")


def _level_attention(model, i, torch, ours) -> Iterator[Row]:
    if sizes.per_level(model, "self_attn")[i]:
        yield from _attention(f"{torch}.fn.fn", ours, _queries(model))
    elif model.sparse_attn:
        yield Entry(f"{torch}.fn.norm.g", f"{ours}/norm/scale", CHANNEL)
        yield Entry(f"{torch}.fn.to_qkv.weight", f"{ours}/to_qkv/kernel", CONV1X1)
        yield Entry(f"{torch}.fn.to_out.0.weight", f"{ours}/to_out/kernel", CONV1X1)
        yield Entry(f"{torch}.fn.to_out.1.g", f"{ours}/out_norm/scale", CHANNEL)


def _block(torch, ours, widened, cross=False) -> Iterator[Row]:
    yield from _both(f"{torch}.time_mlp.1", f"{ours}/time", LINEAR)
    if cross:
        yield from _attention(f"{torch}.cross_attn", f"{ours}/cross_attention")
    for name in ("block1", "block2"):
        yield from _norm_conv(f"{torch}.{name}", f"{ours}/{name}")
    if widened:
        yield from _both(f"{torch}.res_conv", f"{ours}/residual", CONV1X1)


def _norm_conv(torch, ours) -> Iterator[Row]:
    yield from _both(f"{torch}.project", f"{ours}/conv")
    yield Entry(f"{torch}.norm.weight", f"{ours}/norm/scale")
    yield Entry(f"{torch}.norm.bias", f"{ours}/norm/bias")


def _attention(torch, ours, queries=LINEAR) -> Iterator[Row]:
    yield Entry(f"{torch}.null_kv", f"{ours}/null_kv")
    yield Entry(f"{torch}.norm.g", f"{ours}/norm/scale")
    for name, layout in (("to_q", queries), ("to_kv", LINEAR)):
        yield Entry(f"{torch}.{name}.weight", f"{ours}/{name}/kernel", layout)
    yield Entry(f"{torch}.to_out.0.weight", f"{ours}/to_out/kernel", LINEAR)
    yield Entry(f"{torch}.to_out.1.g", f"{ours}/out_norm/scale")


def _shrink(model, torch, ours) -> list[Row]:
    if model.cross_embed_downsample:
        return _convs(torch, ours, len(model.cross_embed_downsample_kernel_sizes))
    return _both(f"{torch}.1", f"{ours}/conv", CONV1X1)


def _convs(torch, ours, kernels) -> list[Row]:
    """A convolution of several kernel sizes; of none: a plain one."""
    if not kernels:
        return _both(torch, ours)
    return [row for k in range(kernels) for row in _both(f"{torch}.convs.{k}", f"{ours}/conv_{k}")]


def _both(torch, ours, layout=CONV) -> list[Row]:
    return [
        Entry(f"{torch}.weight", f"{ours}/kernel", layout),
        Entry(f"{torch}.bias", f"{ours}/bias"),
    ]


@traced_once
def _shapes(model):
    image = jnp.zeros((1, model.multiple, model.multiple, model.channels))
    more = {}
    if model.cond_on_image_embeds:
        more["image_embed_BD"] = jnp.zeros((1, model.image_embed_dim))
    if model.lowres_cond:
        more["lowres_BHWC"] = image
    if model.lowres_noise_cond:
        more["lowres_condition_B"] = jnp.zeros((1,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros((1,)), **more)
    return sharding.unbox(shapes["params"])


def is_unet(state) -> bool:
    """Whether the weights are of a U-Net of dalle2-pytorch, of this release or an earlier one."""
    return "to_time_hiddens.1.weight" in state and "null_image_embed" in state


NETWORK = Network(
    model=DecoderUnet,
    recognise=is_unet,
    fields=decoder_unet_fields.fields,
    table=table,
    shapes=_shapes,
    told=decoder_unet_fields.live,
    same=decoder_unet_fields.same,
)
