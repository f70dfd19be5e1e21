"""OpenAI's CLIP against a live CLIPModel of transformers: vectors, similarities, weights under both
packages' names; its tokenizer id for id; the published sizes.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from t2i_jax import convert, sharding
from t2i_jax.convert import torch_io
from t2i_jax.convert.openai_clip import OPENAI
from t2i_jax.errors import UserError
from t2i_jax.models.image_text import at_size
from t2i_jax.models.openai_clip import MEAN, SIZES, STD, OpenAIClip
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.text.caption_ids import CaptionIds
from t2i_jax.text.tokenizer import load
from tests.parity import reference
from tests.parity.test_vit_vqgan import error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NETWORK = 1e-5  # float32 through a few layers, products in another order

_END = 49


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def made(request):
    """(the package's model, ours, our weights)."""
    torch.manual_seed(0)
    text = dict(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        vocab_size=50, max_position_embeddings=7, eos_token_id=_END, bos_token_id=48,
    )  # fmt: skip
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=24, patch_size=8,
    )  # fmt: skip
    for one in (text, vision):
        one["hidden_act"] = request.param
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    theirs = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # zeros and ones would not show that they are used
        for name, parameter in theirs.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model, params = convert.from_torch(theirs)
    return theirs, model, params


def test_vectors_and_similarities(made):
    theirs, model, params = made
    rng = np.random.default_rng(0)
    text = np.zeros((4, 7), np.int64)
    for row, length in enumerate((7, 4, 5, 3)):
        text[row, :length] = [48, *rng.integers(1, 48, length - 2), _END]
    mask = np.arange(7) < np.array([[7], [4], [5], [3]])
    image = rng.random((3, 24, 24, 3), np.float32)
    pixels = ((image - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(text), pixel_values=torch.tensor(pixels))
        hidden = expected.text_model_output.last_hidden_state

    @jax.jit
    def ours(params):
        found = model.embed_text(params, text, mask)
        return found, model.embed_image(params, 2 * image - 1), model.log_scale(params)

    with jax.default_matmul_precision("highest"):
        found, shown, log_scale = ours(params)
    assert error(found.embed_BD, expected.text_embeds) < NETWORK
    assert error(shown, expected.image_embeds) < NETWORK
    scores = np.exp(log_scale) * shown @ found.embed_BD.T
    assert error(scores, expected.logits_per_image) < NETWORK
    seen = torch.where(torch.tensor(mask)[..., None], hidden, 0)
    assert error(found.encodings_BLE, seen) < NETWORK


def test_weights_bit_for_bit_under_both_names(made):
    theirs, model, params = made
    exported, state = (
        convert.to_torch(model, params, "CLIPModel of transformers"),
        theirs.state_dict(),
    )
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    theirs.load_state_dict(exported, strict=True)
    openai = convert.to_torch(model, params, "CLIP of OpenAI, OpenCLIP")
    assert openai["transformer.resblocks.1.attn.in_proj_weight"].shape == (72, 24)
    given = {
        name: getattr(model, name)
        for name in ("transformer_heads", "vision_heads", "activation", "epsilon")
    }
    extra = {"input_resolution": torch.tensor(24), "context_length": torch.tensor(7)}
    again, weights = convert.from_torch({**openai, **extra}, **given)
    assert again == model
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(weights), strict=True):
        assert np.array_equal(one, other)


def test_heads_of_a_state_dict_are_those_of_its_widths(tmp_path):
    """Captions of a file, whose heads and activation nothing but its width and its user tell."""
    torch.manual_seed(0)
    text = dict(
        hidden_size=192, intermediate_size=24, num_hidden_layers=1, num_attention_heads=3,
        vocab_size=50, max_position_embeddings=7, eos_token_id=_END, hidden_act="gelu",
    )  # fmt: skip
    vision = dict(
        hidden_size=64, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=8, patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    theirs = transformers.CLIPModel(config).eval()
    ids = np.array([[48, 5, 6, 7, 8, 9, _END]])
    with torch.no_grad():
        expected = theirs.get_text_features(torch.tensor(ids))
    expected = getattr(expected, "pooler_output", expected)
    torch_io.write(tmp_path / "clip.safetensors", torch_io.arrays(theirs.state_dict()))
    model, params = convert.from_torch(tmp_path / "clip.safetensors", activation="gelu")
    assert model.transformer_heads == 3
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.text_vectors)(params, ids, ids > 0)
    assert error(found, expected) < NETWORK
    for fields in ({}, {"transformer_heads": 8}):
        with pytest.raises(UserError, match="do not tell their activation; give activation='quick"):
            ClipText.from_file(tmp_path / "clip.safetensors", **fields)
    given = {"activation": "gelu", "transformer_heads": 8}  # as earlier versions took it
    assert ClipText.from_file(tmp_path / "clip.safetensors", **given).network.transformer_heads == 8


def _state(vision, text, embed_dim):
    """As much of OpenCLIP's state dict as fields are told by; nothing is allocated."""
    width, own = vision.get("width", 768), text.get("width", 512)
    patch, patches = vision["patch_size"], (vision["image_size"] // vision["patch_size"]) ** 2
    shapes = {
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (patches + 1, width),
        "token_embedding.weight": (text["vocab_size"], own),
        "positional_embedding": (77, own),
        "text_projection": (own, embed_dim),
        f"visual.transformer.resblocks.{vision['layers'] - 1}.mlp.c_fc.weight": (4 * width, width),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
        f"transformer.resblocks.{text['layers'] - 1}.mlp.c_fc.weight": (4 * own, own),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * own, own),
    }
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_heads_of_every_published_network_and_of_no_other():
    open_clip, seen = reference.load("open_clip"), set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        plain = {"layers", "width", "patch_size", "image_size"} <= vision.keys()
        if not plain or isinstance(vision["layers"], list) or "heads" not in text:
            continue  # a ResNet, or a transformer of another package
        state = _state(vision, text, config["embed_dim"])
        found = OpenAIClip(**OPENAI.fields(state, {"activation": "gelu"}))
        heads = found.vision_heads or found.vision_width // 64
        wanted = vision["width"] // vision.get("head_width", 64)
        assert (name, found.transformer_heads, heads) == (name, text["heads"], wanted)
        seen.add(found.vision_width)
    assert {768, 1024, 1280, 1664} <= seen
    vision = {"layers": 1, "width": 1152, "patch_size": 8, "image_size": 8}
    state = _state(vision, {"layers": 1, "width": 100, "vocab_size": 9}, 16)
    with pytest.raises(UserError, match="width=100; give transformer_heads, and .*=1152; give vis"):
        OPENAI.fields(state, {"activation": "gelu"})
    heads = {"transformer_heads": 4, "vision_heads": 16}
    assert heads.items() <= OPENAI.fields(state, {"activation": "gelu", **heads}).items()


def test_published_sizes():
    """Parameters as published: 151 and 150 million, 428 million, 986 million."""
    counts = {
        name: sum(x.size for x in jax.tree.leaves(_shapes(model))) for name, model in SIZES.items()
    }
    assert counts["ViT-B/32"] == 151_277_313
    assert counts["ViT-B/16"] == 149_620_737
    assert counts["ViT-L/14"] == 427_616_513
    assert counts["ViT-H-14"] == 986_109_441


def _shapes(model):
    return sharding.unbox(jax.eval_shape(model.init, jax.random.key(0)))


_WORDS = ["a", "red", "circle", "above", "square", "it", "'s", "don", "'t", "1", "2", "!?"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with a small made vocabulary: all bytes, and some merges."""
    from tokenizers import pre_tokenizers

    folder = tmp_path_factory.mktemp("vocabulary")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r"), ("a", "b"), ("s", "q")]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_tokenizer_id_for_id(vocabulary, tmp_path):
    pieces = json.loads((vocabulary / "vocab.json").read_text())
    pairs = (vocabulary / "merges.txt").read_text().splitlines()[1:]
    theirs = transformers.CLIPTokenizer(
        vocab=pieces, merges=[tuple(pair.split()) for pair in pairs]
    )
    ours = load(vocabulary)
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(_WORDS, 6)) for _ in range(20)]
    captions += ["", "  A  RED\tcircle\n", "Zürich ☃ — 1,000!", "don't it's", "日本語 é"]
    captions += ["a <|endoftext|> red", "<|startoftext|>circle <|ENDOFTEXT|>"]
    ids, mask = ours(captions, 77)
    for caption, row, seen in zip(captions, ids, mask, strict=True):
        assert row[seen].tolist() == theirs(caption)["input_ids"]
    assert ours.lengths(captions).tolist() == mask.sum(1).tolist()
    cut, seen = ours(["red circle above square"], 5)
    assert seen.all() and cut[0, -1] == ours(["x"], 5)[0][0, 2]
    captions = CaptionIds(1000, 9, source=str(vocabulary))
    captions.prepare(tmp_path / "own", lambda: iter(()))
    again = captions.tokenizer(tmp_path / "own")
    assert np.array_equal(again(["a red circle"], 9)[0], ours(["a red circle"], 9)[0])
    with pytest.raises(UserError, match="vocabulary of .* for an embedding of 10 rows"):
        CaptionIds(10, 9, source=str(vocabulary)).tokenizer()


def test_another_size_of_images_and_refusals():
    image = np.random.default_rng(0).random((1, 9, 9, 3), np.float32)
    assert at_size(image, 6).shape == (1, 6, 6, 3)
    base = OpenAIClip()
    for fields, message in (
        (dict(image_resolution=225), "is not a multiple"),
        (dict(activation="relu"), "activation='relu' is not known"),
        (dict(std=(0.0, 1.0, 1.0)), "std above 0"),
        (dict(transformer_heads=7), "does not divide"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(base, **fields)
