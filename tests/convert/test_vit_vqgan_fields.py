import functools

import jax
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import vit_vqgan
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from tests.weights import drawn

MODELS = {
    "lfq": VitVQGanVAE(
        dim=16,
        image_size=32,
        patch_size=8,
        layers=1,
        heads=3,
        dim_head=4,
        codebook_size=64,
        discr_layers=0,
    ),
    "vq": VitVQGanVAE(
        dim=16,
        image_size=32,
        patch_size=4,
        layers=2,
        ff_mult=2,
        lookup_free_quantization=False,
        codebook_size=32,
        codebook_dim=16,
        discr_layers=2,
        channels=1,
    ),
}


def exported(name):
    model = MODELS[name]
    weights = drawn(functools.partial(image_tokenizer.init, model))
    if model.discr_layers:
        image = np.zeros((1, 32, 32, model.channels), np.float32)
        weights["discriminator"] = drawn(model.discriminator().init, image)["params"]
    return model, weights, convert.to_state(model, weights)


@pytest.mark.parametrize("name", MODELS)
def test_the_fields_come_back_from_the_shapes(name):
    model, weights, state = exported(name)
    fields = vit_vqgan.fields(state, {})
    assert fields == {key: getattr(model, key) for key in fields}
    again, ours = convert.from_torch(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, weights))
    assert again.num_tokens == model.num_tokens


def test_fields_are_checked():
    _, _, state = exported("lfq")
    with pytest.raises(
        UserError, match="no field 'diversity_gama'; did you mean 'diversity_gamma'"
    ):
        convert.from_torch(state, diversity_gama=1.0)
    with pytest.raises(UserError, match="dim=32 contradicts the weights"):
        convert.from_torch(state, dim=32)
    assert convert.from_torch(state, diversity_gamma=1.0)[0].diversity_gamma == 1.0
