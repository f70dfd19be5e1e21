"""CLIP from and to files of x-clip and of a run, and as the text encoder of another system."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert, runs
from t2i_jax.config import fields_of
from t2i_jax.convert import torch_io, untold
from t2i_jax.errors import UserError
from t2i_jax.on_host import initialise
from t2i_jax.systems.clip import weights as clip_weights
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.systems.clip.visual_ssl import VisualSsl
from t2i_jax.text import bpe
from t2i_jax.text.tokenizer import train_bpe
from tests.systems import toy_dalle2
from tests.systems.test_clip import TINY

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of x-clip's names, with the network and parameters that it is of."""
    model = t2i.CLIP(**TINY, use_mlm=True)
    params = initialise(model.init, jax.random.key(3))
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    torch_io.write(path, convert.to_state(model, jax.device_get(params)))
    return path, model, params


_FIELDS = dict(text_heads=1, visual_heads=1)


@functools.partial(jax.jit, static_argnums=0)
def _similarity(network, params, image, ids, mask):
    return network.embed_image(params, image) @ network.embed_text(params, ids, mask).embed_BD.T


@functools.partial(jax.jit, static_argnums=0)
def _encodings(network, params, ids, mask):
    return network.embed_text(params, ids, mask).encodings_BLE


def test_a_file_becomes_a_system_and_a_file_again(file, tmp_path):
    path, model, params = file
    out = runs.import_torch(path, tmp_path / "clip", **_FIELDS, clip={"text_ssl_loss_weight": 0.2})
    system = t2i.load(out)
    assert system.task.mlm.weight == 0.2 and system.text_tokenizer is None
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    ids = np.array([[5, 6, 7], [8, 9, 0]])
    shown, mask = jnp.asarray(image / 255 * 2 - 1, jnp.float32), ids != 0
    network = system.task.model
    assert network.pixel_range == (0.0, 1.0)
    wanted = _similarity(network, params, shown, ids, mask)
    assert np.allclose(system.similarity(image, ids), wanted, atol=1e-5)
    again = runs.export_torch(out, tmp_path / "again.safetensors")
    theirs, ours = torch_io.load(path), torch_io.load(again)
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)
    fields = {"text_pad_id": 3, "use_all_token_embeds": True, "text_has_cls_token": False}
    fields = _FIELDS | fields
    padded = runs.import_torch(path, tmp_path / "padded", **fields, clip={"mlm_pad_token_id": 0})
    system = t2i.load(padded)
    assert system.task.mlm.mask_ignore_token_ids == (0,)
    ids = np.array([[5, 3, 7], [8, 0, 3]])
    network, mask = system.task.model, ids != 3
    wanted = _similarity(network, params, shown, ids, mask)
    other = np.array([[5, 3, 7, 3, 3, 3], [8, 0, 3, 3, 3, 3]])
    ours = system.embed_images(image) @ system.embed_text(other).T
    assert np.allclose(ours, wanted, atol=1e-5)
    assert np.array_equal(system.similarity(image, ids), system.similarity(image, other))
    with pytest.raises(UserError, match="other_option"):
        runs.import_torch(path, tmp_path / "no", **_FIELDS, clip={"other_option": 1})


def test_what_training_alone_uses_does_not_go_out():
    task = ClipTask(t2i.CLIP(**TINY), visual_ssl=VisualSsl(hidden_dim=8, projection_dim=4))
    params = jax.device_get(initialise(task.init, jax.random.key(0))[0])
    assert "ssl" in params["clip"]
    assert convert.to_state(task.model, clip_weights.exported(params))


def test_its_text_transformer_encodes_captions_for_others(file, tmp_path):
    path, model, params = file
    train_bpe(["a red circle", "a blue square"], 40).save(tmp_path / "vocabulary")
    text = ClipText.from_file(path, tmp_path / "vocabulary", **_FIELDS)
    assert (text.dim, text.max_length) == (16, 6)
    weights = text.frozen()["text"]
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, text.frozen_shapes()["text"])
    without = ClipText.from_file(path, **_FIELDS)
    assert without.vocabulary is None
    with pytest.raises(UserError, match="vocabulary=None, and text.source=.* trained weights"):
        without.prepare(tmp_path / "run", lambda: iter(["a red circle"]))
    text.prepare(tmp_path / "run", lambda: iter(()))
    without.prepare(tmp_path / "run", lambda: iter(()))  # as an earlier start has left it
    given = text.encode(text.tokenizer(tmp_path / "run"), ["a red circle", "blue"], "prompts")
    embeds = jax.jit(text.embed)(weights, given["text"], given["text_mask"])
    wanted = _encodings(model, params, given["text"], given["text_mask"])
    assert np.allclose(embeds, wanted, atol=1e-6) and embeds.shape == (2, 6, 16)
    with pytest.raises(UserError, match="max_length=7 is not from 1 to 6"):
        ClipText(None, model, max_length=7)


def test_the_vocabulary_of_a_file_of_x_clip_has_no_ends(file, tmp_path, monkeypatch):
    """As where such a file is imported; it is found beside a file whose path has a ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip.safetensors").write_bytes(file[0].read_bytes())
    pieces = {piece: number for number, piece in enumerate(("a", "a</w>", bpe.START, bpe.END))}
    (tmp_path / bpe.VOCABULARY).write_text(json.dumps(pieces))
    (tmp_path / bpe.MERGES).write_text("#version: 0.2\n")
    monkeypatch.setattr(convert, "weights", lambda *_: types.SimpleNamespace(model=file[1]))
    text = ClipText.from_file("~/clip.safetensors", **_FIELDS)
    assert text.vocabulary == str(tmp_path)
    text.prepare(tmp_path / "run", lambda: iter(()))
    for words in (text.tokenizer(), text.tokenizer(tmp_path / "run")):
        assert words.lengths(["a a"]).tolist() == [2]
    kept = dataclasses.replace(text, ends=True)  # as of a run that was trained with them
    assert kept.tokenizer().lengths(["a a"]).tolist() == [4]
    (tmp_path / bpe.WHOLE).mkdir()  # no file
    assert ClipText.from_file("~/clip.safetensors").vocabulary == str(tmp_path)


def test_its_text_transformer_from_an_exported_run(tmp_path):
    task = ClipTask(t2i.CLIP(**TINY))
    data = t2i.DataConfig(source="shapes", image_size=8)
    train = t2i.TrainConfig(steps=2, batch_size=8, eval_every=2)
    recipe = t2i.Recipe(task, data, train, evaluation=t2i.Evaluation(pictures=16, preview=8))
    with toy_dalle2.few_captions():
        system = runs.train(recipe, tmp_path / "run")
    found = runs.evaluate(recipe, system, tmp_path / "run")
    assert {"recall@1_heldout/text_to_image", "recall@5_heldout/image_to_text"} <= found.keys()
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    out = runs.export(tmp_path / "run", tmp_path / "out")
    text = ClipText(
        str(tmp_path / "out" / "weights.safetensors"),
        task.model,
        str(tmp_path / "out" / "text_tokenizer"),
    )
    tokenizer = text.tokenizer()
    given = text.encode(tokenizer, "a red circle", "prompts")
    embeds = jax.jit(text.embed)(text.frozen()["text"], given["text"], given["text_mask"])
    loaded = t2i.load(out)
    wanted = _encodings(task.model, loaded.weights["clip"], given["text"], given["text_mask"])
    assert np.allclose(embeds, wanted, atol=1e-6)
    other = ClipText(text.source, t2i.CLIP(**{**TINY, "dim_text": 8}))
    with pytest.raises(UserError, match="does not fit the network"):
        other.frozen()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run of a file under OpenAI's names, with a vocabulary; its network and parameters."""
    home = tmp_path_factory.mktemp("published")
    train_bpe(["a red circle", "a blue square"], 40).save(home / "vocabulary")
    model = t2i.OpenAIClip(
        embed_dim=16, image_resolution=16, vision_layers=1, vision_width=16, vision_patch_size=8,
        vision_heads=2, context_length=12, vocab_size=40, transformer_width=24, transformer_heads=2,
        transformer_layers=1, activation="gelu",
    )  # fmt: skip
    params = initialise(model.init, jax.random.key(0))
    torch_io.write(home / "clip.safetensors", convert.to_state(model, jax.device_get(params)))
    fields = dict(vision_heads=2, transformer_heads=2)
    with pytest.raises(UserError, match="do not tell their activation; give activation="):
        runs.import_torch(home / "clip.safetensors", home / "no", **fields)
    wrong = {"activation": "gelu", "clip": {"vocabulary": str(home / "none")}}
    with pytest.raises(UserError, match="none"):
        runs.import_torch(home / "clip.safetensors", home / "no", **fields, **wrong)
    right = {"activation": "gelu", "clip": {"vocabulary": str(home / "vocabulary")}}
    out = runs.import_torch(home / "clip.safetensors", home / "clip", **fields, **right)
    return out, model, params


def test_a_published_clip_is_a_run_and_goes_out_again(published, tmp_path, capsys):
    out, model, params = published
    system, captions = t2i.load(out), ["a red circle", "a blue square"]
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    ids, mask = system.text_tokenizer(captions, 12)
    shown = jnp.asarray(image / 127.5 - 1, jnp.float32)
    wanted = _similarity(model, params, shown, ids, mask)
    np.testing.assert_allclose(system.similarity(image, captions), wanted, atol=1e-5)
    again = runs.export_torch(out, tmp_path / "again.safetensors")
    assert "vision_heads=2 transformer_heads=2 activation=gelu" in capsys.readouterr().err
    theirs, ours = torch_io.load(out.parent / "clip.safetensors"), torch_io.load(again)
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs)


def test_a_published_clip_is_the_part_of_a_prior_and_a_decoder(published, tmp_path):
    out, _, _ = published
    recipe = toy_dalle2.dalle2()
    parts = {**recipe.parts, "clip": str(out)}
    dalle2 = runs.train(dataclasses.replace(recipe, parts=parts), tmp_path / "run")
    assert isinstance(dalle2.clip.task.model, t2i.OpenAIClip)
    assert dalle2.prior.task.network.width == dalle2.decoder.task.embed_width == 16
    images = t2i.load(tmp_path / "run").generate(["a red circle"], steps=2, prior_steps=2)
    assert images.shape == (1, 16, 16, 3)
    assert dalle2.nearest(images, ["a red circle", "a blue square"])


_SMALL = dict(dim_text=16, dim_image=16, dim_latent=16, num_text_tokens=64, text_enc_depth=1,
              text_seq_len=12, visual_enc_depth=1, visual_image_size=16, visual_patch_size=8,
              visual_heads=1)  # fmt: skip
_UNET = dict(image_embed_dim=16, text_embed_dim=16)
_OPENAI = dict(
    embed_dim=16, image_resolution=16, vision_layers=1, vision_width=64, vision_patch_size=8,
    context_length=12, vocab_size=64, transformer_width=64, transformer_heads=1,
    transformer_layers=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (t2i.CLIP(**_SMALL, text_heads=8, text_dim_head=8, pixel_range=(-1.0, 1.0)),
         {"text_dim_head": 8, "pixel_range": (-1.0, 1.0)}),
        (t2i.CLIP(**_SMALL, text_heads=4, text_dim_head=16, visual_patch_dropout=0.0),
         {"text_dim_head": 16, "visual_patch_dropout": 0.0, "pixel_range": (-1.0, 1.0)}),
        (t2i.CLIP(**_SMALL, text_heads=1, pixel_range=(0.0, 1.0)), {}),
        (t2i.CLIP(**_SMALL, text_heads=1, pixel_range=(0.0, 1.0), text_pad_id=5,
                  use_all_token_embeds=True, text_has_cls_token=False, visual_has_cls_token=False),
         {"text_pad_id": 5, "use_all_token_embeds": True, "text_has_cls_token": False,
          "visual_has_cls_token": False}),
        (t2i.OpenAIClip(**_OPENAI), {"activation": "quick_gelu"}),
        (t2i.OpenAIClip(**_OPENAI, activation="gelu", epsilon=1e-3, mean=(0.5,) * 3),
         {"activation": "gelu", "epsilon": 1e-3, "mean": (0.5,) * 3}),
        (t2i.OpenAIClip(**_OPENAI | {"transformer_heads": 4}, vision_heads=2),
         {"vision_heads": 2, "transformer_heads": 4, "activation": "quick_gelu"}),
        (dataclasses.replace(toy_dalle2.UNET, scale_skip_connection=True, **_UNET),
         {"resnet_groups": 4, "scale_skip_connection": True}),
    ],
)  # fmt: skip
def test_what_a_state_dict_does_not_tell_is_found_and_gives_the_network_back(model, told):
    network = next(one for one in convert.NETWORKS.values() if one.model is type(model))
    shapes = network.shapes(model)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = convert.to_state(model, params)
    assert untold.fields(network, model, state) == told
    again, _ = convert.from_torch(state, **told)
    if not isinstance(model, t2i.DecoderUnet):  # whose table makes weights of what it has not
        read = {name: getattr(again, name) for name in fields_of(type(model))}
        assert all(network.same(name, read, getattr(model, name)) for name in read)
    assert all(getattr(again, name) == value for name, value in told.items())


def test_an_export_tells_what_its_readers_take_otherwise(published, tmp_path, capsys):
    runs.export_torch(published[0], tmp_path / "clip.safetensors")
    said = capsys.readouterr().err
    assert "`t2i convert from-torch` vision_heads=2 transformer_heads=2 activation=gelu" in said
    assert "OpenAI's CLIP has another activation; compute there with activation=gelu" in said
    assert "the run's vocabulary has id 1 for it" in said
