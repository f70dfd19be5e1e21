import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan_paper import ViTVQGAN, preset
from t2i_jax.on_host import initialise
from t2i_jax.pixels import to_float, to_uint8

TINY = dict(
    image_size=16,
    patch_size=4,
    dim=16,
    layers=2,
    heads=2,
    mlp_dim=32,
    codebook_size=8,
    codebook_dim=4,
)


def test_sizes_of_the_paper():
    """Its figures are for one stack of blocks: 32M, 91M, 599M (which may hold parts that it does
    not list).
    """
    for size, millions in (("small", 32), ("base", 91), ("large", 599)):
        decoder = image_tokenizer.abstract(preset(size, scan=True))["generator"]["decoder"]
        count = sum(leaf.size for leaf in jax.tree.leaves(decoder)) / 1e6
        assert 0.75 * millions < count < 1.05 * millions
    assert preset("base").num_tokens == 1024


def test_stacked_layers_compute_what_single_ones_do(key):
    single, stacked = ViTVQGAN(**TINY), ViTVQGAN(**TINY, scan=True, remat="full")
    weights = initialise(functools.partial(image_tokenizer.init, single), key)["generator"]
    again = dict(weights)
    for part in ("encoder", "decoder"):
        layers = [weights[part][f"layer_{i}"] for i in range(2)]
        again[part] = {
            "layers": jax.tree.map(lambda *a: np.stack(a), *layers),
            "norm": weights[part]["norm"],
        }
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    out = [
        jax.jit(lambda p, image, m=m: m.apply({"params": p}, image, {}, True)[0])(p, image)
        for m, p in ((single, weights), (stacked, again))
    ]
    np.testing.assert_allclose(*out, atol=1e-5)
    boxed = image_tokenizer.abstract(stacked)["generator"]["encoder"]["layers"]["wide"]["kernel"]
    assert boxed.names == ("layers", "embed", "mlp")


def test_codes_and_images_have_their_shapes(key):
    model = ViTVQGAN(**TINY, decoder_dim=24, decoder_heads=3, channels=1)
    weights = initialise(functools.partial(image_tokenizer.init, model), key)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1)).astype(np.uint8)
    ids = jax.jit(functools.partial(image_tokenizer.tokens, model))(weights, images)
    assert ids.shape == (2, 16) and ids.dtype == jnp.int32
    again = jax.jit(functools.partial(image_tokenizer.pixels, model))(weights, ids)
    assert again.shape == images.shape and again.dtype == jnp.uint8


def test_tokens_are_row_by_row(key):
    """A change of the top right patch alone changes the embedding of token 3 most."""
    model = ViTVQGAN(**{**TINY, "layers": 0}, decoder_layers=0)
    weights = initialise(functools.partial(image_tokenizer.init, model), key)
    image = np.zeros((1, 16, 16, 3), np.float32)
    changed = image.copy()
    changed[:, :4, 12:] = 1
    fmap = jax.jit(functools.partial(model.apply, method="encoder_fmap"))
    maps = [fmap({"params": weights["generator"]}, x) for x in (image, changed)]
    differs = np.abs(maps[0] - maps[1]).sum(-1).reshape(-1) > 1e-6
    assert list(np.flatnonzero(differs)) == [3]


def test_sigmoid_output_stays_just_outside_the_range(key):
    model = ViTVQGAN(**TINY, output="sigmoid")
    weights = initialise(functools.partial(image_tokenizer.init, model), key)["generator"]
    features = 100 * np.random.default_rng(0).normal(size=(1, 4, 4, 16)).astype(np.float32)
    pixels = jax.jit(functools.partial(model.apply, method="pixels"))
    image = pixels({"params": weights}, features)
    assert float(image.min()) >= -1.2501 and float(image.max()) <= 1.2501


def test_pixel_conversion_is_exact():
    grey = jnp.arange(256, dtype=jnp.uint8)
    for pixel_range in ((-1.0, 1.0), (0.0, 1.0)):
        x = to_float(grey, pixel_range)
        assert x.min() == pixel_range[0] and abs(x.max() - pixel_range[1]) < 1e-6
        assert jnp.array_equal(to_uint8(x, pixel_range), grey)


def test_configuration_round_trip_and_refusals():
    model = ViTVQGAN(**TINY)
    assert config.from_dict(config.to_dict(model), {"ViTVQGAN": ViTVQGAN}) == model
    for wrong, said in (
        (dict(image_size=18), "image_size=18 is not a multiple of patch_size=4; try image_size=16"),
        (dict(dim=18, heads=4), "dim=18 is not a multiple of heads=4"),
        (dict(activation="gelo"), "did you mean 'gelu'"),
        (dict(remat="all"), "remat='all' is not known"),
        (dict(pixel_range=(1.0, -1.0)), "pixel_range"),
    ):
        with pytest.raises(UserError, match=said):
            ViTVQGAN(**{**TINY, **wrong})
    with pytest.raises(UserError, match="preset='smal' is not known; did you mean 'small'"):
        preset("smal")
