"""x-clip and dalle2-pytorch with options that a seed draws, against the live packages: outputs, a
loss, weights both ways. HYPOTHESIS_PROFILE=long tries many.
"""

import contextlib
import dataclasses
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import decoder_unet_fields, torch_io
from t2i_jax.convert import x_clip as clip_tables
from t2i_jax.diffusion.blur import LowresDraws
from t2i_jax.models.image_text import TextEmbedding
from t2i_jax.systems.clip import losses
from t2i_jax.systems.clip import task as clip_task
from t2i_jax.systems.clip import weights as clip_weights
from t2i_jax.systems.clip.masked_words import Masked, MaskedWords
from t2i_jax.systems.clip.views import Views
from t2i_jax.systems.decoder import weights as decoder_weights
from t2i_jax.systems.decoder.stage import DecoderDraws
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.prior import task as prior_task
from t2i_jax.systems.prior import weights as prior_weights
from tests.parity import dalle2_models as models
from tests.parity.reference import load
from tests.parity.test_decoder_unet import error, inputs_of, run_theirs

x_clip = load("x_clip")
package = load("dalle2_pytorch.dalle2_pytorch")
torch = pytest.importorskip("torch")

NETWORK = 1e-5  # float32 through a few layers, products in another order
ROWS, TIMES = 3, np.array([1, 12, 27])
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
SEEDS = range(40) if LONG else (0,)
# A prior of v that is shown its own prediction, on the sphere and with pure noise at the end; two
# U-Nets, of which the second one learns its variance and is shown what it predicts of v. Decoders
# of one U-Net are in test_decoder_diffusion.py.
PRIORS, DECODERS = (SEEDS, SEEDS) if LONG else ((326,), (289,))


def shaken(theirs, amount):
    """The package's module with no trained parameter as it was made, in evaluation."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.endswith("rotary_emb.freqs"):
                parameter.add_(torch.randn_like(parameter) * amount)
    return theirs.eval()


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def channels_first(image):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(image, -1, 1)))


def goes_back(theirs, model, params, folder, **untold):
    """The weights are the same after both ways, from the live module and from a file."""
    state = theirs.state_dict()
    torch_io.write(folder / "of.safetensors", {k: v.numpy() for k, v in state.items()})
    again, loaded = convert.from_torch(folder / "of.safetensors", **untold)
    assert again == model
    for out in (convert.to_torch(model, params), convert.to_torch(again, loaded)):
        assert out.keys() == state.keys()
        assert all(torch.equal(out[key], state[key]) for key in state)
    theirs.load_state_dict(out, strict=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_clip(seed, tmp_path, monkeypatch):
    torch.manual_seed(seed)
    options = models.clip(seed)
    theirs = shaken(x_clip.CLIP(**options), 0.05)
    model, params = convert.from_torch(theirs)
    rng, length, side = np.random.default_rng(seed), options["text_seq_len"], model.image_size
    images, texts = models.views(seed, options)
    text = rng.integers(1, 40, (1 + texts, ROWS, length))
    text[0, 1, 3:] = 0
    text[1:, 0, 2] = text[1:, 1, 3:] = 0
    text[1:] = np.where(text[1:] == 0, 0, text[0])  # a view hides words
    image = rng.random((1 + images, ROWS, side, side, model.channels), np.float32)
    _same_latents(theirs, model, params, text[0], image[0])
    _same_clip_loss(theirs, model, params, text, image, monkeypatch, rng)
    told = {n: getattr(model, n) for n in clip_tables._TOLD}
    del told["text_eos_id"]
    goes_back(theirs.eval(), model, params, tmp_path, **told)


def _same_latents(theirs, model, params, text, image):
    @jax.jit
    def ours(params):
        of_image = model.image_features(params, 2 * image - 1)
        of_text = model.text_features(params, text, text != 0)
        contrast = losses.Contrastive(model)
        one, other = contrast.text(params, of_text), contrast.image(params, of_image)
        return of_text, of_image, [one.own, other.own, one.extra, other.extra]

    with jax.default_matmul_precision("highest"), torch.no_grad():
        given = torch.tensor(text), channels_first(image)
        encoded = theirs(*given, return_encodings=True)
        wanted = theirs(*given, return_latents=True)
        of_text, of_image, found = ours(params)
    for mine, other in ((of_text, encoded[0]), (of_image, encoded[1])):
        assert error(mine.pooled_BE, other[:, 0]) < NETWORK
        assert error(mine.tokens_BNE, other[:, 1:]) < NETWORK
    for mine, other in zip(found, wanted, strict=False):  # the extra ones where there are any
        assert error(mine, other) < NETWORK


def _same_clip_loss(theirs, model, params, text, image, monkeypatch, rng):
    """All random numbers are the same on both sides: patches that are dropped, words that are
    hidden, views.
    """
    theirs.train()
    _, rows, side, *_ = image.shape
    count = (side // model.visual_patch_size) ** 2
    noise = normal(rng, len(image) * rows, count)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.tensor(noise).reshape(shape))
    rest = iter(np.split(noise, len(image)))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(next(rest)))
    settings = clip_tables.live(theirs)["settings"]
    task = dataclasses.replace(
        clip_weights.imported(model, params, settings).task, compat=losses.COMPATS
    )
    hidden = np.zeros(text[0].shape, bool)
    hidden[:, 1] = True
    if model.use_mlm:
        monkeypatch.setattr("x_clip.mlm.get_mask_subset_with_prob", lambda *_: torch.tensor(hidden))
        monkeypatch.setattr("x_clip.mlm.prob_mask_like", _all_or_none)
        own = theirs.mlm.mask_token_id
        masked = Masked(jnp.where(hidden, own, text[0]), jnp.asarray(hidden))
        monkeypatch.setattr(MaskedWords, "hide", lambda *_: masked)
        assert task.mlm == MaskedWords(
            theirs.text_ssl_loss_weight, theirs.mlm.mask_prob, theirs.mlm.replace_prob,
            theirs.mlm.random_token_prob, own,
        )  # fmt: skip
    if len(text) + len(image) > 2:
        task = dataclasses.replace(task, views=Views(len(image) - 1, len(text) - 1))
        monkeypatch.setattr(Views, "of_images", lambda *_: [2 * one - 1 for one in image[1:]])
        monkeypatch.setattr(Views, "of_texts", lambda *_: [(one, one != 0) for one in text[1:]])
    more = {
        "aug_text": tuple(torch.tensor(one) for one in text[1:]) or None,
        "aug_image": tuple(channels_first(one) for one in image[1:]) or None,
    }
    with torch.no_grad():
        wanted = float(
            theirs(torch.tensor(text[0]), channels_first(image[0]), return_loss=True, **more)
        )
    monkeypatch.setattr(clip_task, "to_float", lambda image, pixel_range: 2 * image - 1)
    batch = {"image": image[0], "text": text[0], "text_mask": text[0] != 0}

    @jax.jit
    def ours(params):
        return task.loss({"clip": params}, {}, {}, batch, jax.random.key(0), 0)[0]

    with jax.default_matmul_precision("highest"):
        found = float(ours(params))
    monkeypatch.undo()
    assert abs(found - wanted) < NETWORK * abs(wanted)


def _all_or_none(t, prob):
    """Every masked word is replaced by the mask token, none by another word."""
    return torch.full_like(t, prob >= 0.5, dtype=torch.bool)


@pytest.mark.parametrize("seed", SEEDS)
def test_unet(seed, tmp_path, monkeypatch):
    torch.manual_seed(seed)
    options = models.unet(seed) | models.alone(seed)
    options["init_dim"] = options["init_dim"] and options["dim"]
    width = options["cond_dim"] or options["dim"]
    if seed % 4 == 3 and options["cond_on_image_embeds"]:
        options["image_embed_dim"] = width  # its tokens are then the embedding itself
    theirs = shaken(package.Unet(**options), 0.2)
    model, params = convert.from_torch(theirs)
    # there that mixes the rows of a batch
    inputs = inputs_of(model, seed, rows=1 if "image_tokens" in model.compat else ROWS)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        found = jax.jit(model.apply)({"params": params}, **inputs)
        wanted = run_theirs(theirs, inputs, monkeypatch)
    assert error(found, wanted) < NETWORK
    hidden = (*decoder_unet_fields._HIDDEN, "channels", "self_cond")
    told = {name: getattr(model, name) for name in hidden}
    for name in ("attn_heads", "attn_dim_head", "cross_embed_downsample_kernel_sizes"):
        told[name] = getattr(model, name)
    for name in ("cross_embed_downsample", "pixel_shuffle_upsample"):
        if len(model.dim_mults) == 1 and not model.memory_efficient:
            told[name] = getattr(model, name)
    goes_back(theirs, model, params, tmp_path, **told)


@pytest.mark.parametrize("seed", PRIORS)
def test_prior(seed, tmp_path):
    torch.manual_seed(seed)
    options, settings = models.prior_network(seed), models.prior(seed)
    net = shaken(package.DiffusionPriorNetwork(**options), 0.05)
    theirs = package.DiffusionPrior(net, image_embed_dim=net.dim, **settings).eval()
    model, params = convert.from_torch(net)
    rng, times = np.random.default_rng(seed), np.array([1, 12, models.TIMESTEPS - 1])
    x, text, eps, last = (normal(rng, ROWS, model.dim) for _ in range(4))
    encodings = normal(rng, ROWS, 6, model.dim)
    encodings[1, 3:] = 0
    mask = (encodings != 0).any(-1)
    told = {"text_embed": torch.tensor(text)}
    if settings["condition_on_text_encodings"]:
        told["text_encodings"] = torch.tensor(encodings)
    keep = {"text": np.array([True, False, True]), "image": np.array([True, True, False])}
    drops = [settings[f"{of}_cond_drop_prob"] for of in keep]
    keep_text, keep_image = (
        one | (drop == 0) for one, drop in zip(keep.values(), drops, strict=True)
    )
    found = prior_weights.from_torch(TorchFile(theirs, None, {}, {}))
    task = found.task
    guess = seed % 4 > 0 if model.self_cond else None
    with (
        torch.no_grad(),
        mock.patch.object(package, "prob_mask_like", _kept(keep_text, keep_image)),
        mock.patch.object(package.random, "random", lambda: 0.0 if guess else 0.9),
    ):
        wanted = theirs.p_losses(
            torch.tensor(x), torch.tensor(times), told, noise=torch.tensor(eps)
        )
        plain = net(
            torch.tensor(x), torch.tensor(times), **told,
            **({"self_cond": torch.tensor(last)} if model.self_cond else {}),
        )  # fmt: skip
    draws = prior_task.Draws(
        jnp.asarray(times + 1.0), jnp.asarray(eps), jnp.asarray(keep_text),
        jnp.asarray(keep_image), None if guess is None else jnp.asarray(guess),
    )  # fmt: skip
    tokens = (encodings, mask) if task.use_encodings else (None, None)

    @jax.jit
    def ours(params):
        # the package has multiplied the embeddings already
        lost = task.losses(
            params, TextEmbedding(text, *tokens), jnp.asarray(x) / task.length, draws
        )
        out = model.apply(
            {"params": params}, x, times, text, *tokens, None, None,
            last if model.self_cond else None,
        )  # fmt: skip
        return out, jnp.mean(lost)

    with jax.default_matmul_precision("highest"):
        out, lost = ours(found.params["prior"])
    assert error(out, plain) < NETWORK
    assert error(lost, wanted) < NETWORK
    assert task.text_drop_prob == drops[0] and task.image_drop_prob == drops[1]
    untold = {name: getattr(model, name) for name in ("self_cond", "attn_dropout", "ff_dropout")}
    goes_back(net, model, params, tmp_path, **untold)


def _kept(first, second):
    """In place of the package's draw of rows that keep a condition: two in turn."""
    turns = []

    def mask(shape, prob, device):
        turns.append(prob)
        own = first if len(turns) % 2 else second
        return torch.ones(shape, dtype=torch.bool) if prob == 1 else torch.tensor(own)

    return mask


@pytest.mark.parametrize("seed", DECODERS)
def test_decoder(seed):
    torch.manual_seed(seed)
    rng, count = np.random.default_rng(seed), 1 + seed % 2
    settings = models.decoder(seed, count)
    theirs = package.Decoder(tuple(_decoder_unet(seed + 50 * i) for i in range(count)), **settings)
    shaken(theirs.unets, 0.1)
    theirs.eval()
    found = decoder_weights.from_torch(TorchFile(theirs, None, {}, {}))
    number = count if seed % 4 != 3 else 1
    task = found.task
    stage, side = task.stage(number), task.image_size
    batch = {"image": rng.integers(0, 256, (ROWS, side, side, 3), dtype=np.uint8)}
    given = {}
    if task.by_image:
        batch["image_embeds"] = normal(rng, ROWS, task.embed_width)
        given["image_embed"] = torch.tensor(batch["image_embeds"])
    if task.by_text:
        text = normal(rng, ROWS, 3, models.TEXT_WIDTH)
        text[1, 2:] = 0
        batch |= {"text_embeds": text, "text_mask": (text != 0).any(-1)}
        given["text_encodings"] = torch.tensor(text)
    draws, random = _decoder_draws(stage, task, rng, number, settings, coin=bool(seed % 3))
    with torch.no_grad(), random:
        wanted = theirs(
            channels_first(batch["image"] / np.float32(255)), unet_number=number, **given
        )

    @jax.jit
    def ours(params):
        return task.losses(params, {}, batch, draws, number=number).mean()

    with jax.default_matmul_precision("highest"):
        lost = ours(found.params)
    assert error(lost, wanted) < NETWORK


def _decoder_unet(seed):
    options = models.unet(seed)
    if options["image_embed_dim"] == (options["cond_dim"] or options["dim"]):
        options["image_embed_dim"] += 1  # else the rows of a batch are mixed there
    return package.Unet(**options)


def _decoder_draws(stage, task, rng, number, settings, coin):
    """The random numbers of a step, and a context in which the package draws the same.

    Args:
      coin: whether what happens by chance happens.
    """
    own, side = stage.lowres, stage.crop_size or stage.image_size
    keep_image, keep_text = np.array([True, False, True]), np.array([False, True, True])
    keep_image |= task.image_cond_drop_prob == 0
    keep_text |= task.text_cond_drop_prob == 0
    eps = normal(rng, ROWS, side, side, 3)
    low = normal(rng, ROWS, stage.image_size, stage.image_size, 3)
    levels, corner = np.array([50, 300, 900]), rng.integers(0, stage.image_size - side + 1, 2)
    blurs = number > 1 and settings["use_blur_for_lowres_cond"][number - 2]
    is_blurred = blurs and (coin or settings["blur_prob"] == 1.0)
    sigma, kernel = settings["blur_sigma"], settings["blur_kernel_size"]
    sigma = 0.5 if isinstance(sigma, tuple) else sigma
    kernel = 7 if isinstance(kernel, tuple) else kernel
    lowres = None
    if number > 1:
        part = low[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        noised = (jnp.asarray(levels + 1.0), jnp.asarray(part)) if own.noise else (None, None)
        lowres = LowresDraws(
            jnp.full(ROWS, sigma if is_blurred else 0.0), jnp.full(ROWS, kernel), *noised
        )
    draws = DecoderDraws(
        jnp.asarray(TIMES + 1.0), jnp.asarray(eps), jnp.asarray(keep_image),
        jnp.asarray(keep_text), lowres,
        jnp.asarray(coin) if stage.unet.self_cond else None,
        jnp.tile(jnp.asarray(corner), (ROWS, 1)) if stage.crop_size is not None else None,
    )  # fmt: skip
    drawn = {
        "prob_mask_like": _kept(keep_image, keep_text),
        "random": mock.Mock(
            random=lambda: 0.0 if coin else 0.9, uniform=lambda *_: sigma,
            randrange=lambda *_: kernel,
        ),
        "K": mock.Mock(RandomCrop=lambda size, p: _Crop(corner, size[0])),
    }  # fmt: skip
    noises = [low, eps] if lowres is not None and own.noise else [eps]
    return draws, _drawing(drawn, [TIMES, levels], noises)


@contextlib.contextmanager
def _drawing(drawn, times, noises):
    """The package draws these integers and this noise, one after the other."""
    times, noises = iter(map(torch.tensor, times)), iter(map(channels_first, noises))
    with (
        mock.patch.multiple(package, **drawn),
        mock.patch.object(torch, "randint", lambda *_, **__: next(times)),
        mock.patch.object(torch, "randn_like", lambda *_: next(noises)),
    ):
        yield


class _Crop:
    """A crop at a known place."""

    def __init__(self, corner, side):
        self.corner, self.side, self._params = corner, side, None

    def __call__(self, image, params=None):
        top, left = self.corner
        return image[:, :, top : top + self.side, left : left + self.side]
