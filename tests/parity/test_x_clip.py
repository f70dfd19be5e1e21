"""CLIP against the live x-clip: encodings, latents, similarities, every loss and its gradients, and
weights both ways.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.models.image_text import unit
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

x_clip = load("x_clip")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through a few layers, products in another order

_SMALL = dict(
    dim_text=24, dim_image=32, dim_latent=16, num_text_tokens=40, text_enc_depth=2, text_seq_len=7,
    text_heads=2, text_dim_head=12, visual_enc_depth=1, visual_heads=2, visual_dim_head=16,
    visual_image_size=32, visual_patch_size=8, visual_patch_dropout=0.0,
)  # fmt: skip
CONFIGURATIONS = {
    "plain": dict(extra_latent_projection=True, use_mlm=True, mlm_mask_token_id=40),
    "rotary": dict(
        text_rotary_pos_emb=True, text_dim_head=40, text_encode_without_mask=True, channels=1,
        visual_patch_dropout=0.5,
    ),
    "fine-grained": dict(
        use_all_token_embeds=True, downsample_image_embeds=True, extra_latent_projection=True
    ),
}  # fmt: skip


def make(name):
    """The package's network in evaluation, ours, our weights, token ids and images."""
    torch.manual_seed(0)
    theirs = x_clip.CLIP(**{**_SMALL, **CONFIGURATIONS[name]}).eval()
    with torch.no_grad():  # gains that start at one would not show that they are used
        for key, parameter in theirs.named_parameters():
            if key.endswith(".g"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            if "_extra" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    given = {"text_seq_len": 7} if name == "rotary" else {}
    model, params = convert.from_torch(theirs, **given)
    rng = np.random.default_rng(0)
    text = rng.integers(1, 40, (5, 7))
    text[1, 3:] = text[4, 5:] = 0
    image = rng.random((5, 32, 32, model.channels), np.float32)
    return theirs, model, params, text, image


def tensors(text, image):
    """Token ids and images as the package takes them."""
    return torch.tensor(text), torch.tensor(image.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_encodings_and_latents(name):
    theirs, model, params, text, image = make(name)
    mask = text != 0

    @jax.jit
    def ours(params):
        image_features = model.image_features(params, 2 * image - 1)
        text_features = model.text_features(params, text, mask)
        if model.use_all_token_embeds:
            pair = text_features.tokens_BNE, image_features.tokens_BNE
        else:
            pair = text_features.pooled_BE, image_features.pooled_BE
        latents = [
            project(params, one, extra)
            for extra in ((False, True) if model.extra_latent_projection else (False,))
            for project, one in zip((model.project_text, model.project_image), pair, strict=True)
        ]
        embedded = model.embed_text(params, text, mask), model.embed_image(params, 2 * image - 1)
        return text_features, image_features, latents, embedded

    with jax.default_matmul_precision("highest"), torch.no_grad():
        of_text, of_image, latents, (embedded, shown) = ours(params)
        t_text, t_image = tensors(text, image)
        text_encodings, image_encodings = theirs(t_text, t_image, return_encodings=True)
        expected = theirs(t_text, t_image, return_latents=True)
    for found, wanted in ((of_text, text_encodings), (of_image, image_encodings)):
        assert error(found.pooled_BE, wanted[:, 0]) < NETWORK
        assert error(found.tokens_BNE, wanted[:, 1:]) < NETWORK
    assert len(latents) == len(expected)
    assert all(error(a, b) < NETWORK for a, b in zip(latents, expected, strict=True))
    assert np.allclose(embedded.encodings_BLE, np.where(mask[..., None], of_text.tokens_BNE, 0))
    if model.use_all_token_embeds:
        wanted = unit(jnp.sum(latents[0] * mask[..., None], 1) / mask.sum(1, keepdims=True))
        assert np.allclose(embedded.embed_BD, wanted, atol=1e-6)
        assert np.allclose(shown, unit(jnp.mean(latents[1], 1)), atol=1e-6)
    else:
        assert np.array_equal(embedded.embed_BD, latents[0])
        assert np.array_equal(shown, latents[1])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_bit_for_bit_and_strict(name):
    theirs, model, params, _, _ = make(name)
    exported, state = convert.to_torch(model, params), theirs.state_dict()
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    theirs.load_state_dict(exported, strict=True)
