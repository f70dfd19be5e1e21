"""A whole DALLE2 of live dalle2-pytorch: its weights in and out, and an image of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_model, save_model

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.config import fields_of
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.runs import folder as folders
from t2i_jax.systems.dalle2 import weights
from t2i_jax.systems.decoder import sampling as decoder_sampling
from t2i_jax.systems.prior import sampling as prior_sampling
from tests.parity.reference import load
from tests.parity.test_dalle2_by_chance import shaken

package = load("dalle2_pytorch")
torch = pytest.importorskip("torch")


def _whole(of_decoder=None, more_unets=(), **of_unet):
    torch.manual_seed(0)
    clip = package.CLIP(
        dim_text=16, dim_image=16, dim_latent=16, num_text_tokens=40, text_enc_depth=1,
        text_seq_len=8, text_heads=2, text_dim_head=8, visual_enc_depth=1, visual_heads=2,
        visual_dim_head=8, visual_image_size=16, visual_patch_size=8,
    )  # fmt: skip
    net = package.DiffusionPriorNetwork(dim=16, depth=1, dim_head=8, heads=2, max_text_len=8)
    prior = package.DiffusionPrior(net, clip=clip, timesteps=30, cond_drop_prob=0.1)
    unet = package.Unet(
        dim=8, dim_mults=(1,), image_embed_dim=16, resnet_groups=4, cond_dim=12, attn_heads=1,
        attn_dim_head=8, num_resnet_blocks=0, init_cross_embed=False, max_text_len=8,
        **of_unet,
    )  # fmt: skip
    settings = {"image_size": 16, "timesteps": 30, "learned_variance": False, **(of_decoder or {})}
    decoder = package.Decoder((unet, *more_unets), clip=clip, **settings)
    # some layers start at zero, and hide what stands before them
    return shaken(package.DALLE2(prior=prior, decoder=decoder), 0.1)


def _two_stages():
    """The same with a second U-Net; it samples in few steps, each of them noisy."""
    settings = {"image_sizes": (8, 16), "sample_timesteps": 2, "ddim_sampling_eta": 0.5}
    larger = package.Unet(
        dim=8, dim_mults=(1,), image_embed_dim=16, resnet_groups=4, attn_heads=1, attn_dim_head=8,
        num_resnet_blocks=0, init_cross_embed=False, lowres_cond=True, max_text_len=8,
    )  # fmt: skip
    theirs = _whole({"image_size": None, **settings}, (larger,))
    theirs.prior.sample_timesteps, theirs.prior_num_samples = 3, 3
    return theirs, settings


class _Noise:
    """The same noise for both sides, by shape: each run takes one array after the other."""

    def __init__(self):
        rng, shapes = np.random.default_rng(2), ((6, 16), (2, 8, 8, 3), (2, 16, 16, 3))
        self.arrays = {shape: rng.normal(size=(3, *shape)).astype(np.float32) for shape in shapes}
        self._taken = dict.fromkeys(shapes, 0)

    def theirs(self, like, **_):
        """In place of torch.randn and torch.randn_like."""
        first, *rest = tuple(getattr(like, "shape", like))
        shape = (first, *rest[1:], rest[0])
        found = self.arrays[shape][self._taken[shape]]
        self._taken[shape] += 1
        return torch.tensor(np.moveaxis(found, -1, 1))

    def ours(self, keys_B):
        """In place of `gaussian`."""
        return lambda count, x: jnp.asarray(self.arrays[x.shape])[count]


def test_weights_both_ways_and_images(tmp_path, monkeypatch):
    """From token ids by the prior and two stages: the package's images from the same noise."""
    theirs, settings = _two_stages()
    state = theirs.state_dict()
    torch.save(state, tmp_path / "dalle2.pt")
    live = runs.import_torch(theirs, tmp_path / "live")
    folder = runs.import_torch(
        tmp_path / "dalle2.pt", tmp_path / "file", decoder=settings,
        prior={"cond_drop_prob": 0.1, "sample_timesteps": 3}, text_heads=2, visual_heads=2,
        resnet_groups=4, dalle2={"prior_num_samples": 3},
    )  # fmt: skip
    for one in (live, folder):
        assert runs.load_run_recipe(one).evaluation.options.prior_num_samples == 3
    runs.export_torch(folder, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt")
    assert again.keys() == state.keys()
    buffers = [key for key in state if "noise_scheduler" in key]
    assert all(torch.equal(again[key], state[key]) for key in state if key not in buffers)
    for key in buffers:  # float64 numbers that PyTorch and NumPy round apart now and then
        torch.testing.assert_close(again[key], state[key], rtol=3e-7, atol=0)
    theirs.load_state_dict(again, strict=True)
    ids, noise = np.random.default_rng(0).integers(1, 40, (2, 8)), _Noise()
    ids[1, 5:] = 0
    with monkeypatch.context() as patch:
        for name in ("randn", "randn_like"):
            patch.setattr(torch, name, noise.theirs)
        wanted = theirs(torch.tensor(ids), cond_scale=1.5).numpy()
    for module in (prior_sampling, decoder_sampling):
        monkeypatch.setattr(module, "gaussian", noise.ours)
    with jax.default_matmul_precision("highest"):
        images = [
            t2i.load(one).generate(ids, runs.load_run_recipe(one).evaluation.options, guidance=1.5)
            for one in (live, folder)
        ]
    np.testing.assert_array_equal(*images)
    wanted = np.moveaxis(np.clip(wanted, 0, 1) * 255, 1, -1)
    assert wanted.std() > 20 and np.abs(images[0] - wanted).max() < 1


def test_parts_without_their_clip_are_joined_with_its_run(tmp_path, capsys):
    """As of files that hold a prior and a decoder alone; both read token ids by the CLIP."""
    theirs = _whole(cond_on_text_encodings=True, text_embed_dim=16)
    told = {"text_heads": 2, "visual_heads": 2}
    state = theirs.state_dict()
    parts = {}
    for name, place, fields in (
        ("clip", "prior.clip.clip.", {**told, "text_encode_without_mask": True}),
        ("prior", "prior.", {"prior": {"cond_drop_prob": 0.1}}),
        ("decoder", "decoder.", {"decoder": {"image_size": 16}, "resnet_groups": 4}),
    ):
        inside = {key.removeprefix(place): state[key] for key in state if key.startswith(place)}
        own = {key: value for key, value in inside.items() if not key.startswith("clip.")}
        torch.save(own, tmp_path / f"{name}.pt")
        folder = runs.import_torch(tmp_path / f"{name}.pt", tmp_path / name, **fields)
        parts[name] = str(folder)
    data = t2i.DataConfig(source="shapes", image_size=16)
    capsys.readouterr()
    joined = runs.train(t2i.Recipe(t2i.DALLE2Task(), data, None, parts), tmp_path / "joined")
    assert "parts.prior and parts.decoder learnt stored embeddings" in capsys.readouterr().err
    whole = runs.import_torch(theirs, tmp_path / "whole")
    ids = np.random.default_rng(0).integers(1, 40, (1, 8))
    quick = {"sampler": "ddim", "steps": 2, "prior_sampler": "ddim", "prior_steps": 2}
    images = [one.generate(ids, **quick) for one in (joined, t2i.load(whole))]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_each_array_once_or_twice_it_is_the_same_system(tmp_path):
    """Prior and decoder share their CLIP, of which safetensors keeps one copy."""
    theirs = _whole()
    save_model(theirs, tmp_path / "once.safetensors")
    assert len(torch_io.read(tmp_path / "once.safetensors")) < len(theirs.state_dict())
    more = {"text_heads": 2, "visual_heads": 2, "resnet_groups": 4, "decoder": {"image_size": 16}}
    folder = runs.import_torch(tmp_path / "once.safetensors", tmp_path / "run", **more)
    runs.export_torch(folder, tmp_path / "twice.safetensors")
    again = _whole()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    missing, unexpected = load_model(again, tmp_path / "twice.safetensors", strict=False)
    assert not missing and set(unexpected) <= set(again.state_dict())  # those of the second copy
    for name, value in again.named_parameters():
        assert torch.equal(value, dict(theirs.named_parameters())[name]), name


def test_a_clip_of_ours_is_changed_for_the_package(tmp_path, capsys):
    """In the prior and in the decoder; what stays unlike is told once."""
    contents = folders.read(runs.import_torch(_whole(), tmp_path / "run"))

    def as_by_default(one):
        parts = {name: as_by_default(part) for name, part in one.parts.items()}
        task = one.recipe.task
        if isinstance(task, t2i.ClipTask):
            task = t2i.ClipTask(t2i.CLIP(**{
                name: getattr(task.model, name) for name in fields_of(t2i.CLIP)
                if name not in ("pixel_range", "text_encode_without_mask")
            }))  # fmt: skip
        recipe = dataclasses.replace(one.recipe, task=task)
        return dataclasses.replace(one, recipe=recipe, parts=parts)

    weights.to_torch(contents, tmp_path / "was.pt")
    told = capsys.readouterr().err  # and nothing else
    assert told.count("\n") == 1
    assert told.endswith("""text_dim_head=8 visual_dim_head=8 "unets=[{'resnet_groups':4}]".\n""")
    weights.to_torch(as_by_default(contents), tmp_path / "is.pt")
    assert capsys.readouterr().err.count("text_encode_without_mask") == 1
    was, now = (torch.load(tmp_path / f"{name}.pt") for name in ("was", "is"))
    for part in ("prior", "decoder"):
        name = f"{part}.clip.clip.visual_transformer.to_tokens.1.weight"
        assert torch.equal(now.pop(name), 2 * was[name])
        now.pop(name.replace("weight", "bias"))
    assert all(torch.equal(value, was[name]) for name, value in now.items())


def test_what_a_file_is_told_of_networks_within():
    """Fields are for all networks that have them, or for each U-Net."""
    state = _whole().state_dict()
    heads = {"text_heads": 2, "visual_heads": 2}
    for groups in ({"resnet_groups": 4}, {"unets": [{"resnet_groups": 4}]}):
        model, _ = convert.from_torch(state, **heads, **groups)
        assert model.decoder.unets[0].resnet_groups == 4
        assert model.prior.clip == model.decoder.clip
        assert (model.prior.clip.text_heads, model.prior.clip.visual_dim_head) == (2, 8)
    with pytest.raises(UserError, match="no field 'groups'; did you mean 'resnet_groups'"):
        convert.from_torch(state, **heads, groups=4)
    with pytest.raises(UserError, match="no field 'q'") as refused:
        convert.from_torch(state, **heads, q=4)
    known = str(refused.value).partition("known: ")[2].rstrip(".").split(", ")
    assert len(known) == len(set(known)) and {"unets", "self_cond"} < set(known)
