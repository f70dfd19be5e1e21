"""The cascade: what it trains, what it refuses, and that sampling depends on nothing but what is
given.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import t2i_jax as t2i
from t2i_jax import config
from t2i_jax.data.crop import crop
from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.samplers import Churn
from t2i_jax.errors import UserError
from t2i_jax.models.unet import NullUnet
from t2i_jax.nn.flops import flops_of
from t2i_jax.on_host import initialise
from t2i_jax.runs import evaluation
from t2i_jax.runs.recipe import TYPES
from t2i_jax.systems.cascade import stage as imagen_stage
from t2i_jax.systems.cascade.stage import Stage
from t2i_jax.systems.imagen import sampling
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.imagen.task import ImagenTask, group
from t2i_jax.train import state as states
from t2i_jax.train.config import TrainConfig
from t2i_jax.train.step import train_step
from tests.systems.toy_cascade import LEAN, PLAIN, TASK, UNET, batch_of, cascade_of


def trained(task, seed=1):
    """Random weights in place of trained ones: a new network answers 0."""
    params, stats = jax.device_get(initialise(task.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: a + 0.2 * rng.normal(size=a.shape).astype(np.float32), params)
    updates = jax.tree.map(lambda a: a + 1, stats["updates"])
    return ImagenSystem(task, jax.tree.map(jnp.asarray, params), updates)


@functools.cache
def cascade():
    return trained(TASK)


@functools.cache
def unconditional():
    """One stage without texts."""
    return trained(PLAIN)


def prompts(count, seed=3):
    embeds = np.random.default_rng(seed).normal(size=(count, 3, 6)).astype(np.float32)
    return embeds, np.ones((count, 3), bool)


def test_a_configuration_goes_to_json_and_back_and_is_overridden_by_index():
    again = config.from_dict(config.to_dict(TASK), TYPES)
    assert again == TASK
    changed = config.override(again, ["stages.1.noise.sigma_max=160", "stages.0.unet.dim=16"])
    assert changed.stages[1].noise.sigma_max == 160 and changed.stages[0].unet.dim == 16
    with pytest.raises(UserError, match="entry 2 of 2"):
        config.override(again, ["stages.2.steps=4"])


def test_sampling_has_a_program_for_each_stage_whichever_of_them_trains(monkeypatch):
    assert list(TASK.sampling_programs(2)) == ["stage 1", "stage 2"]
    monkeypatch.setattr(sampling, "generate", lambda *_, task, **__: task)
    tasks = (dataclasses.replace(TASK, train_stages=stages) for stages in ((1,), (2,), None))
    programs = {ImagenSystem(task, {}, {})._program({}, {}, None) for task in tasks}
    assert programs == {TASK}


def test_the_networks_are_those_of_a_cascade():
    first, second = TASK.networks
    assert (first.lowres_cond, second.lowres_cond, first.text_embed_dim, first.cond_on_text) == (
        False,
        True,
        6,
        True,
    )
    assert not PLAIN.networks[0].cond_on_text and "text_mask" not in PLAIN.batch_spec(1)


def steps_of(task, steps, train_stages=None, state=None):
    task = dataclasses.replace(task, train_stages=train_stages)
    optimisers = states.optimisers_of(task, TrainConfig(steps=10))
    if state is None:
        state = initialise(states.start_of(task, optimisers, 0.0), jax.random.key(0))
    step = jax.jit(
        lambda state, batch: train_step(state, {}, batch, task=task, optimisers=optimisers)
    )
    for i in range(steps):
        state, metrics = step(state, batch_of(task, seed=i))
    return state, metrics


def test_both_stages_train_in_one_run_and_each_alone_goes_on_from_there():
    task = cascade_of(LEAN)
    state, metrics = steps_of(task, 1)
    assert set(metrics) >= {"loss", "loss/stage_1", "loss/stage_2", "grad_norm/stage_2"}
    assert all(np.isfinite(float(value)) for value in metrics.values())
    before = jax.device_get(state.params)
    state, metrics = steps_of(task, 1, (2,), state)
    assert {name: int(count) for name, count in state.stats["updates"].items()} == {
        "stage_1": 1,
        "stage_2": 2,
    }
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), state.params, before)
    assert all(jax.tree.leaves(same["stage_1"])) and not all(jax.tree.leaves(same["stage_2"]))
    assert "loss/stage_1" not in metrics and "loss" in metrics


class Flat(ImagenTask):
    """Without networks: the loss of a stage is that of one number."""

    def init(self, key):
        params = {group(number): {"x": jnp.ones(())} for number in self._trainable}
        return params, {"updates": {name: jnp.int32(0) for name in params}}

    def loss(self, params, stats, frozen, batch, key, step, number):
        return self._told(params[group(number)]["x"] * batch["x"], stats, number)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_one_update_whatever_it_accumulates(accumulate):
    task = Flat(TASK.stages, TASK.text, train_stages=(2,))
    optimisers = states.optimisers_of(task, TrainConfig(steps=10))
    state = initialise(states.start_of(task, optimisers, 0.0), jax.random.key(0))
    more = dict(task=task, optimisers=optimisers, accumulate=accumulate)
    state, _ = jax.jit(functools.partial(train_step, **more))(state, {}, {"x": np.ones(8)})
    assert state.stats["updates"] == {"stage_1": 0, "stage_2": 1}


def test_the_loss_is_that_of_the_crop_that_training_sees():
    """With crops at (0, 0) and images that are zero elsewhere nothing of the rest is seen."""
    stage = dataclasses.replace(TASK.stages[1], unet=TASK.networks[1], crop_size=8)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def of(image):
        """The losses, and the smaller image that the network sees."""
        draws = imagen_stage.draw(stage, jax.random.key(0), image.shape, 0.0, lowres=True)
        draws = draws._replace(corner_B2=jnp.zeros((2, 2), int))
        seen = []

        def bind(*pictures):
            seen.append(pictures[0])
            return lambda x, condition, keep, *last: x

        loss = imagen_stage.losses(stage, bind, image, draws, 8)
        return loss, seen[0]

    (loss, seen) = of(image)
    other_loss, other_seen = of(np.where(np.arange(16)[None, None, :, None] < 8, image, 0))
    np.testing.assert_array_equal(loss, other_loss)
    assert loss.shape == (2,) and seen.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(seen, other_seen)


def test_self_conditioning_shows_the_estimate_or_nothing_and_gives_it_no_gradient():
    stage = Stage(
        UNET.clone(self_cond=True, cond_on_text=False),
        image_size=8,
        noise=Ddpm(objective="x_start"),
    )
    image = jnp.zeros((1, 8, 8, 3))
    draws = imagen_stage.draw(stage, jax.random.key(0), image.shape, 0.0, lowres=False)

    def net(scale):
        return lambda *pictures: lambda x, condition, keep, last: scale * (x + 10 * last)

    def of(scale, guess):
        return imagen_stage.losses(stage, net(scale), image, draws._replace(guess=guess), None)[0]

    x = stage.noise.add(image, draws.eps_BHWC, draws.level_B)
    weight = stage.noise.weight(draws.level_B)[0]
    assert of(0.5, jnp.bool_(False)) == pytest.approx(
        float(weight * jnp.mean((0.5 * x) ** 2)), rel=1e-5
    )
    assert of(0.5, jnp.bool_(True)) == pytest.approx(
        float(weight * jnp.mean((3.0 * x) ** 2)), rel=1e-5
    )
    slope = jax.grad(of)(0.5, jnp.bool_(True))  # of (scale * (x + 10 * constant))^2 alone
    assert slope == pytest.approx(float(weight * jnp.mean(2 * 3.0 * 6.0 * x**2)), rel=1e-4)


def test_a_picture_does_not_depend_on_its_batch():
    embeds, mask = prompts(3)
    each_alone = cascade().generate((embeds, mask), seed=5, batch_size=1)
    assert each_alone.shape == (3, 16, 16, 3) and each_alone.dtype == np.uint8
    two_by_two = cascade().generate((embeds, mask), seed=5, batch_size=2)
    # products in another order may round otherwise
    assert np.abs(each_alone.astype(int) - two_by_two).max() <= 1
    assert len(np.unique(each_alone)) > 20 and (each_alone[0] != each_alone[1]).any()


def test_stages_are_returned_and_left_out():
    small, large = cascade().generate(prompts(1), return_stages=True)
    assert small.shape == (1, 8, 8, 3) and large.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(cascade().generate(prompts(1), stop_at=1), small)
    enlarged = cascade().upscale(small, prompts(1))
    assert enlarged.shape == (1, 16, 16, 3)
    # sharper images than the first stage makes are first made as small as those
    means = np.random.default_rng(0).integers(60, 190, (1, 8, 8, 3), np.uint8)
    checks = np.where((np.indices((32, 32)).sum(axis=0) % 2)[..., None], 50, -50)
    sharp = (means.repeat(4, axis=1).repeat(4, axis=2) + checks).astype(np.uint8)
    of_sharp, of_means = (cascade().upscale(start, prompts(1)) for start in (sharp, means))
    assert np.abs(of_sharp.astype(int) - of_means).max() <= 1 < of_means.std()
    assert cascade().upscale(np.zeros((2, 6, 5, 3), np.uint8)).shape == (2, 16, 16, 3)
    assert cascade().generate(prompts(1), image_sizes=((4, 12), (12, 20)), return_pil=True)[
        0
    ].size == (20, 12)


def test_images_are_enlarged_without_captions_as_where_training_dropped_them(capsys):
    small = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    made = cascade().upscale(small, seed=3)
    start = cascade().generate(prompts(2), start_at=2, start_images=small, guidance=0.0, seed=3)
    assert np.abs(made.astype(int) - start).max() <= 1
    assert capsys.readouterr().err == ""
    never = dataclasses.replace(cascade(), task=dataclasses.replace(TASK, cond_drop_prob=0.0))
    never.check_upscale()
    assert "no prompts are given, and this run was trained without" in capsys.readouterr().err
    encoded = never._texts(never._enlarging(2, None, None, {})[0], None, [1.0])
    assert set(encoded) == {"text_embeds", "text_mask"}  # empty captions


def test_an_untrained_stage_is_not_sampled(capsys):
    early = dataclasses.replace(cascade(), updates={"stage_1": 3, "stage_2": 0})
    assert early.generate(prompts(1)).shape == (1, 8, 8, 3)
    assert (
        "stage 2 was never trained: these are the images of stage 1, 8 pixels"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="stage 2 was never trained.*stop_at=1"):
        early.generate(prompts(1), stop_at=2)
    with pytest.raises(UserError, match="stage 1 was never trained.*train it first"):
        dataclasses.replace(cascade(), updates={}).generate(prompts(1))


def test_guidance_without_dropped_captions_is_said(capsys):
    never = dataclasses.replace(cascade().task, cond_drop_prob=0.0)
    for task, scale, negative, told in (
        (never, 3.0, None, True),
        (never, 1.0, None, False),
        (never, 3.0, prompts(1), False),
        (cascade().task, 3.0, None, False),
    ):
        dataclasses.replace(cascade(), task=task)._texts(prompts(1), negative, [scale])
        assert ("guidance=1 is what it has learnt" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("guidance", "stages", "used"),
    [
        ((3.0, 1.0), {"start_at": 2}, False),
        ((1.0, 3.0), {"stop_at": 1}, False),
        ((1.0, 3.0), {"start_at": 2}, True),
        ((3.0, 1.0), {"stop_at": 1}, True),
        ((3.0, 1.0), {}, True),
        ((1.0, 1.0), {}, False),
    ],
)
def test_negative_prompts_are_for_a_guided_stage_that_runs(guidance, stages, used, monkeypatch):
    monkeypatch.setattr(ImagenSystem, "_generated", lambda self, options, prompt, *_, **__: prompt)
    if "start_at" in stages:
        stages |= {"start_images": IMAGE}
    arguments = dict(negative_prompts=prompts(1, 9), guidance=guidance, **stages)
    if used:
        assert "negative_text_mask" in cascade().generate(prompts(1), **arguments)
        return
    with pytest.raises(UserError, match="negative_prompts have no effect at guidance=1"):
        cascade().generate(prompts(1), **arguments)


def test_values_of_more_u_nets_than_there_are_are_told(capsys):
    fields = {"image_sizes": 8, "condition_on_text": False}
    made = t2i.Imagen(UNET, noise_schedules=("linear", "cosine", "linear"), **fields)
    told = "noise_schedules=('linear', 'cosine', 'linear') has 3 values for 1 U-Net;"
    assert told in capsys.readouterr().err
    assert made == t2i.Imagen(UNET, noise_schedules="linear", **fields)
    assert not capsys.readouterr().err


def test_its_own_t5_reads_as_many_tokens_as_the_package():
    for make in (t2i.Imagen, t2i.ElucidatedImagen):
        assert make(UNET, image_sizes=8).text.max_length == 256


def test_guidance_and_negative_prompts_change_the_picture():
    plain, guided, negative = (
        cascade().generate(prompts(1), stop_at=1, **more)
        for more in (
            {"guidance": 1},
            {"guidance": 4.0},
            {"guidance": 4.0, "negative_prompts": prompts(1, 9)},
        )
    )
    assert (plain != guided).any() and (guided != negative).any()
    same = cascade().generate(prompts(1), stop_at=1, guidance=4.0, interval=(1e5, 1e6))
    np.testing.assert_array_equal(same, plain)
    against_itself = cascade().generate(
        prompts(1), stop_at=1, guidance=4.0, negative_prompts=prompts(1)
    )
    assert np.abs(against_itself.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("sampler", imagen_stage.SAMPLERS)
def test_completion_keeps_what_is_known_bit_for_bit(sampler):
    init = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mask = np.arange(8)[None, :] < np.full((8, 1), 4)
    made = unconditional().generate(init_images=init, mask=mask, sampler=sampler, resample=2)
    np.testing.assert_array_equal(made[:, :, :4], init[:, :, :4])
    assert (made[:, :, 4:] != init[:, :, 4:]).mean() > 0.5


def test_images_and_masks_come_as_people_have_them(capsys):
    init = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    mask = np.arange(8)[None, :] < np.full((8, 1), 4)
    made = unconditional().generate(init_images=init[None], mask=mask, resample=1)
    pictures = (init, [init], Image.fromarray(init), init / np.float32(255))
    for given in pictures:
        again = unconditional().generate(init_images=given, mask=Image.fromarray(mask), resample=1)
        np.testing.assert_array_equal(again, made)
    assert capsys.readouterr().err == ""
    wide = np.pad(init, ((0, 0), (3, 5), (0, 0)))
    again = unconditional().generate(init_images=wide[:, :16], mask=mask, resample=1)
    assert "init_images is 16x8 pixels; the 8x8 in its middle are used" in capsys.readouterr().err
    several = unconditional().generate(init_images=[init, wide], strength=0.5)
    assert again.shape == (1, 8, 8, 3) and several.shape == (2, 8, 8, 3)


def test_a_changed_picture_is_nearer_the_weaker_the_change():
    smooth = np.broadcast_to(np.linspace(0, 255, 8)[None, :, None], (8, 8, 3)).astype(np.uint8)[
        None
    ]

    def distance(strength):
        return np.abs(
            unconditional().generate(init_images=smooth, strength=strength, steps=8).astype(float)
            - smooth
        ).mean()

    assert distance(0.15) < distance(0.5) < distance(1.0)


def test_pictures_to_condition_on():
    task = ImagenTask(
        stages=(Stage(UNET.clone(cond_images_channels=1), image_size=8, steps=1),),
        cond_drop_prob=0.0,
    )
    assert task.batch_spec(2)["cond_image"].shape == (2, 8, 8, 1)
    params, stats = initialise(task.init, jax.random.key(0))
    loss = jax.jit(task.loss, static_argnames="number")
    assert np.isfinite(loss(params, stats, {}, batch_of(task), jax.random.key(1), 0, number=1)[0])
    system = trained(task)
    one, other = (system.generate(cond_images=np.full((1, 5, 5, 1), v, np.uint8)) for v in (0, 255))
    assert (one != other).any()
    with pytest.raises(UserError, match="cond_images do not fit"):
        system.generate()


@pytest.mark.parametrize("stop_at", [2, 3])
@pytest.mark.parametrize("name", ["cond_images", "start_images"])
def test_what_a_stage_sees_of_an_image_does_not_depend_on_those_beside_it(name, stop_at):
    """Nor, of one to condition on, on the stages that run: training shows all of them the same."""
    larger = Stage(UNET.clone(cond_images_channels=3), image_size=16)
    largest = dataclasses.replace(larger, image_size=32)
    task = ImagenTask(stages=(Stage(UNET.clone(cond_images_channels=3), 8), larger, largest))
    system = ImagenSystem(task, {}, {group(number): 1 for number in (1, 2, 3)})
    rng = np.random.default_rng(0)
    sizes = {"sharp": (96, 96), "other": (96, 96), "small": (20, 20), "wide": (40, 50)}
    images = {key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in sizes.items()}

    def seen(*keys):
        shown = {"cond_images": [images["sharp"]] * len(keys), "start_images": None}
        shown |= {name: [images[key] for key in keys]}
        options = {"stop_at": stop_at}
        if name == "start_images":
            options["start_at"] = 2
        nothing = dict(init_images=None, mask=None, batch_size=None, progress=False)
        _, batches = system._prepared(
            ImagenOptions(**options), {}, [1.0] * 3, seed=0, images_per_prompt=1, **shown, **nothing
        )
        return next(batches).arrays["start" if name == "start_images" else "cond_image"]

    alone = {key: seen(key)[0] for key in images}
    for keys in (("sharp", "other"), ("sharp", "small"), ("wide", "sharp"), tuple(images)):
        for key, row in zip(keys, seen(*keys), strict=True):
            np.testing.assert_array_equal(row, alone[key])
    if name == "cond_images":
        for key, image in images.items():
            np.testing.assert_array_equal(alone[key], crop(image, 32, "center"))


def test_flops_of_known_products():
    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=3)[0]

    assert flops_of(scanned, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == 3 * 2 * 4**3

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)

    assert flops_of(chosen, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == 2 * 4**3
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolved(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 5, 5, 2), (3, 3, 2, 7)))
    assert flops_of(convolved, *shapes) == 2 * 25 * 7 * 9 * 2


def test_a_first_stage_may_be_left_out():
    task = dataclasses.replace(PLAIN, stages=(Stage(NullUnet(), image_size=4), *PLAIN.stages))
    assert (
        [objective.group for objective in task.objectives] == ["stage_2"] == list(task.ema_groups)
    )
    system = trained(task)
    assert system.upscale(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 8, 8, 3)
    with pytest.raises(UserError, match="give start_images"):
        system.generate()


def test_flops_grow_with_the_batch_and_the_stages():
    both = TASK.flops(4)
    assert both > 1e6 and dataclasses.replace(TASK, train_stages=(1,)).flops(2) < both / 2


IMAGE = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(sampler="euler"), "sampler='euler' is not known"),
        (dict(steps=0), "steps=0 is not a number from 1"),
        (dict(steps=(1, 2)), "has 2 values for 1 stages"),
        (dict(guidance=float("nan")), "guidance=nan"),
        (dict(images_per_prompt=0), "images_per_prompt=0"),
        (dict(images_per_prompt=None), "images_per_prompt=None"),
        (dict(stop_at=2), "stop_at=2 is no stage"),
        (dict(start_at=2), "start_at=2 is nothing without start_images"),
        (dict(start_at=2, start_images=IMAGE), "start_at=2 is no stage"),
        (dict(strength=0.3), "strength=0.3 is nothing without init_images"),
        (dict(init_images=IMAGE, resample=2), "resample=2 is nothing without mask"),
        (dict(mask=np.ones((8, 8), bool)), "give init_images too"),
        (dict(init_images=IMAGE, mask=np.ones((4, 8), bool)), "mask is 8x4 pixels"),
        (dict(init_images=IMAGE, mask=2 * np.ones((8, 8))), "mask has values from 2 to 2"),
        (dict(init_images=IMAGE, mask=np.zeros((8, 8), bool)), "keeps nothing"),
        (dict(init_images=IMAGE.astype(int)), "init_images.* is int64; give uint8"),
        (dict(init_images=IMAGE[0].transpose(2, 0, 1)), r"init_images is uint8 \(3, 8, 8\); give"),
        (dict(init_images=IMAGE, strength=1.5), "strength=1.5"),
        (dict(init_images=IMAGE, strength=0.0), "strength=0.0"),
        (dict(start_images=IMAGE), "give start_at=2 too, or leave start_images out"),
        (dict(prompts=["a red circle"]), "trained without texts"),
        (dict(image_sizes=(7,)), "multiples of 2"),
        (dict(image_sizes=(8, 16)), "2 sizes for 1 stages"),
        (dict(seed=2**64), "seed=18446744073709551616"),
        (dict(parallel=2.0), "parallel=2.0"),
        (dict(cond_images=IMAGE), "leave them out"),
    ],
)
def test_wrong_arguments_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        unconditional().generate(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(interval=(5.0, 0.3)), r"interval=\(5.0, 0.3\) is not a pair"),
        (dict(interval=(1.0, float("nan"))), "interval=nan is not a finite number"),
        (dict(interval=(-1.0, 1.0)), "interval=-1.0 is below 0"),
        (dict(interval=3.0), "interval=3.0 is not a pair"),
        (dict(interval=(1.0, 2.0, 3.0)), "is not a pair"),
        (dict(image_sizes=8), "image_sizes=8 is not one size per stage"),
        (dict(image_sizes=()), "is empty"),
        (dict(image_sizes=((8, 8, 8),)), "is not one size per stage"),
        (dict(image_sizes=(8.0,)), "is not one size per stage"),
        (dict(image_sizes=(0,)), "is not one size per stage"),
        (dict(image_sizes=(10**9,)), "from 1 to 16384"),
        (dict(steps=10**9), "steps=1000000000 is too many"),
        (dict(stop_at=1.5), "stop_at=1.5"),
        (dict(strength=None), "strength=None is not a finite number"),
        (dict(parallel="all"), "parallel='all' is not a finite number"),
        (dict(lowres_level=float("nan")), "lowres_level=nan"),
        (dict(compat="imagen"), "compat='imagen' is not known"),
    ],
)
def test_options_are_checked_when_they_are_made(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ImagenOptions(**options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ImagenTask(stages=()), "at least one"),
        (lambda: Stage(UNET, image_size=9), "stage.image_size=9 is not a multiple of 2, .*; try 8"),
        (lambda: Stage(UNET, image_size=8, crop_size=8), "not below image_size"),
        (lambda: Stage(UNET, image_size=8, sampler="dpm"), "did you mean|known:"),
        (lambda: Stage(UNET, image_size=8, percentile=1.5), "percentile=1.5"),
        (lambda: ImagenTask(stages=(Stage(UNET, 8), Stage(UNET, 8))), r"image_size \[8, 8\]"),
        (lambda: ImagenTask(stages=(Stage(UNET, 8), Stage(NullUnet(), 16))), "only a first stage"),
        (
            lambda: ImagenTask(stages=(Stage(UNET, 8, crop_size=4),)),
            "the first stage needs whole images",
        ),
        (lambda: dataclasses.replace(TASK, train_stages=(3,)), "names 3; stages that train: 1, 2"),
        (lambda: dataclasses.replace(TASK, cond_drop_prob=1.5), "cond_drop_prob=1.5"),
    ],
)
def test_impossible_cascades_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_noise_on_the_smaller_image_that_was_never_trained_is_refused():
    near = LowresNoise(sample_level=0.1, train_limit=0.2)
    larger = dataclasses.replace(TASK.stages[1], lowres=near)
    task = dataclasses.replace(TASK, stages=(TASK.stages[0], larger))
    system = ImagenSystem(task, {}, {"stage_1": 1, "stage_2": 1})
    told = "lowres_level=0.3 is above the lowres.train_limit=0.2 of stage 2, .*; give 0.2 at most"
    with pytest.raises(UserError, match=told):
        system.generate(prompts(1), lowres_level=0.3)
    options = ImagenOptions(lowres_level=0.3)
    train = (t2i.DataConfig(), t2i.TrainConfig(steps=1, batch_size=1))
    recipe = t2i.Recipe(task, *train, evaluation=t2i.Evaluation(options=options))  # as stored
    with pytest.raises(UserError, match=f"^evaluation.options.{told}"):
        evaluation.check(recipe)
    for level, stages in ((0.2, task.stages), (0.3, task.stages[:1]), (1.0, TASK.stages)):
        dataclasses.replace(task, stages=stages).check_sampling(ImagenOptions(lowres_level=level))


def test_captions_are_needed_where_they_were_trained_on():
    with pytest.raises(UserError, match="trained on captions"):
        cascade().generate()
    with pytest.raises(UserError, match="2 images for 1 prompt;"):
        cascade().generate(prompts(1), start_at=2, start_images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="change what the first stage makes"):
        cascade().generate(prompts(1), start_at=2, start_images=IMAGE, init_images=IMAGE)


def test_churn_is_for_heun():
    stage = Stage(UNET, image_size=8, noise=Edm(), churn=Churn())
    assert imagen_stage.sampling_of(stage) == ("heun", 32) and imagen_stage.sampling_of(
        stage, "ddim"
    ) == ("ddim", 64)
    assert group(2) == "stage_2"
