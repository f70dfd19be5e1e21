"""The protocol of image tokenizers, with a convolutional one that runs at several sizes."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.taming_vqgan import VQGAN
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.nn.conv import conv
from t2i_jax.nn.quantize import FactorisedVq
from t2i_jax.on_host import initialise
from t2i_jax.pixels import SIGNED, to_float


class Convolutional(image_tokenizer.QuantizedAutoencoder):
    """Strided convolutions down, resized maps and convolutions up: its weights do not know the
    image size.
    """

    image_size: int = 16
    levels: int = 2
    dim: int = 8
    channels: int = 3
    codebook_size: int = 16
    pixel_range: tuple[float, float] = SIGNED

    def __post_init__(self):
        image_tokenizer.check_sizes(self, "dim")
        super().__post_init__()

    @property
    def patch_size(self):
        return 2**self.levels

    @nn.nowrap
    def start(self, key):
        return {}

    @nn.nowrap
    def revive(self, params, codebook, dead_K, fresh_KE):
        return params, codebook

    def setup(self):
        self.down = [conv(self.dim, 4, None, stride=2) for _ in range(self.levels)]
        self.quantizer = FactorisedVq(self.dim, self.codebook_size, codebook_dim=4)
        self.up = [conv(self.dim, 3, None) for _ in range(self.levels)]
        self.to_pixels = conv(self.channels, 3, None)

    def encoder_fmap(self, image_BHWC):
        x = image_BHWC
        for layer in self.down:
            x = nn.relu(layer(x))
        return x

    def features(self, fmap_BHWC):
        x = fmap_BHWC
        for layer in self.up:
            x = nn.relu(layer(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)))
        return x

    def pixels(self, features_BHWC):
        return self.to_pixels(features_BHWC).astype(jnp.float32)


MODELS = {
    "parti-pytorch": VitVQGanVAE(
        dim=8, image_size=16, patch_size=4, layers=1, heads=2, dim_head=4, codebook_size=16
    ),
    "paper": ViTVQGAN(
        image_size=16, patch_size=4, dim=8, layers=1, heads=2, mlp_dim=16, codebook_size=16
    ),
    "muse-maskgit-pytorch": VQGanVAE(
        dim=8, image_size=16, layers=2, resnet_groups=4, codebook_size=16
    ),
    "taming-transformers, with FSQ": VQGAN(
        dim=8, image_size=16, dim_mults=(1, 1, 1), encoder_blocks=1, decoder_blocks=1, groups=4,
        attention=(), middle_attention=False, fsq_levels=(4, 4),
    ),
    "convolutional": Convolutional(),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_tokenizer_fits_the_protocol(name, key):
    model = MODELS[name]
    assert isinstance(model, image_tokenizer.ImageTokenizer)
    assert (model.grid, model.num_tokens, model.patch_size) == ((4, 4), 16, 4)
    weights = initialise(functools.partial(image_tokenizer.init, model), key)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        weights, sharding.unbox(image_tokenizer.abstract(model))
    )
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    ids = jax.jit(functools.partial(image_tokenizer.tokens, model))(weights, image)
    chex.assert_shape(ids, (2, 16))
    again = jax.jit(functools.partial(image_tokenizer.pixels, model))(weights, ids)
    chex.assert_shape(again, (2, 16, 16, 3))
    chex.assert_type(again, jnp.uint8)
    kernel = weights["generator"]
    for part in model.last_layer:
        kernel = kernel[part]
    variables = {"params": weights["generator"]}

    @jax.jit
    def both_ways(variables, image):
        recon, encoded = model.apply(variables, image, weights["stats"])
        features = model.apply(variables, encoded.fmap, method="features")
        return recon, model.apply(variables, features, method="pixels")

    recon, same = both_ways(variables, to_float(image, model.pixel_range))
    chex.assert_trees_all_close(same, recon)


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_one_image(name):
    model = MODELS[name]
    whole, encoder = image_tokenizer.flops(model), image_tokenizer.flops(model, "encode")
    assert 0 < encoder < whole
    if name == "convolutional":
        down = 2 * 16 * 8 * (64 * 3 + 16 * 8)
        # projections and comparisons with the codes
        assert encoder == down + 2 * 16 * (8 * 4 + 4 * 16 + 4 * 8)
        assert whole == encoder + 2 * 9 * 8 * (64 * 8 + 256 * 8 + 256 * 3)


def test_one_set_of_weights_runs_at_several_sizes(key):
    small, large = Convolutional(), Convolutional().clone(image_size=32)
    assert (large.grid, large.num_tokens) == ((8, 8), 64)
    assert jax.eval_shape(
        lambda k: image_tokenizer.init(small, k), key
    ) == image_tokenizer.abstract(large)
    weights = initialise(functools.partial(image_tokenizer.init, small), key)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    ids = jax.jit(functools.partial(image_tokenizer.tokens, large))(weights, image)
    pixels = jax.eval_shape(functools.partial(image_tokenizer.pixels, large), weights, ids)
    assert pixels.shape == (1, 32, 32, 3)
    tokens_of_cut = jax.jit(functools.partial(image_tokenizer.tokens, small))
    cut = tokens_of_cut(weights, image[:, :16, :16]).reshape(4, 4)
    # all but what sees the cut
    np.testing.assert_array_equal(cut[:3, :3], ids.reshape(8, 8)[:3, :3])


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match="image_size=18 is not a multiple of patch_size=4; try image_size=16"
    ):
        Convolutional(image_size=18)
    with pytest.raises(UserError, match="dim=0 is not positive"):
        Convolutional(dim=0)
    with pytest.raises(UserError, match="pixel_range"):
        Convolutional(pixel_range=(1.0, 1.0))
