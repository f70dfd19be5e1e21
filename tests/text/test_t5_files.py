"""Folders of a T5 as strangers have them: read as they are, or refused in a sentence that names the
file.
"""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.text import cache, t5_files, tokenizer
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text, t5_encode_text
from t2i_jax.text.t5_encoder import T5Encoder
from tests.foreign.edits import OTHER, damaged, edits

NETWORK = T5Encoder(dim=8, depth=1, heads=2, dim_head=4, mlp_dim=8, vocab_size=64)
CONFIG = {
    "model_type": "t5", "d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8,
    "vocab_size": 64, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
}  # fmt: skip
CAPTIONS = ["a red circle above a blue square", "a green cross"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
_RNG = np.random.default_rng(0)


def _arrays():
    shapes = sharding.unbox(T5Text(None, NETWORK).shapes())
    found = {}
    for name, path, layer in t5_files.names(NETWORK):
        leaf = shapes
        for key in path:
            leaf = leaf[key]
        shape = leaf.shape[0 if layer is None else 1 :]
        found[name] = _RNG.normal(size=shape[::-1] if path[-1] == "kernel" else shape)
    return {name: value.astype(np.float32) for name, value in found.items()}


ARRAYS = _arrays()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(ARRAYS, tmp_path / "model.safetensors")
    tokenizer.train_bpe(CAPTIONS, 60).save(tmp_path)
    return tmp_path


def _read(folder):
    text = T5Text.from_directory(folder)
    return text.tokenizer(), text.init(jax.random.key(0))


def test_a_sound_folder_is_read_with_spare_rows(folder):
    vocabulary, params = _read(folder)
    assert vocabulary.vocab_size < NETWORK.vocab_size
    np.testing.assert_array_equal(params["embedding"], ARRAYS["shared.weight"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", POINTER, "config.json' is a Git LFS pointer"),
        ("config.json", b"{", "config.json' is no JSON"),
        ("config.json", b"[]", r"config.json' is \[\] and not an object"),
        ("tokenizer.json", POINTER, "tokenizer.json' is a Git LFS pointer"),
        ("tokenizer.json", b'{"model": {}}', "tokenizer.json' cannot be read"),
        ("tokenizer.json", b"\xff", "tokenizer.json' cannot be read as UTF-8"),
        ("spiece.model", POINTER, "spiece.model' is a Git LFS pointer"),
        ("spiece.model", b"", "spiece.model' is empty"),
        ("spiece.model", b"nothing", "spiece.model' cannot be read as a sentencepiece model"),
        ("model.safetensors", POINTER, "model.safetensors' is a Git LFS pointer"),
        ("model.safetensors", b"x" * 100, "model.safetensors' cannot be read"),
        ("model.safetensors.index.json", b'{"weight_map": 3}', "weight_map is 3"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', "weight_map.a is 3"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}', "not beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "names no file"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, said):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        _read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_kv": None}, "has no d_kv"),
        ({"d_model": "8"}, "d_model is '8', which is not int"),
        ({"d_model": True}, "d_model is True"),
        ({"num_layers": -1}, "num_layers=-1, which no T5 has"),
        ({"vocab_size": 10**30}, "which no T5 has"),
        ({"num_layers": 10**6}, "depth=1000000"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon is 'x'"),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj="),
        ({"relative_attention_num_buckets": 5}, "buckets=5"),
        ({"model_type": "bert"}, "model of type 'bert'"),
        ({"vocab_size": 32}, "shared.weight has shape"),
    ],
)
def test_a_wrong_field_of_the_configuration_is_named(folder, change, said):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(UserError, match=said):
        T5Text.from_directory(folder).init(jax.random.key(0))


def test_more_pieces_than_rows_are_refused(folder):
    rows = 16
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": rows}))
    with pytest.raises(UserError, match="pieces for an embedding of 16 rows"):
        T5Text.from_directory(folder).tokenizer()


def test_weights_that_are_not_finite_are_named(folder):
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    save_file({**ARRAYS, name: ARRAYS[name] * np.nan}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} has only values that are not finite"):
        _read(folder)
    save_file({**ARRAYS, name: ARRAYS[name].astype(np.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} is of the type int8"):
        _read(folder)


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", "float64", "x"])
def test_only_types_in_which_t5_computes(folder, dtype):
    with pytest.raises(UserError, match=f"dtype='{dtype}'.*float32 or bfloat16"):
        T5Text.from_directory(folder, dtype=dtype)
    with pytest.raises(UserError, match=f"dtype='{dtype}'"):
        t5_encode_text(CAPTIONS, folder, dtype=dtype)


def test_usual_spellings_of_types_are_known(folder):
    for spelling, dtype in (("bf16", "bfloat16"), ("fp32", "float32"), ("bfloat16", "bfloat16")):
        assert T5Text.from_directory(folder, dtype=spelling).network.dtype == dtype


def test_embeddings_that_are_not_finite_are_never_stored():
    params = T5Text(None, NETWORK).init(jax.random.key(0))
    vocabulary = tokenizer.train_bpe(CAPTIONS, 60)
    large = {**params, "norm": {"scale": np.full(8, 1e6, np.float32)}}  # beyond float16
    text = T5Text(None, NETWORK, max_length=8)
    assert len(list(cache.embed_captions(text, large, vocabulary, CAPTIONS, 2, "bfloat16"))) == 2
    with pytest.raises(UserError, match="'a red circle.*not finite in dtype='float16'"):
        list(cache.embed_captions(text, large, vocabulary, CAPTIONS, 2, "float16"))
    for wrong in (np.full((1, 2, 4), np.nan), [["x"]], object()):
        with pytest.raises(UserError, match="prompts"):
            StoredText(4, 3).encode(None, (wrong, np.ones((1, 2), bool)), "prompts")


def test_a_hub_that_is_out_of_reach_is_one_sentence_whatever_its_client_raises(monkeypatch):
    def no_network(*_, **__):
        raise type("ConnectError", (Exception,), {})("nothing there")  # as httpx has: no OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(UserError, match=r"neither a folder nor within reach .* \(ConnectError\)"):
        t5_files.folder_of("google/t5-v1_1-base", "config.json")


@given(edits(CONFIG))
def test_any_edit_of_the_configuration_is_read_or_refused(tmp_path_factory, edited):
    place = tmp_path_factory.getbasetemp()
    (place / "config.json").write_text(json.dumps(edited))
    try:
        assert isinstance(t5_files.read_config(place), T5Encoder)
    except UserError as error:
        assert "text=" in str(error)


_VOCABULARY = tokenizer.train_bpe(CAPTIONS, 60)._json.encode()


@given(st.one_of(damaged(_VOCABULARY), edits(json.loads(_VOCABULARY), OTHER).map(
    lambda edited: json.dumps(edited).encode()
)))  # fmt: skip
@settings(max_examples=3 * settings.default.max_examples)
def test_a_damaged_or_edited_vocabulary_is_read_or_refused(tmp_path_factory, content):
    place = tmp_path_factory.getbasetemp()
    (place / "tokenizer.json").write_bytes(content)
    try:
        found = tokenizer.load(place)
    except UserError as error:
        assert "tokenizer.json" in str(error)
    else:
        ids, _ = found(CAPTIONS, 8)
        assert ids.max() < found.vocab_size
