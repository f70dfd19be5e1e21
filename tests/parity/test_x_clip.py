"""CLIP against the live x-clip: encodings, latents, similarities, every loss and its gradients, and
weights both ways.
"""

import dataclasses
import inspect
import json
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.convert import x_clip as tables
from t2i_jax.errors import UserError
from t2i_jax.models.clip import CLIP
from t2i_jax.models.image_text import unit
from t2i_jax.models.openai_clip import OpenAIClip
from t2i_jax.nn import contrastive
from t2i_jax.systems.clip import losses, weights
from t2i_jax.systems.clip import task as clip_task
from t2i_jax.systems.clip.masked_words import Masked, MaskedWords
from t2i_jax.systems.imported import TorchFile
from t2i_jax.text import tokenizer
from tests.parity.reference import load
from tests.parity.test_vit_vqgan import error

x_clip = load("x_clip")
inside = load("x_clip.x_clip")
torch = pytest.importorskip("torch")
einops = pytest.importorskip("einops")

NETWORK = 1e-5  # float32 through a few layers, products in another order

_SMALL = dict(
    dim_text=24, dim_image=32, dim_latent=16, num_text_tokens=40, text_enc_depth=2, text_seq_len=7,
    text_heads=2, text_dim_head=12, visual_enc_depth=1, visual_heads=2, visual_dim_head=16,
    visual_image_size=32, visual_patch_size=8, visual_patch_dropout=0.0,
)  # fmt: skip
CONFIGURATIONS = {
    "plain": dict(extra_latent_projection=True, use_mlm=True, mlm_mask_token_id=40),
    "rotary": dict(
        text_rotary_pos_emb=True, text_dim_head=40, text_encode_without_mask=True, channels=1,
        visual_patch_dropout=0.5,
    ),
    "fine-grained": dict(
        use_all_token_embeds=True, downsample_image_embeds=True, extra_latent_projection=True
    ),
    "another padding": dict(
        text_pad_id=3, use_mlm=True, mlm_pad_token_id=3, mlm_mask_token_id=40, text_enc_depth=1
    ),
    "fine-grained with the class token of images": dict(
        use_all_token_embeds=True, visual_has_cls_token=False, text_pad_id=3, use_mlm=True,
        mlm_pad_token_id=3, mlm_mask_token_id=40, text_enc_depth=1,
    ),
    "fine-grained with that of captions": dict(
        use_all_token_embeds=True, text_has_cls_token=False, extra_latent_projection=True,
        text_enc_depth=1,
    ),
    "fine-grained with both": dict(
        use_all_token_embeds=True, text_has_cls_token=False, visual_has_cls_token=False,
        text_pad_id=39, text_encode_without_mask=True, text_enc_depth=1,
    ),
}  # fmt: skip


def make(name):
    """The package's network in evaluation, ours, our weights, token ids and images."""
    torch.manual_seed(0)
    theirs = x_clip.CLIP(**{**_SMALL, **CONFIGURATIONS[name]}).eval()
    with torch.no_grad():  # gains that start at one would not show that they are used
        for key, parameter in theirs.named_parameters():
            if key.endswith(".g"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            if "_extra" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model, params = convert.from_torch(theirs)
    assert model.text_seq_len == 7
    rng = np.random.default_rng(0)
    text = rng.integers(1, 40, (5, 7))
    text[1, 3:] = text[4, 5:] = text[2, 2] = theirs.text_pad_id
    image = rng.random((5, 32, 32, model.channels), np.float32)
    return theirs, model, params, text, image


def tensors(text, image):
    """Token ids and images as the package takes them."""
    return torch.tensor(text), torch.tensor(image.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_encodings_and_latents(name):
    theirs, model, params, text, image = make(name)
    mask = text != theirs.text_pad_id

    @jax.jit
    def ours(params):
        image_features = model.image_features(params, 2 * image - 1)
        text_features = model.text_features(params, text, mask)
        if model.use_all_token_embeds:
            tokens = model.compared_tokens(text_features)
            pair = tokens.tokens_BNE, model.compared_patches(image_features).tokens_BNE
        else:
            pair = text_features.pooled_BE, image_features.pooled_BE
        latents = [
            project(params, one, extra)
            for extra in ((False, True) if model.extra_latent_projection else (False,))
            for project, one in zip((model.project_text, model.project_image), pair, strict=True)
        ]
        embedded = model.embed_text(params, text, mask), model.embed_image(params, 2 * image - 1)
        return text_features, image_features, latents, embedded

    with jax.default_matmul_precision("highest"), torch.no_grad():
        of_text, of_image, latents, (embedded, shown) = ours(params)
        t_text, t_image = tensors(text, image)
        text_encodings, image_encodings = theirs(t_text, t_image, return_encodings=True)
        expected = theirs(t_text, t_image, return_latents=True)
    for found, wanted in ((of_text, text_encodings), (of_image, image_encodings)):
        assert error(found.pooled_BE, wanted[:, 0]) < NETWORK
        assert error(found.tokens_BNE, wanted[:, 1:]) < NETWORK
    assert len(latents) == len(expected)
    assert all(error(a, b) < NETWORK for a, b in zip(latents, expected, strict=True))
    assert np.allclose(embedded.encodings_BLE, np.where(mask[..., None], of_text.tokens_BNE, 0))
    if model.use_all_token_embeds:
        if not model.text_has_cls_token:
            mask = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        wanted = unit(jnp.sum(latents[0] * mask[..., None], 1) / mask.sum(1, keepdims=True))
        assert np.allclose(embedded.embed_BD, wanted, atol=1e-6)
        assert np.allclose(shown, unit(jnp.mean(latents[1], 1)), atol=1e-6)
    else:
        assert np.array_equal(embedded.embed_BD, latents[0])
        assert np.array_equal(shown, latents[1])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_weights_bit_for_bit_and_strict(name):
    theirs, model, params, _, _ = make(name)
    exported, state = convert.to_torch(model, params), theirs.state_dict()
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    theirs.load_state_dict(exported, strict=True)


@pytest.mark.parametrize("by_tokens", [False, True])
def test_embeddings_as_dalle2_pytorch_takes_them(by_tokens):
    """From the class tokens, even of a network that was trained without them, unmasked, and with
    0 for padding whatever the network has.
    """
    package = load("dalle2_pytorch.dalle2_pytorch")
    theirs, model, params, text, image = make("plain")
    told = {name: getattr(model, name) for name in ("text_heads", "visual_heads")}
    state = torch_io.arrays(theirs.state_dict())
    kind, found = tables.adapted(
        state, {**told, "use_all_token_embeds": by_tokens, "text_pad_id": 3}
    )
    assert found["text_pad_id"] == 0
    ours = kind(**found)
    with torch.no_grad():
        adapter = package.XClipAdapter(theirs)
        t_text, t_image = tensors(text, image)
        of_text, of_image = adapter.embed_text(t_text), adapter.embed_image(t_image)

    @jax.jit
    def run(params):
        return ours.embed_text(params, text, text != 0), ours.embed_image(params, 2 * image - 1)

    with jax.default_matmul_precision("highest"):
        found, shown = run(params)
    assert error(found.embed_BD, of_text.text_embed) < NETWORK
    assert error(found.encodings_BLE, of_text.text_encodings) < NETWORK
    assert error(shown, of_image.image_embed) < NETWORK


def test_a_clip_that_goes_into_a_prior_embeds_there_as_here(capsys):
    """With pixels and a mask as by default here; what can't be had there is told."""
    package = load("dalle2_pytorch.dalle2_pytorch")
    theirs, model, params, text, image = make("plain")
    ours = dataclasses.replace(model, pixel_range=(-1.0, 1.0))
    task = types.SimpleNamespace(model=ours)
    recipe = types.SimpleNamespace(task=task)
    run = types.SimpleNamespace(recipe=recipe, averaged={"clip": params})
    found, moved = weights.within(run)
    assert capsys.readouterr().err.count("text_encode_without_mask=True") == 1
    theirs.load_state_dict(convert.to_torch(found, moved))
    whole = text[(text != 0).all(1)]
    with torch.no_grad():
        t_text, t_image = tensors(whole, image)
        of_image = package.XClipAdapter(theirs).embed_image(t_image).image_embed
        of_text = package.XClipAdapter(theirs).embed_text(t_text).text_embed

    @jax.jit
    def run_ours(params):
        told = ours.embed_text(params, whole, whole != 0)
        return told.embed_BD, ours.embed_image(params, 2 * image - 1)

    with jax.default_matmul_precision("highest"):
        told, shown = run_ours(params)
    assert error(told, of_text) < NETWORK
    assert error(shown, of_image) < NETWORK
    filip = dataclasses.replace(ours, use_all_token_embeds=True, text_encode_without_mask=True)
    task.model = filip
    weights.within(run)
    assert "embeds the class token" in capsys.readouterr().err
    task.model = filip = dataclasses.replace(filip, compat=("cls_of_filip",))
    weights.within(run)
    assert not capsys.readouterr().err
    task.model = dataclasses.replace(filip, text_pad_id=3)
    weights.within(run)
    assert "takes id 0 for the padding of captions, and the run 3" in capsys.readouterr().err


LOSSES = {
    "InfoNCE with masked words": ("plain", dict()),
    "decoupled, with regulariser": (
        "plain",
        dict(decoupled_contrastive_learning=True, sim_reg_loss_weight=0.3),
    ),
    "fine-grained": ("fine-grained", dict()),
    "fine-grained and decoupled": (
        "fine-grained",
        dict(decoupled_contrastive_learning=True, extra_latent_projection=False),
    ),
    "another padding with masked words": ("another padding", dict()),
    "with the class token of images": ("fine-grained with the class token of images", dict()),
    "with that of captions": ("fine-grained with that of captions", dict()),
    "with both, decoupled": ("fine-grained with both", dict(decoupled_contrastive_learning=True)),
}
GRADIENT = 1e-4  # as much again in the backward pass


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name, monkeypatch):
    configuration, options = LOSSES[name]
    # two layers of the text are in what is compared of encodings and latents
    options = CONFIGURATIONS[configuration] | {"text_enc_depth": 1} | options
    monkeypatch.setitem(CONFIGURATIONS, configuration, options)
    theirs, model, params, text, image = make(configuration)
    theirs.train()
    imported = weights.imported(model, params, tables.live(theirs)["settings"])
    task = dataclasses.replace(imported.task, compat=losses.COMPATS, views=None)
    mask, hidden = text != theirs.text_pad_id, np.zeros_like(text, bool)
    hidden[:, 1] = mask[:, 1]
    if not theirs.text_has_cls_token:
        monkeypatch.setattr(inside, "rearrange", _with_the_class_token_seen)
    monkeypatch.setattr("x_clip.mlm.get_mask_subset_with_prob", lambda *_: torch.tensor(hidden))
    monkeypatch.setattr("x_clip.mlm.prob_mask_like", lambda t, p: torch.ones_like(t).bool())
    masked = Masked(jnp.where(hidden, 40, text), jnp.asarray(hidden))
    monkeypatch.setattr(MaskedWords, "hide", lambda *_: masked)
    t_text, t_image = tensors(text, image)
    expected = theirs(t_text, t_image, return_loss=True)
    expected.backward()
    pixels = {"image": image, "text": text, "text_mask": mask}
    monkeypatch.setattr(clip_task, "to_float", lambda image, pixel_range: 2 * image - 1)

    @jax.jit
    def ours(params):
        def loss(params):
            return task.loss({"clip": params}, {}, {}, pixels, jax.random.key(0), 0)[0]

        return jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        found, gradients = ours(params)
    expected = float(expected.detach())
    assert abs(float(found) - expected) < NETWORK * abs(expected)
    _same_gradients(theirs, convert.to_torch(model, jax.tree.map(np.asarray, gradients)))


def _with_the_class_token_seen(tensor, pattern, **lengths):
    """`rearrange` of the package, whose loss has a mask that is one token too short for captions
    with their class token.
    """
    if pattern.startswith("(m b) t -> m 1 b 1 t"):
        tensor = torch.nn.functional.pad(tensor, (1, 0), value=True)
    return einops.rearrange(tensor, pattern, **lengths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_has_cls_token": False}, "size of tensor"),
        ({"visual_has_cls_token": False, "downsample_image_embeds": True}, "17, 32"),
    ],
)
def test_where_the_package_fails_with_class_tokens_among_others(options, said):
    """Captions have them here, see above; a grid of patches has no place for one."""
    theirs = x_clip.CLIP(**_SMALL, use_all_token_embeds=True, **options)
    text, image = torch.ones((2, 7), dtype=torch.long), torch.zeros((2, 3, 32, 32))
    with pytest.raises((RuntimeError, einops.EinopsError), match=said):
        theirs(text, image, return_loss=True)
    if "downsample_image_embeds" in options:
        with pytest.raises(UserError, match="whose grid downsample_image_embeds=True merges"):
            convert.from_torch(theirs)


def _same_gradients(theirs, found):
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for key, parameter in theirs.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = float((found[key] - gradient).abs().max())
        assert difference <= GRADIENT * max(float(gradient.abs().max()), 1e-2 * largest), key


def test_several_views():
    theirs, model, params, text, image = make("plain")
    theirs.train()
    theirs.use_mlm, theirs.text_ssl_loss_weight = False, 0
    rng = np.random.default_rng(1)
    other_text = rng.integers(1, 40, text.shape)
    other_images = rng.random((2, *image.shape), np.float32)
    t_text, t_image = tensors(text, image)
    with torch.no_grad():
        expected = theirs(
            t_text,
            t_image,
            return_loss=True,
            aug_text=torch.tensor(other_text),
            aug_image=tuple(tensors(text, one)[1] for one in other_images),
        )

    @jax.jit
    def ours(params):
        contrast = losses.Contrastive(model)
        texts = [
            contrast.text(params, model.text_features(params, one, one != 0))
            for one in (text, jnp.asarray(other_text))
        ]
        images = [
            contrast.image(params, model.image_features(params, 2 * one - 1))
            for one in (image, *other_images)
        ]
        return contrast(params, texts, images)

    with jax.default_matmul_precision("highest"):
        found = ours(params)
    total = 0.9 * found.main + 0.1 * found.further
    assert abs(float(total) - float(expected)) < NETWORK * abs(float(expected))


def test_the_package_compares_images_with_images_and_here_they_are_with_texts():
    _, model, params, text, image = make("fine-grained")

    @jax.jit
    def run(params):
        of_text = model.text_features(params, text, text != 0)
        of_image = model.image_features(params, 2 * image - 1)
        found = []
        for compat in ((), losses.COMPATS):
            contrast = losses.Contrastive(model, compat=compat)
            own, other = contrast.text(params, of_text), contrast.image(params, of_image)
            found.append(contrast(params, [own], [other]).main)
        scores = contrastive.image_by_patches(other.extra, (own.extra, own.mask_BN))
        return found, jnp.exp(model.log_scale(params)) * scores

    (right, theirs), logits = run(params)
    logits = np.asarray(logits)
    over_texts, over_images = (
        float(np.mean(jax.nn.logsumexp(rows, 1) - np.diagonal(rows))) for rows in (logits, logits.T)
    )
    difference = 2 * float(theirs - right)
    assert abs(over_images - over_texts) > 1e-3
    assert difference == pytest.approx(over_images - over_texts, abs=1e-5)


def test_patches_are_merged_as_there_whatever_rectangle_they_make():
    """A grid of odd side, and what training leaves of one: the constructor refuses none of it."""
    fields = dict(use_all_token_embeds=True, downsample_image_embeds=True, visual_image_size=24)
    theirs = x_clip.CLIP(**{**_SMALL, **fields, "visual_patch_dropout": 0.5})
    model, params = convert.from_torch(theirs)
    tokens = np.random.default_rng(0).normal(size=(2, 9, model.dim_image)).astype(np.float32)
    for count in (9, 8, 6, 4):
        with torch.no_grad():
            wanted = theirs.to_visual_latent(torch.tensor(tokens[:, :count]))
        assert error(model.project_image(params, tokens[:, :count]), unit(wanted.numpy())) < NETWORK

    def trained(dropped):
        clip, key = dataclasses.replace(model, visual_patch_dropout=dropped), jax.random.key(0)
        image = np.zeros((1, 24, 24, 3), np.float32)
        return jax.eval_shape(lambda params: clip.image_features(params, image, key), params)

    assert trained(0.5).tokens_BNE.shape[1] == 4
    with pytest.raises(UserError, match=r"visual_patch_dropout=0\.4 leaves 5 of 9 patches"):
        trained(0.4)


def test_captions_become_the_ids_that_the_packages_make_of_them(tmp_path):
    """Without start and end tokens, also once the vocabulary lies in the folder of a run."""
    merges = tmp_path / "merges.txt"
    merges.write_text("#version: 0.2\nr e\nre d</w>\no n\non e</w>\nc i\ni r")
    theirs = load("dalle2_pytorch.tokenizer").SimpleTokenizer(merges)
    (tmp_path / "vocab.json").write_text(json.dumps(theirs.encoder))
    file = TorchFile(None, None, {}, {"clip": {"vocabulary": str(tmp_path)}})
    made = weights.of_file(file, CLIP(), {}, {}, {}).vocabulary
    made.save(tmp_path / "run")
    captions = ["a red circle", "  Zürich,\t1,000 don'ts", "", "one red circle of ten"]
    wanted = theirs.tokenize(captions).numpy()
    for words in (made, tokenizer.load(tmp_path / "run"), pickle.loads(pickle.dumps(made))):
        ids, mask = words(captions, 7)
        np.testing.assert_array_equal(ids, wanted[:, :7])
        np.testing.assert_array_equal(mask, wanted[:, :7] != 0)
        assert words.lengths(captions).tolist() == (wanted != 0).sum(1).tolist()
    assert weights.of_file(file, OpenAIClip(), {}, {}, {}).vocabulary.ends


def test_every_argument_of_the_constructor_is_decided():
    names = list(inspect.signature(x_clip.CLIP.__init__).parameters)[1:]
    assert set(names) == set(arguments.X_CLIP)
    theirs = make("plain")[0]
    theirs.text_transformer = torch.nn.Sequential(theirs.text_transformer)
    with pytest.raises(UserError, match="text_encoder='Sequential'"):
        tables.live(theirs)


@pytest.mark.parametrize(
    ("trunk", "options", "said"),
    [
        ("text_encoder", {"attn_dropout": 0.3}, "text_transformer of CLIP has attn_dropout=0.3"),
        ("image_encoder", {"attn_dropout": 0.3}, "visual_transformer of CLIP has attn_dropout=0.3"),
        ("image_encoder", {"causal": True}, "causal=True"),
    ],
)
def test_options_of_a_given_transformer_that_have_no_form_here_are_refused(trunk, options, said):
    sizes = {"dim_head": 8, "heads": 2, "depth": 1, **options}
    made = {
        "text_encoder": lambda: inside.TextTransformer(24, num_tokens=40, max_seq_len=7, **sizes),
        "image_encoder": lambda: inside.VisionTransformer(
            32, image_size=32, patch_size=8, channels=3, **sizes
        ),
    }
    with pytest.raises(UserError, match=said):
        convert.from_torch(x_clip.CLIP(**_SMALL, **{trunk: made[trunk]()}))


def test_words_that_are_never_masked():
    theirs = x_clip.CLIP(**_SMALL, use_mlm=True, mlm_mask_ignore_token_ids=[5, 3])
    settings = tables.live(theirs)["settings"]
    words = weights.imported(CLIP(use_mlm=True), {}, settings).task.mlm
    assert words.mask_ignore_token_ids == (3, 5)
    text = np.arange(40).reshape(4, 10) % 8
    for more in ({}, {"random_token_prob": 0.5}):
        every = dataclasses.replace(words, mask_prob=1.0, replace_prob=1.0, **more)
        hidden = every.hide(jnp.asarray(text), jnp.asarray(text != 0), 40, jax.random.key(0))
        np.testing.assert_array_equal(hidden.target_BL, (text != 0) & ~np.isin(text, (3, 5)))
        seen = np.asarray(hidden.text_BL)
        assert not np.isin(seen[seen != text], (3, 5)).any()
    with pytest.raises(UserError, match=r"mask_ignore_token_ids=\['x'\] are no ids"):
        MaskedWords(mask_ignore_token_ids=["x"])  # pyright: ignore[reportArgumentType]


def test_class_tokens_count_where_tokens_are_compared_alone():
    theirs = x_clip.CLIP(**_SMALL, text_has_cls_token=False)
    assert "text_has_cls_token" not in tables.live(theirs)
    theirs.use_all_token_embeds = True
    assert tables.live(theirs)["text_has_cls_token"] is False
    with pytest.raises(UserError, match="text_has_cls_token=False is for the tokens of use_all"):
        CLIP(**_SMALL, text_has_cls_token=False)


def test_another_padding_of_masked_words_is_a_token_that_is_never_chosen():
    """The package then learns to say what its padding is."""
    for own, theirs_have, said in ((3, 0, (5, 0)), (3, 3, (5,)), (0, 3, (5, 3)), (0, -1, (5,))):
        options = dict(text_pad_id=own, mlm_pad_token_id=theirs_have, mlm_mask_ignore_token_ids=[5])
        live = tables.live(x_clip.CLIP(**_SMALL, use_mlm=True, **options))
        network = CLIP(**_SMALL, use_mlm=True, text_pad_id=live["text_pad_id"])
        words = weights.imported(network, {}, live["settings"]).task.mlm
        assert (network.text_pad_id, words.mask_ignore_token_ids) == (own, said)
    with pytest.raises(UserError, match="text_pad_id=40 is none of the ids below num_text"):
        convert.from_torch(x_clip.CLIP(**_SMALL, text_pad_id=40))


def test_heads_that_the_weights_do_not_tell_are_asked_for():
    state = make("plain")[0].state_dict()
    with pytest.raises(UserError, match="text_heads=1 with text_dim_head=64"):
        convert.from_torch(state)
    model, _ = convert.from_torch(state, text_heads=2, visual_heads=2)
    assert (model.text_dim_head, model.visual_dim_head, model.use_mlm) == (12, 16, True)
