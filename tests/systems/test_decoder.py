"""DALL-E 2's decoder: what it learns and makes, its conditions, latents, and refusals before
anything compiles.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax.config import from_dict, to_dict
from t2i_jax.data.columns import add_column
from t2i_jax.data.pack import pack
from t2i_jax.data.pipeline import batches
from t2i_jax.data.shapes import Shapes
from t2i_jax.diffusion.blur import LowresBlur, gaussian_blur
from t2i_jax.diffusion.learned_variance import LearnedVariance
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.clip import CLIP
from t2i_jax.models.decoder_cascade import cascade
from t2i_jax.on_host import initialise
from t2i_jax.pixels import to_float
from t2i_jax.runs.check import check_data
from t2i_jax.runs.recipe import TYPES
from t2i_jax.systems.base import Given
from t2i_jax.systems.cascade.inputs import sizes_of
from t2i_jax.systems.clip.system import ClipSystem
from t2i_jax.systems.decoder import latents
from t2i_jax.systems.decoder import stage as stages
from t2i_jax.systems.decoder.system import DecoderSystem
from t2i_jax.systems.decoder.task import DecoderTask
from t2i_jax.text.stored import StoredText
from t2i_jax.text.tokenizer import train_bpe
from t2i_jax.train import state as states
from t2i_jax.train.step import train_step
from tests.systems.toy_cascade import batch_of

UNET = dict(
    dim=8, dim_mults=(1,), resnet_groups=4, num_resnet_blocks=0, attn_heads=1, attn_dim_head=8,
    init_cross_embed=False, init_conv_kernel_size=3, attend_at_middle=False, max_text_len=3,
    num_image_tokens=2,
)  # fmt: skip
BASE = t2i.DecoderUnet(**UNET, cond_on_image_embeds=True, cond_on_text_encodings=True)
NOISE = t2i.DiscreteDdpm(timesteps=25, objective="v")
FIRST = t2i.DecoderStage(
    BASE, image_size=8, noise=NOISE, learned_variance=LearnedVariance(), sampler="ddim", steps=3
)
SECOND = t2i.DecoderStage(
    t2i.DecoderUnet(**UNET, memory_efficient=True),
    image_size=16,
    noise=NOISE,
    lowres=LowresBlur(noise=True),
    steps=2,
)
UNCONDITIONAL = t2i.DecoderUnet(**UNET)
STORED = DecoderTask(
    stages=(FIRST, SECOND), image_embed_dim=6, text=StoredText(dim=5, max_length=3)
)
VIT = t2i.ViTVQGAN(image_size=16, patch_size=4, dim=8, layers=1, heads=1, mlp_dim=8)
VQGAN = t2i.VQGAN(
    image_size=16, dim=8, groups=4, dim_mults=(1, 2, 2), encoder_blocks=1, decoder_blocks=1,
    z_channels=8, codebook_dim=4, codebook_size=16, attention=(), middle_attention=False,
)  # fmt: skip
CLIP_NETWORK = CLIP(
    dim_text=16, dim_image=16, dim_latent=8, num_text_tokens=40, text_enc_depth=1, text_seq_len=3,
    text_heads=1, text_dim_head=16, visual_enc_depth=1, visual_heads=1, visual_dim_head=16,
    visual_image_size=8, visual_patch_size=4,
)  # fmt: skip


def test_the_columns_of_encode_clip_are_what_a_stored_decoder_reads(tmp_path):
    """As `t2i data encode-clip` writes them, beside the images."""
    pack(Shapes(16, length=4), tmp_path / "packed", name="shapes")
    rows = [
        {"image_embeds": np.full(6, i, np.float32), "caption_embeds": np.ones(6, np.float32)}
        for i in range(4)
    ]
    add_column(tmp_path / "packed", "clip", rows, about={"dim": 6})
    texts = [{"text_embeds": np.ones((3, 5), np.float32), "text_mask": np.ones(3, bool)}] * 4
    add_column(tmp_path / "packed", "text", texts, about={"dim": 5})
    data = t2i.DataConfig(source=f"arrayrecord:{tmp_path / 'packed'}", image_size=16)
    check_data(t2i.Recipe(STORED, data, t2i.TrainConfig(steps=1, batch_size=4)), {})
    spec = STORED.batch_spec(4)
    batch = next(batches(data, 4, 0, wants=tuple(spec), repeat=False, text_length=3))
    assert {name: batch[name].shape for name in spec} == {n: one.shape for n, one in spec.items()}
    assert sorted(batch["image_embeds"][:, 0]) == [0, 1, 2, 3]
    wider = dataclasses.replace(STORED, image_embed_dim=7)
    with pytest.raises(UserError, match="dim=6, and the task has dim=7"):
        check_data(t2i.Recipe(wider, data, t2i.TrainConfig(steps=1, batch_size=4)), {})


@pytest.fixture(scope="module")
def trained():
    """The stored toy after steps of its first stage on images of one colour each: (task, batch,
    state, losses).
    """
    task, batch = dataclasses.replace(STORED, train_stages=(1,)), batch_of(STORED, rows=8)
    batch["image"] = np.broadcast_to(batch["image"][:, :1, :1], batch["image"].shape)
    config = t2i.TrainConfig(
        steps=60, batch_size=8, optim=t2i.OptimConfig(learning_rate=1e-2, warmup_steps=0)
    )
    optimisers = states.optimisers_of(task, config)
    first = initialise(states.start_of(task, optimisers, 0.0), jax.random.key(0))

    @jax.jit
    def run(state):
        def one(state, _):
            return train_step(state, {}, batch, task=task, optimisers=optimisers)

        return jax.lax.scan(one, state, None, length=60)

    state, metrics = run(first)
    return task, batch, state, metrics


def system_of(trained, **more):
    task, _, state, _ = trained
    return DecoderSystem(task, state.params, {"stage_1": 60, "stage_2": 1}, **more)


def prompts_of(rows=2, seed=0):
    rng = np.random.default_rng(seed)
    embeds = rng.normal(size=(rows, 3, 5)).astype(np.float32)
    return (embeds, np.ones((rows, 3), bool)), rng.normal(size=(rows, 6)).astype(np.float32)


def test_a_stage_learns_and_is_counted_and_the_other_one_has_a_loss(trained):
    task, batch, state, metrics = trained
    losses = np.asarray(metrics["loss/stage_1"])
    assert np.isfinite(losses).all() and losses[-10:].mean() < 0.7 * losses[:5].mean()
    assert {k: int(v) for k, v in state.stats["updates"].items()} == {"stage_1": 60, "stage_2": 0}
    loss = jax.jit(lambda params, key: task.loss(
        params, state.stats, {}, batch, key, 0, number=2
    )[0])(state.params, jax.random.key(0))  # fmt: skip
    assert np.isfinite(loss) and loss > 0


def test_guidance_without_a_condition_that_was_never_dropped_is_said(capsys):
    never = "was trained without dropping any"
    for drops, negative, scales, told in (
        ((0.0, 0.5), False, (2.0, 1.0), ["image_cond_drop_prob=0"]),
        ((0.5, 0.0), False, (2.0, 1.0), ["text_cond_drop_prob=0"]),
        ((0.5, 0.0), True, (2.0, 1.0), []),
        ((0.0, 0.5), True, (2.0, 1.0), ["image_cond_drop_prob=0"]),
        ((0.0, 0.5), False, (1.0, 2.0), []),  # of a stage without conditions
        ((0.0, 0.5), False, (1.0, 1.0), []),
        ((0.1, 0.5), False, (2.0, 1.0), []),
    ):
        fields = dict(zip(("image_cond_drop_prob", "text_cond_drop_prob"), drops))
        task = dataclasses.replace(STORED, **fields)
        DecoderSystem(task, {}, {})._check_guidance(scales, negative)
        said = capsys.readouterr().err
        assert said.count(never) == len(told) and all(f"({one})" in said for one in told)


def test_values_of_more_u_nets_than_there_are_are_told(capsys):
    unet = t2i.DecoderUnet(**UNET, image_embed_dim=6)
    made = t2i.Decoder(unet, image_size=8, learned_variance=(True, False))
    assert "learned_variance=(True, False) has 2 values for 1 U-Net;" in capsys.readouterr().err
    assert made == t2i.Decoder(unet, image_size=8, learned_variance=True)
    assert not capsys.readouterr().err


def test_images_depend_on_seed_embedding_caption_and_guidance_alone(trained):
    system, (prompts, embeds) = system_of(trained), prompts_of()

    def make(prompts=prompts, embeds=embeds, **more):
        return system.generate(prompts, image_embeds=embeds, stop_at=1, **more)

    images = make()
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(make(batch_size=1), images)
    for other in (
        make(seed=1),
        make(embeds=embeds[::-1]),
        make(prompts=(prompts[0][::-1], prompts[1])),
        make(guidance=4.0),
        make(prompts=None),
        make(negative_prompts=prompts),
    ):
        assert (other != images).any()


def test_inpainting_keeps_pixels_in_every_stage(trained):
    system, (prompts, embeds) = system_of(trained), prompts_of(1)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    made = system.generate(
        prompts, image_embeds=embeds, init_images=images, mask=mask, resample=2, guidance=1
    )
    np.testing.assert_array_equal(made[:, mask], images[:, mask])
    assert (made[:, ~mask] != images[:, ~mask]).any()


def test_ancestral_sampling_takes_the_learned_variance(trained):
    """A network whose second half says most noise gives other images than one that says least."""
    task, _, state, _ = trained
    prompts, embeds = prompts_of(1)

    def at(fraction):
        params = jax.tree.map(lambda a: a, dict(state.params))
        last = dict(params["stage_1"]["unet"]["final_conv"])
        last["bias"] = last["bias"].at[3:].add(fraction)
        unet = {**params["stage_1"]["unet"], "final_conv": last}
        system = DecoderSystem(task, {**params, "stage_1": {"unet": unet}}, {"stage_1": 1})
        return system.generate(
            prompts, image_embeds=embeds, stop_at=1, sampler="ancestral", steps=4, guidance=1
        )

    assert (at(-3.0) != at(3.0)).any()


def test_a_learned_variance_of_any_size_leaves_loss_and_gradient_finite():
    """The reference's loss is NaN where the network says little variance at timestep 0."""
    noise, own = t2i.DiscreteDdpm(25, objective="x_start"), LearnedVariance()
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))
    level_B = jnp.array([1.0, 2.0, 25.0])
    x = noise.add(x0, eps, level_B)

    @jax.jit
    def bits(fraction):
        return own.bound(x0 + 0.5, jnp.full(x0.shape, fraction), noise, x0, x, level_B).sum()

    for fraction in (-1e4, -5.0, 0.0, 5.0, 1e4):
        value, slope = jax.value_and_grad(bits)(fraction)
        assert np.isfinite(value) and np.isfinite(slope)


def test_the_last_step_of_latents_is_not_scored_as_bytes():
    """A third of latents of unit variance are beyond 0.999, where bytes end."""
    stage = dataclasses.replace(
        FIRST, noise=t2i.DiscreteDdpm(25, objective="x_start"), latent=True, unet=UNCONDITIONAL
    )
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 8, 8, 3))
    draws = stages.draw(stage, jax.random.key(1), 2, (8, 8, 3), 3, (0.0, 0.0), lowres=False)
    draws = draws._replace(level_B=jnp.array([1.0, 2.0]), eps_BHWC=eps)

    def bits(stage, **fields):
        """What the bound adds to the loss of each row."""
        variance = LearnedVariance(weight=1.0, **fields)

        def of(variance):
            known = dataclasses.replace(stage, learned_variance=variance)
            net = lambda x, *_: jnp.concatenate([x0 + 0.5, 0 * x], -1)  # noqa: E731
            return stages.losses(known, lambda *_: net, x0, draws, None, lambda image: image)

        without = dataclasses.replace(variance, weight=0.0)
        return np.asarray(jax.jit(lambda: of(variance) - of(without))())

    ours, bytes_too = bits(stage), bits(dataclasses.replace(stage, latent=False))
    assert ours[0] == 0 and bytes_too[0] > 1
    np.testing.assert_array_equal(ours[1], bytes_too[1])
    np.testing.assert_array_equal(bits(stage, compat="dalle2-pytorch")[1] > 0, True)
    assert bits(stage, compat="dalle2-pytorch")[0] > 1


def test_blur_leaves_rows_alone_whose_deviation_is_0_and_keeps_the_mean_inside():
    image = np.random.default_rng(0).uniform(size=(2, 9, 9, 1)).astype(np.float32)
    blurred = jax.jit(gaussian_blur, static_argnums=3)
    out = np.asarray(blurred(image, np.array([0.0, 0.6]), np.array([3, 3]), 5))
    np.testing.assert_allclose(out[0], image[0], atol=1e-6)
    weights = np.exp(-0.5 * (np.array([-1, 0, 1]) / 0.6) ** 2)
    weights /= weights.sum()
    wanted = np.einsum("i,j,ij->", weights, weights, image[1, 3:6, 3:6, 0])
    assert float(out[1, 4, 4, 0]) == pytest.approx(wanted, abs=1e-6)


def clip_given(task):
    params = initialise(CLIP_NETWORK.init, jax.random.key(1))
    return task.with_parts({"clip": Given(CLIP_NETWORK, {"clip": params})}), {
        "clip": {"clip": params}
    }


def test_with_clip_an_image_is_made_of_its_own_embedding(monkeypatch):
    plain = dataclasses.replace(FIRST, learned_variance=None)
    task, frozen = clip_given(DecoderTask(stages=(plain,)))
    batch = batch_of(task)
    assert set(batch) == {"image", "text", "text_mask"}
    batch["text"] = batch["text"] % 40
    told = jax.jit(task.conditions)({}, frozen, batch)
    params, stats = initialise(task.init, jax.random.key(0))
    loss_of = jax.jit(task.loss, static_argnames="number")
    loss, (metrics, _) = loss_of(params, stats, frozen, batch, jax.random.key(2), 0, number=1)
    assert np.isfinite(loss) and task.flops(2) > 0 and set(metrics) == {"loss", "loss/stage_1"}
    clip = ClipSystem(t2i.ClipTask(CLIP_NETWORK), frozen["clip"])
    system = DecoderSystem(task, params, {"stage_1": 1}, frozen, clip=clip)
    embeds = system.embed_images(batch["image"])
    np.testing.assert_allclose(embeds, told.image_BD, atol=1e-5)
    kernel = params["stage_1"]["unet"]["final_conv"]["kernel"]
    kernel = 0.1 * jax.random.normal(jax.random.key(3), kernel.shape)
    params["stage_1"]["unet"]["final_conv"] |= {"kernel": kernel}
    ids = np.where(batch["text_mask"], batch["text"], 0)
    variations = system.generate(ids, images=batch["image"], sampler="ddim", steps=2)
    same = system.generate(ids, image_embeds=embeds, sampler="ddim", steps=2)
    assert np.abs(variations.astype(int) - same).max() <= 1
    by_caption = system.generate(ids, sampler="ddim", steps=2)
    assert (by_caption != same).any()
    alone = dataclasses.replace(system, clip=None, frozen={})  # its part was lost
    for given in ({}, {"images": batch["image"]}, {"image_embeds": embeds}):
        with pytest.raises(UserError, match="the part clip of this decoder, which is missing"):
            alone.generate(ids, **given)
    monkeypatch.setattr(DecoderSystem, "embed_images", lambda *_: pytest.fail("it embedded"))
    for given, said in (
        ({"seed": [1, 2, 3]}, "seed has 3 numbers for"),
        ({"steps": 10**5}, "steps=100000 are more than the"),
        ({"mask": np.ones((8, 8), bool)}, "mask says what to keep"),
    ):
        with pytest.raises(UserError, match=said):
            system.generate(ids, images=batch["image"], **given)
    unet = dataclasses.replace(plain.unet, cond_on_image_embeds=False)
    blind = dataclasses.replace(task, stages=(dataclasses.replace(plain, unet=unet),))
    for given in ({"images": batch["image"]}, {"image_embeds": embeds}, {"image_embeds": "a"}):
        with pytest.raises(UserError, match="to a decoder that was trained on captions alone"):
            dataclasses.replace(system, task=blind).generate(ids, **given)


def test_a_text_encoder_that_is_trained_along_learns_and_is_each_stages_own():
    text = t2i.LearnedText(dim=8, depth=1, heads=1, mlp_dim=8, vocab_size=40, max_length=3)
    task = dataclasses.replace(STORED, text=text)
    assert from_dict(to_dict(task), TYPES) == task
    batch = batch_of(task)
    assert set(batch) == {"image", "image_embeds", "text", "text_mask"}
    batch["text"] = batch["text"] % 40
    params, stats = initialise(task.init, jax.random.key(0))
    readers = [n for n, stage in enumerate(task.stages, 1) if stage.unet.cond_on_text_encodings]
    assert [n for n in (1, 2) if "text" in params[f"stage_{n}"]] == readers == [1]
    kernel = params["stage_1"]["unet"]["final_conv"]["kernel"]  # which begins with zeros
    kernel = 0.1 * jax.random.normal(jax.random.key(3), kernel.shape)
    params["stage_1"]["unet"]["final_conv"] |= {"kernel": kernel}
    loss_of = jax.grad(lambda own: task.loss(
        own, stats, {}, batch, jax.random.key(2), 0, number=1
    )[0])  # fmt: skip
    slopes = jax.jit(loss_of)(params)["stage_1"]["text"]
    assert all(np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes["transformer"]))
    captions = ["a red square", "a blue circle"]
    words = train_bpe(captions, 40)
    system = DecoderSystem(task, params, {"stage_1": 1}, text_tokenizer=words)
    few = {"image_embeds": np.ones((2, 6), np.float32), "sampler": "ddim", "steps": 2, "stop_at": 1}
    one, other = (system.generate(told, **few) for told in (captions, captions[::-1]))
    assert (one[0] != one[1]).any()
    assert (one != other).any()
    negative = system.generate(captions, negative_prompts=captions[::-1], **few)
    assert (negative != one).any()
    assert task.flops(1) > STORED.flops(1)
    assert "text" in task.sampling_programs(2)["stage 1"].prompt


def test_latents_are_those_of_a_tokenizer_and_come_back_as_its_images(capsys):
    tokenizer = VIT
    weights = initialise(functools.partial(image_tokenizer.init, tokenizer), jax.random.key(0))
    unet = t2i.DecoderUnet(**UNET)
    stage = t2i.DecoderStage(
        unet, image_size=16, noise=NOISE, latent=True, latent_scale=0.5, steps=2
    )
    task = DecoderTask(stages=(stage,)).with_parts({"tokenizer": Given(tokenizer, weights)})
    assert task.networks[0].channels == 8 and task.made_shape(1, (16, 16)) == (4, 4, 8)
    frozen, batch = {"tokenizer": weights}, batch_of(task)
    encode, decode = task.latents_of(1, frozen)
    image = to_float(batch["image"], (-1.0, 1.0))
    again, _ = jax.jit(tokenizer.apply)(
        {"params": weights["generator"]},
        to_float(batch["image"], tokenizer.pixel_range),
        weights["stats"],
    )
    low, high = tokenizer.pixel_range
    wanted = np.clip((again - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(jax.jit(lambda x: decode(encode(x)))(image), wanted, atol=1e-5)
    params, stats = initialise(task.init, jax.random.key(0))
    loss_of = jax.jit(task.loss, static_argnames="number")
    loss, _ = loss_of(params, stats, frozen, batch, jax.random.key(2), 0, number=1)
    assert np.isfinite(loss)
    system = DecoderSystem(task, params, {"stage_1": 1}, frozen)
    made = system.generate(images_per_prompt=2)
    assert made.shape == (2, 16, 16, 3) and made.dtype == np.uint8
    _check_holes_in_latents_are_filled(system, made[:1], capsys)


def _check_holes_in_latents_are_filled(system, image, capsys):
    """One that is smaller than a latent too; what is kept stays, bit for bit."""
    hole = np.zeros((16, 16), bool)
    hole[5:7, 5:7] = True
    capsys.readouterr()
    one, other = (
        system.generate(init_images=image, mask=~hole, seed=seed, resample=1) for seed in (0, 1)
    )
    told = capsys.readouterr().err.splitlines()
    assert told == 2 * [
        "t2i: stage 1 keeps whole latents, 4x4 pixels each: 15 of 16; 12 kept pixels beside them "
        "are inpainted, and laid over it."
    ]
    np.testing.assert_array_equal(one[:, ~hole], image[:, ~hole])
    assert (one[:, hole] != other[:, hole]).any()
    hole[::4, ::4] = True
    with pytest.raises(UserError, match="mask keeps no latent of stage 1, which keeps whole lat"):
        system.generate(init_images=image, mask=~hole)


@pytest.mark.parametrize("side", [8, 12, 16, 32])
def test_a_latent_is_kept_where_all_of_its_pixels_are(side):
    """Also of a mask of another size than the stage's images."""
    keep = np.random.default_rng(side).uniform(size=(3, side, side)) > 0.05
    found = np.asarray(latents.kept(keep, (4, 4)))
    wanted = keep.reshape(3, 4, side // 4, 4, side // 4).all((2, 4))
    np.testing.assert_array_equal(found, wanted)
    assert wanted.any() and not wanted.all()


@pytest.mark.parametrize(
    ("tokenizer", "sizes", "said"),
    [
        (VQGAN, ((16, 24),), None),
        (VQGAN, ((16, 20),), r"image_sizes has \(16, 20\); give .*, multiples of 8"),
        (VIT, (16,), None),
        (VIT, (24,), "image_sizes=24, and the tokenizer's weights are those of 16 pixels; give 16"),
        (VIT, ((16, 24),), r"image_sizes=\(16, 24\), and the tokenizer's weights are those of 16"),
    ],
)
def test_sizes_of_latents_are_those_that_the_tokenizer_makes(tokenizer, sizes, said):
    unet = t2i.DecoderUnet(**{**UNET, "dim_mults": (1, 2)})
    stage = t2i.DecoderStage(unet, image_size=16, noise=NOISE, latent=True)
    task = dataclasses.replace(DecoderTask(stages=(stage,)), tokenizer=tokenizer)
    if said is None:
        assert task.made_shape(1, sizes_of(task, sizes)[0])[0] == 16 // tokenizer.patch_size
        return
    with pytest.raises(UserError, match=said):
        sizes_of(task, sizes)


def test_a_cascade_of_unets_agrees_and_cuts_cross_attention_by_resolution():
    small, large = cascade(
        (16, 64), cross_attention_up_to=16, dim=[16, 8], image_embed_dim=6, dim_mults=(1, 2, 4)
    )
    assert (small.dim, large.dim, small.lowres_cond, large.lowres_cond) == (16, 8, False, True)
    assert (small.cond_on_image_embeds, large.cond_on_image_embeds) == (True, False)
    assert (small.cross_attn, large.cross_attn) == ((True,) * 3, (False, False, True))
    task = DecoderTask(
        stages=(t2i.DecoderStage(small, 16), t2i.DecoderStage(large, 64)), image_embed_dim=6
    )
    assert task.networks[1].lowres_cond and from_dict(to_dict(task), TYPES) == task
    with pytest.raises(UserError, match="image_sizes has 6, which is not a multiple of 4"):
        cascade((6,), dim=8, dim_mults=(1, 2, 4))
    with pytest.raises(UserError, match=r"dim=\[8\] has 1 value for 2 U-Nets"):
        cascade((8, 16), dim=[8])


@pytest.mark.parametrize(
    ("sizes", "fields", "said"),
    [
        (64, {"dim_mults": (1, 2, 4, 8, 16, 32, 64, 128)}, "which is not a multiple of 128"),
        ("64", {}, "image_sizes='64' are not sides in pixels"),
        ((8.0, 16), {}, r"image_sizes=\(8.0, 16\) are not sides"),
        ((0, 16), {}, r"image_sizes=\(0, 16\) are not sides"),
        (None, {}, "image_sizes=None are not sides"),
        ((16, 8), {}, r"image_sizes=\(16, 8\) do not rise"),
        ((8, 16), {"dim": "8"}, "dim='8' is not a whole number"),
        ((8, 16), {"dim_mults": [1, 2]}, "dim_mults=1 is not several values in parentheses"),
        ((8, 16), {"cross_attention_up_to": "8"}, "cross_attention_up_to='8' is not a side"),
        ((8, 16), {"cross_attention_up_to": True}, "cross_attention_up_to=True is not a side"),
        (
            (8, 16),
            {"cross_attention_up_to": 8, "cross_attn": (True, False)},
            r"cross_attn=\(True, False\) and cross_attention_up_to=8 both say",
        ),
    ],
)
def test_a_cascade_of_other_values_is_refused_in_a_sentence(sizes, fields, said):
    with pytest.raises(UserError, match=said):
        cascade(sizes, **{"dim": 8, "dim_mults": (1, 2), **fields})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DecoderTask(stages=(SECOND, FIRST)), "each must be larger"),
        (lambda: DecoderTask(stages=(FIRST,)).with_parts({}), "parts.clip is not given"),
        (
            lambda: DecoderTask(
                stages=(dataclasses.replace(FIRST, unet=BASE.clone(image_embed_dim=7)),),
                image_embed_dim=6,
            ),
            "image_embed_dim=7, and the image embeddings are 6 wide",
        ),
        (
            lambda: clip_given(
                DecoderTask(
                    stages=(dataclasses.replace(FIRST, unet=BASE.clone(image_embed_dim=7)),)
                )
            ),
            "the image embeddings are 8 wide",
        ),
        (
            lambda: DecoderTask(
                stages=(t2i.DecoderStage(t2i.DecoderUnet(**UNET), 8, latent=True),)
            ).with_parts({}),
            "parts.tokenizer is not given",
        ),
        (
            lambda: dataclasses.replace(FIRST, noise=t2i.Ddpm()),
            "learned_variance needs whole timesteps",
        ),
        (
            lambda: clip_given(DecoderTask(stages=(FIRST,), channels=1)),
            "channels=1, and CLIP, which embeds the images, sees some of 3; make them equal",
        ),
        (lambda: LowresBlur(kernel=4), "lowres.kernel=4"),
        (lambda: LowresBlur(sigma=(2.0, 1.0)), "lowres.sigma"),
        (lambda: t2i.Decoder(BASE, image_size=8, image_sizes=(8,)), "both given"),
        (lambda: t2i.Decoder((BASE, BASE), image_size=8), "1 sizes for 2 U-Nets"),
    ],
)
def test_a_decoder_that_can_not_be_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_asked_of_a_trained_decoder_and_does_not_fit_is_refused(trained, monkeypatch):
    monkeypatch.setattr(DecoderSystem, "_program", lambda *_, **__: pytest.fail("it sampled"))
    system, (prompts, embeds) = system_of(trained), prompts_of()
    for given, said in (
        (dict(image_embeds=embeds[:, :5]), r"image_embeds have shape \(2, 5\)"),
        (dict(image_embeds=np.full((1, 6), np.nan)), "compute them again"),
        (dict(image_embeds=np.full((1, 6), 1e39)), "compute them again"),
        (dict(image_embeds=embeds, images=embeds), "both given"),
        (dict(), "image_embeds=None"),
        (dict(images="a.png"), "without a CLIP"),
        (dict(image_embeds=embeds, start_at=2), "start_images"),
        (
            dict(image_embeds=embeds, start_at=2, stop_at=1, start_images=np.zeros((8, 8, 3))),
            "before start_at=2",
        ),
        (dict(image_embeds=embeds, steps=26), "26 are more than the 25 timesteps"),
        (dict(image_embeds=embeds, steps=(2, 10**5)), "steps=100000 are more than the"),
        (dict(image_embeds=0 * embeds), r"image_embeds\[0\] is zeros"),
        (dict(image_embeds=embeds, compat="imagen-pytorch"), "compat"),
        (dict(image_embeds=embeds, guidance=(1.0, 2.0, 3.0)), "3 values for 2 stages"),
    ):
        with pytest.raises(UserError, match=said):
            system.generate(None, **given)
    with pytest.raises(UserError, match="2 captions for 1 image embedding"):
        system.generate(prompts, image_embeds=embeds[:1])
    untrained = dataclasses.replace(system, updates={"stage_1": 0, "stage_2": 1})
    with pytest.raises(UserError, match="stage 1 was never trained"):
        untrained.generate(None, image_embeds=embeds)
