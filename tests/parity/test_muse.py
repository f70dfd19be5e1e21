"""Whole MaskGits of muse-maskgit-pytorch against the live package: losses and their gradients,
images token for token, weights.
"""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert, runs
from t2i_jax.decoding import logits as filters
from t2i_jax.decoding import masked
from t2i_jax.models.maskgit import MaskGitAndTokenizer
from t2i_jax.pixels import shrink
from t2i_jax.runs import load as load_system
from t2i_jax.systems import batching
from t2i_jax.systems.base import Given
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.maskgit import losses
from t2i_jax.systems.maskgit.weights import OPTIONS
from t2i_jax.systems.muse import weights as muse_weights
from tests.parity import muse_models
from tests.parity.muse_models import Sizes
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

muse = load("muse_maskgit_pytorch")
torch = pytest.importorskip("torch")
package = load("muse_maskgit_pytorch.muse_maskgit_pytorch")

NETWORK = 1e-5  # float32 through a few layers, products in another order
GRADIENT = 1e-4  # as much again in the backward pass
ROWS, STEPS = 3, 5
SEEDS = range(1, 9) if os.environ.get("HYPOTHESIS_PROFILE") == "long" else (1,)

CONFIGURATIONS = {
    "plain": Sizes(depth=2, codes=32),
    "tokens masked again": Sizes(self_cond=True, no_mask_token_prob=0.3),
    "super-resolution, token critic": Sizes(
        small=4, critic="token", ff_mult=4, no_mask_token_prob=0.2
    ),
    "two tokenizers, self critic": Sizes(
        small=4, two_tokenizers=True, critic="self", self_cond=True, no_mask_token_prob=0.2
    ),
    **{f"by chance {seed}": muse_models.drawn(seed) for seed in SEEDS},
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def made(request):
    sizes = CONFIGURATIONS[request.param]
    theirs = muse_models.maskgit(sizes)
    return sizes, theirs, muse_models.imported(theirs)


def test_weights_both_ways(made, tmp_path):
    sizes, theirs, found = made
    theirs.save(tmp_path / "maskgit.pt")
    hidden = {"self_cond": sizes.self_cond, "resnet_groups": 4}  # what no array tells
    if sizes.two_tokenizers:
        hidden["cond_tokenizer"] = {"resnet_groups": 4}
    model, params = convert.from_torch(tmp_path / "maskgit.pt", **hidden)
    assert isinstance(model, MaskGitAndTokenizer)
    assert (model.cond_tokenizer is not None) == sizes.two_tokenizers
    _goes_back(theirs, convert.to_torch(model, params))
    assert (model.transformer, model.critic) == (found.task.model, found.task.critic)
    task = found.task
    assert task.cond_drop_prob == sizes.cond_drop_prob and task.cond_image_size == sizes.small
    assert (task.no_mask_token_prob, task.self_cond_prob, task.critic_loss_weight) == (
        sizes.no_mask_token_prob, 0.7, 0.6,
    )  # fmt: skip


def _batch(sizes):
    images, text = muse_models.pictures(ROWS, sizes.image_size), muse_models.texts(ROWS)
    small = None if sizes.small is None else np.asarray(shrink(images, 2))
    mask = (text != 0).any(-1)
    return {"image": images, "text_embeds": text, "text_mask": mask}, small


def test_losses_and_their_gradients(made, monkeypatch):
    sizes, theirs, found = made
    task, frozen = found.task, muse_models.frozen(found)
    batch, small = _batch(sizes)
    key = jax.random.key(0)
    draw = jax.jit(task.draw, static_argnums=1)
    draws = draw(jax.random.split(key)[0], (ROWS, sizes.num_tokens))
    _inject(monkeypatch, draws, sizes)
    theirs.zero_grad()
    cond = {} if small is None else {"cond_images": muse_models.channels_first(small)}
    lost = theirs(
        muse_models.channels_first(batch["image"]),
        text_embeds=torch.tensor(batch["text_embeds"]),
        **cond,
    )
    lost.backward()

    @jax.jit
    def ours(params):
        def loss(params):
            given = (params, {}, frozen, batch, key, 0)
            return sum(objective.loss(*given)[0] for objective in task.objectives)

        return jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        value, gradients = ours(found.params)
    assert error(value, lost) < NETWORK
    mine = _as_torch(found, gradients)
    wanted = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    assert len(wanted) > 10 and not any("vae" in name for name in wanted)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    far = {}
    for name, gradient in wanted.items():
        # a text that is dropped leaves some gradients at 0
        if gradient.abs().max() > 1e-6 * largest:
            far[name] = error(mine[name], gradient)
        else:
            assert np.abs(mine[name]).max() <= 1e-5 * largest, name
    assert {name: e for name, e in far.items() if e > GRADIENT} == {}


def _as_torch(found, groups):
    """Gradients of the task's groups by the names of the package."""
    task, own = found.task, groups["maskgit"]
    trees = {"transformer": own["decoder"], "critic": own.get("critic", groups.get("critic"))}
    critic = task.token_critic or task.critic
    model = MaskGitAndTokenizer(task.network, task.tokenizer, critic=critic)
    zeros = jax.tree.map(jnp.zeros_like, muse_models.frozen(found)["tokenizer"])
    params = {name: tree for name, tree in trees.items() if tree is not None}
    return convert.to_state(model, {**params, "tokenizer": zeros})


def _inject(monkeypatch, draws, sizes):
    """Makes the package draw what was drawn here."""
    told = np.asarray(draws.masked_BN)
    times = 2 / np.pi * np.arccos(told.sum(-1) / sizes.num_tokens)
    rank = (~told).argsort(-1, kind="stable").argsort(-1)  # less than the number masked where so
    keeps = iter([draws.keep_B, draws.critic_keep_B])
    numbers = [0.0 if draws.self_cond else 1.0] if sizes.self_cond else []
    numbers = iter([*numbers, float(draws.temperature)])
    monkeypatch.setattr(package, "random", lambda: next(numbers))
    monkeypatch.setattr(package, "uniform", lambda *_, **__: torch.tensor(times).float())
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(rank.argsort(-1)).float())
    monkeypatch.setattr(
        package, "get_mask_subset_prob", lambda *_: torch.tensor(np.array(draws.shown_BN))
    )
    monkeypatch.setattr(
        package, "prob_mask_like", lambda *_: torch.tensor(np.array(next(keeps)))[:, None]
    )
    monkeypatch.setattr(package, "gumbel_noise", lambda _: torch.tensor(np.array(draws.gumbel_BNV)))


@pytest.mark.parametrize("made", ["plain", "super-resolution, token critic"], indirect=True)
def test_guided_logits(made):
    sizes, theirs, found = made
    batch, _ = _batch(sizes)
    text, mask = batch["text_embeds"], batch["text_mask"]
    network = found.task.network
    ids = np.random.default_rng(1).integers(0, sizes.codes + 1, (ROWS, sizes.num_tokens))
    small = None
    if sizes.small is not None:
        count = (sizes.small // 2**sizes.layers) ** 2
        small = np.random.default_rng(2).integers(0, sizes.codes, (ROWS, count))
    with torch.no_grad():
        wanted = theirs.transformer.forward_with_cond_scale(
            torch.tensor(ids), text_embeds=torch.tensor(text), cond_scale=2.5,
            conditioning_token_ids=None if small is None else torch.tensor(small),
        )  # fmt: skip
    variables = {"params": found.params["maskgit"]["decoder"]}
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(network.apply)
        told, null = (
            apply(variables, ids, text, mask, np.full(ROWS, keep), small) for keep in (True, False)
        )
    assert error(filters.guide(told, null, 2.5), wanted) < NETWORK


def test_images_token_for_token(made, monkeypatch):
    """The package with the noise that our keys give."""
    sizes, theirs, found = made
    task = found.task
    batch, small = _batch(sizes)
    options = dataclasses.replace(OPTIONS, steps=STEPS, remask=sizes.no_mask_token_prob > 0)
    keys = jax.random.split(jax.random.key(7), ROWS)
    gumbels, uniforms = _noise(keys, task.network)
    seen = []
    decode = theirs.vae.decode_from_ids
    monkeypatch.setattr(theirs.vae, "decode_from_ids", lambda ids: seen.append(ids) or decode(ids))
    monkeypatch.setattr(package, "gumbel_noise", lambda _: next(gumbels))
    monkeypatch.setattr(package, "uniform", lambda shape, device=None: next(uniforms))
    text = torch.tensor(batch["text_embeds"])
    monkeypatch.setattr(theirs.transformer, "encode_text", lambda texts: text)
    cond = {} if small is None else {"cond_images": muse_models.channels_first(small)}
    wanted = theirs.generate(
        ["a"] * ROWS, timesteps=STEPS, can_remask_prev_masked=options.remask, **cond
    )
    system = task.system(found.params, {}, {}, muse_models.frozen(found), None)
    arrays = {name: batch[name] for name in ("text_embeds", "text_mask")}
    with jax.default_matmul_precision("highest"):
        ours = system.make(arrays | ({} if small is None else {"cond": small}), keys, options)
    np.testing.assert_array_equal(ours.ids_BN, seen[0].reshape(ROWS, -1).numpy())
    assert np.abs(ours.images - _pixels(wanted)).max() <= 1


def test_muse_token_for_token(monkeypatch, tmp_path):
    """Two MaskGits saved as one; the second stage reads the first one's images with a tokenizer of
    its own.
    """
    small, large = Sizes(), Sizes(image_size=16, layers=2, small=8)
    theirs = muse.Muse(base=muse_models.maskgit(small), superres=muse_models.maskgit(large, seed=1))
    system = load_system(runs.import_torch(theirs, tmp_path / "run"))
    assert not system.shared and system.task.image_size == 16
    _goes_back(theirs, torch.load(runs.export_torch(tmp_path / "run", tmp_path / "back.pt")))
    options = runs.load_run_recipe(tmp_path / "run").evaluation.options
    options = dataclasses.replace(options, steps=STEPS, superres_steps=STEPS - 1)
    text, seed = muse_models.texts(ROWS), 5
    rows = next(batching.batches({"text": text}, ROWS, 1, seed, None))
    noise = []
    for stage, task in enumerate((system.base.task, system.superres.task)):
        keys = jax.vmap(lambda key, n=stage: jax.random.fold_in(key, n))(rows.keys_B)
        noise += list(_noise(keys, task.network)[0])[: STEPS - stage]
    noise = iter(noise)
    monkeypatch.setattr(package, "gumbel_noise", lambda _: next(noise))
    for stage in (theirs.base_maskgit, theirs.superres_maskgit):
        monkeypatch.setattr(stage.transformer, "encode_text", lambda texts: torch.tensor(text))
    wanted = theirs(
        ["a"] * ROWS, timesteps=STEPS, superres_timesteps=STEPS - 1, return_lowres=True,
        return_pil_images=False,
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        ours = system.generate((text, (text != 0).any(-1)), options, seed=seed, return_stages=True)
    for mine, images in zip(ours, reversed(wanted), strict=True):
        assert np.abs(mine - _pixels(images)).max() <= 1


def test_one_tokenizer_for_both_stages_is_seen():
    base = muse_models.maskgit(Sizes())
    superres = muse_models.maskgit(Sizes(image_size=16, small=8), vae=base.vae)
    found = muse_weights.from_torch(TorchFile(muse.Muse(base, superres), None, {}, {}))
    parts = {}
    for name, part in found.parts.items():
        own = part.task.system(part.params, {}, {}, muse_models.frozen(part), None)
        parts[name] = Given(part.task.network, part.params, own)
    assert found.task.with_parts(parts).system({}, {}, parts, {}, None).shared


def _goes_back(theirs, back):
    """What was written is what the package saved, and it loads it."""
    state = theirs.state_dict()
    assert state.keys() == back.keys()
    unused = re.compile(r"(transformer|net|token_critic)\.(norm|self_cond_to_init_embed)\.")
    for name, value in state.items():
        assert unused.search(name) or torch.equal(back[name], value), name
    theirs.load_state_dict(back, strict=True)


def _pixels(images):
    return np.rint(255 * images.clamp(0, 1).numpy().transpose(0, 2, 3, 1))


def _noise(keys, network):
    """The noise of every step: for the tokens, and for the scores of a critic."""
    steps = []
    for step in range(STEPS):
        own = [jax.random.split(jax.random.fold_in(key, step), 3) for key in keys]
        gumbel = [
            muse_models.noise_per_place(k[0], network.num_tokens, network.codebook_size)
            for k in own
        ]
        uniform = [jax.random.uniform(k[1], (network.num_tokens,)) for k in own]
        steps.append((torch.tensor(np.stack(gumbel)), torch.tensor(np.stack(uniform))))
    return [iter(side) for side in zip(*steps, strict=True)]


@pytest.mark.parametrize("tokens", [16, 256, 1024])
def test_number_of_masked_tokens(tokens):
    """Of the steps of sampling, and of a step of training."""
    for steps in (1, 2, 5, 18, 24, 64):
        shares = masked.cosine_schedule(steps) * np.float32(tokens)
        times = torch.linspace(0, 1, steps)
        wanted = [max(int((package.cosine_schedule(t) * tokens).item()), 1) for t in times]
        assert np.maximum(shares.astype(np.int32), 1).tolist() == wanted
    key, rows = jax.random.key(0), 200
    draws = losses.draw(
        key, (rows, tokens, 1), least_masked=0.0, cond_drop_prob=0.5, no_mask_token_prob=0.0,
        self_cond_prob=0.5,
    )  # fmt: skip
    times = torch.tensor(np.array(jax.random.uniform(jax.random.split(key, 8)[0], (rows,))))
    wanted = (tokens * package.cosine_schedule(times)).round().clamp(min=1)
    np.testing.assert_array_equal(draws.masked_BN.sum(-1), wanted.numpy())
