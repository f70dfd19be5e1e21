"""SimCLR and SimSiam of x-clip against the live package: the loss and its gradients of the same
views, and weights both ways.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import save_model

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.convert import torch_io, x_clip_ssl
from t2i_jax.errors import UserError
from t2i_jax.systems.clip import task as clip_task
from t2i_jax.systems.clip import visual_ssl as ours
from t2i_jax.systems.clip import weights
from t2i_jax.systems.clip.views import Views
from t2i_jax.systems.imported import TorchFile
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

x_clip = load("x_clip")
package = load("x_clip.visual_ssl")
torch = pytest.importorskip("torch")

LOSS = 1e-5  # float32 through a few layers, products in another order
GRADIENT = 1e-4  # as much again in the backward pass, and batch norms
ROWS, HIDDEN, TEMPERATURE, WEIGHT = 4, 24, 0.4, 0.3
CLIP = dict(
    dim_text=16, dim_image=16, dim_latent=8, num_text_tokens=40, text_enc_depth=1, text_seq_len=5,
    text_heads=1, text_dim_head=8, visual_enc_depth=1, visual_heads=1, visual_dim_head=8,
    visual_image_size=8, visual_patch_size=4, visual_patch_dropout=0.0,
)  # fmt: skip


@pytest.fixture(params=ours.KINDS)
def theirs(request, monkeypatch):
    """The package's CLIP."""
    _all_narrow(monkeypatch)
    torch.manual_seed(0)
    made = _made(visual_ssl_type=request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def _made(**options):
    return x_clip.CLIP(
        **CLIP, use_visual_ssl=True, simclr_temperature=TEMPERATURE, image_ssl_loss_weight=WEIGHT,
        **options,
    )  # fmt: skip


def _all_narrow(monkeypatch):
    """Projectors are 4096 wide there whatever the package is told, but for here."""
    for name in ("SimSiamMLP", "MLP"):
        wide = getattr(package, name)
        narrow = functools.partial(_narrow, wide)
        monkeypatch.setattr(package, name, narrow)


def _narrow(wide, dim, projection_size, hidden_size):
    return wide(dim, projection_size, HIDDEN)


def test_losses_and_gradients_of_the_same_views(theirs, monkeypatch):
    rng = np.random.default_rng(0)
    image, *views = rng.random((3, ROWS, 8, 8, 3), np.float32)
    text = rng.integers(1, 40, (ROWS, 5))
    for_them = [torch.tensor(view.transpose(0, 3, 1, 2)) for view in views]
    augment = theirs.visual_ssl.augment if _is_simclr(theirs) else theirs.visual_ssl.augment1
    monkeypatch.setattr(augment, "forward", lambda _: for_them.pop(0))
    wanted = theirs(torch.tensor(text), torch.tensor(image.transpose(0, 3, 1, 2)), return_loss=True)
    wanted.backward()
    found = weights.from_torch(TorchFile(theirs, None, {}, {}))
    own = found.task.visual_ssl
    assert (own.weight, own.hidden_dim) == (WEIGHT, HIDDEN)
    assert own.temperature == (TEMPERATURE if own.kind == "simclr" else ours.VisualSsl.temperature)
    task = dataclasses.replace(found.task, visual_ssl=dataclasses.replace(own, compat=ours.COMPATS))
    monkeypatch.setattr(Views, "of_images", lambda *_: [2 * jnp.asarray(v) - 1 for v in views])
    monkeypatch.setattr(clip_task, "to_float", lambda image, pixel_range: 2 * image - 1)
    batch = {"image": image, "text": text, "text_mask": text != 0}

    @jax.jit
    def run(params):
        def loss(params):
            return task.loss(params, {}, {}, batch, jax.random.key(0), 0)[0]

        return jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        value, gradients = run(found.params)
    assert error(value, wanted) < LOSS
    mine = _state(task, jax.device_get(gradients["clip"]))
    slopes = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    assert any("projector" in key for key in slopes)
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    far = {
        key: float(np.abs(mine[key] - slope.numpy()).max())
        for key, slope in slopes.items()
    }  # fmt: skip
    assert {key: e for key, e in far.items() if e > GRADIENT * largest} == {}


def _is_simclr(theirs):
    return type(theirs.visual_ssl).__name__ == "SimCLR"


def _state(task, params):
    clip = {name: value for name, value in params.items() if name != "ssl"}
    state = convert.to_state(task.model, clip)
    shapes = task.visual_ssl.shapes(task.model.dim_image)
    return state | x_clip_ssl.to_state(task.visual_ssl.kind, params["ssl"], shapes, state)


def test_weights_both_ways(theirs, tmp_path):
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    torch_io.write(tmp_path / "of.safetensors", state)
    heads = dict(text_heads=1, visual_heads=1, text_dim_head=8, visual_dim_head=8)
    told = {"image_ssl_loss_weight": WEIGHT}
    run = runs.import_torch(tmp_path / "of.safetensors", tmp_path / "run", **heads, clip=told)
    assert t2i.load(run).task.visual_ssl.weight == WEIGHT
    runs.export_torch(run, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == state.keys()
    unread = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, in training
    for key, value in state.items():
        assert key.endswith(unread) or np.array_equal(again[key].numpy(), value), key
    theirs.load_state_dict(again, strict=True)


def test_a_file_that_holds_each_array_once(theirs, tmp_path):
    save_model(theirs, str(tmp_path / "once.safetensors"))
    heads = dict(text_heads=1, visual_heads=1, text_dim_head=8, visual_dim_head=8)
    once = weights.from_torch(TorchFile(tmp_path / "once.safetensors", None, heads, {}))
    whole = weights.from_torch(TorchFile(theirs, None, {}, {}))
    assert once.task.visual_ssl.kind == whole.task.visual_ssl.kind
    assert jax.tree.all(jax.tree.map(np.array_equal, once.params, whole.params))


def _wholes(clip):
    """A prior, a decoder and a DALLE2 around a CLIP."""
    dalle2 = load("dalle2_pytorch")
    net = dalle2.DiffusionPriorNetwork(dim=8, depth=1, dim_head=8, heads=1, max_text_len=5)
    unet = dalle2.Unet(
        dim=8, dim_mults=(1,), image_embed_dim=8, cond_dim=12, resnet_groups=4, attn_heads=1,
        attn_dim_head=8, num_resnet_blocks=0, init_cross_embed=False, max_text_len=5,
    )  # fmt: skip
    prior = dalle2.DiffusionPrior(
        net, clip=clip, timesteps=30, cond_drop_prob=0.1, condition_on_text_encodings=False
    )
    decoder = dalle2.Decoder(unet, clip=clip, image_size=8, timesteps=30, learned_variance=False)
    whole = dalle2.DALLE2(prior=prior, decoder=decoder)
    return {"prior": prior, "decoder": decoder, "dalle2": whole}


@pytest.mark.parametrize("whole", ["prior", "decoder", "dalle2"])
def test_within_a_prior_or_a_decoder_it_is_the_same(theirs, whole, tmp_path):
    found = _wholes(theirs)[whole]
    state = {key: value.numpy() for key, value in found.state_dict().items()}
    run = runs.import_torch(found, tmp_path / "live")
    assert t2i.load(run).clip.task.visual_ssl.weight == WEIGHT
    torch_io.write(tmp_path / "of.safetensors", state)
    told = {"text_heads": 1, "visual_heads": 1, "text_dim_head": 8, "visual_dim_head": 8}
    told |= {} if whole == "prior" else {"resnet_groups": 4, "decoder": {"image_size": 8}}
    told |= {"clip": {"image_ssl_loss_weight": WEIGHT}}
    again = runs.import_torch(tmp_path / "of.safetensors", tmp_path / "file", **told)
    for folder in (run, again):
        assert t2i.load(folder).clip.task.visual_ssl.weight == WEIGHT
        runs.export_torch(folder, folder.with_suffix(".safetensors"))
        back = torch_io.read(folder.with_suffix(".safetensors"))
        assert back.keys() == state.keys()
        unread = ("running_mean", "running_var", "num_batches_tracked", "noise_scheduler.")
        for key, value in state.items():
            assert any(one in key for one in unread) or np.array_equal(back[key], value), key


def test_another_hidden_layer_is_refused(monkeypatch, tmp_path):
    _all_narrow(monkeypatch)
    theirs = _made(visual_ssl_hidden_layer=-2)
    with pytest.raises(UserError, match="visual_ssl_hidden_layer=-2"):
        weights.from_torch(TorchFile(theirs, None, {}, {}))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    torch_io.write(tmp_path / "of.safetensors", state)
    heads = dict(text_heads=1, visual_heads=1, text_dim_head=8, visual_dim_head=8)
    with pytest.raises(UserError, match="arrays that begin with 'visual_ssl.'"):
        weights.from_torch(TorchFile(tmp_path / "of.safetensors", None, heads, {}))
    assert convert.from_torch(theirs)[0].dim_image == 16  # the network itself is whole
