"""What the U-Net of DALL-E 2 has beyond the package: text at all levels, heads, a scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.errors import UserError
from t2i_jax.on_host import initialise
from tests.weights import moved

FIELDS = dict(dim=8, dim_mults=(1,), resnet_groups=4, attn_heads=1, attn_dim_head=8)
FIELDS |= dict(num_resnet_blocks=0, init_cross_embed=False, init_conv_kernel_size=1)
FIELDS |= dict(cond_on_text_encodings=True, text_embed_dim=6, max_text_len=4, cross_attn=True)
# the middle's cross-attention is what the package has; without it the text has one way alone
MIDDLE = ("mid_first", "mid_second")


def _params(unet, *inputs):
    return moved(initialise(lambda key: unet.init(key, *inputs), jax.random.key(0))["params"], 0.1)


def outputs(**fields):
    """Of two texts and of none, by a network whose middle does not see the text."""
    unet = t2i.DecoderUnet(**FIELDS, **fields)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 2, 2, 3)).astype(np.float32)
    text = rng.normal(size=(3, 4, 6)).astype(np.float32)
    keep = np.array([True, True, False])
    params = _params(unet, image[:1], np.zeros(1, np.float32), None, text[:1])

    @jax.jit
    def run(params):
        for name in MIDDLE:
            shut = params[name]["cross_attention"]
            params[name]["cross_attention"] = jax.tree.map(jnp.zeros_like, shut)
        same = jnp.broadcast_to(image[:1], image.shape)
        return unet.apply(
            {"params": params}, same, jnp.full(3, 5.0), None, text, keep_text_B=jnp.asarray(keep)
        )

    return np.asarray(run(params))


@pytest.mark.parametrize("field", [None, "text_at_levels", "add_text_to_time"])
def test_the_text_is_seen_where_it_is_asked_for(field):
    one, other, without = outputs(**({field: True} if field else {}))
    seen = field is not None
    assert (np.abs(one - other).max() > 1e-4) == seen
    assert (np.abs(one - without).max() > 1e-4) == seen


PACKAGE_LACKS = {
    "text_at_levels": True,
    "add_text_to_time": True,
    "cross_attn_heads": 2,
    "cross_attn_dim_head": 4,
    "image_embed_scale": 2.0,
}


@pytest.mark.parametrize("field", PACKAGE_LACKS)
def test_what_the_package_lacks_is_not_written_for_it(field):
    value = PACKAGE_LACKS[field]
    unet = t2i.DecoderUnet(**FIELDS, **{field: value})
    shapes = jax.eval_shape(
        unet.init, jax.random.key(0), jnp.zeros((1, 2, 2, 3)), jnp.zeros(1), None,
        jnp.zeros((1, 4, 6)),
    )  # fmt: skip
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes["params"])
    with pytest.raises(UserError, match=f"{field}={value} of the DecoderUnet has no form"):
        convert.to_torch(unet, params)


def test_heads_of_cross_attention_and_the_scale_of_embeddings():
    fields = FIELDS | dict(cond_on_image_embeds=True, image_embed_dim=5, num_image_tokens=1)
    unet = t2i.DecoderUnet(**fields, cross_attn_heads=2, cross_attn_dim_head=4)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 2, 2, 3)).astype(np.float32)
    embed = rng.normal(size=(1, 5)).astype(np.float32)
    params = _params(unet, image, np.zeros(1, np.float32), embed)
    assert params["mid_first"]["cross_attention"]["to_q"]["kernel"].shape == (8, 2 * 4)
    assert params["mid_first"]["cross_attention"]["null_kv"].shape == (2, 4)
    scaled = unet.clone(image_embed_scale=4.0)
    once, twice = (
        jax.jit(one.apply)({"params": params}, image, jnp.zeros(1), embed / divisor)
        for one, divisor in ((unet, 1), (scaled, 4))
    )
    np.testing.assert_array_equal(once, twice)  # a power of two rounds nothing


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(add_text_to_time=True, cond_on_text_encodings=False), "add_text_to_time=True with"),
        (dict(text_at_levels=True, cond_on_text_encodings=False), "text_at_levels=True with"),
        (dict(text_at_levels=True, cross_attn=False), "no level that could see the text"),
        (dict(image_embed_scale=0.0), "image_embed_scale=0.0 leaves no embedding"),
    ],
)
def test_nonsense_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        t2i.DecoderUnet(**{**FIELDS, **fields})
