"""Whole cascades against the live package: losses, gradients and sampling with injected noise, and
checkpoints.

The networks are the package's own with random weights, converted; the random numbers of both sides
are the same arrays.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import imagen as tables
from t2i_jax.diffusion.draws import injected
from t2i_jax.diffusion.lowres import LowresNoise
from t2i_jax.diffusion.noise import Ddpm, Edm
from t2i_jax.diffusion.samplers import Churn
from t2i_jax.errors import UserError
from t2i_jax.models.unet import NullUnet
from t2i_jax.runs import import_torch, load_run_recipe
from t2i_jax.systems.cascade import stage as imagen_stage
from t2i_jax.systems.cascade.stage import Draws, Stage, StageSampling
from t2i_jax.systems.imagen.options import ImagenOptions
from tests.parity.reference import load

imagen_pytorch = load("imagen_pytorch")
torch = pytest.importorskip("torch")
from imagen_pytorch import imagen_pytorch as package  # noqa: E402

LOSS = 1e-5  # float32 through a network
# Of the largest of all, that of the level's frequencies: sines of arguments near 100 keep five
# digits.
GRADIENT = 5e-4
# 12 steps, each through the network; its answers are moderate, else such a run doubles a rounding
# per step.
RUN = 1e-4
ROWS, SIZES = 2, (8, 16)
SMALL = dict(
    dim=8,
    dim_mults=(1, 2),
    attn_heads=2,
    attn_dim_head=8,
    layer_attns=(False, True),
    layer_cross_attns=(False, True),
    text_embed_dim=6,
    max_text_len=4,
    attn_pool_num_latents=3,
    num_resnet_blocks=0,
)
# What a loss or a sampler does to a network needs no more of it, and compiles in a third of the
# time; test_unet.py has the layers.
PLAIN = SMALL | dict(
    dim_mults=(1,),
    layer_cross_attns=False,
    use_global_context_attn=False,
    layer_attns=False,
    attend_at_middle=False,
    attn_pool_text=False,
    init_cross_embed=False,
    init_conv_kernel_size=3,
)
_rng = np.random.default_rng(0)
TEXT = _rng.normal(size=(ROWS, 3, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0]], bool)
IMAGES = _rng.uniform(size=(ROWS, 16, 16, 3)).astype(np.float32)


def make(elucidated=False, unet=SMALL, **options):
    """The package's cascade with every weight random, and our U-Nets and weights."""
    torch.manual_seed(0)
    self_cond, last = options.pop("self_cond", False), options.pop("last", 0.1)
    unets = [package.Unet(**unet, self_cond=self_cond, lowres_cond=i > 0) for i in range(2)]
    kind = imagen_pytorch.ElucidatedImagen if elucidated else imagen_pytorch.Imagen
    theirs = kind(unets, image_sizes=SIZES, text_embed_dim=6, **options).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (last if "final_conv" in name else 0.1))
    model, params = convert.from_torch(theirs)
    return theirs, model, params


def nchw(a):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 1)))


def nhwc(a):
    return np.moveaxis(a.detach().numpy(), 1, -1)


def error(ours, theirs):
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def feed(monkeypatch, *arrays):
    """Lets the package draw these arrays, one after the other."""
    queue = [nchw(a) if a.ndim == 4 else torch.from_numpy(a) for a in arrays]

    def drawn(like, *args, **kwargs):
        value = queue.pop(0)
        assert tuple(value.shape) == tuple(getattr(like, "shape", like))
        return value.clone()

    monkeypatch.setattr(torch, "randn", drawn)
    monkeypatch.setattr(torch, "randn_like", drawn)
    return queue


def normals(count, size, seed=1):
    return np.random.default_rng(seed).normal(size=(count, ROWS, size, size, 3)).astype(np.float32)


KINDS = {
    "noise": (Ddpm(), dict()),
    "v, l1, p2 off": (
        Ddpm(objective="v", distance="l1", weighting="snr"),
        dict(pred_objectives="v", loss_type="l1", min_snr_loss_weight=False, resize_mode="bicubic"),
    ),
    "x_start": (
        Ddpm(objective="x_start", distance="huber", min_snr_gamma=3.0),
        dict(pred_objectives="x_start", loss_type="huber", min_snr_gamma=3),
    ),
    "elucidated": (
        Edm(sigma_data=0.4, P_mean=-1.0),
        dict(elucidated=True, sigma_data=0.4, P_mean=-1.0),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_losses_and_gradients(kind, number, monkeypatch):
    noise, options = KINDS[kind]
    theirs, model, params = make(unet=PLAIN, **options)
    size = SIZES[number - 1]
    eps, low_eps = normals(2, size)
    keep = np.array([True, False])
    times, low_time = np.array([0.3, 0.8], np.float32), np.float32(0.4)
    sigma_normals = np.array([0.5, -0.7], np.float32)
    monkeypatch.setattr(package, "prob_mask_like", lambda *_, **__: torch.from_numpy(keep))
    if isinstance(noise, Edm):
        level = np.exp(noise.P_mean + noise.P_std * sigma_normals)
        drawn = [sigma_normals, eps] if number == 1 else [low_eps, sigma_normals, eps]
        queue = feed(monkeypatch, *drawn)
    else:
        level = times
        queue = feed(monkeypatch, *([eps] if number == 1 else [eps, low_eps]))

        def given(*_, **__):
            return torch.from_numpy(times)

        monkeypatch.setattr(theirs.noise_schedulers[number - 1], "sample_random_times", given)
    monkeypatch.setattr(
        theirs.lowres_noise_schedule,
        "sample_random_times",
        lambda *_, **__: torch.full((1,), low_time),
    )
    loss = theirs(
        nchw(IMAGES),
        text_embeds=torch.from_numpy(TEXT),
        text_masks=torch.from_numpy(MASK),
        unet_number=number,
    )
    loss.backward()
    assert not queue

    resize = options.get("resize_mode", "nearest")
    stage = Stage(model.unets[number - 1], size, noise=noise, resize=resize)
    low = (
        dict(lowres_level_B=jnp.full((ROWS,), low_time), lowres_eps_BHWC=low_eps)
        if number == 2
        else {}
    )
    draws = Draws(jnp.asarray(level), eps, keep, **low)

    def ours(params):
        bind = imagen_stage.bound(stage.unet, params, (TEXT, MASK))
        return imagen_stage.losses(
            stage, bind, 2 * IMAGES - 1, draws, SIZES[0] if number == 2 else None
        ).mean()

    with jax.default_matmul_precision("highest"):
        value, gradients = jax.jit(jax.value_and_grad(ours))(params[f"stage_{number}"])
    assert value == pytest.approx(loss.item(), rel=LOSS)
    ours = convert.to_state(stage.unet, gradients)
    slopes = {
        k: p.grad.numpy()
        for k, p in theirs.unets[number - 1].named_parameters()
        if p.grad is not None
    }
    largest = max(np.abs(slope).max() for slope in slopes.values())
    worst = max((np.abs(ours[key] - slope).max() / largest, key) for key, slope in slopes.items())
    assert worst[0] < GRADIENT, worst


SAMPLINGS = {
    "noise, dynamic, plain guidance": (Ddpm(), {}, dict(parallel=1.0), 0.95),
    "v, static, parallel part removed": (
        Ddpm(objective="v"),
        dict(pred_objectives="v", dynamic_thresholding=False),
        dict(parallel=0.0),
        None,
    ),
    "x_start": (
        Ddpm(objective="x_start"),
        dict(pred_objectives="x_start", last=0.005),
        dict(parallel=0.3),
        0.95,
    ),
    "elucidated": (Edm(), dict(elucidated=True, self_cond=True), dict(parallel=0.0), 0.95),
}
STEPS = 12


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_sampling_both_stages(kind, monkeypatch):
    noise, options, guidance, percentile = SAMPLINGS[kind]
    elucidated = isinstance(noise, Edm)
    more = dict(num_sample_steps=STEPS) if elucidated else dict(timesteps=STEPS)
    theirs, model, params = make(unet=PLAIN, **{"last": 0.02, **more, **options})
    draws = [normals(STEPS + 1, size, seed) for seed, size in enumerate(SIZES)]
    low_eps = normals(1, SIZES[1], 9)[0]
    order = [*draws[0], low_eps, *draws[1]]
    queue = feed(monkeypatch, *order)
    wanted = theirs.sample(
        text_embeds=torch.from_numpy(TEXT),
        text_masks=torch.from_numpy(MASK),
        cond_scale=3.0,
        use_tqdm=False,
        return_all_unet_outputs=True,
        cfg_remove_parallel_component=guidance["parallel"] != 1,
        cfg_keep_parallel_frac=guidance["parallel"] if guidance["parallel"] != 1 else 0.0,
    )
    assert not queue
    small = None
    for i, size in enumerate(SIZES):
        stage = Stage(
            model.unets[i],
            size,
            noise=noise,
            lowres=LowresNoise(compat="imagen-pytorch-elucidated" if elucidated else None),
            resize="nearest",
        )
        sampling = StageSampling(
            "heun" if elucidated else "ancestral",
            STEPS,
            Churn() if elucidated else None,
            percentile,
            **guidance,
        )

        def run(params, small, stage=stage, sampling=sampling, size=size, eps=draws[i]):
            bind = imagen_stage.bound(stage.unet, params, (TEXT, MASK))
            given = None if small is None else (small, low_eps, None)
            return imagen_stage.run(
                stage, bind, sampling, (ROWS, size, size, 3), injected(eps), 3.0, small=given
            )

        with jax.default_matmul_precision("highest"):
            small = jax.jit(run)(params[f"stage_{i + 1}"], small)
        assert error((small + 1) / 2, nhwc(wanted[i])) < RUN


def test_weights_both_ways_with_an_empty_first_stage(tmp_path):
    theirs, model, params = make()
    theirs.load_state_dict(convert.to_torch(model, params), strict=True)
    torch.save(theirs.state_dict(), tmp_path / "imagen.pt")
    again, loaded = convert.from_torch(tmp_path / "imagen.pt", scale_skip_connection=True)
    assert again == dataclasses.replace(model, unets=again.unets)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    unets = [imagen_pytorch.NullUnet(), package.Unet(**SMALL, lowres_cond=True)]
    upper = imagen_pytorch.Imagen(unets, image_sizes=SIZES, text_embed_dim=6)
    model, params = convert.from_torch(upper)
    assert isinstance(model.unets[0], NullUnet)
    upper.load_state_dict(convert.to_torch(model, params), strict=True)
    with pytest.raises(UserError, match="1 entries for 2 U-Nets"):
        convert.from_torch(theirs.state_dict(), unets=[{}])


@pytest.mark.parametrize("lengths", [(6, 4), (4, 300)])
def test_texts_are_encoded_whole_and_cut_by_each_u_net(lengths, tmp_path):
    """T5 sees the whole caption, as in the package, whatever a U-Net reads of it."""
    unets = [
        package.Unet(**{**PLAIN, "max_text_len": length}, lowres_cond=i > 0)
        for i, length in enumerate(lengths)
    ]
    theirs = imagen_pytorch.Imagen(unets, image_sizes=SIZES, text_embed_dim=6)
    task = load_run_recipe(import_torch(theirs, tmp_path / "run")).task
    assert task.text.max_length == max(256, *lengths)
    assert tuple(unet.max_text_len for unet in task.networks) == lengths


@pytest.mark.parametrize("dropped", [0.1, 0.0])
def test_what_is_imported_samples_with_the_guidance_of_the_package(dropped, tmp_path):
    """Without the parallel part; not at all where the package refuses it."""
    theirs, *_ = make(unet=PLAIN, cond_drop_prob=dropped)
    options = load_run_recipe(import_torch(theirs, tmp_path / "run")).evaluation.options
    assert options == ImagenOptions(parallel=0.0, **({} if dropped else {"guidance": 1.0}))


def test_a_trainers_checkpoint_goes_in_and_out(tmp_path):
    theirs, *_ = make()
    trainer = imagen_pytorch.ImagenTrainer(theirs, use_ema=True, verbose=False)
    with torch.no_grad():
        for i, ema in enumerate(trainer.ema_unets):
            for parameter in ema.ema_model.parameters():
                parameter.add_(0.25 + i)
    trainer.steps += torch.tensor([3, 5])
    trainer.save(tmp_path / "trainer.pt")
    found = tables.from_trainer(tmp_path / "trainer.pt")
    assert found.steps == (3, 5) and found.settings == {}
    differences = jax.tree.map(lambda a, b: float(np.median(b - a)), found.params, found.averages)
    assert np.allclose(jax.tree.leaves(differences["stage_2"]), 1.25, atol=1e-5)

    torch.save(tables.to_trainer(found), tmp_path / "ours.pt")
    blank, *_ = make()
    for parameter in blank.parameters():
        parameter.data.zero_()
    again = imagen_pytorch.ImagenTrainer(blank, use_ema=True, verbose=False)
    again.load(tmp_path / "ours.pt")
    assert again.steps.tolist() == [3, 5]
    state, wanted = (
        again.imagen.state_dict(),
        torch.load(tmp_path / "trainer.pt", weights_only=True),
    )
    assert all(torch.equal(state[key], value) for key, value in wanted["model"].items())
    averages = again.ema_unets.state_dict()
    assert all(
        torch.equal(averages[key], value)
        for key, value in wanted["ema"].items()
        if "ema_model" in key
    )
    with pytest.raises(UserError, match="no 'model'"):
        tables.from_trainer({})

    # what a config told beside the networks is no config, and is not written as one
    told = dataclasses.replace(found, settings={"timesteps": 4, "imagen_type": "original"})
    assert tables.from_trainer(tables.to_trainer(told)).steps == (3, 5)

    # weights without averages: those of a trainer as it is by default are the weights themselves
    torch.save(tables.to_trainer(dataclasses.replace(found, averages=None)), tmp_path / "plain.pt")
    again.load(tmp_path / "plain.pt")
    for unet, averaged in zip(again.imagen.unets, again.ema_unets, strict=True):
        wanted = unet.state_dict()
        assert all(torch.equal(wanted[k], v) for k, v in averaged.ema_model.state_dict().items())
