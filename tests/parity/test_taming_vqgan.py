"""VQGAN against networks in PyTorch under the names of taming-transformers, open-muse and LlamaGen
(`taming_reference`), and against diffusers' live `VQModel`: images, codes, loss, gradients,
weights.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.errors import UserError
from t2i_jax.models.taming_vqgan import VQGAN, preset
from t2i_jax.nn.codebook import GumbelVq
from t2i_jax.runs import export_torch, import_torch
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

torch = pytest.importorskip("torch")
reference = load("tests.parity.taming_reference")

NETWORK, GRADIENT = 1e-5, 1e-4  # as in tests/parity/test_vit_vqgan.py, of the same depths


class FromDiffusers(torch.nn.Module):
    """(reconstruction, ids, loss) of a `VQModel`."""

    def __init__(self, **fields):
        super().__init__()
        package = pytest.importorskip("diffusers", reason="the 'test' extra has it")
        common = dict(block_out_channels=(8, 16), norm_num_groups=4, num_vq_embeddings=16)
        self.whole = package.VQModel(**common, latent_channels=6, **fields)

    def forward(self, x):
        code, loss, (_, _, ids) = self.whole.quantize(self.whole.encode(x).latents)
        image = self.whole.decoder(self.whole.post_quant_conv(code))
        return image, ids.reshape(len(x), *code.shape[2:]), loss


ATTENTION = dict(
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
)
PLAIN = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
NETWORKS = {
    "taming": lambda: reference.Reference("taming"),
    "taming gumbel": lambda: reference.Reference("taming", gumbel=True),
    "open-muse": lambda: reference.Reference("open-muse"),
    "llamagen": lambda: reference.Reference("llamagen", code=4),
    "diffusers": lambda: FromDiffusers(**ATTENTION),
    "diffusers, as aMUSEd": lambda: FromDiffusers(**PLAIN, mid_block_add_attention=False),
}


def _spread(module):
    """Weights of the size of a trained network's: with those of the start all codes are alike."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed" in name:
                parameter.normal_(0, 0.5)
            elif "norm" not in name and name.endswith("weight"):
                parameter.mul_(1.5)


@pytest.fixture(scope="module", params=NETWORKS)
def made(request):
    torch.manual_seed(0)
    theirs = NETWORKS[request.param]()
    _spread(theirs)
    live = getattr(theirs, "whole", theirs)
    model, weights = convert.from_torch(live, image_size=16)
    return request.param, theirs, live, model, weights


def _first(t):
    return np.asarray(t).transpose(0, 3, 1, 2)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model, generator, x, slope):
    def whole(params):
        image, encoded = model.apply({"params": params}, x, {}, True)
        return (image * slope).sum() + encoded.loss, (image, encoded)

    (_, found), gradients = jax.value_and_grad(whole, has_aux=True)(generator)
    return *found, gradients


@functools.partial(jax.jit, static_argnums=0)
def _forward(model, generator, x, slope):
    return *model.apply({"params": generator}, x, {}, True), None


# The program with gradients of "diffusers" is that of "taming". The others add a quantiser, which
# is compared by itself, or leave out a layer. The gradient of LlamaGen reaches the latents after
# their normalisation, here before it, as in ViT-VQGAN.
WITH_GRADIENTS = ("taming", "open-muse", "diffusers")


def test_images_codes_loss_and_gradients(made):
    name, theirs, live, model, weights = made
    rng = np.random.default_rng(0)
    x, slope = (rng.normal(size=(2, 16, 16, 3)).astype(np.float32) for _ in range(2))
    run = _gradients if name in WITH_GRADIENTS else _forward
    with jax.default_matmul_precision("highest"):
        image, encoded, gradients = run(model, weights["generator"], x, slope)
    wanted, ids, loss = theirs(torch.tensor(_first(x)))
    np.testing.assert_array_equal(encoded.ids, ids.numpy())
    assert len(np.unique(ids)) > 3
    assert error(_first(image), wanted) < NETWORK and error(encoded.loss, loss) < NETWORK
    if gradients is None:
        return
    theirs.zero_grad()
    ((wanted * torch.tensor(_first(slope))).sum() + loss).backward()
    mine = convert.to_state(model, {"generator": gradients, "stats": {}}, _home(name))
    largest = max(p.grad.abs().max().item() for p in live.parameters())
    for key, parameter in live.named_parameters():
        if parameter.grad.abs().max() > 1e-6 * largest:  # keys of attention move no softmax
            assert error(mine[key], parameter.grad) < GRADIENT, key


def test_the_gumbel_quantiser_and_its_gradients():
    torch.manual_seed(0)
    theirs = reference.Gumbel(16, 4)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    t = torch.tensor(_first(x), requires_grad=True)
    code, ids, loss = theirs(t)
    (code.pow(2).sum() + loss).backward()
    ours = GumbelVq(4, 16, 4, projected=False)
    table, proj = theirs.embed.weight, theirs.proj

    def plain(parameter):
        return parameter.detach().numpy()

    logits = {"kernel": plain(proj.weight)[:, :, 0, 0].T, "bias": plain(proj.bias)}
    params = {"embedding": plain(table), "to_logits": logits}

    def of(params, x):
        found = ours.apply({"params": params}, x, {}, True)
        return jnp.sum(found.fmap**2) + found.loss, found

    with jax.default_matmul_precision("highest"):
        (_, found), (of_params, of_x) = jax.value_and_grad(of, (0, 1), has_aux=True)(params, x)
    np.testing.assert_array_equal(found.ids, ids.numpy())
    assert error(_first(found.fmap), code) < NETWORK and error(found.loss, loss) < NETWORK
    assert error(_first(of_x), t.grad) < GRADIENT
    assert error(of_params["embedding"], table.grad) < GRADIENT
    kernel = of_params["to_logits"]["kernel"]
    assert error(np.asarray(kernel).T, proj.weight.grad[:, :, 0, 0]) < GRADIENT


def _home(name):
    beginnings = {"open": "open-muse", "llam": "LlamaGen", "diff": "diffusers", "tami": "taming"}
    return next(one for one in convert.NETWORKS if one.startswith(beginnings[name[:4]]))


def test_other_image_sizes_with_the_same_weights():
    torch.manual_seed(1)
    theirs = reference.Reference("taming")
    _spread(theirs)
    model, weights = convert.from_torch(theirs)
    x = np.random.default_rng(0).normal(size=(1, 24, 24, 3)).astype(np.float32)
    net = model.clone(image_size=24)
    with jax.default_matmul_precision("highest"):
        image, encoded = jax.jit(net.apply)({"params": weights["generator"]}, x, {})
    with torch.no_grad():
        wanted, ids, _ = theirs(torch.tensor(_first(x)))
    assert encoded.ids.shape[1:] == net.grid == (12, 12)
    np.testing.assert_array_equal(encoded.ids, ids.numpy())
    assert error(_first(image), wanted) < NETWORK


def test_weights_both_ways(made, tmp_path):
    """From a module and from a Lightning checkpoint with the networks of the loss."""
    name, _, live, model, weights = made
    state = live.state_dict()
    beside = {"loss.discriminator.main.0.weight": torch.ones(4, 3, 4, 4)}
    torch.save({"state_dict": {**state, **beside}, "epoch": 3}, path := tmp_path / "vqgan.ckpt")
    fields = dict(groups=4, image_size=16, pixel_range=model.pixel_range)
    again, loaded = convert.from_torch(path, **fields)
    told = {f: getattr(model, f) for f in ("commitment_weight", "codebook_weight")}
    assert again.clone(**told) == model
    for one, params in ((model, weights), (again, loaded)):
        out = convert.to_torch(one, params, _home(name))
        assert out.keys() == state.keys()
        assert all(torch.equal(out[key], state[key]) for key in state)
    live.load_state_dict(out, strict=True)


def test_what_the_files_do_not_tell_is_that_of_the_public_weights(made):
    name, _, _, model, _ = made
    assert (model.pixel_range == (0.0, 1.0)) == (name in ("open-muse", "diffusers, as aMUSEd"))
    legacy = (model.commitment_weight, model.codebook_weight) == (1.0, 0.25)
    assert legacy == (name != "llamagen")
    assert model.groups == 4


def test_a_checkpoint_becomes_a_system_and_goes_back(tmp_path):
    torch.manual_seed(0)
    theirs = reference.Reference("open-muse")
    torch.save(theirs.state_dict(), tmp_path / "vqgan.bin")
    import_torch(tmp_path / "vqgan.bin", tmp_path / "ours", groups=4, image_size=16)
    system = t2i.load(tmp_path / "ours")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert system.decode(system.encode(images)).shape == images.shape
    back = torch_io.read(export_torch(tmp_path / "ours", tmp_path / "back.safetensors"))
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(back[key], value.numpy())
    with pytest.raises(UserError, match="tokenizer has l2_recon_loss=True"):
        import_torch(
            tmp_path / "vqgan.bin", tmp_path / "x", groups=4, tokenizer={"l2_recon_loss": True}
        )


def test_averages_of_latent_diffusion_are_taken():
    theirs = reference.Reference("taming")
    state = theirs.state_dict()
    averages = {f"model_ema.{key.replace('.', '')}": value + 1 for key, value in state.items()}
    counts = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7)}
    model, weights = convert.from_torch({**state, **averages, **counts}, groups=4)
    out = convert.to_torch(model, weights)
    assert all(torch.equal(out[key], state[key] + 1) for key in state)


def test_names_of_attention_before_today():
    live = NETWORKS["diffusers"]().whole
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = live.state_dict()
    renamed = dict(state)
    for key in state:
        for new, old in before.items():
            if f".{new}." in key:
                renamed[key.replace(new, old)] = renamed.pop(key)
    model, weights = convert.from_torch(renamed, groups=4)
    out = convert.to_torch(model, weights, "diffusers VQModel")
    assert all(torch.equal(out[key], state[key]) for key in state)


def test_what_has_no_form_is_said_in_a_sentence():
    package = pytest.importorskip("diffusers")
    kl = package.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    for source in (kl, kl.state_dict()):
        with pytest.raises(UserError, match=r"autoencoder without a codebook \(KL\)"):
            convert.from_torch(source)
    movq = package.VQModel(
        block_out_channels=(32,), num_vq_embeddings=8, latent_channels=2, norm_type="spatial"
    )
    with pytest.raises(UserError, match="VQModel has norm_type='spatial'"):
        convert.from_torch(movq)
    with pytest.raises(UserError, match="are of a MoVQ"):
        convert.from_torch(movq.state_dict())


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(fsq_levels=(5, 4)), r"fsq_levels=\(5, 4\): the network of taming-transformers"),
        (dict(decoder_dim=64), "decoder_dim=64: the network"),
        (dict(middle_attention=False, downsampling="mean"), "middle_attention=False; downsampling"),
    ],
)
def test_what_no_package_has_is_said_in_a_sentence(fields, said):
    with pytest.raises(UserError, match=said):
        convert.to_state(VQGAN(dim=32, **fields), {})


def test_names_can_be_chosen():
    """Where several packages have a network, that of the first is written."""
    model, weights = convert.from_torch(reference.Reference("taming"))
    assert "quant_conv.bias" in convert.to_state(model, weights)
    other = convert.to_state(model, weights, "diffusers VQModel")
    again, same = convert.from_torch(other, groups=4)
    assert again == model.clone(image_size=256)
    jax.tree.map(np.testing.assert_array_equal, same, weights)
    with pytest.raises(UserError, match="names='diffuser VQModel' is not known; did you mean"):
        convert.to_state(model, weights, "diffuser VQModel")
    with pytest.raises(UserError, match="middle_attention=True.*open-muse"):
        convert.to_state(model, weights, "open-muse VQGAN of MaskGIT")


def test_every_argument_of_vq_model_is_decided():
    package = pytest.importorskip("diffusers")
    said = list(inspect.signature(package.VQModel.__init__).parameters)[1:]
    assert set(said) == set(arguments.VQ_MODEL), "decide what becomes of it"


def test_presets_have_the_names_of_public_files():
    """The table of each preset with public weights is that of its package."""
    homes = {
        "taming-f16-16384": "taming-transformers VQGAN",
        "taming-f8-gumbel": "taming-transformers VQGAN",
        "maskgit-f16": "open-muse VQGAN of MaskGIT",
        "amused": "diffusers VQModel",
        "llamagen-f8": "LlamaGen VQGAN",
    }
    for name, home in homes.items():
        model = preset(name)
        writing = [key for key, one in convert.NETWORKS.items() if one.model is VQGAN]
        assert next(key for key in writing if convert.NETWORKS[key].writes(model)) == home
