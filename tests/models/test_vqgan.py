"""The convolutional tokenizer of muse-maskgit-pytorch: names of its fields, refusals, revival of
codes, and what a discriminator can see.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config, convert, sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vqgan import VQGanVAE


def test_fields_by_the_names_of_the_package():
    vae = VQGanVAE(dim=256, vq_codebook_size=512)
    assert (vae.codebook_size, vae.image_size, vae.grid) == (512, 256, (16, 16))
    assert vae.clone(image_size=512).grid == (32, 32)
    other = VQGanVAE(dim=16, layers=3, encdec_layer_mults=(1, 3, 2), encdec_num_resnet_blocks=2)
    assert other.dims == (16, 48, 32) and other.blocks == (0, 0, 2)
    # the groups divide the width of the last level, which alone has blocks
    assert VQGanVAE(dim=8).dims == (8, 16, 32, 64)
    assert config.from_dict(config.to_dict(other), {"VQGanVAE": VQGanVAE}) == other


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(dim=16, layer_mult=2), "VQGanVAE has no field 'layer_mult'; did you mean 'layer_mul"),
        (dict(dim=16, codebook_size=8, vq_codebook_size=8), "are one field; give one"),
        (
            dict(dim=24, layers=1),
            "of width 24, no multiple of resnet_groups=16; try dim=32, or other resnet_groups",
        ),
        (dict(dim=16, image_size=40), "image_size=40 is not a multiple of patch_size=16; try"),
        (dict(dim=16, layers=3, layer_mults=(1, 2)), r"layer_mults=\(1, 2\) has 2 entries"),
        (dict(dim=16, first_conv_kernel_size=4), "is even, which changes the image's size; try 5"),
        (dict(dim=16, layers=0), "layers=0 is not positive"),
        (dict(dim=16, remat="some"), "remat='some' is not known"),
        (dict(dim=16, fsq_levels=(8, 5), codebook_size=50), "not the 40 codes .* set codebook_si"),
        (dict(dim=16, fsq_levels=(8, 1)), "no whole numbers of 3 or more"),
        (
            dict(dim=16, fsq_levels=(8, 5), lookup_free_quantization=False),
            "fsq_levels=.* beside lookup_free_quantization=False",
        ),
    ],
)
def test_refusals(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        VQGanVAE(**fields)


def test_a_discriminator_that_sees_nothing_is_refused():
    vae = VQGanVAE(dim=16, image_size=32)
    with pytest.raises(UserError, match=r"too small for 4 discriminator layers \(at least 64\)"):
        vae.discriminator().check(32)


def test_dead_codes_of_the_cosine_codebook_are_revived(key):
    vae = VQGanVAE(dim=16, lookup_free_quantization=False, codebook_size=4, codebook_dim=8)
    before = vae.start(key)
    dead, fresh = jnp.array([True, False, False, True]), jnp.ones((4, 8))
    _, after = vae.revive({}, before, dead, fresh)
    np.testing.assert_array_equal(after["embed"][0], fresh[0])
    np.testing.assert_array_equal(after["embed"][1], before["embed"][1])
    assert VQGanVAE(dim=16).revive({}, {}, dead, fresh) == ({}, {})


@pytest.mark.parametrize("network", [VQGanVAE, VitVQGanVAE])
def test_fsq_takes_the_place_of_the_bits(network, key):
    vae = network(dim=16, image_size=16, fsq_levels=(5, 4))
    assert vae.codebook_size == 20 and vae.start(key) == {}
    assert vae.clone(channels=1).fsq_levels == (5, 4)
    assert config.from_dict(config.to_dict(vae), {network.__name__: network}) == vae
    assert vae.revive({}, {}, jnp.ones(20, bool), jnp.ones((20, 2))) == ({}, {})
    shapes = sharding.unbox(image_tokenizer.abstract(vae))["generator"]["quantizer"]
    assert shapes["project_in"]["kernel"].shape[1] == 2
    with pytest.raises(UserError, match="fsq_levels=.* has no form in the package"):
        convert.to_state(vae, {})
