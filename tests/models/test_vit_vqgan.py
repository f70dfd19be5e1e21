import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config, convert, sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.nn.conv import depthwise, neighbours, patchify, unpatchify
from t2i_jax.on_host import initialise
from t2i_jax.pixels import to_float, to_uint8


def test_the_readme_spelling_of_the_package():
    vae = VitVQGanVAE(dim=256, image_size=256, patch_size=16, num_layers=3)
    assert (vae.layers, vae.patch_size, vae.grid) == (3, 16, (16, 16))
    assert vae == VitVQGanVAE(dim=256, image_size=256, encdec_patch_size=16, layers=3)
    assert (
        VitVQGanVAE(dim=64, image_size=64, vq_codebook_size=512, encdec_heads=2).codebook_size
        == 512
    )
    known = {"VitVQGanVAE": VitVQGanVAE}
    assert config.from_dict(config.to_dict(vae), known) == vae
    assert config.override(vae, ["layers=2", "lookup_free_quantization=false"]).layers == 2
    assert vae.clone(dim=64).dim == 64


def test_unknown_and_double_fields_are_refused():
    with pytest.raises(UserError, match="no field 'patch_sise'; did you mean 'patch_size'"):
        VitVQGanVAE(dim=64, image_size=64, patch_sise=16)
    with pytest.raises(UserError, match="num_layers=3 and layers=4 are one field"):
        VitVQGanVAE(dim=64, image_size=64, num_layers=3, layers=4)
    with pytest.raises(UserError, match="pixel_head='mlp' is not known"):
        VitVQGanVAE(dim=64, image_size=64, pixel_head="mlp")
    with pytest.raises(UserError, match="dim=66 is not a multiple of 4; try 68"):
        VitVQGanVAE(dim=66, image_size=64)
    with pytest.raises(UserError, match="image_size=32 is too small for 4 discriminator layers"):
        VitVQGanVAE(dim=64, image_size=32).discriminator().check(32)


def test_a_discriminator_for_images_it_is_too_large_for_has_its_weights_all_the_same():
    small, large = (
        VitVQGanVAE(dim=8, image_size=16, patch_size=4),
        VitVQGanVAE(dim=8, image_size=256, patch_size=4),
    )
    shapes = [
        image_tokenizer.abstract_discriminator(vae.discriminator(), vae) for vae in (small, large)
    ]
    assert sharding.unbox(shapes[0]) == sharding.unbox(shapes[1])


def test_an_implicit_head_makes_the_same_pixels_at_any_patch_size(key):
    vae = VitVQGanVAE(
        dim=8, image_size=8, patch_size=4, layers=1, heads=1, dim_head=8, codebook_size=16,
        pixel_head="implicit", pixel_head_dim=6, discr_layers=0,
    )  # fmt: skip
    weights = initialise(functools.partial(image_tokenizer.init, vae), key)
    kernel = weights["generator"]
    for name in vae.last_layer:
        kernel = kernel[name]
    assert kernel.shape == (6, 3)
    ids = np.random.default_rng(0).integers(0, 16, (2, 4))
    finer = vae.clone(image_size=24, patch_size=12)
    image, fine = (
        jax.jit(functools.partial(image_tokenizer.decoded, one))(weights, ids)
        for one in (vae, finer)
    )
    assert image.shape == (2, 8, 8, 3) and fine.shape == (2, 24, 24, 3)
    # the centre of a pixel is that of the middle one of nine
    np.testing.assert_allclose(fine[:, 1::3, 1::3], image, atol=1e-5)
    assert np.std(np.asarray(image)[0, :4, :4], axis=(0, 1)).min() > 1e-3  # no flat patches
    with pytest.raises(UserError, match="pixel_head='implicit' has no form in the package"):
        convert.to_state(vae, weights)


@pytest.mark.parametrize("lookup_free", [True, False])
def test_codes_there_and_back(lookup_free, key):
    vae = VitVQGanVAE(
        dim=16, image_size=16, patch_size=4, layers=1, heads=2, dim_head=4, codebook_size=16,
        lookup_free_quantization=lookup_free, codebook_dim=4,
    )  # fmt: skip
    weights = initialise(functools.partial(image_tokenizer.init, vae), key)
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    ids = jax.jit(functools.partial(image_tokenizer.tokens, vae))(weights, image)
    assert ids.shape == (2, 16)
    x = to_float(image, vae.pixel_range)
    recon, encoded = jax.jit(vae.apply)({"params": weights["generator"]}, x, weights["stats"])
    np.testing.assert_array_equal(encoded.ids.reshape(2, 16), ids)
    again = jax.jit(functools.partial(image_tokenizer.pixels, vae))(weights, ids)
    wanted = to_uint8(recon, vae.pixel_range).astype(int)
    assert np.abs(again.astype(int) - wanted).max() <= 1  # a rounding may fall the other way


def test_depthwise_is_the_grouped_convolution(key):
    x, kernel, bias = (jax.random.normal(key, s) for s in ((2, 5, 6, 8), (3, 3, 8), (8,)))
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=8,
    )
    np.testing.assert_allclose(depthwise(x, kernel, bias), wanted + bias, atol=1e-5)


def test_neighbours_make_a_convolution_a_product(key):
    x, kernel = (jax.random.normal(key, s) for s in ((2, 5, 6, 4), (3, 3, 4, 7)))
    wanted = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(neighbours(x) @ kernel.reshape(36, 7), wanted, atol=1e-4)


def test_patches_are_taken_apart_and_put_together():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[0, 0, 1, :6], image[0, 0, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, 2), image)
