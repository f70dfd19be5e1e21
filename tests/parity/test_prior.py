"""Whole priors of live dalle2-pytorch: with their CLIP, sampled with the same noise, from files of
the trainer, and back.
"""

import contextlib
import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import save_model

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.convert import arguments
from t2i_jax.diffusion.draws import injected
from t2i_jax.errors import UserError
from t2i_jax.systems.dalle2 import weights as dalle2_weights
from t2i_jax.systems.decoder import weights as decoder_weights
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.prior import sampling
from t2i_jax.systems.prior import weights as prior_weights
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

package = load("dalle2_pytorch")
dalle2 = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

EMBEDDING = 1e-5  # float32 through CLIP's two layers
SAMPLED = 1e-4  # eight steps, each of which amplifies what the last one rounded
STEPS, FEWER = 8, 5


def _clip(**fields):
    torch.manual_seed(1)
    sizes = dict(
        dim_text=16, dim_image=16, dim_latent=16, num_text_tokens=40, text_enc_depth=1,
        text_seq_len=8, text_heads=1, visual_enc_depth=1, visual_heads=1,
        visual_image_size=16, visual_patch_size=8,
    )  # fmt: skip
    return package.CLIP(**{**sizes, **fields}).eval()


def _prior(clip=None, of_clip=None, **settings):
    torch.manual_seed(0)
    net = package.DiffusionPriorNetwork(
        dim=16, depth=1, dim_head=8, heads=2, max_text_len=8, self_cond=True
    )
    return package.DiffusionPrior(
        net, clip=clip or _clip(**of_clip or {}), timesteps=STEPS, cond_drop_prob=0.2, **settings
    ).eval()


@pytest.fixture
def text():
    ids = np.random.default_rng(0).integers(1, 40, (3, 8))
    ids[1, 5:] = 0
    return ids


SETTINGS = {
    "clean embeddings on the sphere": dict(
        init_image_embed_l2norm=True, sampling_clamp_l2norm=True, training_clamp_l2norm=True,
        sampling_final_clamp_l2norm=True,
    ),
    "noise": dict(
        predict_x_start=False, loss_type="l1", image_embed_scale=3.0,
        of_clip={"use_all_token_embeds": True},
    ),
    "v": dict(predict_x_start=False, predict_v=True, loss_type="huber"),
    "v as by default": dict(predict_v=True, sampling_clamp_l2norm=True),
    "noise, on no sphere": dict(
        predict_x_start=False, sampling_clamp_l2norm=True, training_clamp_l2norm=True,
        sampling_final_clamp_l2norm=True,
    ),
}  # fmt: skip


def test_a_file_that_holds_every_array_of_its_clip_once(tmp_path):
    theirs = _prior(of_clip={"use_mlm": True})
    save_model(theirs, str(tmp_path / "once.safetensors"))
    model, params = convert.from_torch(tmp_path / "once.safetensors", text_heads=1)
    state, exported = theirs.state_dict(), convert.to_torch(model, params)
    assert all(torch.equal(exported[key], state[key]) for key in state if key.startswith("clip."))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_noise_gives_the_same_embeddings(name, text, tmp_path, monkeypatch):
    theirs = _prior(**SETTINGS[name])
    folder = runs.import_torch(theirs, tmp_path / "prior")
    ours, stored = t2i.load(folder), runs.load_run_recipe(folder).evaluation.options
    rng = np.random.default_rng(1)
    eps = rng.normal(size=(STEPS + 1, 3, 16)).astype(np.float32)
    with torch.no_grad():
        embed, encodings = theirs.clip.embed_text(torch.tensor(text))
    told = {"text_embed": embed, "text_encodings": encodings}

    def made_there(steps):
        rest = iter([torch.tensor(one) for one in eps])
        monkeypatch.setattr(dalle2.torch, "randn", lambda *_, **__: next(rest))
        monkeypatch.setattr(dalle2.torch, "randn_like", lambda *_, **__: next(rest))
        with torch.no_grad():
            found = theirs.p_sample_loop((3, 16), told, cond_scale=1.5, timesteps=steps)
        monkeypatch.undo()
        return found

    task, params = ours.task, ours.weights["prior"]
    options = [
        dataclasses.replace(stored, guidance=1.5, sampler=sampler, steps=steps)
        for sampler, steps in (("ancestral", STEPS), ("ddim", FEWER))
    ]

    image = rng.random((3, 40, 40, 3), np.float32)  # larger than CLIP's
    with torch.no_grad():
        shown = theirs.clip.embed_image(torch.tensor(image.transpose(0, 3, 1, 2)))[0]

    @jax.jit
    def sampled(params, frozen, ids):
        of_image = task.clip.embed_image(frozen["clip"]["clip"], 2 * image - 1)
        told = task.text_of(frozen, {"text": ids, "text_mask": ids != 0})
        net = sampling.bound(task.network, params, told, null_sees_image=False)
        draw = injected(jnp.asarray(eps))
        made = [sampling.run(task, net, task.sampling_of(one), 3, draw, 1.5) for one in options]
        return told, of_image, made

    with jax.default_matmul_precision("highest"):
        told_here, shown_here, mine = sampled(params, ours.frozen, jnp.asarray(text))
    assert error(shown_here, shown) < EMBEDDING
    assert error(told_here.embed_BD, embed) < EMBEDDING
    assert error(told_here.encodings_BLE, encodings) < EMBEDDING
    for found, steps in zip(mine, (STEPS, FEWER), strict=True):
        assert error(found, made_there(steps)) < SAMPLED, steps
    assert ours.task.noise.distance == SETTINGS[name].get("loss_type", "l2")


@pytest.mark.parametrize("trained", [{}, {"warmup_steps": 9}, {"warmup_steps": 9, "wd": 0.0}])
def test_files_of_the_prior_and_of_its_trainer_both_ways(trained, tmp_path):
    theirs = _prior()
    trainer = package.DiffusionPriorTrainer(theirs, accelerator_cpu=True, **trained)
    trainer(text=torch.ones((2, 8), dtype=torch.long), image=torch.rand(2, 3, 16, 16))
    trainer.update()  # the optimiser then has a state
    with torch.no_grad():
        for averaged in trainer.ema_diffusion_prior.ema_model.net.parameters():
            averaged.add_(1.0)
    trainer.save(tmp_path / "trainer.pt")
    folder = runs.import_torch(tmp_path / "trainer.pt", tmp_path / "averaged", self_cond=True)
    query = t2i.load(folder).weights["prior"]["learned_query"]
    wanted = trainer.ema_diffusion_prior.ema_model.net.learned_query
    np.testing.assert_array_equal(query, wanted.numpy())
    if trained:
        return
    state = theirs.state_dict()
    torch.save(state, tmp_path / "prior.pt")
    folder = runs.import_torch(
        tmp_path / "prior.pt", tmp_path / "plain", self_cond=True, prior={"cond_drop_prob": 0.2}
    )
    assert t2i.load(folder).task.text_drop_prob == 0.2
    runs.export_torch(folder, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert again.keys() == state.keys()
    buffers = [key for key in state if key.startswith("noise_scheduler.")]
    assert all(torch.equal(again[key], state[key]) for key in state if key not in buffers)
    for key in buffers:  # of float64 numbers that PyTorch and NumPy round apart now and then
        torch.testing.assert_close(again[key], state[key], rtol=3e-7, atol=0)
    theirs.load_state_dict(again, strict=True)


def _decoder(clip, **settings):
    unet = package.Unet(
        dim=8, dim_mults=(1,), image_embed_dim=16, attn_heads=1, attn_dim_head=8,
        num_resnet_blocks=0, init_cross_embed=False, max_text_len=8,
    )  # fmt: skip
    return package.Decoder(
        unet, clip=clip, image_size=16, timesteps=STEPS, learned_variance=False, **settings
    )


@pytest.mark.parametrize("whole", [_prior, _decoder])
def test_a_clip_within_is_as_the_package_uses_it(whole):
    """Of a live one and of a file: captions without their mask, class tokens even of a FILIP."""
    by_tokens = {"use_all_token_embeds": True}
    theirs = whole(_clip(**by_tokens))
    state = theirs.state_dict()
    for source, told in ((theirs, {}), (state, by_tokens)):
        clip = convert.from_torch(source, **told)[0].clip
        assert clip.text_encode_without_mask and clip.pixel_range == (0.0, 1.0)
        assert clip.use_all_token_embeds
        assert set(clip.compat) == {"cls_of_filip", "resize_right"}
    assert convert.from_torch(state)[0].clip.compat == ("resize_right",)
    other = {key.replace(".text_transformer.", ".text."): value for key, value in state.items()}
    with pytest.raises(UserError, match="CLIP that is not x-clip's"):
        convert.from_torch(other)


def test_the_clip_of_a_decoder_sees_the_pixels_that_the_decoder_is_given():
    """With auto_normalize_img=False they are from -1 to 1, for CLIP too."""
    settings = {"auto_normalize_img": False}
    clip = _clip()
    theirs = package.DALLE2(prior=_prior(clip), decoder=_decoder(clip, **settings))
    options = {"decoder": {"image_size": 16, **settings}}
    for whole, read in ((theirs, dalle2_weights), (theirs.decoder, decoder_weights)):
        state = whole.state_dict()
        for source, told in ((whole, {}), (state, options)):
            found = read.from_torch(TorchFile(source, None, {}, told))
            assert found.parts["clip"].task.model.pixel_range == (-1.0, 1.0)
    assert convert.from_torch(theirs.decoder)[0].clip.pixel_range == (-1.0, 1.0)


def test_every_argument_of_the_package_is_decided():
    def of(*kinds):
        found = {name for kind in kinds for name in inspect.signature(kind).parameters}
        return found - {"args", "kwargs"}

    assert of(dalle2.DiffusionPrior) == set(arguments.DIFFUSION_PRIOR)
    network = of(dalle2.DiffusionPriorNetwork, dalle2.CausalTransformer)
    assert network == set(arguments.DIFFUSION_PRIOR_NETWORK)


def test_what_has_no_form_there_is_refused(tmp_path):
    model, params = convert.from_torch(_prior())
    wide = dataclasses.replace(model, network=model.network.clone(parent=None, embed_dim=8))
    with pytest.raises(UserError, match="embed_dim=8 .* dalle2-pytorch has no projection"):
        convert.to_state(wide, params)
    with pytest.raises(UserError, match="of no schedule known here"):
        state = _prior().state_dict()
        state["noise_scheduler.betas"] = torch.rand(STEPS)
        convert.from_torch(state)


def test_encodings_of_another_width_than_the_network_are_not_read(tmp_path):
    """The package has no projection of them, and a state dict does not tell whether it reads
    them.
    """
    theirs = _prior(of_clip={"dim_text": 24}, condition_on_text_encodings=False)
    torch.save(theirs.state_dict(), tmp_path / "prior.pt")
    run = runs.import_torch(tmp_path / "prior.pt", tmp_path / "run", text_heads=1)
    assert not t2i.load(run).task.use_encodings
    told = {"condition_on_text_encodings": True}
    with pytest.raises(UserError, match="its CLIP are 24 wide where the network has dim=16"):
        runs.import_torch(tmp_path / "prior.pt", tmp_path / "no", text_heads=1, prior=told)


def test_a_prior_of_an_earlier_release_is_said_to_be_one():
    state = _prior().state_dict()
    old = {key: value for key, value in state.items() if not key.startswith("net.null_")}
    old["net.null_text_embed"] = state["net.null_text_encodings"]
    network = {key.removeprefix("net."): value for key, value in old.items() if "net." in key}
    for one in (old, network):
        with pytest.raises(UserError, match="before 1.9.0, whose prior is another one"):
            convert.from_torch(one)


WRONG = (None, "x", -1, (1, 2), {}, float("nan"))


@pytest.mark.parametrize("whole", [_prior, _decoder])
def test_arguments_of_another_type_are_one_sentence(whole, tmp_path):
    torch.save(whole(_clip()).state_dict(), tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt", None, {}, {})
    read = (prior_weights if whole is _prior else decoder_weights).from_torch
    name = "prior" if whole is _prior else "decoder"
    needed = {} if whole is _prior else {"image_size": 16}
    rows = arguments.DIFFUSION_PRIOR if whole is _prior else arguments.DECODER
    for argument, value in itertools.product(rows, WRONG):
        file._options = {name: {**needed, argument: value}}
        with contextlib.suppress(UserError):  # a traceback of anything else is none
            read(file)
    for argument in ("predict_v", "text_cond_drop_prob", "image_cond_drop_prob", "cond_drop_prob"):
        file._options = {name: {**needed, argument: "false"}}
        with pytest.raises(UserError, match=f"{name}.{argument}='false' is not"):
            read(file)
