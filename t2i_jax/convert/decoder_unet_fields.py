"""The configuration of a dalle2-pytorch U-Net: inferred from the shapes of its weights, and told by
a live module or a stored configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from t2i_jax import config, values
from t2i_jax.convert import arguments
from t2i_jax.convert.engine import State
from t2i_jax.errors import UserError
from t2i_jax.models.decoder_unet import DecoderUnet
from t2i_jax.models.decoder_unet_sizes import PER_LEVEL

# Shapes do not determine these, which are as by default where nothing tells them.
_HIDDEN = (
    "cosine_sim_self_attn", "cosine_sim_cross_attn", "scale_skip_connection", "resnet_groups",
    "resnet_weight_standardization",
)  # fmt: skip
_OLDER = "the weights are of a release of dalle2-pytorch {}, whose U-Net is another one"


def live(module: Any) -> dict[str, Any]:
    """The fields that a live U-Net tells.

    Raises:
      UserError: an argument that is not known here.
    """
    return configured(getattr(module, "_locals", {}))


def configured(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the arguments of a U-Net tell.

    Raises:
      UserError: an argument that is not known here.
    """
    arguments.check("Unet of dalle2-pytorch", arguments.DECODER_UNET, said)
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in said.items()
        if name in config.fields_of(DecoderUnet) and value is not None
    }
    known.pop("attend_at_middle", None)  # the package attends there whatever is asked for
    return {name: value for name, value in known.items() if name not in _WHERE_USED}


# Widths of what a network may not have: the weights tell them where it does.
_WHERE_USED = ("image_embed_dim", "text_embed_dim", "cond_dim", "channels_out", "init_dim")


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a U-Net.

    Shapes do not determine the groups of norms, the scale of skip connections, whether weights are
    standardised and whether attention goes by cosines, which are as by default where nothing tells
    them.

    Args:
      told: fields that a live module, a stored configuration or the user tells.

    Raises:
      UserError: weights of an earlier release whose network is another one; heads that nothing
        tells; a field that is told and that the weights contradict.
    """
    check_release(state)
    width = state["to_time_hiddens.1.weight"].shape[1]
    levels = 1 + _last(state, r"downs\.(\d+)\.")
    widths = [
        state[f"ups.{levels - 1 - i}.0.block1.project.weight"].shape[0] for i in range(levels)
    ]
    cond_dim = state["norm_cond.weight"].shape[0]
    by_image = "to_image_hiddens.0.weight" in state or "image_to_tokens.0.weight" in state
    # image tokens that are the embedding itself, and are not added to the timestep, leave no trace
    images = by_image or bool(told.get("cond_on_image_embeds"))
    texts = "text_to_cond.weight" in state
    found = {
        "dim": state["to_time_hiddens.1.weight"].shape[0] // 4,
        "cond_dim": cond_dim,
        "num_image_tokens": state["null_image_embed"].shape[1],
        "num_time_tokens": state["to_time_tokens.0.weight"].shape[0] // cond_dim,
        "channels_out": state["to_out.weight"].shape[0],
        "final_conv_kernel_size": state["to_out.weight"].shape[-1],
        "lowres_noise_cond": "to_lowres_noise_cond.1.weight" in state,
        "cond_on_text_encodings": texts,
        "max_text_len": state["null_text_embed"].shape[1],
        "cond_on_image_embeds": images,
        "memory_efficient": "init_resnet_block.block1.norm.weight" in state,
        "combine_upsample_fmaps": "upsample_combiner.fmap_convs.0.norm.weight" in state,
    }
    found["dim_mults"] = tuple(one // found["dim"] for one in widths)
    if width % 2 or width != found["dim"] // 2 * 2:
        raise UserError(
            f"the weights have a sinusoid of {width} numbers for dim={found['dim']}; save them "
            "again."
        )
    compat = ["squared_scale"]
    if images:
        found["add_image_embeds_to_time"] = "to_image_hiddens.0.weight" in state
        readers = ("to_image_hiddens.0.weight", "image_to_tokens.0.weight")
        read = [state[key].shape[1] for key in readers if key in state]
        found["image_embed_dim"] = read[0] if read else cond_dim
        if "image_to_tokens.0.weight" not in state:
            compat.append("image_tokens")
    if texts:
        found["text_embed_dim"] = state["text_to_cond.weight"].shape[1]
    if not (images and texts):
        compat.append("unused_weights")
    found["compat"] = tuple(compat)
    found |= _first_conv(state) | _levels(state, levels) | _inputs(state, found, told)
    found |= _attention(state, levels)
    found |= {name: told[name] for name in _HIDDEN if name in told}
    for name, value in told.items():
        if name in found and not same(name, found, value):
            raise UserError(
                f"{name}={values.shown(value)} contradicts the weights ({found[name]!r}); leave it "
                "out, or give the weights that go with it."
            )
    return found


def check_release(state: State) -> None:
    """Refuses the weights of a release whose U-Net is another one, as far as weights tell it.

    Releases from 1.10.0 on compute the same; 1.4.3 to 1.9.x too, but for the convolution that
    shrinks, whose window tells them. Before 1.4.3 attention computes otherwise under the same
    names, in releases that have that other window too; nothing tells it of U-Nets with
    `cross_embed_downsample`, which have no such convolution.

    Raises:
      UserError: the release, and the remedy.
    """
    remedy = "convert with that release, or train anew."
    if any(key.endswith(".gamma") for key in state):
        raise UserError(f"{_OLDER.format('before 0.16.0')}; {remedy}")
    if "final_resnet_block.block1.norm.weight" not in state:
        raise UserError(f"{_OLDER.format('before 0.14.0')}; {remedy}")
    if "null_text_embed" not in state or "norm_mid_cond.weight" not in state:
        raise UserError(f"{_OLDER.format('before 1.0.0')}; {remedy}")
    shrinking = ("downs.0.4.weight", "downs.0.0.weight")  # the latter where it is memory efficient
    if any(name in state and state[name].shape[-1] == 4 for name in shrinking):
        raise UserError(
            f"{_OLDER.format('before 1.10.0')}: it shrinks by a convolution of 4x4, and before "
            f"1.4.3 its attention was another one under the same names; {remedy}"
        )


def same(name: str, found: Mapping[str, Any], value: Any) -> bool:
    """Whether a field that is told makes the same network as what was inferred, with the others."""
    levels = len(found["dim_mults"])
    if isinstance(value, list):
        value = tuple(value)
    if name in PER_LEVEL:
        return _each(value, levels) == _each(found[name], levels)
    if name in ("init_cross_embed_kernel_sizes", "cross_embed_downsample_kernel_sizes"):
        return isinstance(value, tuple) and sorted(value) == sorted(found[name])
    if name == "sparse_attn" and all(_each(found["self_attn"], levels)):
        return isinstance(value, bool)  # there is no level for it
    if name in ("attn_heads", "attn_dim_head", "compat"):
        return value == found[name]
    if value is None:
        value = {"channels_out": found.get("channels")}.get(name, found["dim"])
    return value == found[name]


def _each(value, levels):
    return value if isinstance(value, tuple) else (value,) * levels


def _first_conv(state):
    if "init_conv.weight" in state:
        weight = state["init_conv.weight"]
        return {
            "init_cross_embed": False,
            "init_conv_kernel_size": weight.shape[-1],
            "init_dim": weight.shape[0],
        }
    weights = _matching(state, r"init_conv\.convs\.\d+\.weight")
    return {
        "init_cross_embed": True,
        "init_cross_embed_kernel_sizes": tuple(weight.shape[-1] for weight in weights),
        "init_dim": sum(weight.shape[0] for weight in weights),
    }


def _matching(state, pattern):
    """Arrays of consecutive numbers whose names match, in the order of the numbers."""
    keys = [key for key in state if re.fullmatch(pattern, key)]
    return [state[key] for key in sorted(keys, key=lambda key: [int(n) for n in _digits(key)])]


def _digits(key):
    return re.findall(r"\d+", key)


def _levels(state, levels):
    found = {
        "num_resnet_blocks": tuple(
            1 + _last(state, rf"downs\.{i}\.2\.(\d+)\.") for i in range(levels)
        ),
        "self_attn": tuple(f"downs.{i}.3.fn.fn.null_kv" in state for i in range(levels)),
        "sparse_attn": any(re.fullmatch(r"downs\.\d+\.3\.fn\.to_qkv\.weight", k) for k in state),
    }
    if any(re.match(r"ups\.\d+\.3\.", key) for key in state):
        found["pixel_shuffle_upsample"] = any(re.match(r"ups\.\d+\.3\.net\.", key) for key in state)
    if kernels := _matching(state, r"downs\.0\.[04]\.convs\.\d+\.weight"):
        found["cross_embed_downsample"] = True
        sizes = tuple(weight.shape[-1] for weight in kernels)
        found["cross_embed_downsample_kernel_sizes"] = sizes
    return found


def _inputs(state, found, told):
    """The inputs of the first convolution: the image, the last estimate, the smaller image."""
    keys = ("init_conv.weight", "init_conv.convs.0.weight")
    total = next(state[key] for key in keys if key in state).shape[1]
    lowres = state["to_out.weight"].shape[1] - found["dim"]  # the end reads the smaller image again
    if lowres:
        return {"lowres_cond": True, "channels": lowres, "self_cond": total == 3 * lowres}
    possible = [{"channels": total, "self_cond": False}]
    possible += [{"channels": total // 2, "self_cond": True}] if total % 2 == 0 else []
    given = {name: told[name] for name in ("channels", "self_cond") if told.get(name) is not None}
    fitting = [one for one in possible if all(one[n] == value for n, value in given.items())]
    made = {found["channels_out"], found["channels_out"] / 2}  # with a learned variance twice
    usual = [one for one in fitting if one["channels"] in made]
    for chosen in (fitting, usual, [one for one in usual if not one["self_cond"]]):
        if len(chosen) == 1:
            return {"lowres_cond": False, **chosen[0]}
    raise UserError(
        f"the first convolution of the weights reads {total} channels, the last one makes "
        f"{found['channels_out']}: give channels and self_cond, which they hide."
    )


def _attention(state, levels):
    """The levels that have attention, and the heads of self-attention, as any layer has them."""
    own = [key for key in state if re.search(r"(\.3\.fn\.fn|^mid_attn\.fn\.fn)\.null_kv$", key)]
    found: dict[str, Any] = {"attend_at_middle": "mid_attn.fn.fn.null_kv" in state}
    if own:
        dim_head = state[own[0]].shape[1]
        inner = state[own[0].replace("null_kv", "to_q.weight")].shape[0]
        found |= {"attn_heads": inner // dim_head, "attn_dim_head": dim_head}
    cross = tuple(f"ups.{levels - 1 - i}.0.cross_attn.null_kv" in state for i in range(levels))
    if cross != tuple(i > 0 for i in range(levels)):
        found["cross_attn"] = cross
    return found


def _last(state, pattern):
    """The highest number that a pattern finds at the start of a key; -1: none."""
    found = (re.match(pattern, key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)
