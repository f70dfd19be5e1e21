import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.models import encoder_side, image_tokenizer
from t2i_jax.models.discriminator import Discriminator
from t2i_jax.models.patch_discriminator import PatchDiscriminator
from t2i_jax.models.stylegan_discriminator import StyleDiscriminator
from t2i_jax.models.taming_vqgan import VQGAN, preset
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.on_host import initialise
from t2i_jax.systems.tokenizer import losses
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.train import ema, optim

MODEL = ViTVQGAN(
    image_size=16,
    patch_size=4,
    dim=16,
    layers=1,
    heads=2,
    mlp_dim=32,
    codebook_size=16,
    codebook_dim=4,
)
DISCRIMINATOR = Discriminator(dims=(8, 8, 8))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


def started(task, key):
    return initialise(task.init, key)


def begun(optimiser, params):
    """The states with which Adam begins: zeros, for which nothing need compile."""

    def zeros(leaf):
        return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))

    return {g: jax.tree.map(zeros, jax.eval_shape(optimiser.init, p)) for g, p in params.items()}


def stepper(task, optimiser):
    @jax.jit
    def step(params, stats, states, batch, key, number):
        metrics = {}
        for objective in task.objectives:
            group = objective.group

            def of(p, o=objective, g=group, params=params, stats=stats):
                return o.loss({**params, g: p}, stats, {}, batch, key, number)

            (_, (more, stats)), gradient = jax.value_and_grad(of, has_aux=True)(params[group])
            update, state = optimiser.update(gradient, states[group], params[group])
            params = {**params, group: optax.apply_updates(params[group], update)}
            states, metrics = {**states, group: state}, metrics | more
        params, stats = task.after_update(params, stats, batch, key, number)
        return params, stats, states, metrics

    return step


@pytest.mark.parametrize("adversarial", [False, True])
def test_it_learns_a_batch_by_heart(adversarial, key):
    discriminator = StyleDiscriminator(image_size=16, max_width=8) if adversarial else None
    task = TokenizerTask(
        MODEL,
        discriminator=discriminator,
        gan_loss="softplus",
        penalty="r1",
        gan_start=10,
        adversarial_weight=0.1,
    )
    params, stats = started(task, key)
    optimiser = optax.adam(3e-3)
    step, states = stepper(task, optimiser), begun(optimiser, params)
    seen = []
    for i in range(60):
        params, stats, states, metrics = step(
            params, stats, states, {"image": IMAGES}, jax.random.key(i), i
        )
        seen.append(metrics)
    assert float(seen[-1]["reconstruction"]) < 0.8 * float(seen[0]["reconstruction"])
    assert all(np.isfinite(float(value)) for value in seen[-1].values())
    assert {"loss", "psnr", "codebook_usage", "perplexity"} <= seen[-1].keys()
    if adversarial:
        # before its start
        assert seen[5]["adaptive_weight"] == 0 and seen[5]["discriminator_loss"] == 0
        assert seen[20]["adaptive_weight"] > 0 and seen[20]["discriminator_loss"] != 0
        assert seen[21]["penalty"] == 0 and seen[20]["penalty"] != 0  # every fourth step


COMMON = dict(image_size=16, dim=8, groups=4, dim_mults=(1, 2), encoder_blocks=1, decoder_blocks=1)
CODES = dict(z_channels=8, codebook_dim=4, codebook_size=16)
CONVOLUTIONAL = {
    "taming-transformers": VQGAN(**COMMON, **CODES, attention=()),
    "gumbel": VQGAN(**COMMON, **CODES, assignment="gumbel", attention=(), middle_attention=False),
    "maskgit, with FSQ": preset("maskgit-f16", **COMMON, fsq_levels=(5, 4)),
    "muse-maskgit-pytorch, with FSQ": VQGanVAE(
        dim=8, image_size=16, layers=1, resnet_groups=4, fsq_levels=(5, 4)
    ),
}
GAMES = {
    "maskgit, with FSQ": dict(
        discriminator=PatchDiscriminator(dims=(8, 8), groups=4), penalty="none"
    ),
    "muse-maskgit-pytorch, with FSQ": dict(
        discriminator=StyleDiscriminator(image_size=16, max_width=8), gan_loss="softplus",
        penalty="none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_tokenizers_learn(name, key):
    game = dict(GAMES.get(name, {}), gan_start=2, adversarial_weight=0.01)
    task = TokenizerTask(CONVOLUTIONAL[name], **game)
    params, stats = started(task, key)
    optimiser = optax.adam(3e-3)
    step, states = stepper(task, optimiser), begun(optimiser, params)
    seen = []
    for i in range(30):
        params, stats, states, metrics = step(
            params, stats, states, {"image": IMAGES}, jax.random.key(i), i
        )
        seen.append({name: float(value) for name, value in metrics.items()})
    assert seen[-1]["reconstruction"] < 0.9 * seen[0]["reconstruction"]
    assert all(np.isfinite(value) for value in seen[-1].values())
    assert seen[-1]["codebook_usage"] > 0
    if "FSQ" in name:
        assert all(metrics["quantizer"] == 0 for metrics in seen)
    if name in GAMES:
        assert seen[-1]["adaptive_weight"] > 0 and seen[-1]["discriminator_loss"] != 0


def test_a_convolutional_tokenizer_is_looked_at(key):
    task = TokenizerTask(CONVOLUTIONAL["maskgit, with FSQ"])
    params, stats = started(task, key)
    system = task.system(params, stats, {}, {}, None)

    def held_out(count, names):
        return {"image": IMAGES[:2]}

    sheet, metrics = system.preview(held_out, Evaluation(preview=2))
    found = system.evaluate(held_out, Evaluation(pictures=2, preview=2))
    assert sheet.dtype == np.uint8 and np.isfinite(metrics["eval/psnr"])
    assert 0 < found.metrics["codebook_usage"] <= 1


class Distance(nn.Module):
    """A stand-in for a perceptual network, with one frozen number."""

    @nn.compact
    def __call__(self, real, fake):
        return self.param("scale", nn.initializers.ones, ()) * jnp.mean((real - fake) ** 4)


def test_one_backward_pass_gives_the_gradient_of_the_written_loss(key):
    """Against the sum differentiated as it stands, the weight from two whole backward passes."""
    task = TokenizerTask(
        MODEL, discriminator=DISCRIMINATOR, perceptual=Distance(), perceptual_weight=2.0
    )
    params, stats = started(task, key)
    frozen = {"perceptual": {"scale": jnp.float32(3.0)}}
    image = IMAGES / np.float32(127.5) - 1

    def terms(generator):
        recon, encoded = MODEL.apply({"params": generator}, image, {}, True)
        perceptual = 3 * jnp.mean(((recon - image) / 2) ** 4)
        fooled = -jnp.mean(DISCRIMINATOR.apply({"params": params["discriminator"]}, recon))
        return jnp.mean(jnp.abs(recon - image)) + encoded.loss, perceptual, fooled

    def written(generator):
        def norm(i):
            return jnp.linalg.norm(
                jax.grad(lambda g: terms(g)[i])(generator)["to_pixels"]["kernel"]
            )

        weight = jax.lax.stop_gradient(norm(1) / (norm(2) + 1e-8))
        rest, perceptual, fooled = terms(generator)
        return rest + 2.0 * perceptual + weight * fooled

    def ours(generator):
        return task.generator_loss(
            {**params, "generator": generator}, stats, frozen, {"image": IMAGES}, key, 0
        )[0]

    (value, gradient), (wanted, wanted_gradient) = (
        jax.device_get(jax.jit(jax.value_and_grad(f))(params["generator"])) for f in (ours, written)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()) + 1e-7)


def test_each_objective_moves_its_own_group(key):
    task = TokenizerTask(MODEL, discriminator=DISCRIMINATOR)
    params, stats = started(task, key)

    def loss(p):
        return task.objectives[1].loss(p, stats, {}, {"image": IMAGES}, key, jnp.int32(0))[0]

    gradient = jax.device_get(jax.jit(jax.grad(loss))(params))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["generator"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["discriminator"]))


VQ = VitVQGanVAE(
    dim=16,
    image_size=16,
    patch_size=4,
    layers=1,
    heads=2,
    dim_head=4,
    lookup_free_quantization=False,
    codebook_size=16,
    codebook_dim=4,
    discr_layers=0,
)


@pytest.mark.parametrize("model", [MODEL, VQ])
def test_dead_codes_come_back_as_recent_latents(model, key):
    task = TokenizerTask(model)
    params, stats = started(task, key)
    stats = {**stats, "usage": jnp.array([0.0] * 3 + [1.0] * 13)}
    after, new = jax.jit(task.after_update)(params, stats, {}, key, 5)

    def table(p, s):
        return s["embed"] if model is VQ else p["generator"]["quantizer"]["embedding"]

    changed = np.any(np.asarray(table(params, stats) != table(after, new)), axis=1)
    assert list(np.flatnonzero(changed)) == [0, 1, 2]
    recent = {tuple(row) for row in np.asarray(stats["recent"])}
    assert all(tuple(row) in recent for row in np.asarray(table(after, new))[:3])
    assert float(new["usage"].min()) == 1.0
    untouched, _ = dataclasses.replace(task, revive_below=0.0).after_update(
        params, stats, {}, key, 5
    )
    assert untouched is params


@pytest.mark.parametrize(
    "model",
    [
        VQ.clone(lookup_free_quantization=True),
        VQ.clone(lookup_free_quantization=True, fsq_levels=(4, 4)),
        VQGAN(assignment="gumbel", codebook_size=16),
    ],
    ids=["lfq", "fsq", "gumbel"],
)
def test_codes_that_nothing_revives_stay_counted_as_out_of_use(model, key):
    """Else a codebook that has collapsed is logged as one that is used as a whole."""
    task = TokenizerTask(model)
    usage = jnp.array([16.0] + [0.0] * 15)
    params, stats = {"generator": {}}, {"usage": usage, "recent": jnp.ones((32, 4))}
    after, new = task.after_update(params, stats, {}, key, 5)
    np.testing.assert_array_equal(new["usage"], usage)
    found = task._usage(new["usage"])
    assert after is params and float(found["codebook_usage"]) == 1 / 16
    assert float(found["perplexity"]) == pytest.approx(1)


def test_usage_counts_what_was_used(key):
    task = TokenizerTask(MODEL, usage_decay=0.0)
    params, stats = started(task, key)
    _, (metrics, new) = jax.jit(
        functools.partial(task.generator_loss, frozen={}, batch={"image": IMAGES})
    )(params, stats, key=key, step=0)
    ids = TokenizerSystem(task, {"generator": params["generator"], "stats": stats}).encode(IMAGES)
    counts = np.bincount(np.asarray(ids).reshape(-1), minlength=16)
    np.testing.assert_allclose(new["usage"], counts * 16 / counts.sum(), rtol=1e-5)
    assert metrics["codebook_usage"] == np.mean(counts > 0)


def test_flops_count_the_products(key):
    """Within a third of what XLA counts for one forward and backward pass: it counts element-wise
    work as well.
    """
    task = TokenizerTask(MODEL)
    params, stats = started(task, key)

    def loss(g):
        return task.generator_loss({"generator": g}, stats, {}, {"image": IMAGES}, key, 0)[0]

    counted = jax.jit(jax.grad(loss)).lower(params["generator"]).cost_analysis()["flops"]
    assert 0.67 < task.flops(4) / counted < 1.1
    assert TokenizerTask(MODEL, discriminator=DISCRIMINATOR).flops(4) > task.flops(4)


def test_a_larger_decoder_learns_on_tokens_that_stay_the_same(key):
    """Encoder and codebook are those of a trained tokenizer, and stay; their average does too."""
    first, stats = started(TokenizerTask(MODEL), key)
    larger = MODEL.clone(decoder_dim=24, decoder_layers=2, decoder_mlp_dim=48)
    task = TokenizerTask(larger, trained="decoder")
    params, _ = started(task, jax.random.key(5))
    held = set(task.held["generator"])

    def taken(path, leaf):
        name = encoder_side.path_of(path)
        return functools.reduce(lambda node, part: node[part.key], path, first["generator"]) if (
            name in held
        ) else leaf  # fmt: skip

    start = jax.tree_util.tree_map_with_path(taken, params["generator"])
    decay = optax.adamw(1e-2, weight_decay=0.1)
    rule = optim.holding(decay, start, task.held["generator"])
    step = stepper(task, rule)
    params, states = {"generator": start}, {"generator": jax.jit(rule.init)(start)}
    average = start
    before, seen = stats, []
    stays = optim.held_of(start, task.held["generator"])
    average_of = jax.jit(functools.partial(ema.update, decay=0.9, held=stays))
    for i in range(40):
        params, stats, states, metrics = step(
            params, stats, states, {"image": IMAGES}, jax.random.key(i), i
        )
        average = average_of(average, params["generator"], jnp.int32(i))
        seen.append(float(metrics["reconstruction"]))
    assert seen[-1] < 0.7 * seen[0]
    start, average, after = jax.device_get((start, average, params["generator"]))
    moved = {
        encoder_side.path_of(path): bool(np.any(one != two) or np.any(one != three))
        for (path, one), two, three in zip(
            jax.tree_util.tree_leaves_with_path(start),
            jax.tree.leaves(after),
            jax.tree.leaves(average),
            strict=True,
        )
    }
    assert {name for name, has in moved.items() if not has} == held
    assert {"quantizer/embedding", "to_tokens/kernel"} <= held
    assert "quantizer/project_out/kernel" not in held
    old = {"generator": first["generator"], "stats": before}
    assert encoder_side.same_tokens(MODEL, old, larger, {"generator": average, "stats": before})
    other = {**average, "to_tokens": jax.tree.map(lambda leaf: -leaf, average["to_tokens"])}
    assert not encoder_side.same_tokens(MODEL, old, larger, {"generator": other, "stats": before})
    heads = larger.clone(heads=4, decoder_heads=2)  # the same weights, and another network
    assert not encoder_side.same_tokens(MODEL, old, heads, {"generator": average, "stats": before})
    # the encoder has no backward pass
    assert task.flops(1) < TokenizerTask(larger).flops(1)


TOKENIZERS = {
    "ViT-VQGAN": MODEL.clone(scan=True, remat="dots"),
    "parti-pytorch, with a codebook": VitVQGanVAE(
        dim=8, image_size=8, layers=1, patch_size=4, heads=1, dim_head=8, codebook_size=16,
        lookup_free_quantization=False, codebook_dim=4,
    ),
    "taming-transformers": VQGAN(**COMMON, **CODES, attention=()),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_depend_on_the_encoders_side_alone(name, key):
    model = TOKENIZERS[name]
    weights = initialise(functools.partial(image_tokenizer.init, model), key)
    size = (2, model.image_size, model.image_size, 3)
    image = np.random.default_rng(3).integers(0, 256, size).astype(np.uint8)
    names = set(encoder_side.encoder_parameters(model))

    def changed(which):
        def of(path, leaf):
            is_changed = (encoder_side.path_of(path) in names) == which
            noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
            return np.asarray(leaf) + np.float32(is_changed * noise)

        generator = jax.tree_util.tree_map_with_path(of, weights["generator"])
        return np.asarray(tokens({**weights, "generator": generator}, image))

    tokens = jax.jit(functools.partial(image_tokenizer.tokens, model))
    as_before = np.asarray(tokens(weights, image))
    np.testing.assert_array_equal(changed(False), as_before)
    assert (changed(True) != as_before).any()
    tops = {path.split("/")[0] for path in names}
    assert "encoder" in tops and "decoder" not in tops


def test_an_implicit_head_learns_against_a_discriminator(key):
    model = VitVQGanVAE(
        dim=8, image_size=8, layers=1, patch_size=4, heads=1, dim_head=8, codebook_size=16,
        pixel_head="implicit", pixel_head_dim=16,
    )  # fmt: skip
    game = StyleDiscriminator(image_size=8, max_width=8)
    weights = dict(gan_loss="softplus", adversarial_weight=0.1, penalty="none")
    task = TokenizerTask(model, discriminator=game, **weights)
    params, stats = started(task, key)
    optimiser = optax.adam(3e-3)
    step, states = stepper(task, optimiser), begun(optimiser, params)
    start, seen = params["generator"]["to_pixels"], []
    for i in range(30):
        params, stats, states, metrics = step(
            params, stats, states, {"image": IMAGES[:, :8, :8]}, jax.random.key(i), i
        )
        seen.append(metrics)
    assert float(seen[-1]["reconstruction"]) < 0.8 * float(seen[0]["reconstruction"])
    assert 0 < float(seen[-1]["adaptive_weight"]) < 1e4
    both = jax.device_get((start, params["generator"]["to_pixels"]))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), *both)
    assert all(jax.tree.leaves(moved)), moved


def test_the_configuration_is_stored_whole():
    task = TokenizerTask(MODEL, discriminator=StyleDiscriminator(image_size=16), penalty="r1")
    known = {cls.__name__: cls for cls in (TokenizerTask, ViTVQGAN, StyleDiscriminator)}
    assert config.from_dict(config.to_dict(task), known) == task
    assert task.batch_spec(3)["image"].shape == (3, 16, 16, 3)


def test_the_system_encodes_and_decodes(key):
    task = TokenizerTask(MODEL)
    params, stats = started(task, key)
    system = TokenizerSystem(task, {"generator": params["generator"], "stats": stats})
    ids = system.encode(IMAGES)
    assert ids.shape == (4, 16) and system.decode(ids).shape == IMAGES.shape
    with pytest.raises(UserError, match="images are float32.*give uint8"):
        system.encode(IMAGES.astype(np.float32))
    with pytest.raises(UserError, match="ids have shape"):
        system.decode(ids[:, :3])
    for wrong, said in (("a.png", "a str"), ([IMAGES], "a list"), (None, "None")):
        with pytest.raises(UserError, match=f"images are {said}; give uint8 of shape"):
            system.encode(wrong)
        with pytest.raises(UserError, match=f"ids are {said}; give whole numbers of shape"):
            system.decode(wrong)
    with pytest.raises(UserError, match=r"ids are float64; give whole numbers of shape \(B, 16\)"):
        system.decode(np.zeros((1, 16)))
    for read, none in ((system.encode, IMAGES[:0]), (system.decode, ids[:0])):
        with pytest.raises(UserError, match=r"have shape \(0, .*which is none; give .* shape .B"):
            read(none)
    with pytest.raises(UserError, match=r"ids go from \d+ to \d+; the codebook has those from"):
        system.decode(ids.at[0, 0].set(10_000))


def test_a_convolutional_network_encodes_and_decodes_other_sizes(key):
    task = TokenizerTask(CONVOLUTIONAL["muse-maskgit-pytorch, with FSQ"])
    params, stats = started(task, key)
    system = TokenizerSystem(task, {"generator": params["generator"], "stats": stats})
    patch = task.model.patch_size
    wide = np.tile(IMAGES[:1, :8], (1, 1, 2, 1))  # half as high and twice as wide
    grid = wide.shape[1] // patch, wide.shape[2] // patch
    ids = system.encode(wide)
    assert ids.shape == (1, grid[0] * grid[1])
    np.testing.assert_array_equal(system.decode(ids, grid), system.reproduce(wide))
    assert system.reproduce(wide).shape == wide.shape
    with pytest.raises(UserError, match=rf"other multiples of {patch}\."):
        system.encode(wide[:, 1:])
    with pytest.raises(UserError, match="grid=0 is not a number from 1"):
        system.decode(ids, (0, 4))
    for wrong in ((2,), [2, 4], (2, 4, 1)):
        with pytest.raises(UserError, match="is no .rows, columns. of this network's codes"):
            system.decode(ids, wrong)
    with pytest.raises(UserError, match=r"ids have shape .*; give \(B, 1\)"):
        system.decode(ids, (1, 1))


def test_mistakes_are_named():
    for wrong, said in (
        (dict(gan_loss="hing"), "gan_loss='hing' is not known; did you mean 'hinge'"),
        (dict(trained="decode"), "trained='decode' is not known; did you mean 'decoder'"),
        (dict(penalty_every=0), "penalty_every=0"),
        (dict(usage_decay=1.0), "usage_decay=1.0"),
        (dict(logit_laplace_weight=0.1), "output='sigmoid'"),
        (dict(discriminator=Discriminator(dims=(8,) * 5)), "image_size=16 is too small"),
    ):
        with pytest.raises(UserError, match=said):
            TokenizerTask(MODEL, **wrong)


def test_logit_laplace_is_zero_for_the_image_itself():
    image = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)

    def of(x):
        return float(losses.reconstruction(x, image, 0.0, 0.0, 1.0, (-1.0, 1.0)))

    assert of(image) == 0 and of(image * 0.9) > 0
    assert float(losses.psnr(image + 0.2, image + 0.0, (-10.0, 10.0))) == pytest.approx(
        40.0, abs=1e-3
    )
