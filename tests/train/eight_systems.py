"""A few steps of every system on eight devices: cases of eight.py."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.on_host import initialise
from tests.train.eight_networks import unet, vit_vqgan
from tests.train.meshes import CONFIG, MESHES, begin, compare, random_batches, run, same


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
    from t2i_jax.systems.tokenizer.task import TokenizerTask

    net = vit_vqgan()
    task = TokenizerTask(
        net,
        discriminator=Adversary(),
        gan_loss="softplus",
        penalty="r1",
        penalty_every=1,
        adversarial_weight=0.1,
    )
    compare(task, random_batches(task, 2), presets=("fsdp_tp",))


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
        remat="none",
    )
    task = TokenizerTask(net, discriminator=net.discriminator(), penalty_every=1)
    batches = random_batches(task, 1)
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


def parti(presets=("fsdp_tp", "sequence", "slices")):
    """Parti of the paper with a trained text encoder, on images through a frozen tokenizer; also
    with its tokens split, and over two slices.
    """
    from t2i_jax.models import image_tokenizer
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.text.learned import LearnedText

    net = vit_vqgan()
    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=32, vocab_size=32, max_length=6)
    task = PartiTask(PartiTransformer(dim=16, depth=2, heads=2, mlp_dim=32), text, net)
    weights = initialise(functools.partial(image_tokenizer.init, net), jax.random.key(5))
    compare(task, random_batches(task, 2), {"tokenizer": weights}, presets=presets)


def parti_without_tensor():
    """Parti with the other presets of rules, whose axes "fsdp_tp" has too."""
    parti(("dp", "fsdp"))


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
    compare(task, random_batches(task, 2), presets=("fsdp_tp",))


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


def t5():
    """Parti with a frozen T5 whose embeddings are large enough to be split; its layers are computed
    again for the gradient.
    """
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.systems.parti.system import PartiSystem
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.systems.placing import on_mesh
    from t2i_jax.text.t5 import T5Text
    from t2i_jax.text.t5_encoder import T5Encoder

    network = T5Encoder(dim=64, depth=1, heads=2, dim_head=8, mlp_dim=32, vocab_size=2048)
    text = T5Text(None, network, max_length=6)
    model = PartiTransformer(
        dim=16, depth=1, heads=2, mlp_dim=32, fmap_size=4, codebook_size=16, remat="dots"
    )
    weights, task = initialise(text.init, jax.random.key(3)), PartiTask(model, text)
    system = PartiSystem(task, initialise(task.init, jax.random.key(0))[0], {"text": weights})
    there = on_mesh(system, MESHES["fsdp_tp"])
    assert PartitionSpec("fsdp") in [leaf.sharding.spec for leaf in jax.tree.leaves(there.frozen)]
    compare(task, random_batches(task, 2), {"text": weights}, presets=("fsdp_tp",))


def super_resolution():
    """Small images to large ones against a discriminator."""
    from t2i_jax.models.super_resolution import SuperResolution
    from t2i_jax.systems.super_resolution.task import SuperResolutionTask

    task = SuperResolutionTask(
        SuperResolution(blocks=1, channels=8, expansion=2), 16, discriminator=Adversary()
    )
    # convolutions alone: "tensor" splits heads and widths
    compare(task, random_batches(task, 2), splits=("fsdp",))


def imagen():
    """The second stage of a cascade with a trained text encoder; one stage, for the sake of time.

    Gradients before a norm are sums that nearly cancel, so changes agree to 1e-4 of the largest
    only.
    """
    from t2i_jax.models.unet import NullUnet
    from t2i_jax.systems.cascade.stage import Stage
    from t2i_jax.systems.imagen.task import ImagenTask
    from t2i_jax.text.learned import LearnedText

    net = unet(max_text_len=6).clone(memory_efficient=True)
    text = LearnedText(dim=16, depth=1, heads=2, mlp_dim=32, vocab_size=32, max_length=6)
    task = ImagenTask(
        (Stage(NullUnet(), image_size=8), Stage(net, image_size=16, crop_size=8)), text
    )
    compare(task, random_batches(task, 2), tolerance=5e-4, presets=("fsdp_tp",))


def muse():
    """Super-resolution with a critic, on images through a frozen tokenizer."""
    from t2i_jax.models.maskgit import MaskGitTransformer, TokenCritic
    from tests.systems import toy_muse

    network = MaskGitTransformer(**toy_muse.SIZES)
    critic = TokenCritic(**toy_muse.SIZES)
    task = dataclasses.replace(toy_muse.SUPERRES, model=network, critic=critic)
    frozen = {"tokenizer": toy_muse.tokenizer_weights()}
    batches = [toy_muse.batch_of(task, CONFIG.batch_size) for _ in range(2)]
    compare(task, batches, frozen, presets=("fsdp_tp",))


def muse_on_tokens():
    """Super-resolution on stored tokens of both sizes."""
    from t2i_jax.models.maskgit import MaskGitTransformer
    from tests.systems import toy_muse

    network = MaskGitTransformer(**toy_muse.SIZES)
    task = dataclasses.replace(toy_muse.SUPERRES, model=network, stored_tokens=True)
    batches = [toy_muse.batch_of(task, CONFIG.batch_size) for _ in range(2)]
    compare(task, batches, presets=("fsdp_tp",))


CASES = (
    tokenizer, gan, super_resolution, parti, parti_without_tensor, clip, prior, decoder, t5, imagen,
    muse, muse_on_tokens,
)  # fmt: skip
