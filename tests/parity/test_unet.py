"""The U-Net of imagen-pytorch against the live package: outputs, gradients, weights both ways."""

import contextlib

import jax
import numpy as np
import pytest

from t2i_jax import convert, sharding
from t2i_jax.convert import torch_io
from t2i_jax.convert import unet as unet_tables
from t2i_jax.errors import UserError
from t2i_jax.models.unet import NullUnet, Unet
from t2i_jax.nn import resample
from tests.parity.reference import load

load("imagen_pytorch")
package = load("imagen_pytorch.imagen_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through some forty layers, products in another order
GRADIENT = 5e-5  # and back: sums of both signs, whose rounding is that of their terms

SMALL = dict(
    dim=8, dim_mults=(1, 2), text_embed_dim=12, attn_heads=2, attn_dim_head=8, max_text_len=6
)
CONFIGURATIONS = {
    "default": dict(SMALL, attn_pool_num_latents=5, num_resnet_blocks=(0, 1)),
    "super-resolution": dict(
        SMALL,
        lowres_cond=True,
        memory_efficient=True,
        num_resnet_blocks=(2, 0),
        layer_attns=(False, True),
        layer_cross_attns=(False, True),
        layer_attns_depth=2,
        self_cond=True,
        scale_skip_connection=False,
        cond_dim=20,
        num_time_tokens=3,
        learned_sinu_pos_emb_dim=8,
        ff_mult=8 / 3,
    ),
    "linear attention": dict(
        SMALL,
        layer_attns=False,
        use_linear_attn=(True, False),
        use_linear_cross_attn=(True, False),
        layer_cross_attns=(False, True),
        pixel_shuffle_upsample=False,
        attn_pool_text=False,
        combine_upsample_fmaps=True,
        cond_images_channels=2,
        init_cross_embed=False,
        init_conv_kernel_size=5,
        init_dim=12,
        final_conv_kernel_size=1,
        num_resnet_blocks=0,
    ),
    "without text": dict(
        SMALL,
        cond_on_text=False,
        channels=1,
        channels_out=2,
        attend_at_middle=False,
        use_global_context_attn=False,
        init_conv_to_final_conv_residual=True,
        num_resnet_blocks=0,
        dim_mults=(1, 3),
        cond_images_channels=3,
        resize_mode="bilinear",
        init_cross_embed_kernel_sizes=(5, 3),
        # the package takes these and never uses them
        num_image_tokens=7,
        out_dim=5,
        layer_attns_add_text_cond=False,
        dropout=0.5,
    ),
    "plain end": dict(
        SMALL,
        num_resnet_blocks=0,
        final_resnet_block=False,
        lowres_cond=True,
        combine_upsample_fmaps=True,
        layer_mid_attns_depth=2,
        init_conv_to_final_conv_residual=True,
        layer_attns=False,
        layer_cross_attns=False,
        cond_images_channels=1,
        resize_mode="bicubic",
        memory_efficient=True,
    ),
}


def make(name):
    """The package's network with every weight random, ours, our weights, inputs by our names."""
    options = CONFIGURATIONS[name]
    torch.manual_seed(0)
    theirs = package.Unet(**options).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            # a linear one does not train its scales
            if not (".cross_attn." in key and key.endswith("_scale")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model, params = convert.from_torch(theirs)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    inputs = {"x_BHWC": normal(3, 16, 16, model.channels), "condition_B": normal(3) * 4}
    if model.cond_on_text:
        mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
        inputs |= {
            "text_embeds_BLD": normal(3, 4, 12),
            "text_mask_BL": mask,
            "keep_B": np.array([True, True, False]),
        }
    if model.lowres_cond:
        inputs |= {
            "lowres_BHWC": normal(3, 16, 16, model.channels),
            "lowres_condition_B": normal(3),
        }
    if model.self_cond:
        inputs["self_cond_BHWC"] = normal(3, 16, 16, model.channels)
    if model.cond_images_channels:
        inputs["cond_image_BHWC"] = normal(3, 9, 9, model.cond_images_channels)
    return theirs, model, params, inputs


THEIR_NAMES = {
    "text_embeds_BLD": "text_embeds",
    "text_mask_BL": "text_mask",
    "lowres_BHWC": "lowres_cond_img",
    "lowres_condition_B": "lowres_noise_times",
    "cond_image_BHWC": "cond_images",
    "self_cond_BHWC": "self_cond",
}


def run_theirs(theirs, inputs, monkeypatch):
    """Their output as BHWC; the rows that keep their text are ours, not drawn."""
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    if "keep_B" in tensors:
        monkeypatch.setattr(package, "prob_mask_like", lambda *_, **__: tensors["keep_B"])

    def first(key):
        return tensors[key].permute(0, 3, 1, 2) if key.endswith("BHWC") else tensors[key]

    more = {name: first(key) for key, name in THEIR_NAMES.items() if key in tensors}
    return theirs(first("x_BHWC"), tensors["condition_B"], **more).permute(0, 2, 3, 1)


def error(ours, theirs):
    """Largest difference, relative to the largest value."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-12)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs_and_gradients(name, monkeypatch):
    theirs, model, params, inputs = make(name)
    channels = model.channels_out or model.channels
    probe = np.random.default_rng(1).normal(size=(3, 16, 16, channels)).astype(np.float32)

    def loss(params):
        out = model.apply({"params": params}, **inputs)
        return (out * probe).mean(), out

    with jax.default_matmul_precision("highest"):
        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    wanted = run_theirs(theirs, inputs, monkeypatch)
    (wanted * torch.tensor(probe)).mean().backward()
    assert error(out, wanted) < NETWORK
    ours = convert.to_state(model, gradients)
    slopes = {
        key: parameter.grad
        for key, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    unused = ours.keys() - slopes.keys()
    # a softmax does not see it: rounding around 0
    for key in [key for key in slopes if key.endswith("gca.to_k.bias")]:
        assert np.abs(ours[key]).max() < 1e-4 and slopes.pop(key).abs().max() < 1e-4
    floor = 1e-2 * max(slope.abs().max() for slope in slopes.values())

    def far(key):
        return (torch.tensor(ours[key]) - slopes[key]).abs().max() / max(
            slopes[key].abs().max(), floor
        )

    assert {key: float(far(key)) for key in slopes if far(key) > GRADIENT} == {}
    assert all(not ours[key].any() or key.endswith("_scale") for key in unused)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_both_ways(name, tmp_path):
    theirs, model, params, _ = make(name)
    state = theirs.state_dict()
    torch_io.write(
        tmp_path / "unet.safetensors", {key: value.numpy() for key, value in state.items()}
    )
    hidden = ("use_linear_cross_attn", "self_cond", "cond_images_channels", "channels")
    untold = {field: getattr(model, field) for field in hidden}
    again, loaded = convert.from_torch(
        tmp_path / "unet.safetensors", **(untold if name != "default" else {})
    )
    for out in (convert.to_torch(model, params), convert.to_torch(again, loaded)):
        assert all(torch.equal(out[key], state[key]) for key in state)
        theirs.load_state_dict(out, strict=True)


PACKAGES = dict(
    SMALL,
    num_resnet_blocks=0,
    attn_heads=8,
    attn_dim_head=64,
    layer_attns=False,
    layer_cross_attns=False,
)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ()),
        (dict(attn_heads=2), ("attn_heads=2", "mid_heads")),
        (dict(attn_dim_head=8), ("attn_dim_head=8", "mid_heads")),
        (dict(attn_heads=2, attn_dim_head=8, compat=("mid_heads",)), ()),
        (dict(attn_heads=1, compat=("mid_heads",)), ("attn_heads=1",)),
        (dict(cond_on_text=False), ("unused_weights",)),
        (dict(cond_on_text=False, attn_pool_text=False), ("unused_weights",)),
        (dict(cond_on_text=False, compat=("unused_weights",)), ()),
        (dict(layer_attns=True, ff_mult=(2.0, 1.5)), ("ff_mult=(2.0, 1.5)",)),
        (
            dict(use_linear_attn=(True, False), layer_attns=(False, True), ff_mult=(1, 2)),
            ("ff_mult",),
        ),
        (dict(cross_embed_downsample=True), ("cross_embed_downsample",)),
        (dict(init_dim=12), ()),
        (dict(init_dim=12, memory_efficient=True), ("init_dim=12",)),
        (dict(init_dim=12, init_conv_to_final_conv_residual=True), ("init_dim=12",)),
        (dict(dim_mults=(2, 3)), ("dim_mults=(2, 3)",)),
        (dict(dim_mults=(2, 3), memory_efficient=True, combine_upsample_fmaps=True), ()),
        (dict(max_text_len=520), ("max_text_len=520",)),
        (dict(max_text_len=520, attn_pool_text=False), ()),
    ],
)
def test_what_the_package_does_not_load_is_told(fields, named):
    """A reason is found just where the live class takes no such weights, or makes none of them."""
    model = Unet(**{**PACKAGES, **fields})
    shapes = unet_tables.NETWORK.shapes(model)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state, fits = convert.to_torch(model, zeros), False
    options = {name: value for name, value in {**PACKAGES, **fields}.items() if name != "compat"}
    with contextlib.suppress(AssertionError, TypeError, RuntimeError):
        package.Unet(**options).load_state_dict(state, strict=True)
        fits = True
    told = unet_tables.unlike(model)
    assert fits == (not told) and all(name in " ".join(told) for name in named)


def test_an_empty_stage_converts():
    theirs = package.NullUnet()
    model, params = convert.from_torch(theirs)
    assert isinstance(model, NullUnet)
    theirs.load_state_dict(convert.to_torch(model, params), strict=True)


def test_weights_before_version_2_are_refused():
    state = make("default")[0].state_dict()
    old = {key.replace("norm.gamma", "groupnorm.weight"): value for key, value in state.items()}
    with pytest.raises(UserError, match="older than imagen-pytorch 2.0.0"):
        convert.from_torch(old)


def test_a_new_enlargement_repeats_as_the_package_does():
    """Both start as a nearest enlargement: the four elements of a block have the same weights."""
    theirs = package.PixelShuffleUpsample(4, 6).net[0].weight.detach().numpy()[:, :, 0, 0].T
    layer = resample.PixelShuffle(6)
    ours = sharding.unbox(layer.init(jax.random.key(0), np.zeros((1, 2, 2, 4), np.float32)))[
        "params"
    ]["conv"]["kernel"]
    for kernel in (theirs, np.asarray(ours)):
        blocks = kernel.reshape(4, 6, 4)
        assert (blocks == blocks[..., :1]).all() and 0.6 < np.abs(kernel).max() / np.sqrt(
            6 / 4
        ) <= 1


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_the_nearest_element_is_that_of_pytorch(mode):
    """Also where an exact place between two elements is rounded, as from 112 to 96 pixels."""
    sides = range(8, 257, 8)
    for old in sides:
        line = torch.arange(float(old))[None, None]
        for new in set(sides) - {old}:
            theirs = torch.nn.functional.interpolate(line, new, mode=mode)[0, 0].numpy()
            ours = resample._nearest(old, new, mode == "nearest-exact")
            np.testing.assert_array_equal(ours, theirs, f"{old} to {new}")


@pytest.mark.parametrize("mode", resample.RESIZES)
@pytest.mark.parametrize("size", [(8, 5), (3, 14)])
def test_resizing(mode, size):
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), size, mode=mode)
    # the same sums in another order
    assert error(resample.resize(x, size, mode), theirs.permute(0, 2, 3, 1)) < 1e-6
