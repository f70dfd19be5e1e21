"""The configuration of an imagen-pytorch U-Net: inferred from the shapes of its weights, and told
by a live module or a stored configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from t2i_jax import config, values
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import State
from t2i_jax.convert.ratio import ratio
from t2i_jax.errors import UserError
from t2i_jax.models.unet import Unet
from t2i_jax.models.unet_sizes import PER_LEVEL


def live(module: Any) -> dict[str, Any]:
    """The fields that a live U-Net tells: its attributes, and what it was made with.

    Raises:
      UserError: an argument that is not known here.
    """
    said = dict(getattr(module, "_locals", {}))
    arguments.check(type(module).__name__, arguments.UNET, said)
    return _known(said | arguments.readable(_ATTRIBUTES, module))


def configured(
    stored: Mapping[str, Any], within: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields that a stored configuration tells.

    Args:
      within: fields that the cascade sets, of a U-Net within one; None: it stands alone.

    Raises:
      UserError: an argument that is not known here.
    """
    arguments.check("the configuration of Unet", arguments.UNET, stored)
    said = _known(stored)
    if within is None:
        return said
    own = {name: said[name] for name in said if name not in arguments.SET_BY_THE_CASCADE}
    return own | dict(within)


_ATTRIBUTES = {
    name: lambda module, name=name: getattr(module, name)
    for name in (
        "channels", "channels_out", "self_cond", "cond_images_channels", "lowres_cond",
        "cond_on_text", "max_text_len", "resize_mode", "init_conv_to_final_conv_residual",
    )
} | {"scale_skip_connection": lambda module: module.skip_connect_scale != 1}  # fmt: skip


def _known(said):
    """The arguments that are fields here, lists as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in said.items()
        if name in config.fields_of(Unet)
    }


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a U-Net.

    Shapes do not determine `scale_skip_connection`, `resize_mode` and `use_linear_cross_attn`,
    which are as by default where nothing tells them; nor the heads where all attention is linear.
    Nor do they tell the inputs of the first convolution apart: where nothing tells these and it
    has as many channels as the last one (twice as many with a smaller image), all are the image's.

    Args:
      told: fields that a live module, a stored configuration or the user tells.

    Raises:
      UserError: weights of a version before 2.0.0, whose networks normalise in another way; inputs
        or heads that nothing tells; a field that is told and that the weights contradict.
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
        "init_cross_embed": "init_conv.weight" not in state,
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
    found |= _first_conv(state) | _levels(state, widths, found)
    found |= _inputs(state, found, told)
    found |= _attention(state, found, told) | _end(state, found)
    for name in ("scale_skip_connection", "resize_mode", "use_linear_cross_attn"):
        if name in told:
            found[name] = _each(told[name], levels) if name in PER_LEVEL else told[name]
    for name, value in told.items():
        if name in found and not same(name, found, value):
            raise UserError(
                f"{name}={values.shown(value)} contradicts the weights ({found[name]!r}); leave it "
                "out, or give the weights that go with it."
            )
    return found


def same(name: str, found: Mapping[str, Any], value: Any) -> bool:
    """Whether a field that is told makes the same network as what was inferred, with the others.

    A field of a part that the network does not have is whatever it is told to be.
    """
    levels = len(found["dim_mults"])
    attention = [
        a or b for a, b in zip(found["layer_attns"], found["use_linear_attn"], strict=True)
    ]
    if name in PER_LEVEL and isinstance(value, (bool, int, float, tuple)):
        value, own = _each(value, levels), _each(found[name], levels)
        matters = {
            "layer_attns_depth": attention,
            "ff_mult": attention,
            "use_linear_attn": [not full for full in found["layer_attns"]],
            "use_linear_cross_attn": found["layer_cross_attns"],
            "layer_cross_attns": [
                not linear for linear in _each(found.get("use_linear_cross_attn", False), levels)
            ],
        }.get(name, (True,) * levels)
        if name == "use_linear_cross_attn" and any(
            linear and not cross
            for linear, cross in zip(value, found["layer_cross_attns"], strict=False)
        ):
            return False
        widths = _level_widths(found)
        return len(value) == levels and all(
            [int(width * one) for width in at] == [int(width * other) for width in at]
            if name == "ff_mult"
            else one == other
            for one, other, at, matter in zip(value, own, widths, matters, strict=True)
            if matter
        )
    if name in ("attn_heads", "attn_dim_head"):  # the middle has its own
        heads = any(attention) or any(found["layer_cross_attns"]) or found["attn_pool_text"]
        return not heads or value == found[name]
    if name == "init_cross_embed_kernel_sizes":
        return isinstance(value, (tuple, list)) and sorted(value) == sorted(found[name])
    if value is None:
        value = {"channels_out": found.get("channels")}.get(name, found["dim"])
    return value == found[name]


def _each(value, levels):
    return value if isinstance(value, tuple) else (value,) * levels


def _level_widths(found):
    """The channels of each level on the way down and on the way up."""
    up = [found["dim"] * mult for mult in found["dim_mults"]]
    down = up if found["memory_efficient"] else [found["init_dim"], *up[:-1]]
    return list(zip(down, up, strict=True))


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


def _levels(state, widths, found):
    levels = len(widths)

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
    } | _feed_forwards(state, levels)
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


def _feed_forwards(state, levels):
    """The ratio of widths in the feed-forwards, one for all levels where there is one."""
    pairs = {}
    for i in range(levels):
        for side, place in (("downs", f"{i}.3"), ("ups", f"{levels - 1 - i}.2")):
            wide = state.get(f"{side}.{place}.layers.0.1.1.weight")
            if wide is not None:
                pairs.setdefault(i, []).append((wide.shape[1], wide.shape[0]))
    if not pairs:
        return {}
    every = [pair for level in pairs.values() for pair in level]
    if (common := ratio(every)) is not None:
        return {"ff_mult": common}
    each = {i: ratio(level) for i, level in pairs.items()}
    if None in each.values():
        raise UserError(
            f"the weights have feed-forwards of widths {every}, which no ff_mult gives; they are "
            "not of the package."
        )
    return {"ff_mult": tuple(each.get(i, 2.0) for i in range(levels))}


def _inputs(state, found, told):
    """The inputs of the first convolution: the image, the last estimate, the smaller image and one
    to condition on.
    """
    total = next(
        state[k] for k in ("init_conv.weight", "init_conv.convs.0.weight") if k in state
    ).shape[1]
    lowres = found["lowres_cond"]
    channels = _lowres_channels(state, found, total) if lowres else None
    possible = [
        {"channels": own, "self_cond": again, "cond_images_channels": total - own * count}
        for own in ((channels,) if channels else range(1, total + 1))
        for again in (False, True)
        if own * (count := 1 + lowres + again) <= total
    ]
    names = ("channels", "self_cond", "cond_images_channels")
    given = {name: told[name] for name in names if told.get(name) is not None}
    fitting = [one for one in possible if all(one[n] == value for n, value in given.items())]
    plain = {
        "channels": channels or found["channels_out"],
        "self_cond": False,
        "cond_images_channels": 0,
    }
    if plain in fitting:
        return plain
    usual = [one for one in fitting if given and one["channels"] == plain["channels"]]
    for chosen in (fitting, usual):
        if len(chosen) == 1:
            return chosen[0]
    of = f"the first convolution of the weights reads {total} channels, the last one makes " + str(
        found["channels_out"]
    )
    if not fitting:
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"{said} contradicts the weights: {of}; leave it out, or correct it.")
    raise UserError(f"{of}: give channels, self_cond and cond_images_channels, which they hide.")


def _lowres_channels(state, found, total):
    """The channels of the image of a network that enlarges: the last convolution reads the smaller
    one again.
    """
    width = state["final_conv.weight"].shape[1]
    if found["final_resnet_block"]:
        return width - found["dim"]
    up = found["init_dim"] if found["memory_efficient"] else found["dim"] * found["dim_mults"][0]
    rest = width - up
    rest -= found["dim"] * len(found["dim_mults"]) if found["combine_upsample_fmaps"] else 0
    # perhaps the first convolution's output is among what is read
    return next(
        (own for own in (rest, rest - found["dim"]) if 0 < 2 * own <= total), found["channels_out"]
    )


def _attention(state, found, told):
    """The heads of attention, as any layer with scales has them; those of the middle may be
    others.
    """
    sizes = {}
    for key in state:
        if key.endswith(".q_scale"):
            dim_head, inner = (
                state[key].shape[0],
                state[key.removesuffix("q_scale") + "to_q.weight"].shape[0],
            )
            sizes[key.startswith("mid_block")] = (inner // dim_head, dim_head)
    if False not in sizes and any(found["use_linear_attn"]):
        sizes[False] = _linear_heads(state, told, sizes[True])
    own = sizes.get(False, sizes[True])
    compat = ("mid_heads",) if own != sizes[True] else ()
    compat += () if found["cond_on_text"] else ("unused_weights",)
    return {
        "attn_heads": own[0],
        "attn_dim_head": own[1],
        "compat": compat,
    }


def _linear_heads(state, told, usual):
    """The heads and width of linear attention, whose weights give only their product."""
    inner = next(
        state[key].shape[0]
        for key in sorted(state)
        if re.fullmatch(r"(downs|ups)\.\d+\.\d+\.layers\.0\.0\.to_q\.1\.weight", key)
    )
    heads, dim_head = told.get("attn_heads"), told.get("attn_dim_head")
    heads = heads or inner // (dim_head or inner)
    dim_head = dim_head or inner // heads
    if not (told.get("attn_heads") or told.get("attn_dim_head")):
        heads, dim_head = usual
    if heads * dim_head != inner:
        raise UserError(
            f"the weights have linear attention {inner} wide, and that is all that they tell of "
            "its heads; give attn_heads and attn_dim_head, whose product it is."
        )
    return heads, dim_head


def _end(state, found):
    """The field that says whether the final block reads the first convolution's output, by the
    channels it has.
    """
    dim, last = found["dim"], "final_res_block.block1.norm.gamma"
    low = found["channels_out"] if "channels" not in found else found["channels"]
    width = state[last].shape[0] if last in state else state["final_conv.weight"].shape[1]
    width -= low if found["lowres_cond"] and last not in state else 0
    up = found["init_dim"] if found["memory_efficient"] else dim * found["dim_mults"][0]
    combined = dim * len(found["dim_mults"]) if found["combine_upsample_fmaps"] else 0
    return {"init_conv_to_final_conv_residual": width > up + combined}


def _last(state, pattern):
    """The highest number that a pattern finds at the start of a key; -1: none."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)
