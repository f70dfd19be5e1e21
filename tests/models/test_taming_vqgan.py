"""VQGAN: the sizes of the published networks, refusals, revival of codes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.taming_vqgan import PRESETS, VQGAN, preset

# Counted in the packages (encoder, decoder, codes); for Muse, whose paper has no number, in the
# PyTorch network of tests/parity/taming_reference.py without its attention.
PARAMETERS = {
    "taming-f16-1024": 72_141_699,
    "taming-f16-16384": 76_073_859,
    "taming-f8-gumbel": 68_995_971,
    "maskgit-f16": 54_515_587,
    "muse-f16": 51_264_387,
    "muse-f8": 46_540_675,
    "amused": 146_244_675,
    "llamagen-f16": 71_883_403,
    "llamagen-f8": 70_109_835,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_as_many_parameters_as_published(name):
    model = preset(name)
    shapes = sharding.unbox(image_tokenizer.abstract(model))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
    assert model.patch_size == (8 if "f8" in name else 16)


def test_muse_has_the_blocks_and_codes_of_its_paper():
    base, large = preset("muse-f16"), preset("muse-f8", image_size=512)
    assert base.residual_blocks == 19 and base.codebook_size == large.codebook_size == 8192
    assert (base.num_tokens, large.num_tokens) == (256, 4096)
    wider = preset("muse-f16", decoder_dim=256, decoder_blocks=4)
    for one, other in zip(
        *(
            jax.tree.leaves(sharding.unbox(image_tokenizer.abstract(m))["generator"]["encoder"])
            for m in (base, wider)
        ),
        strict=True,
    ):
        assert one.shape == other.shape  # the decoder alone is another one


def test_presets_take_fields():
    model = preset("muse-f16", fsq_levels=(8, 8, 8, 5, 5, 5), image_size=512)
    assert (model.codebook_size, model.code_dim, model.num_tokens) == (64000, 6, 1024)
    assert config.from_dict(config.to_dict(model), {"VQGAN": VQGAN}) == model
    assert VQGAN(dim=32, fsq_levels=(8, 5)).codebook_size == 40
    with pytest.raises(UserError, match="preset='muse' is not known"):
        preset("muse")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(dims=32), "VQGAN has no field 'dims'; did you mean 'dim'"),
        (dict(dim=48), "dim=48 is no multiple of groups=32; try dim=64"),
        (dict(dim=32, decoder_dim=8), "decoder_dim=8 is no multiple of groups=32; try"),
        (dict(image_size=40), "image_size=40 is not a multiple of patch_size=16; try"),
        (dict(attention=(5,)), r"attention=\(5,\) names a level beyond the 5 of dim_mults"),
        (dict(dim_mults=()), r"dim_mults=\(\) are no widths"),
        (dict(assignment="neares"), "assignment='neares' is not known; did you mean 'nearest'"),
        (dict(downsampling="pool"), "downsampling='pool' is not known"),
        (dict(encoder_blocks=2000), "encoder_blocks=2000 is more than 1000"),
        (dict(decoder_blocks=0), "decoder_blocks=0 is not positive"),
        (dict(compat=("shortcut",)), "compat='shortcut' is not known"),
        (dict(fsq_levels=(8, 5), codebook_size=50), "is not the 40 codes of fsq_levels"),
        (dict(fsq_levels=(8, 5), assignment="gumbel"), "beside assignment='gumbel', a codebook"),
        (dict(assignment="unit", projected=False), "projected=False has no form"),
        (dict(temperature=0.0), "temperature=0.0 is not positive"),
    ],
)
def test_refusals(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        VQGAN(**fields)


def test_dead_codes_are_revived_where_latents_are_compared_with_them():
    dead, fresh = jnp.array([True, False]), jnp.ones((2, 4))
    params = {"quantizer": {"embedding": jnp.zeros((2, 4)), "other": 1}, "encoder": 2}
    for assignment in ("nearest", "unit"):
        model = VQGAN(assignment=assignment)
        after, stats = model.revive(params, {}, dead, fresh)
        np.testing.assert_array_equal(after["quantizer"]["embedding"], [[1] * 4, [0] * 4])
        assert after["quantizer"]["other"] == 1 and after["encoder"] == 2 and stats == {}
    for fields in (dict(assignment="gumbel"), dict(fsq_levels=(3, 3))):
        assert VQGAN(**fields).revive(params, {}, dead, fresh) == (params, {})


def test_attention_is_at_the_levels_that_are_named():
    model = VQGAN(dim=32, dim_mults=(1, 1, 2), attention=(0, -1), image_size=16)
    encoder = sharding.unbox(image_tokenizer.abstract(model))["generator"]["encoder"]
    named = {name for name in encoder if name.startswith("attention")}
    assert named == {f"attention_{i}_{j}" for i in (0, 2) for j in range(2)}
