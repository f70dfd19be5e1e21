"""The small image of a super-resolution stage: enlarged, noised, and told how much."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.config import from_dict, to_dict
from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.errors import UserError


def test_levels_are_one_per_batch_or_one_per_row(key):
    assert len(set(LowresNoise().train_levels(key, 8).tolist())) == 1
    levels = LowresNoise(per_row=True).train_levels(key, 1000)
    assert len(set(levels.tolist())) > 900 and 0 <= float(levels.min()) < float(levels.max()) < 1
    low = LowresNoise(per_row=True, train_limit=0.2).train_levels(key, 1000)
    np.testing.assert_allclose(low, 0.2 * levels, atol=1e-6)
    one = LowresNoise(train_limit=0.2).train_levels(key, 8)
    np.testing.assert_allclose(one, 0.2 * LowresNoise().train_levels(key, 8), atol=1e-6)


def test_an_image_is_noised_and_the_network_told_the_log_snr(key):
    lowres, image = LowresNoise(), jnp.full((2, 64, 64, 1), 0.5)
    noised, condition_B = lowres.for_sampling(image, jax.random.normal(key, image.shape))
    np.testing.assert_allclose(condition_B, 0.70933, rtol=1e-5)
    np.testing.assert_allclose(noised.mean(), 0.819 * 0.5, atol=0.02)
    np.testing.assert_allclose(noised.std(), 0.574, rtol=0.03)
    again, in_training_B = lowres.noised(
        image, jax.random.normal(key, image.shape), jnp.full((2,), 0.2)
    )
    np.testing.assert_array_equal(again, noised)
    np.testing.assert_array_equal(in_training_B, condition_B)
    clean, high_B = lowres.for_sampling(image, jax.random.normal(key, image.shape), 0.0)
    np.testing.assert_allclose(clean, image, atol=0.06)
    assert (high_B > 9).all()


def test_the_package_tells_an_edm_stage_the_time_in_sampling_only():
    lowres, image = LowresNoise(compat="imagen-pytorch-elucidated"), jnp.zeros((1, 2, 2, 1))
    assert lowres.for_sampling(image, image)[1] == pytest.approx(0.2)
    assert lowres.noised(image, image, jnp.array([0.2]))[1] == pytest.approx(0.70933)


def test_a_configuration_survives_json():
    lowres = LowresNoise("cosine", 0.1, True, "imagen-pytorch-elucidated")
    assert (
        from_dict(json.loads(json.dumps(to_dict(lowres))), {"LowresNoise": LowresNoise}) == lowres
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowresNoise("lineal"), "did you mean 'linear'"),
        (lambda: LowresNoise(sample_level=1.2), "sample_level=1.2 is outside"),
        (lambda: LowresNoise(train_limit=0.0), "train_limit=0.0 is outside"),
        (lambda: LowresNoise(train_limit=0.1), "sample_level=0.2 is above train_limit=0.1"),
        (lambda: LowresNoise(compat="yes"), "lowres.compat='yes'"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
