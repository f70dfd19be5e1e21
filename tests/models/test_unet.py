import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.models.unet import BaseUnet64, NullUnet, SRUnet256, SRUnet1024, Unet
from t2i_jax.on_host import initialise
from t2i_jax.runs.recipe import TYPES

TINY = Unet(
    dim=8, dim_mults=(1, 2), text_embed_dim=6, attn_heads=2, attn_dim_head=4, max_text_len=5
)

# without what takes long to trace and to compile
PLAIN = TINY.clone(
    num_resnet_blocks=0,
    layer_attns=False,
    layer_cross_attns=False,
    attend_at_middle=False,
    attn_pool_text=False,
    init_cross_embed=False,
    init_conv_kernel_size=3,
    use_global_context_attn=False,
    final_resnet_block=False,
)


def random_inputs(model, rows=8, columns=12, batch=2):
    """Inputs by name, with a text, for an image that is not square."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    inputs = {"x_BHWC": normal(batch, rows, columns, model.channels), "condition_B": normal(batch)}
    if model.cond_on_text:
        mask = jnp.arange(3) < jnp.array([[3], [1]])
        inputs |= {
            "text_embeds_BLD": normal(batch, 3, model.text_embed_dim),
            "text_mask_BL": mask[:batch],
        }
    if model.lowres_cond:
        inputs |= {
            "lowres_BHWC": normal(*inputs["x_BHWC"].shape),
            "lowres_condition_B": normal(batch),
        }
    if model.cond_images_channels:
        inputs["cond_image_BHWC"] = normal(batch, 5, 3, model.cond_images_channels)
    return inputs


def shapes(model, inputs):
    """The parameters as boxed shapes."""
    return jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))["params"]


def random_params(model, inputs):
    """Every weight random, the last convolution's too."""
    rng = np.random.default_rng(1)

    def fill(leaf):
        drawn = rng.normal(size=leaf.shape) * 0.2 + 0.1
        return jnp.asarray(drawn.astype(leaf.dtype))

    return jax.tree.map(fill, sharding.unbox(shapes(model, inputs)))


def value_and_slopes(model, params, inputs):
    def loss(params):
        return jnp.mean(jnp.square(model.apply({"params": params}, **inputs)))

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.mark.parametrize(
    ("preset", "lowres", "count"),
    [
        (BaseUnet64, False, 1_625_742_116),
        (SRUnet256, True, 732_036_754),
        (SRUnet1024, True, 721_244_562),
    ],
)
def test_presets_have_as_many_parameters_as_the_package_counts(preset, lowres, count):
    model = preset(lowres_cond=lowres, dtype="bfloat16")
    inputs = random_inputs(model, 64, 64, 1)
    start = functools.partial(model.init_with_output, **inputs)
    out, variables = jax.eval_shape(start, jax.random.key(0))
    tree = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count
    boxes = jax.tree.leaves(tree, is_leaf=lambda leaf: hasattr(leaf, "names"))
    # what fsdp divides
    split = [b.value.size for b in boxes if {"embed", "conv_in", "text"} & set(b.names)]
    assert sum(split) > 0.99 * count
    assert out.shape == inputs["x_BHWC"].shape and out.dtype == jnp.float32


def test_dropped_text_does_not_count_and_kept_text_does():
    model = TINY.clone(num_resnet_blocks=0)
    inputs = random_inputs(model)
    params = random_params(model, inputs)
    run = jax.jit(
        lambda keep_B, change: model.apply({"params": params}, keep_B=keep_B, **(inputs | change))
    )
    text, mask = (np.asarray(inputs[name]) for name in ("text_embeds_BLD", "text_mask_BL"))

    def given(text, mask):
        return {"text_embeds_BLD": text, "text_mask_BL": mask}

    keep = jnp.array([True, False])
    out = run(keep, given(text, mask))
    assert out.shape == (2, 8, 12, 3)
    for other in (
        run(keep, given(text + 1, mask)),
        run(keep, given(text, np.roll(mask, 1, axis=0))),
    ):
        assert np.array_equal(out[1], other[1]) and not np.allclose(out[0], other[0], atol=1e-3)
    all_kept = run(jnp.array([True, True]), given(text, mask))
    assert np.array_equal(out[0], all_kept[0]) and not np.allclose(out[1], all_kept[1], atol=1e-3)


def test_a_new_network_predicts_zeros_whatever_it_is_given():
    model = PLAIN.clone(layer_cross_attns=(False, True))
    inputs = random_inputs(model)
    variables = initialise(functools.partial(model.init, **inputs), jax.random.key(0))
    out = jax.jit(model.apply)(variables, **inputs)
    assert not out.any()


def test_attention_by_blocks_and_recomputed_layers_change_nothing():
    model = PLAIN.clone(
        dim_mults=(1,),
        layer_attns=True,
        layer_cross_attns=True,
        attend_at_middle=True,
        use_global_context_attn=True,
    )
    inputs = random_inputs(model)
    params = random_params(model, inputs)
    value, slopes = value_and_slopes(model, params, inputs)
    other_value, other = value_and_slopes(
        model.clone(attn_max_scores=700, remat="full"), params, inputs
    )
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes))
    chex.assert_trees_all_close(slopes, other, rtol=1e-3, atol=1e-5 * largest)


def test_a_loop_over_blocks_changes_nothing():
    model = PLAIN.clone(num_resnet_blocks=(2, 0), remat="full", use_global_context_attn=True)
    inputs = random_inputs(model)
    params = random_params(model, inputs)
    value, slopes = value_and_slopes(model, params, inputs)
    looped = model.clone(scan_blocks=True)
    assert jax.tree.structure(shapes(looped, inputs)) == jax.tree.structure(shapes(model, inputs))
    other_value, other = value_and_slopes(looped, params, inputs)
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes))
    chex.assert_trees_all_close(slopes, other, rtol=1e-3, atol=1e-5 * largest)


def test_what_fails_in_the_package_trains_here():
    model = TINY.clone(
        cross_embed_downsample=True,
        dim_mults=(2, 3),
        init_dim=12,
        memory_efficient=True,
        max_text_len=600,
        init_conv_to_final_conv_residual=True,
        combine_upsample_fmaps=True,
        cond_images_channels=1,
        attn_heads=1,
        layer_attns=(False, True),
        layer_cross_attns=(False, True),
        use_linear_attn=True,
        attn_pool_num_latents=3,
        num_resnet_blocks=(1, 0),
    )
    inputs = random_inputs(model)
    value, slopes = value_and_slopes(model, random_params(model, inputs), inputs)
    assert np.isfinite(value)
    still = [
        path for path, slope in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(slope)
    ]
    assert {path[-1].key for path in still} <= {"null_vector"}  # both rows keep their text
    wide = model.clone(memory_efficient=False, cross_embed_downsample_kernel_sizes=(4, 2, 6))
    start = functools.partial(wide.init_with_output, **inputs)
    assert jax.eval_shape(start, jax.random.key(0))[0].shape == (2, 8, 12, 3)


def test_linear_attention_drops_out_in_training_only():
    model = PLAIN.clone(use_linear_attn=(True, False), cond_on_text=False)
    inputs = random_inputs(model)
    params = random_params(model, inputs)
    run = jax.jit(
        lambda key, train: model.apply(
            {"params": params}, **inputs, deterministic=not train, rngs={"dropout": key}
        ),
        static_argnums=1,
    )
    keys = jax.random.split(jax.random.key(0))
    assert not np.allclose(run(keys[0], True), run(keys[1], True), atol=1e-4)
    assert np.array_equal(run(keys[0], False), run(keys[1], False))


def test_the_configuration_survives_json():
    for model in (
        TINY.clone(layer_attns=(False, True), compat=("mid_heads",)),
        NullUnet(),
        SRUnet1024(dim=32),
    ):
        assert config.from_dict(json.loads(json.dumps(config.to_dict(model))), TYPES) == model
    assert Unet(dim=8, dim_mults=[1, 2]).dim_mults == (1, 2)


def test_an_empty_stage_gives_back_what_it_is_given():
    x = jnp.ones((1, 4, 6, 3))
    params = NullUnet().init(jax.random.key(0), x, jnp.zeros(1))
    assert (
        NullUnet().apply(params, x, jnp.zeros(1), keep_B=None) is x and not NullUnet().lowres_cond
    )


def test_an_empty_stage_answers_what_is_asked_of_a_network():
    assert TINY.trains and not NullUnet().trains
    assert (NullUnet().multiple, NullUnet().cond_images_channels) == (1, 0)
    # not stored
    assert not {"trains", "multiple"} & {*config.fields_of(NullUnet), *config.fields_of(Unet)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dim=0), "dim=0 is not positive"),
        (dict(dim_mults=()), r"dim_mults=\(\) are no widths"),
        (dict(dim_mults=(1, 0)), "dim_mults"),
        (
            dict(num_resnet_blocks=(1, 2, 3)),
            r"num_resnet_blocks=\(1, 2, 3\) has 3 values for 2 levels; give 2",
        ),
        (dict(num_resnet_blocks=-1), "num_resnet_blocks"),
        (dict(layer_attns_depth=0), "layer_attns_depth"),
        (
            dict(learned_sinu_pos_emb_dim=7),
            "learned_sinu_pos_emb_dim=7 is odd, half are sines; try 8",
        ),
        (dict(final_conv_kernel_size=2), "final_conv_kernel_size=2 is not odd"),
        (
            dict(init_cross_embed=False, init_conv_kernel_size=4),
            "init_conv_kernel_size=4 is not odd",
        ),
        (
            dict(init_cross_embed_kernel_sizes=(3, 4)),
            r"init_cross_embed_kernel_sizes=\(3, 4\) are not all odd",
        ),
        (
            dict(cross_embed_downsample=True, cross_embed_downsample_kernel_sizes=(3,)),
            "are not all even",
        ),
        (dict(init_cross_embed_kernel_sizes=(3, 5, 7, 9, 11)), "do not fit 8 channels"),
        (dict(resize_mode="bilinaer"), "did you mean 'bilinear'"),
        (dict(compat="mid_heads"), "is a string; give a tuple"),
        (dict(compat=("mid_head",)), "did you mean 'mid_heads'"),
        (dict(remat="all"), "remat='all' is not known"),
        (dict(linear_attn_dropout=1.0), "linear_attn_dropout=1.0 is outside"),
        (dict(cond_images_channels=-1), "cond_images_channels=-1 is negative"),
    ],
)
def test_bad_fields_are_refused_in_one_sentence(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        Unet(**({"dim": 8, "dim_mults": (1, 2)} | fields))
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_BHWC": jnp.zeros((2, 8, 11, 3))},
            "x is 8x11; with these levels its sides must be multiples of 2",
        ),
        ({"x_BHWC": jnp.zeros((2, 8, 8, 1))}, "x has 1 channels; the network wants channels=3"),
        (
            {"text_embeds_BLD": jnp.zeros((2, 3, 7))},
            "text_embeds has width 7; the network wants text_embed_dim=6",
        ),
        ({"lowres_BHWC": jnp.zeros((2, 8, 12, 3))}, "lowres_cond=False does not fit"),
        ({"self_cond_BHWC": jnp.zeros((2, 8, 12, 3))}, "self_cond=False does not fit"),
        (
            {"cond_image_BHWC": jnp.zeros((2, 8, 12, 2))},
            "cond_image has 2 channels; the network wants 0",
        ),
    ],
)
def test_bad_inputs_are_refused_in_one_sentence(change, message):
    inputs = random_inputs(TINY) | change
    with pytest.raises(UserError, match=message):
        shapes(TINY, inputs)


def test_a_super_resolution_stage_wants_its_small_image():
    model = TINY.clone(lowres_cond=True, memory_efficient=True)
    inputs = random_inputs(model, 8, 12)
    assert model.multiple == 4
    with pytest.raises(
        UserError, match="lowres_cond=True does not fit .* give lowres_BHWC and lowres_condition_B"
    ):
        shapes(model, {key: value for key, value in inputs.items() if key != "lowres_condition_B"})
    with pytest.raises(UserError, match="resize it to x first"):
        shapes(model, inputs | {"lowres_BHWC": jnp.zeros((2, 4, 6, 3))})
