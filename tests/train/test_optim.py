"""Optimisers: schedules by their corner values, decay and clipping by one update, refusals."""

import collections
import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.models.unet import Unet
from t2i_jax.systems.cascade.stage import Stage
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.text.learned import LearnedText
from t2i_jax.train import optim
from t2i_jax.train.config import TrainConfig
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.state import optimisers_of


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (dict(), 100, {0: 1.0, 100: 1.0}),
        (dict(warmup_steps=10), 100, {0: 0.0, 5: 0.5, 10: 1.0, 100: 1.0}),
        (
            dict(schedule="linear", warmup_steps=10, end_ratio=0.2),
            110,
            {10: 1.0, 60: 0.6, 110: 0.2, 200: 0.2},
        ),
        (dict(schedule="cosine", end_ratio=0.0), 100, {0: 1.0, 50: 0.5, 100: 0.0}),
        # Parti: 5,000 steps of warm-up, exponential decay from step 85,000 to a ratio of 0.025 at
        # 450,000.
        (
            dict(schedule="exponential", warmup_steps=5_000, decay_from=85_000, end_ratio=0.025),
            450_000,
            {5_000: 1.0, 85_000: 1.0, 267_500: 0.025**0.5, 450_000: 0.025, 500_000: 0.025},
        ),
    ],
)
def test_the_learning_rate_takes_its_values_at_the_corners(settings, steps, expected):
    rate = optim.learning_rate(OptimConfig(learning_rate=2.0, **settings), steps)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(2 * value, rel=1e-5, abs=1e-7)


def _update(settings, gradient, params):
    rule = optim.make(OptimConfig(learning_rate=0.1, **settings), 10)
    return rule.update(gradient, rule.init(params), params)[0]


def test_adamw_is_optax_s_on_matrices_and_does_not_decay_vectors():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    gradient = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    ours = _update(dict(weight_decay=0.5, clip_norm=0.0), gradient, params)
    rule = optax.adamw(0.1, 0.9, 0.99, 1e-8, weight_decay=0.5)
    theirs = rule.update(gradient, rule.init(params), params)[0]
    np.testing.assert_allclose(ours["kernel"], theirs["kernel"], rtol=1e-6)
    np.testing.assert_allclose(ours["bias"], theirs["bias"] + 0.1 * 0.5 * 3.0, rtol=1e-5)


def test_gradients_are_clipped_together_before_the_rule_sees_them():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 2))}
    gradient = {"a": jnp.full((2, 2), 3.0), "b": jnp.full((2, 2), 4.0)}
    rule = optim.make(OptimConfig(clip_norm=1.0), 10)
    seen = rule.update(gradient, rule.init(params), params)[1]
    first_moment = next(
        s for s in jax.tree.leaves(seen, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ).mu
    # (1 - b1) of the clipped norm
    assert float(optax.global_norm(first_moment)) == pytest.approx(0.1 * 1.0, rel=1e-5)


def test_a_norm_below_the_limit_is_left_and_a_known_norm_is_taken():
    params = {"a": jnp.zeros(2)}
    rule = optim.make(OptimConfig(clip_norm=5.0, learning_rate=1.0), 10)

    def moment(gradient, **known):
        state = rule.update({"a": jnp.array(gradient)}, rule.init(params), params, **known)[1]
        return 10 * optax.tree.get(state, "mu")["a"]

    np.testing.assert_allclose(moment([3.0, 1.0]), [3.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(moment([30.0, 40.0]), [3.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(moment([0.0, 0.0]), [0.0, 0.0])
    np.testing.assert_allclose(moment([3.0, 1.0], norm=jnp.float32(10.0)), [1.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("of", ["one type", "two types", "large alone"])
def test_on_one_cpu_the_norm_is_that_of_optax(key, of):
    grads = {
        "small": jax.random.normal(key, (3, 5)),
        "scalar": jnp.float32(-2.0),
        "large": jax.random.normal(key, (2**16 + 1,)),
        "half": jnp.ones(7, jnp.bfloat16),
    }
    names = {"one type": ["small", "scalar", "large"], "two types": grads, "large alone": ["large"]}
    grads = {name: grads[name] for name in names[of]}
    with jax.set_mesh(sharding.make_mesh()):
        found = jax.jit(optim.global_norm)(grads)
    assert float(found) == pytest.approx(float(optax.global_norm(grads)), rel=1e-5)


def test_adafactor_stores_rows_and_columns_and_descends():
    params = {"kernel": jnp.ones((128, 256))}
    rule = optim.make(
        OptimConfig(name="adafactor", learning_rate=0.01, b2=0.96, weight_decay=0.045), 10
    )
    state = rule.init(params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes[-1] == 128 * 256 and sizes[-2] == 256  # one full-sized array: the momentum

    def loss(p):
        return jnp.sum(p["kernel"] ** 2)

    for _ in range(3):
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert float(loss(params)) < 128 * 256


def test_muon_moves_a_matrix_along_its_singular_vectors_and_the_rest_by_adam_with_nesterov():
    keys = jax.random.split(jax.random.key(0), 3)
    gradient = {
        "kernel": jax.random.normal(keys[0], (3, 8, 6)),
        "bias": jax.random.normal(keys[1], (3, 6)),
    }
    params = jax.tree.map(jnp.zeros_like, gradient)
    config = OptimConfig(name="muon", learning_rate=0.1, matrix_rate=0.5, clip_norm=0.0)
    rule = optim.make(config, 10, matrices={"kernel": optim.MATRIX, "bias": None})
    update = rule.update(gradient, rule.init(params), params)[0]
    # five Newton-Schulz steps bring singular values near 1, from about 0.7 to 1.2
    for layer in range(3):
        u, _, v = np.linalg.svd(gradient["kernel"][layer], full_matrices=False)
        along = -np.diagonal(u.T @ update["kernel"][layer] @ v.T) / 0.5
        assert along.min() > 0.6 and along.max() < 1.3
    rest = optax.nadam(0.1, 0.9, 0.99)
    np.testing.assert_allclose(
        update["bias"], rest.update(gradient, rest.init(params))[0]["bias"], rtol=1e-6
    )


def test_muon_takes_the_kernel_of_a_convolution_as_a_matrix_from_a_window_to_its_output():
    net = Unet(
        dim=8, dim_mults=(1, 1), layer_attns=False, layer_cross_attns=False, cond_on_text=False
    )
    task = ImagenTask(Stage(net, image_size=8))
    rule = optimisers_of(task, TrainConfig(steps=1, batch_size=1, optim=OptimConfig(name="muon")))[
        "stage_1"
    ]
    params = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0))[0])["stage_1"]
    moments = collections.Counter(
        leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(rule.init, params))
    )
    kernels = collections.Counter(leaf.shape for leaf in jax.tree.leaves(params))
    assert kernels[3, 3, 8, 8] == moments[3, 3, 8, 8] > 0  # one momentum each, and no second moment
    gradient = np.random.default_rng(0).normal(size=(3, 3, 8, 4)).astype(np.float32)
    rule = optim.make(
        OptimConfig(name="muon", matrix_rate=0.5, clip_norm=0.0), 10, matrices=optim.KERNEL
    )
    update = rule.update(gradient, rule.init(gradient), gradient)[0]
    values = np.linalg.svd(np.reshape(update, (72, 4)), compute_uv=False) / 0.5
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_takes_the_stacked_matrices_of_a_task_and_leaves_its_vocabularies_and_places_to_adam():
    net = PartiTransformer(
        dim=4, depth=2, heads=1, mlp_dim=12, fmap_size=2, codebook_size=7, text_embed_dim=4
    )
    task = PartiTask(
        model=net, text=LearnedText(dim=4, depth=2, heads=1, mlp_dim=12, vocab_size=9, max_length=3)
    )
    rule = optimisers_of(task, TrainConfig(steps=1, batch_size=1, optim=OptimConfig(name="muon")))[
        "parti"
    ]
    state = jax.eval_shape(
        rule.init, sharding.unbox(jax.eval_shape(task.init, jax.random.key(0))[0])["parti"]
    )
    moments = collections.Counter(leaf.shape for leaf in jax.tree.leaves(state))
    assert moments[2, 4, 12] == 2  # one momentum for each of two stacks of `wide`
    # Adam keeps two of each
    assert moments[7, 4] == moments[9, 4] == moments[4, 7] == 2 and moments[2, 4] > 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="adamx"), "did you mean 'adamw'"),
        (dict(schedule="cosin"), "did you mean 'cosine'"),
        (dict(learning_rate=0.0), r"optim.learning_rate=0.0 is not a positive"),
        (dict(matrix_rate=-1.0), r"optim.matrix_rate=-1.0 is not a positive"),
        (dict(learning_rate=float("nan")), "is not a positive"),
        (dict(warmup_steps=-1), r"optim.warmup_steps=-1 is below 0"),
        (dict(b1=1.0), r"optim.b1=1.0 is outside"),
        (dict(schedule="exponential", end_ratio=0.0), "end_ratio=0"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**settings)


def test_it_survives_json():
    given = OptimConfig(name="adafactor", clip_norm=4.0)
    assert config.from_dict(config.to_dict(given), {"OptimConfig": OptimConfig}) == given


def test_on_one_cpu_muon_goes_by_shape_with_the_state_and_the_numbers_of_optax(key):
    shapes = {"a": (8, 24), "b": (24, 8), "c": (8, 24), "kernel": (3, 3, 4, 8), "d": (6, 6)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    params |= {"stack": jnp.zeros((3, 8, 24)), "bias": jnp.zeros((5,)), "in": {"e": params["a"]}}
    matrices = dict.fromkeys(shapes, optim.MATRIX) | {"kernel": optim.KERNEL, "bias": None}
    matrices |= {"stack": optim.MATRIX, "in": {"e": optim.MATRIX}}
    config = OptimConfig(name="muon", weight_decay=0.1, warmup_steps=2)
    rule = optim.make(config, 10, matrices=matrices)

    def grads_of(step):
        return jax.tree.map(
            lambda leaf: jax.random.normal(jax.random.fold_in(key, step), leaf.shape), params
        )

    def moved(mesh):
        """(parameters, state, products of matrices in the program) after three updates."""
        state, after = rule.init(params), params
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            text = jax.jit(rule.update).lower(params, state, params).as_text()
            for step in range(3):
                updates, state = jax.jit(rule.update)(grads_of(step), state, after)
                after = optax.apply_updates(after, updates)
        return after, state, text.count("dot_general")

    *mine, few = moved(sharding.make_mesh(None))
    *theirs, many = moved(None)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert few == 3 * 3 < many  # three in an iteration, for three shapes
