"""The U-Net of dalle2-pytorch against the live package: outputs, gradients, weights both ways."""

import inspect

import jax
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import config, convert, sharding
from t2i_jax.convert import arguments, torch_io
from t2i_jax.errors import UserError
from t2i_jax.nn.resize_right import resize_cubic
from tests.parity.reference import load

package = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through some thirty layers, products in another order
# And back: sums of both signs, whose rounding is that of their terms and whose order is another on
# another processor: one bias of 16 is off by 5.3e-5 on one machine, by less than 1e-5 on another. A
# small gradient is compared with a hundredth of the largest, of which this is 1e-6.
GRADIENT = 1e-4

SMALL = dict(dim=8, dim_mults=(1, 2), resnet_groups=4, attn_heads=2, attn_dim_head=8)
IMAGE = dict(image_embed_dim=12, cond_on_image_embeds=True)
TEXT = dict(text_embed_dim=10, cond_on_text_encodings=True, max_text_len=5)
CONFIGURATIONS = {
    "text and image": dict(
        SMALL,
        **IMAGE,
        **TEXT,
        channels_out=6,
        num_resnet_blocks=0,
        self_attn=(False, True),
        num_image_tokens=3,
        num_time_tokens=1,
        cond_dim=16,
    ),
    "super-resolution": dict(
        SMALL,
        lowres_cond=True,
        lowres_noise_cond=True,
        memory_efficient=True,
        num_resnet_blocks=(2, 0),
        resnet_groups=(2, 4),
        sparse_attn=True,
        self_cond=True,
        scale_skip_connection=True,
        pixel_shuffle_upsample=False,
        cosine_sim_self_attn=True,
        cosine_sim_cross_attn=True,
        final_conv_kernel_size=3,
        dim_mults=(2, 1),
        max_text_len=4,
        # the package takes these and never uses them
        out_dim=5,
        attend_at_middle=False,
        sparse_attn_window=8,
    ),
    "tokens alone": dict(
        SMALL,
        **IMAGE,
        add_image_embeds_to_time=False,
        resnet_weight_standardization=True,
        cross_embed_downsample=True,
        combine_upsample_fmaps=True,
        init_cross_embed=False,
        init_conv_kernel_size=5,
        channels=1,
        num_resnet_blocks=(0, 1),
        sparse_attn=True,
        self_attn=(True, False),
        max_text_len=4,
        resnet_groups=8,
    ),
}


def make(options, seed=0):
    """The package's network with every weight random, ours, our weights, inputs by our names."""
    torch.manual_seed(seed)
    theirs = package.Unet(**options).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model, params = convert.from_torch(theirs)
    return theirs, model, params, inputs_of(model, seed)


def inputs_of(model, seed=0, rows=3):
    rng, side = np.random.default_rng(seed), 2 * model.multiple

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    inputs = {
        "x_BHWC": normal(rows, side, side, model.channels),
        "condition_B": rng.integers(0, 1000, rows).astype(np.float32),
    }
    if model.cond_on_image_embeds:
        inputs["image_embed_BD"] = normal(rows, model.image_embed_dim)
        inputs["keep_image_B"] = np.array([True, False, True])[:rows]
    if model.cond_on_text_encodings:
        mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)[:rows]
        inputs["text_BLE"] = normal(rows, 4, model.text_embed_dim) * mask[..., None]
        inputs |= {"text_mask_BL": mask, "keep_text_B": np.array([True, True, False])[:rows]}
    if model.lowres_cond:
        inputs["lowres_BHWC"] = normal(*inputs["x_BHWC"].shape)
    if model.lowres_noise_cond:
        inputs["lowres_condition_B"] = rng.integers(0, 1000, rows).astype(np.float32)
    if model.self_cond:
        inputs["self_cond_BHWC"] = normal(*inputs["x_BHWC"].shape)
    return inputs


THEIR_NAMES = {
    "image_embed_BD": "image_embed",
    "text_BLE": "text_encodings",
    "lowres_BHWC": "lowres_cond_img",
    "lowres_condition_B": "lowres_noise_level",
    "self_cond_BHWC": "self_cond",
}


def run_theirs(theirs, inputs, monkeypatch):
    """Their output as BHWC; the rows that keep their condition are ours, not drawn."""
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    everywhere = torch.ones(len(tensors["condition_B"]), dtype=torch.bool)
    keep = [tensors.get(f"keep_{name}_B", everywhere) for name in ("image", "text")]
    monkeypatch.setattr(package, "prob_mask_like", lambda *_, **__: keep.pop(0))

    def first(key):
        return tensors[key].permute(0, 3, 1, 2) if key.endswith("BHWC") else tensors[key]

    more = {name: first(key) for key, name in THEIR_NAMES.items() if key in tensors}
    more = {"image_embed": None, **more}
    return theirs(first("x_BHWC"), tensors["condition_B"], **more).permute(0, 2, 3, 1)


def error(ours, theirs):
    """Largest difference, relative to the largest value."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-12)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs_gradients_and_weights(name, monkeypatch, tmp_path):
    theirs, model, params, inputs = make(CONFIGURATIONS[name])
    shape = (*inputs["x_BHWC"].shape[:3], model.channels_out or model.channels)
    probe = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def loss(params):
        out = model.apply({"params": params}, **inputs)
        return (out * probe).mean(), out

    with jax.default_matmul_precision("highest"):
        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    wanted = run_theirs(theirs, inputs, monkeypatch)
    (wanted * torch.tensor(probe)).mean().backward()
    assert error(out, wanted) < NETWORK
    ours = convert.to_state(model, gradients)
    slopes = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    assert all(not ours[key].any() for key in ours.keys() - slopes.keys())
    floor = 1e-2 * max(slope.abs().max() for slope in slopes.values())

    def far(key):
        away = (torch.tensor(ours[key]) - slopes[key]).abs().max()
        return float(away / max(slopes[key].abs().max(), floor))

    assert {key: far(key) for key in slopes if far(key) > GRADIENT} == {}
    _both_ways(theirs, model, params, tmp_path)


def _both_ways(theirs, model, params, folder):
    state = theirs.state_dict()
    torch_io.write(folder / "unet.safetensors", {key: v.numpy() for key, v in state.items()})
    hidden = ("cosine_sim_self_attn", "cosine_sim_cross_attn", "scale_skip_connection", "channels",
              "resnet_groups", "resnet_weight_standardization", "self_cond")  # fmt: skip
    untold = {field: getattr(model, field) for field in hidden}
    again, loaded = convert.from_torch(folder / "unet.safetensors", **untold)
    for out in (convert.to_torch(model, params), convert.to_torch(again, loaded)):
        assert list(out) and all(torch.equal(out[key], state[key]) for key in state)
        theirs.load_state_dict(out, strict=True)


def test_every_argument_of_the_installed_package_is_decided():
    names = list(inspect.signature(package.Unet.__init__).parameters)[1:]
    assert set(names) == set(arguments.DECODER_UNET), "decide what becomes of it"
    tried = {name for options in CONFIGURATIONS.values() for name in options}
    known = {"init_cross_embed_kernel_sizes", "cross_embed_downsample_kernel_sizes", "init_dim",
             "checkpoint_during_training", "kwargs"}  # fmt: skip
    assert set(names) - tried == known


def test_image_tokens_without_a_projection_are_the_embedding_itself(monkeypatch):
    """There they mix the rows of a batch, so one row is compared."""
    options = dict(
        SMALL, num_resnet_blocks=0, image_embed_dim=8, cond_on_image_embeds=True, max_text_len=2
    )
    theirs, model, params, _ = make(options)
    assert "image_tokens" in model.compat
    inputs = inputs_of(model, rows=1)
    out = jax.jit(model.apply)({"params": params}, **inputs)
    assert error(out, run_theirs(theirs, inputs, monkeypatch)) < NETWORK


def _own(**options):
    """A network that is made here, with random weights, and inputs."""
    model = t2i.DecoderUnet(
        **SMALL, **IMAGE, self_attn=(False, True), num_resnet_blocks=0, max_text_len=4, **options
    )
    inputs = inputs_of(model)
    shapes = sharding.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs)))
    rng = np.random.default_rng(0)
    return model, inputs, jax.tree.map(
        lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), shapes["params"]
    )  # fmt: skip


@pytest.mark.parametrize("cosine", [False, True])
def test_a_network_that_was_made_here_is_the_same_in_the_package(cosine, monkeypatch):
    """One of them without attention at the bottom, which the package has there always."""
    model, inputs, params = _own(cosine_sim_self_attn=cosine, attend_at_middle=not cosine)
    state = convert.to_torch(model, params)
    theirs = package.Unet(
        **SMALL, **IMAGE, self_attn=(False, True), num_resnet_blocks=0, max_text_len=4,
        cosine_sim_self_attn=cosine,
    ).eval()  # fmt: skip
    theirs.load_state_dict(state, strict=True)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(model.apply)({"params": params}, **inputs)
    with torch.no_grad():
        assert error(out, run_theirs(theirs, inputs, monkeypatch)) < NETWORK
    again, back = convert.from_torch(theirs)
    assert "squared_scale" in again.compat  # which computes as the package does
    exported = convert.to_torch(again, back)
    assert all(torch.equal(exported[key], value) for key, value in state.items())


# Every field of a `DecoderUnet`: a value unlike that of a small network, and what goes with it.
EACH = {
    "dim": (16, {}),
    "image_embed_dim": (12, {"cond_on_image_embeds": True}),
    "text_embed_dim": (10, {"cond_on_text_encodings": True}),
    "cond_dim": (16, {}),
    "num_image_tokens": (3, {}),
    "num_time_tokens": (1, {}),
    "dim_mults": ((2, 1), {}),
    "channels": (1, {}),
    "channels_out": (6, {}),
    "self_attn": ((True, False), {}),
    "attn_dim_head": (4, {}),
    "attn_heads": (3, {}),
    "lowres_cond": (True, {}),
    "lowres_noise_cond": (True, {"lowres_cond": True}),
    "self_cond": (True, {}),
    "sparse_attn": (True, {}),
    "cosine_sim_cross_attn": (True, {}),
    "cosine_sim_self_attn": (True, {}),
    "attend_at_middle": (False, {}),
    "cross_attn": (True, {}),
    "cross_attn_heads": (3, {}),
    "cross_attn_dim_head": (8, {}),
    "cond_on_text_encodings": (True, {"text_embed_dim": 10}),
    "max_text_len": (5, {}),
    "text_at_levels": (True, TEXT),
    "add_text_to_time": (True, TEXT),
    "cond_on_image_embeds": (True, {"image_embed_dim": 12}),
    "image_embed_scale": (2.0, IMAGE),
    "add_image_embeds_to_time": (False, IMAGE),
    "init_dim": (16, {}),
    "init_conv_kernel_size": (3, {"init_cross_embed": False}),
    "resnet_groups": ((2, 4), {}),
    "resnet_weight_standardization": (True, {}),
    "num_resnet_blocks": ((0, 1), {}),
    "init_cross_embed": (False, {}),
    "init_cross_embed_kernel_sizes": ((3, 5), {}),
    "cross_embed_downsample": (True, {}),
    "cross_embed_downsample_kernel_sizes": ((2, 6), {"cross_embed_downsample": True}),
    "memory_efficient": (True, {}),
    "scale_skip_connection": (True, {}),
    "pixel_shuffle_upsample": (False, {}),
    "final_conv_kernel_size": (3, {}),
    "combine_upsample_fmaps": (True, {}),
    "compat": (("image_tokens",), {**IMAGE, "cond_dim": 12}),
}
ROUNDING = ("dtype", "remat", "attn_max_scores")  # how it is computed, not what


def test_every_field_has_a_form_in_the_package_or_is_refused_by_its_name():
    assert set(EACH) | set(ROUNDING) == set(config.fields_of(t2i.DecoderUnet))
    known, refused = inspect.signature(package.Unet).parameters, set()
    for name, (value, more) in EACH.items():
        options = {**SMALL, "num_resnet_blocks": 0, **more, name: value}
        model = t2i.DecoderUnet(**options)
        shapes = convert.NETWORKS["dalle2-pytorch U-Net"].shapes
        try:
            state = convert.to_state(
                model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))
            )
        except UserError as error:
            assert str(error).startswith(f"{name}={value}"), f"{name}: {error}"
            refused.add(name)
            continue
        theirs = package.Unet(**{n: v for n, v in options.items() if n in known}).state_dict()
        wanted = {key: tuple(array.shape) for key, array in theirs.items()}
        assert {key: array.shape for key, array in state.items()} == wanted, name
        assert name in {*known, "compat"}, f"{name} changes the output, and the package has none"
    assert refused == {
        "cross_attn", "cross_attn_heads", "cross_attn_dim_head", "text_at_levels", "dim_mults",
        "add_text_to_time", "image_embed_scale", "init_dim",
    }  # fmt: skip


def test_a_projection_that_the_package_does_not_have_is_refused():
    model, _, params = _own(cond_dim=IMAGE["image_embed_dim"])
    with pytest.raises(UserError, match=r"image_embed_dim=12 .* compat=\('image_tokens',\)"):
        convert.to_torch(model, params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {k.replace("norm.g", "norm.gamma"): v for k, v in s.items()}, "before 0.16.0"),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("final_resnet_block")},
            "before 0.14.0",
        ),
        (
            lambda s: (
                {k: v for k, v in s.items() if not k.startswith("downs.0.4.1")}
                | {"downs.0.4.weight": np.zeros((8, 8, 4, 4)), "downs.0.4.bias": np.zeros(8)}
            ),
            "before 1.10.0",
        ),
        (lambda s: s | {"downs.0.0.weight": np.zeros((8, 8, 4, 4))}, "before 1.10.0"),
    ],
)
def test_weights_of_another_release_are_refused_by_its_name(change, said):
    state = package.Unet(**CONFIGURATIONS["text and image"]).state_dict()
    with pytest.raises(UserError, match=said):
        convert.from_torch(change({key: value.numpy() for key, value in state.items()}))


@pytest.mark.parametrize("size", [8, 16, 3])
def test_cubic_resizing(size):
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    theirs = package.resize_image_to(torch.tensor(x).permute(0, 3, 1, 2), size)
    assert error(resize_cubic(x, (size, size)), theirs.permute(0, 2, 3, 1)) < 1e-6
