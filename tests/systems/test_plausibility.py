"""Guidance and its plausibility limit, with a tiny Parti that knows its set by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2i_jax import sharding
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.systems.parti import sampling
from t2i_jax.systems.parti.options import PartiOptions
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.text.stored import StoredText

_IMAGES, _SIDE, _CODES, _STEPS = 16, 4, 64, 400
_TASK = PartiTask(
    PartiTransformer(dim=32, depth=1, heads=2, mlp_dim=64, fmap_size=_SIDE, codebook_size=_CODES),
    StoredText(dim=16, max_length=1),
    stored_tokens=True,
)


@pytest.fixture(scope="module")
def decibel():
    """`(options) -> dB` of the images that it paints to those that it was trained on.

    A token is a pixel, as grey as its number says.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, _CODES, (_IMAGES, _SIDE**2)).astype(np.int32)
    prompt = {
        "text_embeds": rng.normal(size=(_IMAGES, 1, 16)).astype(np.float32),
        "text_mask": np.ones((_IMAGES, 1), bool),
    }
    optimizer = optax.adam(3e-3)

    def step(carry, key):
        params, state = carry

        def loss(params):
            return _TASK.loss(params, {}, {}, {"tokens": tokens, **prompt}, key, 0)[0]

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(key):
        params = sharding.unbox(_TASK.init(key)[0])
        first = (params, optimizer.init(params))
        return jax.lax.scan(step, first, jax.random.split(key, _STEPS))[0][0]

    params, keys = train(jax.random.key(0)), jax.random.split(jax.random.key(1), _IMAGES)

    def measure(options):
        found, _ = sampling.generate(
            params["parti"], {}, prompt, keys, task=_TASK, sampling=options.sampling,
            guidance=jnp.float32(options.guidance), temperature=jnp.float32(options.temperature),
            plausibility=jnp.float32(options.plausibility or 0),
        )  # fmt: skip
        error = np.mean(np.square((np.asarray(found) - tokens) / (_CODES - 1)))
        return float(-10 * np.log10(error + 1e-4))

    return measure


def test_guidance_keeps_what_the_model_knows_and_without_the_limit_it_does_not(decibel):
    def at(guidance, **options):
        return decibel(PartiOptions(guidance=guidance, **{"temperature": 0.0, **options}))

    plain = at(1.0)
    assert plain > 30
    assert abs(at(3.0) - plain) < 1 and abs(at(6.0) - plain) < 1
    assert at(3.0, plausibility=None) < plain - 5
    assert at(3.0, plausibility=0.0) == at(3.0, plausibility=None)
    assert at(3.0, temperature=1.0) > at(3.0, temperature=1.0, plausibility=None) + 5
