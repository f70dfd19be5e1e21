"""Super-resolution: sizes, a start at bicubic enlargement, learning, and its system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.models.discriminator import Discriminator
from t2i_jax.models.super_resolution import SuperResolution, pixel_shuffle
from t2i_jax.on_host import initialise
from t2i_jax.pixels import shrink
from t2i_jax.systems.super_resolution.system import SuperResolutionSystem
from t2i_jax.systems.super_resolution.task import SuperResolutionTask

_TASK = SuperResolutionTask(SuperResolution(scale=2, blocks=1, channels=8), image_size=16)


def _images(rows=2, size=16):
    return np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)


def _params(task):
    return initialise(task.init, jax.random.key(0))[0]


@pytest.mark.parametrize(("scale", "millions"), [(2, 14.18), (4, 28.36)])
def test_parameters_are_near_those_of_the_paper(scale, millions):
    task = SuperResolutionTask(SuperResolution(scale=scale), image_size=64)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    # about 15 and 30
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 2) == millions
    assert task.flops(2) == 2 * task.flops(1) > 0


def test_pixel_shuffle_puts_four_channels_into_a_square():
    x = jnp.arange(4.0).reshape(1, 1, 1, 4)
    assert pixel_shuffle(x)[0, :, :, 0].tolist() == [[0, 1], [2, 3]]


def test_shrinking_takes_means():
    image = np.array([[0, 4], [8, 12]], np.uint8)[None, ..., None]
    assert shrink(jnp.asarray(image), 2).tolist() == [[[[6]]]]


@pytest.mark.parametrize("scale", [2, 4])
def test_the_system_enlarges_pictures_of_any_size(scale):
    task = SuperResolutionTask(SuperResolution(scale=scale, blocks=1, channels=8), image_size=16)
    system = SuperResolutionSystem(task, _params(task))
    made = system.upscale(_images()[:, :6])
    assert made.shape == (2, 6 * scale, 16 * scale, 3) and made.dtype == np.uint8
    flat = system.upscale(np.full((1, 8, 8, 3), 100, np.uint8))
    assert np.abs(flat.astype(int) - 100).mean() < 30  # near the picture from the start
    assert system.shrink(made).shape == (2, 6, 16, 3)
    by_one = system.upscale(_images()[:, :6], batch_size=1)
    assert np.abs(by_one.astype(int) - made).max() <= 1


def test_a_few_steps_lower_the_loss():
    params, smooth = _params(_TASK), np.linspace(0, 255, 16).astype(np.uint8)
    batch = {"image": np.broadcast_to(smooth[None, :, None, None], (2, 16, 16, 3))}
    step = jax.jit(
        jax.value_and_grad(lambda p: _TASK.loss(p, {}, {}, batch, None, jnp.int32(0))[0])
    )
    first, gradients = step(params)
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
        last, gradients = step(params)
    assert last < first


def test_the_adversary_has_its_own_objective():
    task = SuperResolutionTask(
        _TASK.model, image_size=16, discriminator=Discriminator((8, 8, 8), groups=4)
    )
    params, batch = _params(task), {"image": _images()}
    names = [objective.group for objective in task.objectives]
    assert names == ["super_resolution", "discriminator"]
    for objective in task.objectives:

        def of_own(p, objective=objective):
            return objective.loss(p, {}, {}, batch, None, jnp.int32(0))[0]

        gradients = jax.jit(jax.grad(of_own))(params)
        moved = {
            name
            for name in names
            if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients[name]))
        }
        assert moved == {objective.group}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SuperResolution(scale=3), "scale"),
        (lambda: SuperResolution(blocks=0), "blocks=0"),
        (lambda: SuperResolutionTask(SuperResolution(scale=4), image_size=30), "try 28"),
        (lambda: SuperResolutionTask(SuperResolution(), image_size=32, gan_loss="hing"), "hinge"),
        (lambda: SuperResolutionSystem(_TASK, {}).upscale(_images() / 2), "values from 0 to"),
        (
            lambda: SuperResolutionSystem(_TASK, {}).upscale([_images()[0], _images()[0, :4]]),
            "images have several sizes",
        ),
        (lambda: SuperResolutionSystem(_TASK, {}).shrink(_images(size=15)), "2 divides"),
    ],
)
def test_nonsense_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
