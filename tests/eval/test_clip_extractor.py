"""CLIP as metrics read it: folders of transformers and of OpenCLIP, files alone; images and
captions beside the packages.
"""

import dataclasses
import gzip
import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.eval import clip_files, extractors, resize, weights_file
from t2i_jax.eval.clip_score import PRESETS, clip_score
from t2i_jax.models.openai_clip import MEAN, SIZES, STD
from t2i_jax.systems.clip.text import ClipText
from t2i_jax.text import bpe
from t2i_jax.text.tokenizer import train_bpe
from tests.parity import reference
from tests.parity.products import check_highest
from tests.parity.test_openai_clip import vocabulary  # noqa: F401

NETWORK = 1e-5  # float32 through a few layers, products in another order
_CAPTIONS = ["a red circle", "red", "a square above it, don't 1 2 3 4 5 6 7 8 9"]


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def folder(request, tmp_path_factory, vocabulary):  # noqa: F811
    """(the package's model, a folder of transformers with the vocabulary)."""
    transformers = reference.load("transformers")
    import torch

    size = len(json.loads((vocabulary / "vocab.json").read_text()))
    torch.manual_seed(0)
    text = dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=size, max_position_embeddings=12, eos_token_id=size - 1, bos_token_id=size - 2,
        hidden_act=request.param,
    )  # fmt: skip
    vision = dict(
        hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, hidden_act=request.param,
    )  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    theirs = transformers.CLIPModel(config).eval()
    folder = tmp_path_factory.mktemp("clip")
    theirs.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((vocabulary / name).read_bytes())
    scaled = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaled))
    return theirs, folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20, side, 3), dtype=np.uint8) for side in (33, 16, 40)]


def test_images_and_captions_are_those_of_transformers(folder, images):
    import torch

    theirs, path = folder
    ours = extractors.clip(path)
    pixels = np.stack([ours.prepare(image) for image in images])
    assert pixels.shape == (3, 16, 16, 3)
    assert type(ours.tokenizer) is bpe.ClipBpe and not ours.mends  # as transformers
    ids, mask = ours.tokenizer(_CAPTIONS, 12)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(ids).long(),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    found = ours.features(images, batch_size=2)["image"]
    said = ours.text_features(_CAPTIONS, batch_size=2)
    assert mask[2].all()  # cut
    for mine, other in ((found, expected.image_embeds), (said, expected.text_embeds)):
        assert mine.dtype == np.float32 and mine.shape == (3, 16)
        length = np.linalg.norm(mine, axis=-1, keepdims=True)
        assert np.abs(length - 1).min() > 1e-3  # as projected
        assert np.abs(mine / length - other.numpy()).max() < NETWORK
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-6)
    assert ours.about["activation"] == theirs.config.text_config.hidden_act
    np.testing.assert_allclose(ours.about["preprocessing"]["mean"], [127.5, 102, 76.5])


def test_a_file_in_its_folder_has_the_configuration_beside_it(folder, tmp_path):
    """Nobody tells the activation and heads that are not 64 wide; a file of another name, or the
    configuration of another model, has no such neighbour.
    """
    theirs, path = folder
    config, whole = theirs.config, clip_files.read(path).network
    text = ClipText.from_file(path / "model.safetensors")
    assert text == ClipText.from_file(path / "model.safetensors", path)
    assert text.vocabulary == str(path)
    for network in (text.network, clip_files.read(path / "model.safetensors").network):
        assert network == whole
    assert whole.activation == config.text_config.hidden_act and whole.mean == (0.5, 0.4, 0.3)
    assert (whole.transformer_heads, whole.vision_heads) == (4, 2)
    text.frozen()  # read as it is
    given, _ = convert.from_torch(path / "model.safetensors", transformer_heads=8)
    assert given == dataclasses.replace(whole, transformer_heads=8)
    weights = (path / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    (tmp_path / "mine.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="do not tell their activation"):
        convert.from_torch(tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="give transformer_heads, and .* give vision_heads"):
        convert.from_torch(tmp_path / "model.safetensors", activation="gelu")


def test_captions_that_are_too_long_count_as_in_torchmetrics(folder, images):
    multimodal = reference.load("torchmetrics.functional.multimodal.clip_score")
    transformers = reference.load("transformers")
    import torch

    theirs, path = folder
    ours = extractors.clip(path)
    pieces = json.loads((path / "vocab.json").read_text())
    pairs = (path / "merges.txt").read_text().splitlines()[1:]
    tokenizer = transformers.CLIPTokenizer(
        vocab=pieces, merges=[tuple(pair.split()) for pair in pairs]
    )

    def processor(text=None, images=None, **named):
        if text is not None:
            return tokenizer(text, **named)
        pixels = np.stack([ours.prepare(one.numpy().transpose(1, 2, 0)) for one in images])
        return {"pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())}

    class Vectors:
        """The model as torchmetrics 1.9 knows it; transformers 5 gives more than vectors."""

        config = theirs.config

        def to(self, device):
            return self

        def get_image_features(self, pixels):
            return theirs.get_image_features(pixels).pooler_output

        def get_text_features(self, ids, mask):
            return theirs.get_text_features(ids, mask).pooler_output

    shown = [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]
    expected, _ = multimodal._clip_score_update(shown, _CAPTIONS, Vectors(), processor)
    scoring = PRESETS["torchmetrics"]
    said = ours.text_features(_CAPTIONS, 2, keeps_end=scoring.keeps_end)
    found = clip_score(ours.features(images, batch_size=2)["image"], said, scoring)
    np.testing.assert_allclose(found.values_N, expected.detach().numpy(), atol=100 * NETWORK)
    whole = ours.text_features(_CAPTIONS, 2)
    assert [len(_CAPTIONS[row]) for row in np.flatnonzero((whole != said).any(axis=1))] == [
        len(_CAPTIONS[2])
    ]
    assert (ours.lengths(_CAPTIONS) > ours.text_length).tolist() == [False, False, True]


def test_a_vocabulary_is_that_of_a_clip_and_no_larger_than_its_own(folder, tmp_path):
    train_bpe(_CAPTIONS, 40).save(tmp_path)
    with pytest.raises(UserError, match="tokenizer=.* has the vocabulary of another network"):
        extractors.clip(folder[1], tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    pieces = json.loads((folder[1] / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({**pieces, "red": len(pieces)}))
    (tmp_path / "merges.txt").write_bytes((folder[1] / "merges.txt").read_bytes())
    with pytest.raises(UserError, match="tokenizer=.* pieces for an embedding of .* rows"):
        extractors.clip(folder[1], tokenizer=tmp_path)


def test_a_width_is_known_before_an_image_is_read(folder, images):
    ours = extractors.clip(folder[1])
    assert ours.width("image") == ours.features(images, batch_size=2)["image"].shape[1]


def test_the_highest_precision_is_asked_for(folder):
    ours = extractors.clip(folder[1])
    batch = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    check_highest(ours._placed[1].lower(ours.params, batch), least=7)
    ids_BL, mask_BL = ours.tokenizer(_CAPTIONS, ours.text_length)
    check_highest(ours._text_program.lower(ours.params, ids_BL, mask_BL), least=7)


def test_cmmd_has_its_own_crop(folder, images):
    usual, square = (extractors.clip(folder[1], one) for one in ("clip", "cmmd"))
    assert square.about["preprocessing"]["mode"] == "cmmd"
    assert np.abs(usual.prepare(images[0]) - square.prepare(images[0])).max() > 0.01


_TO_MEND = [
    "don\u2019t \u201ca red\u201d circle\u2026", "red &amp;amp; blue", "&ldquo;a&rdquo; <b>&rsquo;",
    "\u201ea\u201f \u2018b\u201b \u201a\u02bc &#39;x&quot;", *_CAPTIONS,
]  # fmt: skip


def _tokenizer_of_open_clip(open_clip, merges, folder):
    """The package's tokenizer of these merges, and a folder with the same ids."""
    with gzip.open(folder / "merges.txt.gz", "wt") as file:
        file.write(merges.rstrip())
    theirs = open_clip.tokenizer.SimpleTokenizer(str(folder / "merges.txt.gz"), context_length=24)
    special = {"<start_of_text>": bpe.START, "<end_of_text>": bpe.END}
    pieces = {special.get(piece, piece): number for piece, number in theirs.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(pieces))
    (folder / "merges.txt").write_text(merges)
    return theirs, folder


def test_open_clip_folder_and_a_file_alone(images, tmp_path, vocabulary, monkeypatch):  # noqa: F811
    open_clip = reference.load("open_clip")
    import torch

    merges = (vocabulary / "merges.txt").read_text()
    words, vocabulary = _tokenizer_of_open_clip(open_clip, merges, tmp_path)

    torch.manual_seed(0)
    text = {"context_length": 12, "vocab_size": 600, "width": 32, "heads": 4, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 24, "head_width": 12, "patch_size": 8}
    theirs = open_clip.model.CLIP(16, vision, text, quick_gelu=False).eval()
    state = torch_io.arrays(theirs.state_dict())
    torch_io.write(tmp_path / "open_clip_model.safetensors", state)
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ours = extractors.clip(tmp_path, tokenizer=vocabulary)
    found = ours.features(images, batch_size=3)["image"]
    pixels = np.stack([ours.prepare(image) for image in images]).transpose(0, 3, 1, 2).copy()
    np.testing.assert_array_equal(ours.tokenizer(_TO_MEND, 24)[0], words(_TO_MEND))
    again = pickle.loads(pickle.dumps(ours.tokenizer))
    assert ours.mends
    np.testing.assert_array_equal(again(_TO_MEND, 24)[0], words(_TO_MEND))
    ids, _ = ours.tokenizer(_CAPTIONS, 12)
    with torch.no_grad():
        expected = theirs.encode_image(torch.from_numpy(pixels)).numpy()
        said = theirs.encode_text(torch.from_numpy(ids).long()).numpy()
    assert np.abs(found - expected).max() < NETWORK * np.abs(expected).max()
    assert np.abs(ours.text_features(_CAPTIONS) - said).max() < NETWORK * np.abs(said).max()

    # HPS v2 is such a file, of another size
    torch.save({"state_dict": theirs.state_dict(), "epoch": 1}, tmp_path / "hps.pt")
    fields = dict(activation="gelu", vision_heads=2, transformer_heads=4)
    with pytest.raises(UserError, match="vision_heads"):  # a ViT-H has 16
        extractors.hpsv2(tmp_path / "hps.pt", vocabulary)
    monkeypatch.setitem(SIZES, "ViT-H-14", _of_sizes(clip_files.read(tmp_path).network))
    alone = extractors.hpsv2(tmp_path / "hps.pt", vocabulary)
    np.testing.assert_array_equal(alone.tokenizer(_TO_MEND, 24)[0], words(_TO_MEND))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    alone = extractors.hpsv2(tmp_path / "hps.pt", None)
    assert alone.name == "hpsv2" and alone.tokenizer is None
    assert alone.about["preprocessing"] == resize.hpsv2(16, MEAN, STD).about
    mean = (0.5, 0.5, 0.5)
    same = extractors.clip(tmp_path / "hps.pt", mean=mean, std=mean, **fields)
    np.testing.assert_array_equal(same.features(images, batch_size=3)["image"], found)
    with pytest.raises(UserError, match="came without a vocabulary"):
        alone.text_features(["a"])
    with pytest.raises(UserError, match="does not tell its activation"):
        extractors.clip(tmp_path / "hps.pt")


def _of_sizes(network):
    """A ViT-H/14 in as many pixels, layers and channels as a network, and with its heads."""
    sizes = ("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size")
    sizes += ("vision_heads", "transformer_heads")
    return dataclasses.replace(
        SIZES["ViT-H-14"], **{field: getattr(network, field) for field in sizes}
    )


def test_a_score_of_preference_is_that_of_a_clip_of_its_sizes(folder, tmp_path, monkeypatch):
    """Any other would be scored under its name."""
    _, path = folder
    for what in ("pickscore", "hpsv2"):
        with pytest.raises(UserError) as error:
            extractors.clip(path, what=what)
        said = str(error.value)
        assert said.startswith(f"{what}='{path / 'model.safetensors'}' holds a CLIP of other sizes")
        assert "those of ViT-H-14 (embed_dim=16 instead of 1024, image_resolution=16" in said
        assert said.endswith(f"; fetch {weights_file.PUBLISHED[what]}.")
    with pytest.raises(UserError, match="pickscore=.*vision_layers=1 instead of 32"):
        extractors.pickscore(path)
    huge, alike = SIZES["ViT-H-14"], _of_sizes(clip_files.read(path).network)
    for field in ("embed_dim", "image_resolution", "vision_layers", "vision_width"):
        other = dataclasses.replace(alike, **{field: getattr(huge, field)})
        monkeypatch.setitem(SIZES, "ViT-H-14", other)
        with pytest.raises(UserError, match=rf"of ViT-H-14 \({field}=\d+ instead of \d+\)"):
            extractors.pickscore(path)
    monkeypatch.setitem(SIZES, "ViT-H-14", alike)
    assert extractors.pickscore(path).name == "pickscore"


def test_a_clip_in_several_files_or_in_a_cache_of_the_hub(folder, tmp_path):
    _, path = folder
    cache = tmp_path / "models--openai--clip"
    shutil.copytree(path, cache / "snapshots" / "abc")
    assert extractors.clip(cache).about == extractors.clip(path).about
    (cache / "snapshots" / "def").mkdir()
    with pytest.raises(UserError, match="has 2 snapshots; give one of them, as snapshots/abc in"):
        extractors.clip(cache)
    shards = tmp_path / "shards"
    shutil.copytree(path, shards)
    (shards / "model.safetensors").unlink()
    (shards / "model.safetensors.index.json").write_text("{}")
    for read in (extractors.clip, extractors.pickscore, extractors.dinov2):
        with pytest.raises(UserError, match=r"shards' is spread over several files \(sharded\)"):
            read(shards)


def test_names_of_published_networks():
    names = {name: clip_files.name(network) for name, network in SIZES.items()}
    assert names["ViT-B/32"] == "clip-vit-b-32"
    assert names["ViT-L/14@336px"] == "clip-vit-l-14-336"
    assert len(set(names.values())) == len(SIZES)


def test_mistakes_are_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="fetch the folder.*openai/clip-vit-base-patch32"):
        extractors.clip(tmp_path / "none")
    with pytest.raises(UserError, match="pickscore needs weights; fetch.*PickScore_v1"):
        extractors.pickscore(None)
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt"):
        extractors.hpsv2(None, None)
    with pytest.raises(UserError, match=r"has none of model\.safetensors"):
        extractors.clip(tmp_path)
    with pytest.raises(UserError, match="captions are empty"):
        extractors.clip(folder[1]).text_features([])
    with pytest.raises(UserError, match="preprocessing='cmd'"):
        extractors.clip(folder[1], "cmd")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="model of type 'siglip'"):
        extractors.clip(tmp_path)
