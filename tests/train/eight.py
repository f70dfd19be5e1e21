"""What runs on eight simulated devices, in a process of its own: `python -m tests.train.eight
CASE...`, which prints a line of JSON as each case ends: its name, and its traceback or null.

Each case trains a few steps on one device and on meshes of eight, the toy and Parti with every
preset of rules, and compares.
"""

import os
import sys

if __name__ == "__main__":
    from tests.flags import FAST

    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count=8 {FAST} --xla_llvm_disable_expensive_passes=true"
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import functools
import gc
import json
import pathlib
import tempfile
import traceback

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.nn.conv import conv
from t2i_jax.on_host import initialise
from t2i_jax.train import state as states
from t2i_jax.train.checkpoint import Checkpoints
from t2i_jax.train.loop import TrainConfig
from t2i_jax.train.optim import OptimConfig
from t2i_jax.train.step import train_step
from tests.train import idle as idle_groups
from tests.train.toy import ToyBatches, ToyTask
from tests.weights import moved

MESHES = {
    "dp": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
}
MORE = {
    "sequence": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "slices": {"slice": 2, "data": 2, "fsdp": 2},
}
# SGD-like: a large eps keeps Adam from blowing rounding differences of tiny gradients up to the
# size of a step. Averages are the same for all networks, and a fourth of what a step compiles.
CONFIG = TrainConfig(
    batch_size=16, ema_decay=0.0, optim=OptimConfig(learning_rate=0.01, eps=1e-2, clip_norm=1.0)
)
AVERAGING = dataclasses.replace(CONFIG, ema_decay=0.9)


def setting(task, mesh, rules, config=CONFIG):
    """(jitted start, jitted step, abstract state) of a task on a mesh."""
    optimisers = states.optimisers_of(task, config)
    start = states.start_of(task, optimisers, config.ema_decay)
    abstract = states.abstract(task, optimisers, config.ema_decay, mesh, rules)
    at = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = functools.partial(
        train_step, task=task, optimisers=optimisers, ema_decay=config.ema_decay
    )
    return jax.jit(start, out_shardings=at), jax.jit(step, out_shardings=(at, None)), abstract


def begin(task, mesh, config=CONFIG):
    """The state before the first step, almost without a compiler."""
    optimisers = states.optimisers_of(task, config)
    start = states.start_of(task, optimisers, config.ema_decay)
    abstract = states.abstract(task, optimisers, config.ema_decay, mesh, "dp")
    return states.first(start, abstract, seed=0)


def run(task, mesh, rules, frozen, batches, first=None, config=CONFIG):
    """(state, metrics of every step, sharding specs of the parameters) after the batches, from the
    state `first`.
    """
    start, step, abstract = setting(task, mesh, rules, config)
    at = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state, metrics = start(jax.random.key(0)) if first is None else jax.device_put(first, at), []
    frozen = sharding.place_frozen(frozen, mesh, rules)
    for batch in batches:
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            state, values = step(state, frozen, batch)
        metrics.append({name: float(value) for name, value in values.items()})
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state.params)
    return state, metrics, jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, PartitionSpec))


def compare(
    task,
    batches,
    frozen=None,
    tolerance=1e-4,
    presets=tuple(MESHES),
    splits=("fsdp", "tensor"),
    config=CONFIG,
):
    """Fails where a mesh of eight gives other losses or parameters than one device.

    Args:
      tolerance: of parameters, relative to the largest change of any of their group, which is how
        far an error in a gradient shows; of stats, relative to the largest of each array. Sums over
        eight devices round differently: seen were 7e-6 at most, but for the biases and norms of a
        cascade.
      presets: of rules. "fsdp_tp" has an axis for data too, so that a network of which compiling is
        long is compared on that mesh alone. splits: axes that its parameters are split over.
    """
    one = sharding.make_mesh(None, jax.devices()[:1])
    first = begin(task, one, config)
    alone, expected, _ = run(task, one, "dp", frozen, batches, first, config)
    for name, shape in ((name, (MESHES | MORE)[name]) for name in presets):
        rules = sharding.rules_of(shape)
        mesh = sharding.make_mesh(shape)
        state, metrics, specs = run(task, mesh, rules, frozen, batches, first, config)
        axes = {axis for spec in specs for axis in spec if axis is not None}
        assert axes == set(shape) & set(splits), f"{name}: parameters are split over {axes}"
        for i, (want, have) in enumerate(zip(expected, metrics, strict=True)):
            for name, value in want.items():
                close = np.isclose(have[name], value, rtol=1e-3, atol=1e-4)
                assert close, f"{rules}, step {i}, {name}: {have[name]} instead of {value}"
        same(state.stats, alone.stats, tolerance, 1e-6 * tolerance, rules)
        for what in ("params", "ema"):
            for group, theirs in getattr(alone, what).items():
                moved = jax.tree.map(
                    lambda new, old: float(jnp.max(jnp.abs(new - old))), theirs, first.params[group]
                )
                largest = max(jax.tree.leaves(moved))
                same(
                    getattr(state, what)[group],
                    theirs,
                    0.0,
                    tolerance * largest,
                    f"{rules}, {what}, {group}",
                )


def same(mine, theirs, tolerance, least, rules):
    """Fails where an array differs by more than `tolerance` times its largest entry, and by more
    than `least`.
    """
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(theirs), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        error, size = (np.max(np.abs(x), initial=0) for x in (a - b, b))
        name = f"{rules}: {jax.tree_util.keystr(path)}"
        assert error <= max(tolerance * size, least), f"{name} differs by {error:.2e} of {size:.2e}"


def toy():
    """The toy task, and a checkpoint of eight devices read by eight, four, two and one."""
    source, task = ToyBatches(), ToyTask()
    batches = [
        {name: batch[name] for name in ("x", "y")} for batch in (next(source) for _ in range(2))
    ]
    compare(task, batches, config=AVERAGING)

    # made where it lies
    mesh = sharding.make_mesh(MESHES["fsdp_tp"])
    state, _, _ = run(task, mesh, "fsdp_tp", None, batches, config=AVERAGING)
    moments = state.opt_state["first"][1].mu["wide"]
    assert (
        moments.sharding.spec
        == state.params["first"]["wide"].sharding.spec
        == PartitionSpec("fsdp", "tensor")
    )
    assert state.ema["first"]["wide"].sharding == state.params["first"]["wide"].sharding
    with tempfile.TemporaryDirectory() as workdir:
        checkpoints = Checkpoints(workdir, keep=1)
        checkpoints.save(2, state, [{"number": 2}], {})
        checkpoints.wait()
        places = (
            (8, {"fsdp": 8}, "fsdp"),
            (4, {"data": 2, "tensor": 2}, "fsdp_tp"),
            (2, None, "fsdp"),
            (1, None, "dp"),
        )
        for count, shape, rules in places:
            mesh = sharding.make_mesh(shape, jax.devices()[:count])
            _, _, abstract = setting(task, mesh, rules, AVERAGING)
            restored, positions = checkpoints.restore(abstract, lambda stored: None)
            assert positions == [{"number": 2}]
            assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(restored.params)} == {count}

            def plain(s):
                return s.replace(key=jax.random.key_data(s.key))

            chex.assert_trees_all_equal(plain(restored), plain(state))
        places = sharding.shardings(
            sharding.parameters_of(task), sharding.make_mesh({"fsdp": 8}), "fsdp"
        )
        _, weights = checkpoints.weights(places)
        for name in ("params", "ema"):
            chex.assert_trees_all_equal(weights[name], dict(getattr(state, name)))
        assert weights["params"]["first"]["wide"].sharding == places["first"]["wide"]
        checkpoints.close()


def idle():
    """A group that is not trained lies in the hosts' memory, in shards; nothing else changes."""
    with tempfile.TemporaryDirectory() as workdir:
        idle_groups.check(pathlib.Path(workdir), MESHES["fsdp_tp"])


def frozen():
    """Frozen parameters: large ones are split as the rules split parameters, small ones are not."""
    tree = {
        "large": jnp.zeros((3, 512, 64)),
        "small": jnp.zeros((8, 8)),
        "odd": jnp.zeros((257, 257)),
    }
    mesh = sharding.make_mesh({"fsdp": 8})
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, sharding.place_frozen(tree, mesh, "fsdp"))
    assert specs == {
        "large": PartitionSpec(None, "fsdp"),
        "small": PartitionSpec(),
        "odd": PartitionSpec(),
    }
    whole = sharding.place_frozen(tree, mesh, "dp")
    assert all(leaf.sharding.spec == PartitionSpec() for leaf in jax.tree.leaves(whole))


class Adversary(nn.Module):
    """A discriminator of two convolutions: it compiles fast, with the gradient of its gradient."""

    def check(self, image_size):
        """Every size will do."""

    @nn.compact
    def __call__(self, image_BHWC):
        init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(), (None, None, "conv_in", "conv_out")
        )
        x = nn.silu(nn.Conv(8, (4, 4), (4, 4), kernel_init=init, name="patches")(image_BHWC))
        return nn.Conv(1, (2, 2), kernel_init=init, name="judge")(x)


def tokenizer():
    """A tokenizer against a discriminator: two groups, codebook statistics, revived codes."""
    from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
    from t2i_jax.systems.tokenizer.task import TokenizerTask

    net = ViTVQGAN(
        image_size=16,
        patch_size=4,
        dim=16,
        layers=1,
        heads=2,
        mlp_dim=32,
        codebook_size=16,
        codebook_dim=4,
    )
    task = TokenizerTask(
        net,
        discriminator=Adversary(),
        gan_loss="softplus",
        penalty="r1",
        penalty_every=1,
        adversarial_weight=0.1,
    )
    compare(task, _random_batches(task, 2), presets=("fsdp_tp",))


def gan():
    """One step against the discriminator of parti-pytorch: strided convolutions, group norms, the
    slope's slope.

    From the second step on such runs drift apart, 3e-4 in the norm of the gradient and a hundred
    times more in the third. That is rounding: the quantiser's entropy loss and the penalty multiply
    a difference by about a thousand per step. With everything in float64 the first step agrees to
    3e-10 and the second to 2e-7.
    """
    from t2i_jax.models.vit_vqgan import VitVQGanVAE
    from t2i_jax.systems.tokenizer.task import TokenizerTask

    net = VitVQGanVAE(
        dim=16,
        image_size=16,
        patch_size=4,
        layers=1,
        heads=2,
        dim_head=8,
        ff_mult=1,
        codebook_size=16,
        discr_layers=1,
    )
    task = TokenizerTask(net, discriminator=net.discriminator(), penalty_every=1)
    batches = _random_batches(task, 1)
    one = sharding.make_mesh(None, jax.devices()[:1])
    first = begin(task, one)
    alone, (expected,), _ = run(task, one, "dp", None, batches, first)
    mesh = sharding.make_mesh(MESHES["fsdp_tp"])
    state, (metrics,), _ = run(task, mesh, "fsdp_tp", None, batches, first)
    for name, value in expected.items():
        assert np.isclose(metrics[name], value, rtol=1e-4, atol=1e-6), name
    # after one step Adam's first moment is the gradient, scaled
    for group, chain in state.opt_state.items():
        gradients = alone.opt_state[group][1].mu
        largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(gradients))
        same(chain[1].mu, gradients, 1e-2, 1e-5 * largest, group)


class TwoConvolutions(nn.Module):
    """A stride of 2, then of 1: no smaller network was found to come out wrong, see
    `sharding.RULES`.
    """

    @nn.compact
    def __call__(self, x_BHWC):
        return conv(16, 3, "second")(jnp.tanh(conv(16, 4, "first", stride=2)(x_BHWC)))


def strided():
    """The gradient through a strided convolution, which was wrong by 90% with both of its channel
    axes split.
    """
    model = TwoConvolutions()
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 8)).astype(np.float32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), x)
    first = initialise(lambda key: model.init(key, x), jax.random.key(0))
    gradient = jax.grad(lambda params, x: jnp.mean(model.apply(params, x) ** 2))
    expected = jax.jit(gradient)(first, x)
    for rules, shape in MESHES.items():
        mesh = sharding.make_mesh(shape)
        at = sharding.shardings(boxed, mesh, rules)
        here = (
            jax.device_put(first, at),
            jax.device_put(x, sharding.batch_sharding(mesh)),
        )
        same(jax.jit(gradient, out_shardings=at)(*here), expected, 1e-4, 0.0, rules)


def parti():
    """Parti of the paper with a trained text encoder, on images through a frozen tokenizer."""
    from t2i_jax.models import image_tokenizer
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.text.learned import LearnedText

    net = ViTVQGAN(
        image_size=16,
        patch_size=4,
        dim=16,
        layers=1,
        heads=2,
        mlp_dim=32,
        codebook_size=16,
        codebook_dim=4,
    )
    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=32, vocab_size=32, max_length=6)
    task = PartiTask(PartiTransformer(dim=16, depth=2, heads=2, mlp_dim=32), text, net)
    weights = initialise(functools.partial(image_tokenizer.init, net), jax.random.key(5))
    compare(task, _random_batches(task, 2), {"tokenizer": weights})


def clip():
    """CLIP, whose loss is over the batches of all devices, in two blocks of scores."""
    from t2i_jax.models.clip import CLIP
    from t2i_jax.systems.clip.task import ClipTask

    network = CLIP(
        dim_text=16, dim_image=16, dim_latent=8, num_text_tokens=40, text_enc_depth=1,
        text_seq_len=6, text_heads=2, text_dim_head=8, visual_enc_depth=1, visual_heads=2,
        visual_dim_head=8, visual_image_size=8, visual_patch_size=4, visual_patch_dropout=0.0,
        extra_latent_projection=True,
    )  # fmt: skip
    task = ClipTask(network, sim_reg_loss_weight=0.1, rows=8)
    compare(task, _random_batches(task, 2), presets=("fsdp_tp",))


def prior():
    """DALL-E 2's prior on stored embeddings, which it fits to CLIP's length on every device."""
    from t2i_jax.models.diffusion_prior import DiffusionPriorNetwork
    from t2i_jax.systems.prior.task import PriorTask
    from tests.systems import toy_cascade

    network = DiffusionPriorNetwork(dim=16, depth=1, dim_head=8, heads=2, max_text_len=4)
    task = PriorTask(network, stored=True, on_sphere=("training",), image_drop_prob=0.2)
    batches = [toy_cascade.batch_of(task, CONFIG.batch_size, seed) for seed in range(2)]
    compare(task, batches, presets=("fsdp_tp",))


def decoder():
    """A stage of DALL-E 2's decoder on stored embeddings of images, which a share of the rows lose.

    The U-Net has a block with cross-attention and one without, in place of its levels, which are
    made of the same ones: all of it compiles for twice as long.
    """
    from t2i_jax.diffusion.discrete import DiscreteDdpm
    from t2i_jax.models.decoder_unet import DecoderUnet
    from t2i_jax.systems.decoder.stage import DecoderStage
    from t2i_jax.systems.decoder.task import DecoderTask
    from tests.systems import toy_cascade

    class TwoBlocks(DecoderUnet):
        def _down(self, x, time, tokens):
            return x, []

        def _middle(self, x, time, tokens):
            return self._block("middle", x.shape[-1], 0, time, tokens)(x)

        def _up(self, x, skips, time, tokens):
            return x

    net = TwoBlocks(
        dim=8,
        dim_mults=(1,),
        resnet_groups=4,
        cross_attn_heads=2,
        cross_attn_dim_head=4,
        init_cross_embed=False,
        init_conv_kernel_size=3,
        num_image_tokens=2,
        cond_on_image_embeds=True,
    )
    stage = DecoderStage(net, image_size=8, noise=DiscreteDdpm(25, objective="v"))
    task = DecoderTask(stages=(stage,), image_embed_dim=6)
    batches = [toy_cascade.batch_of(task, CONFIG.batch_size, seed) for seed in range(2)]
    compare(task, batches, tolerance=5e-4, presets=("fsdp_tp",))


def sequence():
    """Parti of the paper with its tokens split, and over two slices."""
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.text.learned import LearnedText

    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=32, vocab_size=32, max_length=6)
    model = PartiTransformer(dim=16, depth=2, heads=2, mlp_dim=32, fmap_size=4, codebook_size=16)
    task, presets = PartiTask(model, text), ("sequence", "slices")
    compare(task, _random_batches(task, 2), presets=presets)


def t5():
    """Parti with a frozen T5 whose embeddings are large enough to be split."""
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.systems.generation import on_mesh
    from t2i_jax.systems.parti.system import PartiSystem
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.text.t5 import T5Text
    from t2i_jax.text.t5_encoder import T5Encoder

    network = T5Encoder(dim=64, depth=1, heads=2, dim_head=8, mlp_dim=32, vocab_size=2048)
    text = T5Text(None, network, max_length=6)
    model = PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=32, fmap_size=4, codebook_size=16)
    weights, task = initialise(text.init, jax.random.key(3)), PartiTask(model, text)
    system = PartiSystem(task, initialise(task.init, jax.random.key(0))[0], {"text": weights})
    there = on_mesh(system, MESHES["fsdp_tp"])
    assert PartitionSpec("fsdp") in [leaf.sharding.spec for leaf in jax.tree.leaves(there.frozen)]
    compare(task, _random_batches(task, 2), {"text": weights}, presets=("fsdp_tp",))


def super_resolution():
    """Small images to large ones against a discriminator."""
    from t2i_jax.models.super_resolution import SuperResolution
    from t2i_jax.systems.super_resolution.task import SuperResolutionTask

    task = SuperResolutionTask(
        SuperResolution(blocks=1, channels=8, expansion=2), 16, discriminator=Adversary()
    )
    # convolutions alone: "tensor" splits heads and widths
    compare(task, _random_batches(task, 2), splits=("fsdp",))


def imagen():
    """The second stage of a cascade with a trained text encoder; one stage, for the sake of time.

    Gradients before a norm are sums that nearly cancel, so changes agree to 1e-4 of the largest
    only.
    """
    from t2i_jax.models.unet import NullUnet, Unet
    from t2i_jax.systems.cascade.stage import Stage
    from t2i_jax.systems.imagen.task import ImagenTask
    from t2i_jax.text.learned import LearnedText

    net = Unet(
        dim=8,
        dim_mults=(1,),
        attn_heads=2,
        attn_dim_head=4,
        layer_attns=False,
        layer_cross_attns=True,
        attn_pool_text=False,
        max_text_len=6,
        num_resnet_blocks=0,
        attend_at_middle=False,
        init_cross_embed=False,
        init_conv_kernel_size=3,
        memory_efficient=True,
    )
    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=32, vocab_size=32, max_length=6)
    task = ImagenTask(
        (Stage(NullUnet(), image_size=8), Stage(net, image_size=16, crop_size=8)), text
    )
    compare(task, _random_batches(task, 2), tolerance=5e-4, presets=("fsdp_tp",))


def muse():
    """Super-resolution with a critic, on images through a frozen tokenizer; and both stages of Muse
    sample on a mesh what they do on one device, with windows.
    """
    from t2i_jax.models.maskgit import MaskGitTransformer, TokenCritic
    from t2i_jax.systems.generation import on_mesh
    from t2i_jax.systems.muse.system import MuseSystem
    from t2i_jax.systems.muse.task import MuseTask
    from tests.systems import toy_muse

    network = MaskGitTransformer(**toy_muse.SIZES)
    critic = TokenCritic(**toy_muse.SIZES)
    task = dataclasses.replace(toy_muse.SUPERRES, model=network, critic=critic)
    frozen = {"tokenizer": toy_muse.tokenizer_weights()}
    batches = [toy_muse.batch_of(task, CONFIG.batch_size) for _ in range(2)]
    compare(task, batches, frozen, presets=("fsdp_tp",))

    stages = [toy_muse.system_of(one) for one in (toy_muse.TASK, task)]
    system = MuseSystem(MuseTask(), {}, *stages)
    there = system.on_mesh(MESHES["fsdp_tp"])
    assert on_mesh(stages[0], {"data": 8}).mesh.size == 8
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(there.superres.weights)]
    assert any("tensor" in spec for spec in specs)
    captions = ["green", "zebra", "red circle", "blue squares"]
    options = {"temperature": 0.0, "steps": 2, "superres_steps": 2, "image_size": (16, 24)}
    alone, shared = (one.generate(captions, **options).astype(int) for one in (system, there))
    assert alone.shape == (4, 16, 24, 3) and np.ptp(alone) > 10
    assert np.mean(np.abs(alone - shared) > 1) < 0.01  # a tie may go another way


def sampling():
    """Images of Parti and of a cascade on a mesh are those of one device."""
    from t2i_jax.models import image_tokenizer
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.models.unet import Unet
    from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
    from t2i_jax.systems.cascade.stage import Stage
    from t2i_jax.systems.generation import on_mesh
    from t2i_jax.systems.imagen.system import ImagenSystem
    from t2i_jax.systems.imagen.task import ImagenTask
    from t2i_jax.systems.parti.system import PartiSystem
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.text.stored import StoredText

    text, key = StoredText(dim=8, max_length=4), jax.random.key(0)
    prompts = (
        np.random.default_rng(0).normal(size=(4, 4, 8)).astype(np.float32),
        np.ones((4, 4), bool),
    )
    net = ViTVQGAN(
        image_size=8,
        patch_size=2,
        dim=16,
        layers=1,
        heads=2,
        mlp_dim=32,
        codebook_size=16,
        codebook_dim=4,
    )
    parti = PartiTask(PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=32), text, net)
    unet = Unet(
        dim=8,
        dim_mults=(1,),
        attn_heads=2,
        attn_dim_head=4,
        layer_attns=False,
        layer_cross_attns=True,
        attn_pool_text=False,
        max_text_len=4,
        num_resnet_blocks=0,
        attend_at_middle=False,
        init_cross_embed=False,
        init_conv_kernel_size=3,
    )
    cascade = ImagenTask((Stage(unet, image_size=8),), text)
    weights = moved(initialise(cascade.init, key)[0], 0.1)
    tokenizer = {"tokenizer": initialise(functools.partial(image_tokenizer.init, net), key)}
    for system, options in (
        (PartiSystem(parti, initialise(parti.init, key)[0], tokenizer), {"temperature": 0.0}),
        (ImagenSystem(cascade, weights, {"stage_1": 1}), {"steps": 3, "sampler": "ddim"}),
    ):
        there = on_mesh(system, {"data": 2, "fsdp": 2, "tensor": 2})
        if system.task is parti:
            _cache_is_shared_out(there, prompts)
        assert any("tensor" in leaf.sharding.spec for leaf in jax.tree.leaves(there.weights))
        alone, shared = (one.generate(prompts, **options).astype(int) for one in (system, there))
        assert np.ptp(alone) > 10 and np.max(np.abs(alone - shared)) <= 1, type(system).__name__


def _cache_is_shared_out(system, prompts):
    """In the compiled program a device keeps the past of its own rows (8 with guidance, over 4) and
    heads (2, over 2).
    """
    from t2i_jax.systems.parti import sampling
    from t2i_jax.systems.parti.options import PartiOptions

    rows, keys = (
        dict(zip(("text_embeds", "text_mask"), prompts, strict=True)),
        jax.random.split(jax.random.key(0), 4),
    )
    one = jnp.float32(1)
    with jax.set_mesh(system.mesh):
        program = (
            sampling.generate.lower(
                system.weights["parti"],
                system.frozen,
                rows,
                keys,
                task=system.task,
                guidance=one,
                temperature=one,
                sampling=PartiOptions().sampling,
            )
            .compile()
            .as_text()
        )
    # rows, positions, heads, width
    assert "f32[2,16,1,8]" in program and "f32[8,16,2,8]" not in program


def _random_batches(task, count):
    rng = np.random.default_rng(0)

    def draw(shape):
        if shape.dtype == bool:
            return np.arange(shape.shape[1])[None] < rng.integers(
                2, shape.shape[1], (shape.shape[0], 1)
            )
        return rng.integers(0, 30 if shape.dtype == np.int32 else 256, shape.shape).astype(
            shape.dtype
        )

    spec = task.batch_spec(CONFIG.batch_size)
    return [{name: draw(shape) for name, shape in spec.items()} for _ in range(count)]


CASES = {
    case.__name__: case
    for case in (
        toy,
        idle,
        frozen,
        strided,
        tokenizer,
        gan,
        super_resolution,
        parti,
        clip,
        prior,
        decoder,
        t5,
        sequence,
        imagen,
        muse,
        sampling,
    )
}

if __name__ == "__main__":
    assert jax.device_count() == 8
    # as conftest.py has it
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    for name in sys.argv[1:]:
        failed = None
        try:
            CASES[name]()
        except Exception:
            failed = traceback.format_exc()
        print(json.dumps([name, failed]), flush=True)
        jax.clear_caches()  # see conftest.py
        gc.collect()
