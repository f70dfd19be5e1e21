"""Whole decoders of dalle2-pytorch 1.15.6: weights, CLIP, settings and checkpoints both ways, and
the same loss and the same images.
"""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.convert import arguments, dalle2_decoder
from t2i_jax.diffusion.blur import LowresDraws
from t2i_jax.diffusion.discrete import BETAS
from t2i_jax.errors import UserError
from t2i_jax.models.decoder_cascade import buffers, noise_of
from t2i_jax.runs.torch import export_torch, import_torch
from t2i_jax.systems.decoder import sampling, stage
from tests.parity.reference import load

dalle2_pytorch = load("dalle2_pytorch")
package = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

LOSS = 1e-5  # float32 through CLIP and a U-Net
IMAGES = 1e-4  # and 25 steps of sampling
UNET = dict(dim=8, dim_mults=(1, 2), resnet_groups=4, num_resnet_blocks=0, attn_heads=2,
            attn_dim_head=8, max_text_len=4, init_cross_embed=False)  # fmt: skip
CLIP = dict(dim_text=16, dim_image=16, dim_latent=12, num_text_tokens=40, text_enc_depth=1,
            text_seq_len=4, text_heads=1, text_dim_head=16, visual_enc_depth=1, visual_heads=1,
            visual_dim_head=16, visual_image_size=16, visual_patch_size=8)  # fmt: skip
SETTINGS = dict(
    image_sizes=(8, 16), timesteps=25, image_cond_drop_prob=0.2, learned_variance=(True, False),
    use_noise_for_lowres_cond=True, predict_v=(False, True), p2_loss_weight_gamma=(0.5, 0.0),
    blur_sigma=(0.4, 0.8), loss_type="l1",
)  # fmt: skip
_rng = np.random.default_rng(0)
PIXELS = _rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
TEXT = np.array([[5, 7, 3, 0], [9, 2, 0, 0]])


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    unets = (
        package.Unet(**UNET, image_embed_dim=12, text_embed_dim=16, cond_on_text_encodings=True),
        package.Unet(**UNET, lowres_cond=True, memory_efficient=True),
    )
    decoder = package.Decoder(unets, clip=package.CLIP(**CLIP), **SETTINGS).eval()
    with torch.no_grad():
        for parameter in decoder.unets.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return decoder


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """The folder that a live decoder becomes."""
    return import_torch(theirs, tmp_path_factory.mktemp("decoder") / "run")


def _torch(a):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 1)))


def test_weights_and_settings_both_ways(theirs, ours, tmp_path):
    task = t2i.load(ours).task
    first, second = task.stages
    assert [one.image_size for one in task.stages] == [8, 16]
    assert [one.noise.schedule for one in task.stages] == ["cosine", "linear"]
    assert (first.noise.p2_gamma, second.noise.objective) == (0.5, "v")
    assert first.learned_variance is not None and second.learned_variance is None
    assert second.lowres.noise and second.lowres.sigma == (0.4, 0.8)
    assert task.image_cond_drop_prob == 0.2 and first.noise.distance == "l1"
    state = theirs.state_dict()
    export_torch(ours, tmp_path / "whole.safetensors")
    again = convert.torch_io.load(tmp_path / "whole.safetensors")
    assert {k: v.shape for k, v in again.items()} == {k: tuple(v.shape) for k, v in state.items()}
    for key, value in state.items():
        if "noise_scheduler" in key:  # computed anew
            np.testing.assert_allclose(again[key], value, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(again[key], value)


def test_checkpoints_of_the_trainer_both_ways(theirs, ours, tmp_path):
    export_torch(ours, tmp_path / "trainer.pt")
    loaded = torch.load(tmp_path / "trainer.pt", weights_only=True)
    theirs.load_state_dict(loaded["model"], strict=True)
    ema = torch.nn.ModuleList([dalle2_pytorch.trainer.EMA(u) for u in theirs.unets])
    ema.load_state_dict(loaded["ema"], strict=True)
    loaded["steps"] = torch.tensor([7, 0])
    shifted = {k: v + 1 if ".ema_model." in k else v for k, v in loaded["ema"].items()}
    torch.save({**loaded, "ema": shifted}, tmp_path / "more.pt")
    sizes = dict(decoder={"image_sizes": (8, 16)})
    fields = dict(resnet_groups=4, unets=[{"channels": 3}, {}], text_heads=1, visual_heads=1)
    run = t2i.load(import_torch(tmp_path / "more.pt", tmp_path / "run", **sizes, **fields))
    assert run.updates == {"stage_1": 7, "stage_2": 0}
    was = t2i.load(ours).weights
    one, other = (w["stage_1"]["unet"]["context_norm"]["bias"] for w in (was, run.weights))
    np.testing.assert_allclose(other, one + 1, atol=1e-6)
    for version, refused in (("1.9.4", True), ("1.14.0", False)):
        old = {**loaded, "version": version}
        if refused:
            with pytest.raises(UserError, match=f"dalle2-pytorch {version}"):
                dalle2_decoder.from_trainer(old)


def test_every_argument_of_the_installed_package_is_decided():
    names = list(inspect.signature(package.Decoder.__init__).parameters)[1:]
    assert set(names) == set(arguments.DECODER), "decide what becomes of it"
    made = inspect.signature(t2i.Decoder).parameters
    without = {"clip_denoised", "clip_x_start", "clip_adapter_overrides", "auto_normalize_img",
               "vae", "predict_x_start_for_latent_diffusion"}  # fmt: skip
    assert set(names) - without <= set(made)


def test_what_it_saves_of_a_diffusion(theirs):
    for noise, module in zip(
        (t2i.DiscreteDdpm(25, p2_gamma=0.5), t2i.DiscreteDdpm(25, "linear")),
        theirs.noise_schedulers,
        strict=True,
    ):
        for name, value in buffers(noise).items():
            np.testing.assert_allclose(value, getattr(module, name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_a_diffusion_is_found_in_what_is_saved_of_it(kind):
    """Its schedule and the exponent of its weights, also of numbers with fewer digits."""
    for schedule in BETAS:
        for gamma, k in ((0.0, 1.0), (0.5, 1.0), (0.25, 2.0), (1.0, 0.5), (0.123, 1.5)):
            noise = t2i.DiscreteDdpm(1000, schedule, p2_gamma=gamma, p2_k=k)
            saved = buffers(noise)
            told = {n: torch.tensor(saved[n]).to(getattr(torch, kind)) for n in saved}
            read = convert.torch_io.arrays(told)
            assert noise_of(read["betas"], read["p2_loss_weight"]) == noise
            with pytest.raises(UserError, match="p2_loss_weight of no gamma"):
                noise_of(read["betas"], np.linspace(0.2, 3, 1000, dtype=read["betas"].dtype))
    with pytest.raises(UserError, match="betas of no schedule"):
        noise_of(read["betas"] * 2, read["p2_loss_weight"])


def test_weights_of_16_bits_give_the_same_decoder(theirs):
    theirs = copy.deepcopy(theirs)
    wanted = convert.from_torch(theirs)[0]
    assert convert.from_torch(theirs.bfloat16())[0] == wanted
    assert convert.from_torch(theirs.half())[0] == wanted


def _drawn(number, shape):
    """Random numbers of a step, and the same as the package draws them."""
    eps, low = _rng.normal(size=(2, *shape)).astype(np.float32)
    ones, times = jnp.ones(2, bool), np.array([3, 20])
    lowres = None
    if number == 2:
        lowres = LowresDraws(jnp.full(2, 0.6), jnp.full(2, 3), jnp.array([51.0, 301.0]), low)
    draws = stage.DecoderDraws(jnp.asarray(times + 1.0), jnp.asarray(eps), ones, ones, lowres)
    return draws, eps, low, times


@pytest.mark.parametrize("number", [1, 2])
def test_losses_and_images(theirs, ours, number, monkeypatch):
    """The loss from pixels and token ids on, through CLIP; then a whole run of one stage."""
    system = t2i.load(ours)
    side = (8, 16)[number - 1]
    draws, eps, low, times = _drawn(number, (2, side, side, 3))
    mask = TEXT != 0
    batch = {"image": PIXELS, "text": TEXT.astype(np.int32), "text_mask": mask}
    loss = jax.jit(lambda params, frozen: system.task.losses(
        params, frozen, batch, draws, number=number
    ).mean())(system.weights, system.frozen)  # fmt: skip
    image, text = _torch(PIXELS / np.float32(255)), torch.tensor(TEXT)
    monkeypatch.setattr(  # nothing is dropped but by guidance
        package, "prob_mask_like", lambda shape, prob, device: torch.full(shape, prob > 0)
    )
    monkeypatch.setattr(package.random, "random", lambda: 0.0)
    monkeypatch.setattr(package.random, "uniform", lambda *_: 0.6)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor(times))
    noises = [_torch(low), _torch(eps)] if number == 2 else [_torch(eps)]
    monkeypatch.setattr(torch, "randn_like", lambda *_: noises.pop(0))
    if number == 2:
        scheduler = theirs.lowres_conds[1].noise_scheduler
        monkeypatch.setattr(scheduler, "sample_random_times", lambda _: torch.tensor([50, 300]))
    with torch.no_grad():
        wanted = theirs(image, text, unet_number=number)
    assert float(loss) == pytest.approx(float(wanted), rel=LOSS)
    _same_images(theirs, system, number, side, image, text, monkeypatch)


def _same_images(theirs, system, number, side, image, text, monkeypatch):
    noises = _rng.normal(size=(27, 2, side, side, 3)).astype(np.float32)
    queue = [_torch(a) for a in noises]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: queue.pop(0))
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: queue.pop(0))
    small = PIXELS[:, ::2, ::2]
    with torch.no_grad():
        embeds = theirs.clip.embed_image(image)[0]
        wanted = theirs.sample(
            image=_torch(small / np.float32(255)) if number == 2 else None, image_embed=embeds,
            text=text, cond_scale=1.5, start_at_unet_number=number, stop_at_unet_number=number,
        )  # fmt: skip
    own = noises[1:] if number == 2 else noises

    def gaussian(keys_B):
        return lambda count, x: (
            jnp.asarray(noises[0]) if x is enlarged.get("x") else jnp.asarray(own)[count]
        )

    enlarged = {}

    def noted(*arguments):
        enlarged["x"] = within(*arguments)
        return enlarged["x"]

    within = sampling.cascade.within_range
    monkeypatch.setattr(sampling.cascade, "within_range", noted)
    monkeypatch.setattr(sampling, "gaussian", gaussian)
    found = []
    generate = sampling.generate
    monkeypatch.setattr(
        sampling, "generate", lambda *a, **k: found.append(generate(*a, **k)) or found[-1]
    )
    more = {"start_at": 2, "start_images": small} if number == 2 else {"stop_at": 1}
    system.generate(TEXT, image_embeds=embeds.numpy(), guidance=1.5, **more)
    made = (np.asarray(found[0]) + 1) / 2
    wanted = np.clip(np.moveaxis(wanted.numpy(), 1, -1), 0, 1)
    assert np.abs(made - wanted).max() < IMAGES


def test_a_decoder_without_its_image_sizes_or_of_another_package_is_refused(theirs, tmp_path):
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    convert.torch_io.write(tmp_path / "a.safetensors", state)
    fields = dict(resnet_groups=4, unets=[{"channels": 3}, {}], text_heads=1, visual_heads=1)
    with pytest.raises(UserError, match="do not tell image_sizes"):
        import_torch(tmp_path / "a.safetensors", tmp_path / "b", **fields)
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="betas of no schedule"):
        dalle2_decoder.NETWORK.fields(
            state | {"noise_schedulers.0.betas": np.full(25, 0.5)}, {"channels": 3}
        )
