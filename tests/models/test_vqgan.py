"""The convolutional tokenizer of muse-maskgit-pytorch: names of its fields, refusals, revival of
codes, and what a discriminator can see.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models.vqgan import VQGanVAE


def test_fields_by_the_names_of_the_package():
    vae = VQGanVAE(dim=256, vq_codebook_size=512)
    assert (vae.codebook_size, vae.image_size, vae.grid) == (512, 256, (16, 16))
    assert vae.clone(image_size=512).grid == (32, 32)
    other = VQGanVAE(dim=16, layers=3, encdec_layer_mults=(1, 3, 2), encdec_num_resnet_blocks=2)
    assert other.dims == (16, 48, 32) and other.blocks == (0, 0, 2)
    assert config.from_dict(config.to_dict(other), {"VQGanVAE": VQGanVAE}) == other


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(dim=16, layer_mult=2), "VQGanVAE has no field 'layer_mult'; did you mean 'layer_mul"),
        (dict(dim=16, codebook_size=8, vq_codebook_size=8), "are one field; give one"),
        (dict(dim=24), "no multiple of resnet_groups=16; try dim=32"),
        (dict(dim=16, image_size=40), "image_size=40 is not a multiple of patch_size=16; try"),
        (dict(dim=16, layers=3, layer_mults=(1, 2)), r"layer_mults=\(1, 2\) has 2 entries"),
        (dict(dim=16, first_conv_kernel_size=4), "is even, which changes the image's size; try 5"),
        (dict(dim=16, layers=0), "layers=0 is not positive"),
        (dict(dim=16, remat="some"), "remat='some' is not known"),
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
