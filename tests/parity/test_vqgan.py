"""The convolutional tokenizer of muse-maskgit-pytorch against the live package: maps, codes, every
loss and its gradients, weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import (
    by_methods,
    channels_first,
    error,
    small_vgg,
    trained_as,
)

muse = load("muse_maskgit_pytorch")
torch = pytest.importorskip("torch")

# As in tests/parity/test_vit_vqgan.py, of the same depths.
NETWORK, LOGIT, GRADIENT = 1e-5, 3e-5, 1e-4

CONFIGURATIONS = {
    "default": dict(dim=16, layers=2, codebook_size=16, discr_layers=2),
    "other shapes": dict(
        dim=16,
        channels=1,
        layers=3,
        encdec_layer_mults=(1, 3, 2),
        encdec_num_resnet_blocks=(0, 2, 1),
        encdec_resnet_groups=4,
        encdec_first_conv_kernel_size=3,
        codebook_size=64,
        discr_layers=1,
        l2_recon_loss=True,
        use_hinge_loss=False,
        lfq_kwargs=dict(entropy_loss_weight=0.3, diversity_gamma=1.5, commitment_loss_weight=0.25),
    ),
    "cosine codebook": dict(dim=16, layers=2, codebook_size=32, discr_layers=2),
}


def _theirs(name, vgg):
    """The package's network; its own constructor of the cosine codebook raises a TypeError, so that
    is put in from outside with the settings that it meant.
    """
    theirs = muse.VQGanVAE(vgg=vgg, **CONFIGURATIONS[name])
    if name == "cosine codebook":
        from vector_quantize_pytorch import VectorQuantize

        theirs.quantizer = VectorQuantize(
            dim=theirs.encoded_dim, codebook_size=32, codebook_dim=8, decay=0.8,
            commitment_weight=1.0, kmeans_init=False, use_cosine_sim=True, rotation_trick=False,
            accept_image_fmap=True,
        )  # fmt: skip
        theirs.lookup_free_quantization = False
    else:
        # Small latents, see tests/parity/test_vit_vqgan.py.
        with torch.no_grad():
            for parameter in theirs.quantizer.project_in.parameters():
                parameter.mul_(0.003)
    return theirs


def _make(name):
    torch.manual_seed(0)
    vgg = small_vgg()
    theirs = _theirs(name, vgg)
    model, weights = convert.from_torch(theirs, image_size=16)
    task, frozen = trained_as(model, CONFIGURATIONS[name], vgg)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, model.channels), np.uint8)
    return theirs, model, weights, task, frozen, images


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def made(request):
    return _make(request.param)


def _first(t):
    return np.asarray(t).transpose(0, 3, 1, 2)


def test_maps_and_codes(made):
    theirs, model, weights, _, _, images = made
    theirs.eval()
    variables = {"params": weights["generator"]}
    for size in (16, 24):  # the same weights at another size
        x = np.random.default_rng(size).random((2, size, size, model.channels), np.float32)
        t = torch.tensor(_first(x))
        with torch.no_grad():
            fmap, (quantised, ids, _) = theirs.enc_dec.encode(t), theirs.encode(t)
            image = theirs.decode(quantised)
        net = model.clone(image_size=size)
        with jax.default_matmul_precision("highest"):
            before, encoded, ours, looked_up = by_methods(net, variables, x, weights["stats"])
        assert error(_first(before), fmap) < NETWORK
        assert np.array_equal(encoded.ids, ids.numpy()) and encoded.ids.shape[1:] == net.grid
        assert error(_first(encoded.fmap), quantised) < NETWORK
        assert error(_first(ours), image) < NETWORK
        np.testing.assert_allclose(looked_up, encoded.fmap, atol=1e-6)
    logits = jax.jit(model.discriminator().apply)(
        {"params": weights["discriminator"]}, images / np.float32(255)
    )
    with torch.no_grad():
        assert error(logits, theirs.discr(channels_first(images))[:, 0]) < NETWORK
    theirs.train()


def test_losses_and_their_gradients(made):
    theirs, model, weights, task, frozen, images = made
    stats = {
        **weights["stats"],
        "usage": jnp.ones((model.codebook_size,)),
        "recent": jnp.zeros((256, 1)),
    }

    @jax.jit
    def ours(weights):
        def generator(group):
            params = {**weights, "generator": group}
            return task.generator_loss(
                params, stats, frozen, {"image": images}, jax.random.key(0), jnp.int32(0)
            )

        def discriminator(group):
            params = {**weights, "discriminator": group}
            return task.discriminator_loss(
                params, weights["stats"], frozen, {"image": images}, None, jnp.int32(0)
            )

        return (
            jax.value_and_grad(generator, has_aux=True)(weights["generator"]),
            jax.value_and_grad(discriminator, has_aux=True)(weights["discriminator"]),
        )

    with jax.default_matmul_precision("highest"):
        ((value, (metrics, new)), gradients), ((judged, _), slopes) = ours(weights)
    x = channels_first(images)
    start = convert.to_torch(model, weights)
    theirs.zero_grad()
    total = theirs(x, return_loss=True)
    total.sum().backward()
    assert error(value, total.sum()) < NETWORK
    wanted = {
        name: parameter.grad
        for name, parameter in theirs.named_parameters()
        if not name.startswith(("discr.", "_vgg."))
    }
    mine = convert.to_state(model, {**weights, "generator": gradients})
    assert _apart(mine, wanted) == {}
    if not theirs.lookup_free_quantization:
        after = convert.to_state(model, {**weights, "stats": {k: new[k] for k in weights["stats"]}})
        for key, array in theirs.state_dict().items():
            if "_codebook" in key:
                assert error(after[key] * 1.0, array * 1.0) < NETWORK, key
    theirs.load_state_dict(start)
    theirs.zero_grad()
    fake = theirs(x).detach().double()
    real, judge = x.double().requires_grad_(), theirs.discr.double()
    real_logits = judge(real)
    lost = theirs.discr_loss(judge(fake), real_logits)
    lost = lost + muse.vqgan_vae.gradient_penalty(real, real_logits)
    lost.backward()
    theirs.discr.float()
    theirs.load_state_dict(start)
    assert error(judged, lost) < NETWORK
    mine = convert.to_state(model, {**weights, "discriminator": slopes})
    wanted = {k: p.grad for k, p in theirs.named_parameters() if k.startswith("discr.")}
    assert _apart(mine, wanted) == {}


def _apart(ours, theirs):
    """The gradients that differ.

    A bias whose channel is a group of its own has none, since the norm takes it out again: there
    both are noise around 0.
    """
    largest = max(g.abs().max().item() for g in theirs.values())
    seen = {k: g for k, g in theirs.items() if g.abs().max() > 1e-7 * largest}
    assert all(np.abs(ours[k]).max() < 1e-6 * largest for k in theirs.keys() - seen.keys())
    return {k: e for k, g in seen.items() if (e := error(ours[k], g)) > GRADIENT}


def test_weights_both_ways(made, tmp_path):
    theirs, model, weights, *_ = made
    state = theirs.state_dict()
    torch.save(state, tmp_path / "vae.pt")
    for again, loaded in (
        (model, weights),
        convert.from_torch(tmp_path / "vae.pt", resnet_groups=model.resnet_groups),
    ):
        out = convert.to_torch(again, loaded)
        assert {k: v.dtype for k, v in out.items()} == {k: v.dtype for k, v in state.items()}
        assert all(torch.equal(out[k], state[k]) for k in state)
    theirs.load_state_dict(out, strict=True)
