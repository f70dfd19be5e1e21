import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.models.stylegan_discriminator import StyleDiscriminator, _blur, _deviation
from t2i_jax.on_host import initialise


def test_one_finite_logit_per_image_and_unit_weights(key):
    model = StyleDiscriminator(image_size=16, max_width=16)
    image = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)
    params = initialise(lambda key: model.init(key, image), key)["params"]
    logits = jax.jit(model.apply)({"params": params}, image)
    assert logits.shape == (6,) and np.isfinite(logits).all()
    kernel = params["block_16_conv_0"]["kernel"]
    assert abs(np.asarray(kernel).std() - 1) < 0.1  # equalised: the scale is applied when it runs
    assert params["block_8_conv_1"]["kernel"].shape == (3, 3, 16, 16)


def test_widths_of_the_published_network():
    model = StyleDiscriminator(image_size=256)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))["params"]
    shapes = sharding.unbox(shapes)
    assert shapes["from_rgb"]["kernel"].shape == (1, 1, 3, 128)
    assert shapes["block_256_conv_1"]["kernel"].shape == (3, 3, 128, 256)
    assert shapes["last_conv"]["kernel"].shape == (3, 3, 513, 512)
    assert shapes["last_dense"]["kernel"].shape == (8192, 512)


def test_the_blur_keeps_constants_and_removes_stripes():
    constant = jnp.ones((1, 8, 8, 1))
    stripes = constant * jnp.tile(jnp.array([1.0, -1.0]), 4)[:, None]
    np.testing.assert_allclose(_blur(constant, 0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(_blur(stripes, 0), 0.0, atol=1e-6)


def test_the_deviation_sees_whether_images_differ(key):
    same = jnp.ones((4, 2, 2, 3)) * jax.random.normal(key, (1, 2, 2, 3))
    assert float(_deviation(same, 4).max()) < 2e-4
    x = jax.random.normal(key, (8, 2, 2, 3))
    groups = x.reshape(4, 2, 2, 2, 3)
    wanted = jnp.sqrt(groups.var(0) + 1e-8).mean((1, 2, 3))
    np.testing.assert_allclose(_deviation(x, 4)[:, 0, 0, 0], jnp.tile(wanted, 4), rtol=1e-5)
    assert _deviation(x[:3], 4).shape == (3, 2, 2, 1)  # a batch of 3 is one group of 3


def test_sizes_are_checked():
    with pytest.raises(UserError, match="image_size=48 is no power of 2.*try"):
        StyleDiscriminator(image_size=48)
    with pytest.raises(
        UserError, match="discriminator.image_size=64 is not the model's; set it to 32"
    ):
        StyleDiscriminator(image_size=64).check(32)
