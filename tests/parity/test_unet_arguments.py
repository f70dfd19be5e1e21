"""Every argument of imagen-pytorch's `Unet` is honoured, or refused by its name; see
test_arguments.py.
"""

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import arguments, unet_fields
from t2i_jax.convert import unet as unet_tables
from t2i_jax.convert.ratio import ratio
from t2i_jax.errors import UserError
from t2i_jax.models import unet as ours
from tests.parity import test_unet
from tests.parity.reference import load
from tests.parity.test_arguments import parameters

imagen_pytorch = load("imagen_pytorch")
package = load("imagen_pytorch.imagen_pytorch")


@pytest.mark.parametrize("name", ["BaseUnet64", "SRUnet256", "SRUnet1024"])
def test_presets(name, monkeypatch):
    """With all arguments but the width, which is that of a toy."""
    small = dict(dim=8, attn_heads=2, attn_dim_head=8, text_embed_dim=6, max_text_len=4)
    theirs = getattr(package, name)(**small, num_resnet_blocks=1)
    model, _ = convert.from_torch(theirs)
    wanted = getattr(ours, name)(**small, num_resnet_blocks=1)
    told = theirs._locals
    full = getattr(ours, name)()
    for field in ("dim_mults", "layer_attns", "layer_cross_attns", "memory_efficient"):
        assert told[field] == getattr(wanted, field) == getattr(full, field)
    assert all(unet_fields.same(f, _fields(model), told[f]) for f in _fields(model) if f in told)
    recorded = {}
    monkeypatch.setattr(package.Unet, "__init__", lambda self, **fields: recorded.update(fields))
    getattr(package, name)()
    assert {f: getattr(full, f) for f in recorded} == recorded


def _fields(model):
    return {f: getattr(model, f) for f in arguments.UNET if hasattr(model, f)}


# U-Nets ------------------------------------------------------------------------------------------

UNUSABLE = ("cross_embed_downsample", "cross_embed_downsample_kernel_sizes")


def test_every_argument_of_a_unet_is_in_a_configuration_of_the_parity_tests():
    """There its outputs and gradients are compared, read from a live module."""
    defaults = {name: p.default for name, p in parameters(package.Unet).items()}
    tried = {
        name
        for options in test_unet.CONFIGURATIONS.values()
        for name, value in options.items()
        if value != defaults[name]
    }
    assert set(arguments.UNET) - tried == set(UNUSABLE)
    with pytest.raises(TypeError):  # the package itself fails
        package.Unet(**test_unet.SMALL, cross_embed_downsample=True)


@pytest.mark.parametrize("name", test_unet.CONFIGURATIONS)
def test_a_stored_configuration_of_a_unet_is_as_good_as_the_module(name):
    theirs = test_unet.make(name)[0]
    model, params = convert.from_torch(theirs)
    stored, state = theirs.to_config_and_state_dict()
    again, weights = convert.from_torch({"config": stored, "state_dict": state})
    assert again == model
    assert convert.to_state(again, weights).keys() == convert.to_state(model, params).keys()
    # within a cascade those fields are the cascade's, and its channels are those of the images
    if model.channels_out in (None, model.channels):
        cascade = {f"unets.0.{key}": value for key, value in state.items()}
        settings = {"unets": [{**stored, "lowres_cond": "?"}], "channels": model.channels}
        whole = {"model": cascade, "imagen_params": settings, "imagen_type": "original"}
        assert convert.from_torch(whole)[0].unets == (model,)
        with pytest.raises(UserError, match="cond_dim=99 contradicts the weights"):
            convert.from_torch({"config": {**stored, "cond_dim": 99}, "state_dict": state})


@pytest.mark.parametrize("name", ["linear attention", "super-resolution"])
def test_every_argument_of_a_unet_as_a_field(name):
    """What the weights tell can be repeated in the package's form and not be changed; what they do
    not tell is taken; what is no field is refused.
    """
    theirs = test_unet.make(name)[0]
    model, _ = convert.from_torch(theirs)
    state, stored = theirs.state_dict(), theirs._locals
    hidden = {
        "channels",
        "self_cond",
        "cond_images_channels",
        "scale_skip_connection",
        "resize_mode",
        "use_linear_cross_attn",
        "attn_heads",
        "attn_dim_head",
    }
    needed = {f: stored[f] for f in hidden}
    assert convert.from_torch(state, **needed)[0] == model
    told = {
        f: stored[f]
        for f in arguments.UNET
        if f not in ("out_dim", "dropout", "num_image_tokens", "layer_attns_add_text_cond")
        and f not in UNUSABLE
    }
    assert convert.from_torch(state, **told)[0] == model
    other = {
        "scale_skip_connection": not model.scale_skip_connection,
        "resize_mode": "area",
        "use_linear_cross_attn": (False, True),
    }
    for field in arguments.UNET:
        given = {**needed, field: other.get(field, 31)}
        try:
            found, _ = convert.from_torch(state, **given)
        except UserError as refused:
            assert field in str(refused) and field not in other
        else:
            # of a part that this network does not have, or not told by any array
            assert field in other or field in _without_effect(model)
            if field in other:
                assert unet_fields.same(field, _fields(found), other[field])


def _without_effect(model):
    """Fields that say nothing of this network."""
    found = {"layer_attns_depth"} if not any(model.layer_attns) else set()
    found |= {"attn_pool_num_latents"} if not model.attn_pool_text else set()
    found |= (
        {"init_conv_kernel_size"} if model.init_cross_embed else {"init_cross_embed_kernel_sizes"}
    )
    return found | {"cross_embed_downsample_kernel_sizes"}


# of which nothing here asks: what remains is traced in a third of the time
FEW_LAYERS = {
    **test_unet.SMALL,
    "num_resnet_blocks": 0,
    "layer_attns": False,
    "layer_cross_attns": False,
    "attend_at_middle": False,
    "use_global_context_attn": False,
}


@pytest.mark.parametrize(("dim", "mult"), [(8, 8 / 3), (24, 4 / 3), (8, 0.7)])
def test_widths_of_feed_forwards_are_those_of_the_file(dim, mult):
    sizes = {**FEW_LAYERS, "dim": dim, "dim_mults": (1, 2, 3), "layer_attns": True}
    theirs = package.Unet(**sizes, ff_mult=mult)
    for source in (theirs, theirs.state_dict()):
        model, params = convert.from_torch(source)
        theirs.load_state_dict(convert.to_torch(model, params), strict=True)
    assert ratio([(dim, int(dim * mult)), (3 * dim, int(3 * dim * mult))])
    # levels of several ratios, which no argument of the package makes, are kept as well
    odd = ours.Unet(**FEW_LAYERS | {"layer_attns": True}, ff_mult=(3.0, 1.25))
    shapes = unet_tables.NETWORK.shapes(odd)
    zeros = {k: np.zeros(v.shape, v.dtype) for k, v in convert.engine.flatten(shapes).items()}
    state = convert.to_state(odd, convert.engine.unflatten(zeros))
    assert convert.from_torch(state)[0].ff_mult == (3.0, 1.25)


INPUTS = {  # made with, and what of it a state dict alone tells
    "its own channels": (dict(channels=1, channels_out=2), dict(channels=1)),
    "a smaller image": (dict(channels=2, channels_out=5, lowres_cond=True), dict(channels=2)),
    "a smaller image and no last block": (
        dict(channels=2, channels_out=3, lowres_cond=True, final_resnet_block=False),
        dict(channels=2),
    ),
    "more channels": (dict(channels=6, channels_out=3), None),
    "fewer channels": (dict(channels=3, channels_out=6), None),
    "the last estimate": (dict(channels=3, self_cond=True), None),
    "all": (dict(channels=3, lowres_cond=True, self_cond=True, cond_images_channels=3), None),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_the_first_convolution_from_a_state_dict_alone(name):
    options, told = INPUTS[name]
    theirs = package.Unet(**FEW_LAYERS, **options)
    state = theirs.state_dict()
    given = {f: getattr(theirs, f) for f in ("channels", "self_cond", "cond_images_channels")}
    if told is None:
        with pytest.raises(UserError, match="give channels, self_cond and cond_images_channels"):
            convert.from_torch(state)
        model, _ = convert.from_torch(state, **given)
        if theirs.channels == theirs.channels_out and not theirs.lowres_cond:
            assert convert.from_torch(state, self_cond=theirs.self_cond)[0] == model
    else:
        model, _ = convert.from_torch(state)
    assert {f: getattr(model, f) for f in given} == given
    assert model.channels_out == theirs.channels_out
    with pytest.raises(UserError, match="channels=9 contradicts the weights"):
        convert.from_torch(state, channels=9)


# Cascades ----------------------------------------------------------------------------------------
