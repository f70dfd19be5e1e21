"""The tokenizer of parti-pytorch against the live package: maps, codes, every loss and its
gradients, weights.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.systems.tokenizer import losses
from t2i_jax.systems.tokenizer.task import TokenizerTask
from tests.parity.reference import load

parti = load("parti_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through a few layers, products in another order
LOGIT = 3e-5  # tokenizer and discriminator one after the other
GRADIENT = 1e-4  # as much again in the backward pass, and sums over all tokens and pixels

CONFIGURATIONS = {
    "default": dict(dim=32, image_size=64, layers=2, codebook_size=16),
    "other shapes": dict(
        dim=24,
        image_size=32,
        layers=1,
        channels=1,
        encdec_patch_size=8,
        encdec_heads=3,
        encdec_dim_head=8,
        encdec_ff_mult=2,
        codebook_size=64,
        discr_layers=2,
        l2_recon_loss=True,
        use_hinge_loss=False,
        lfq_kwargs=dict(entropy_loss_weight=0.3, diversity_gamma=1.5, commitment_loss_weight=0.25),
    ),
    "cosine codebook": dict(
        dim=16,
        image_size=32,
        layers=1,
        encdec_heads=2,
        encdec_patch_size=4,
        lookup_free_quantization=False,
        codebook_size=32,
        vq_codebook_dim=8,
        vq_decay=0.9,
        vq_kmeans_init=False,
        vq_threshold_ema_dead_code=0,
        discr_layers=1,
    ),
}


class Features(nn.Module):
    """A stand-in for VGG: one strided convolution of 3 channels, and the squared distance of what
    comes out.
    """

    @nn.compact
    def __call__(self, real, fake):
        conv = nn.Conv(4, (4, 4), strides=4, padding="VALID", name="conv")
        real, fake = (nn.relu(conv(jnp.broadcast_to(x, (*x.shape[:3], 3)))) for x in (real, fake))
        return jnp.mean((real - fake) ** 2)


# A loss does the same to a network of fewer layers and compiles in half the time; of the layers
# themselves the outputs are compared.
FEWER = {"default": dict(image_size=32, layers=1, discr_layers=2)}


def make(name, **fewer):
    """The package's network, ours, our weights, the task that trains it as the package does,
    frozen, uint8 images.
    """
    torch.manual_seed(0)
    options = CONFIGURATIONS[name] | fewer
    vgg = small_vgg()
    theirs = parti.VitVQGanVAE(vgg=vgg, **options)
    if theirs.lookup_free_quantization:
        # Small latents: where a code's probability is under 1e-5 the package clamps its logarithm,
        # ours is exact.
        with torch.no_grad():
            for parameter in theirs.quantizer.project_in.parameters():
                parameter.mul_(0.003)
    model, weights = convert.from_torch(theirs)
    task, frozen = trained_as(model, options, vgg)
    shape = (2, model.image_size, model.image_size, model.channels)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return theirs, model, weights, task, frozen, images


def small_vgg():
    """The stand-in for VGG in PyTorch."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 4, stride=4), torch.nn.ReLU(), torch.nn.Flatten()
    )


def trained_as(model, options, vgg):
    """The task that trains a tokenizer as the package with these options does, and what it reads of
    the stand-in for VGG.
    """
    task = TokenizerTask(
        model,
        discriminator=model.discriminator(),
        perceptual=Features(),
        penalty_every=1,
        l1_weight=0.0 if options.get("l2_recon_loss") else 1.0,
        l2_weight=float(options.get("l2_recon_loss", 0)),
        gan_loss="hinge" if options.get("use_hinge_loss", True) else "bce",
        revive_below=0.0,
    )
    kernel = vgg[0].weight.detach().numpy().transpose(2, 3, 1, 0)
    bias = vgg[0].bias.detach().numpy()
    return task, {"perceptual": {"conv": {"kernel": kernel, "bias": bias}}}


def error(ours, theirs):
    """Largest difference, relative to the largest value."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-12)


def channels_first(images):
    return torch.tensor(images.transpose(0, 3, 1, 2) / np.float32(255), dtype=torch.float32)


@functools.partial(jax.jit, static_argnums=0)
def by_methods(model, variables, x, stats):
    """(map before the quantiser, what encoding gives, decoded image, map of the codes), as one
    program.
    """
    encoded = model.apply(variables, x, stats, method="encode")
    fmap = model.apply(variables, x, method="encoder_fmap")
    image = model.apply(variables, encoded.fmap, method="decode")
    return fmap, encoded, image, model.apply(variables, encoded.ids, stats, method="lookup")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_maps_and_codes(name):
    theirs, model, weights, _, _, images = make(name)
    theirs.eval()
    with torch.no_grad():
        x = channels_first(images)
        fmap = theirs.enc_dec.encode(x)
        quantised, ids, _ = theirs.encode(x)
        image, logits = theirs.decode(quantised), theirs.discr(x)
    variables, x = {"params": weights["generator"]}, images / np.float32(255)

    def first(t):
        return np.asarray(t).transpose(0, 3, 1, 2)

    with jax.default_matmul_precision("highest"):
        before, encoded, made, looked_up = by_methods(model, variables, x, weights["stats"])
        judged = jax.jit(model.discriminator().apply)({"params": weights["discriminator"]}, x)
    assert error(first(before), fmap) < NETWORK
    assert np.array_equal(encoded.ids, ids.numpy())
    assert error(first(encoded.fmap), quantised) < NETWORK
    assert error(first(made), image) < NETWORK
    np.testing.assert_allclose(looked_up, encoded.fmap, atol=1e-6)
    assert error(judged, logits[:, 0]) < NETWORK


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_generator_loss_and_its_gradients(name):
    theirs, model, weights, task, frozen, images = make(name, **FEWER.get(name, {}))
    stats = {
        **weights["stats"],
        "usage": jnp.ones((model.codebook_size,)),
        "recent": jnp.zeros((256, 1)),
    }

    def loss(generator):
        params = {**weights, "generator": generator}
        return task.generator_loss(
            params, stats, frozen, {"image": images}, jax.random.key(0), jnp.int32(0)
        )

    with jax.default_matmul_precision("highest"):
        (value, (metrics, new)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            weights["generator"]
        )
    x = channels_first(images)
    recon, _, perceptual, game = _their_terms(theirs, x)
    layer = theirs.enc_dec.last_dec_layer
    norms = [
        torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (perceptual, game)
    ]
    ratio = (norms[0] / (norms[1] + 1e-8)).clamp(max=1e4)
    _restore(theirs, model, weights)
    total = theirs(x, return_loss=True)
    total.sum().backward()
    assert error(metrics["reconstruction"], theirs.recon_loss_fn(recon, x)) < NETWORK
    assert error(metrics["perceptual"], perceptual) < NETWORK
    assert error(metrics["adversarial"], game) < LOGIT
    assert error(metrics["adaptive_weight"], ratio) < GRADIENT
    assert error(value, total.sum()) < NETWORK
    ours = convert.to_state(model, {**weights, "generator": gradients})
    wanted = {
        k: p.grad for k, p in theirs.named_parameters() if not k.startswith(("discr.", "vgg."))
    }
    for key in [k for k in wanted if k.endswith("primer_ds_convs.1.proj.bias")]:
        # softmax does not see what is added to every key: noise around 0
        assert np.abs(ours[key]).max() < 1e-6
        wanted.pop(key)
    assert {k: e for k, g in wanted.items() if (e := error(ours[k], g)) > GRADIENT} == {}
    if not theirs.lookup_free_quantization:
        after = convert.to_state(model, {**weights, "stats": {k: new[k] for k in weights["stats"]}})
        for key, value in theirs.state_dict().items():
            if "_codebook" in key:
                assert error(after[key] * 1.0, value * 1.0) < NETWORK, key


def _their_terms(theirs, x):
    """Reconstruction, quantiser loss, perceptual loss and adversarial loss as the package computes
    them.
    """
    fmap, _, auxiliary = theirs.encode(x)
    recon = theirs.decode(fmap)
    three = [t.expand(-1, 3, -1, -1) for t in (x, recon)]
    perceptual = torch.nn.functional.mse_loss(*(theirs.vgg(t) for t in three))
    return recon, auxiliary, perceptual, theirs.gen_loss(theirs.discr(recon))


def _restore(theirs, model, weights):
    """A forward pass in training moves the package's codebook; back to where it was."""
    theirs.load_state_dict(convert.to_torch(model, weights))


@pytest.mark.parametrize("name", ["default", "other shapes"])
def test_discriminator_loss_and_its_gradients(name):
    theirs, model, weights, task, frozen, images = make(name, **FEWER.get(name, {}))

    def loss(discriminator):
        params = {**weights, "discriminator": discriminator}
        return task.discriminator_loss(
            params, weights["stats"], frozen, {"image": images}, None, jnp.int32(0)
        )

    with jax.default_matmul_precision("highest"):
        (value, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            weights["discriminator"]
        )
    total = _their_discriminator_loss(theirs, channels_first(images))
    total.backward()
    assert error(value, total) < NETWORK
    ours = convert.to_state(model, {**weights, "discriminator": gradients})
    wanted = {k: p.grad for k, p in theirs.named_parameters() if k.startswith("discr.")}
    assert {k: e for k, g in wanted.items() if (e := error(ours[k], g)) > GRADIENT} == {}


def _their_discriminator_loss(theirs, x):
    """As the package's forward computes it, the discriminator in float64.

    PyTorch's own float32 slopes at the pixels are off by up to a hundredth on a CPU; ours agree
    with float64 to 1e-6.
    """
    fake = theirs(x).detach().double()
    real, judge = x.double().requires_grad_(), theirs.discr.double()
    real_logits = judge(real)
    return theirs.discr_loss(judge(fake), real_logits) + parti.vit_vqgan.gradient_penalty(
        real, real_logits
    )


def test_entropies_of_large_latents():
    """With saturated bits the two agree as well; only the clamp in between tells them apart."""
    from vector_quantize_pytorch import LFQ

    z = torch.randn(2, 5, 6)
    quantiser = LFQ(dim=6, codebook_size=64, entropy_loss_weight=1.0)
    _, parts = quantiser(z, return_loss_breakdown=True)
    from t2i_jax.nn.quantize import lfq_entropies

    per_token, overall = lfq_entropies(jnp.asarray(z.reshape(-1, 6).numpy()))
    np.testing.assert_allclose([per_token, overall], [parts[0], parts[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_both_ways(name, tmp_path):
    theirs, model, weights, *_ = make(name)
    state = theirs.state_dict()
    for loaded_model, loaded in ((model, weights), convert.from_torch(_saved(state, tmp_path))):
        out = convert.to_torch(loaded_model, loaded)
        assert {k: v.dtype for k, v in out.items()} == {k: v.dtype for k, v in state.items()}
        assert all(torch.equal(out[k], state[k]) for k in state)
    theirs.load_state_dict(out, strict=True)


def _saved(state, folder):
    """As the package's trainer saves the moving average."""
    path = folder / "vae.pt"
    wrapped = {f"ema_model.{k}": v for k, v in state.items()} | {
        f"online_model.{k}": v * 0 for k, v in state.items()
    }
    torch.save(wrapped | {"initted": torch.tensor([True]), "step": torch.tensor([3])}, path)
    return path


def test_every_adversarial_loss():
    fake, real = torch.randn(7), torch.randn(7)
    for name, (discriminator, generator) in {
        "hinge": (parti.vit_vqgan.hinge_discr_loss, parti.vit_vqgan.hinge_gen_loss),
        "bce": (parti.vit_vqgan.bce_discr_loss, parti.vit_vqgan.bce_gen_loss),
    }.items():
        assert (
            error(losses.DISCRIMINATOR[name](fake.numpy(), real.numpy()), discriminator(fake, real))
            < NETWORK
        )
        assert error(losses.GENERATOR[name](fake.numpy()), generator(fake)) < NETWORK
