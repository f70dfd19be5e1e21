"""Our T5 encoder against the one of transformers, from folders that it wrote and from live
modules.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax import config, convert
from t2i_jax.errors import UserError
from t2i_jax.foreign import torch_archive
from t2i_jax.text import cache, t5, tokenizer
from t2i_jax.text.t5_encoder import SIZES, T5Encoder, relative_bucket
from tests.parity import reference

# Float32 on both sides, a dozen layers at most: what is left is the order of sums.
NETWORK = 1e-5
CAPTIONS = [
    "a red circle above a blue square",
    "",
    "a large green cross on a gray background, and so on " * 3,
]
KINDS = {
    "t5": dict(feed_forward_proj="relu", d_model=16, d_kv=4, num_heads=4, d_ff=24, num_layers=2),
    "v1.1": dict(
        feed_forward_proj="gated-gelu", d_model=12, d_kv=8, num_heads=3, d_ff=20, num_layers=3
    ),
    "few buckets": dict(
        feed_forward_proj="gated-silu",
        d_model=8,
        d_kv=2,
        num_heads=2,
        d_ff=8,
        num_layers=1,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        layer_norm_epsilon=1e-3,
    ),
}


@pytest.fixture(scope="module")
def torch():
    reference.load("parti_pytorch")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A sentencepiece model with T5's special ids, as bytes."""
    import sentencepiece

    prefix = tmp_path_factory.mktemp("spm") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 4),
        model_prefix=str(prefix),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def theirs(torch, kind, seed=0):
    """A random T5EncoderModel whose norms and biases are not what they start from."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    model = T5EncoderModel(T5Config(vocab_size=64, **KINDS[kind])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def folder(model, spiece, path, **options):
    model.save_pretrained(path, **options)
    (path / "spiece.model").write_bytes(spiece)
    return path


def error(ours, theirs):
    a, b = np.asarray(ours), theirs.detach().numpy()
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_a_folder_are_equal(torch, spiece, tmp_path, kind):
    model = theirs(torch, kind)
    text = t5.T5Text.from_directory(folder(model, spiece, tmp_path / "t5"), max_length=40)
    assert text.dim == model.config.d_model and not text.trainable
    ids, mask = text.tokenizer()(CAPTIONS, text.max_length)
    # an empty caption has its end token; a long one is cut
    assert mask.sum(1).tolist()[1] == 1 and mask[2].all()
    ours = jax.jit(text.embed)(text.init(jax.random.key(0)), ids, mask)
    with torch.no_grad():
        want = model(
            torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state
    assert ours.dtype == jnp.float32
    assert error(ours, want) <= NETWORK  # rows at padding too


@pytest.mark.parametrize("kind", ["t5", "v1.1"])
def test_weights_go_both_ways_bit_for_bit(torch, kind):
    model = theirs(torch, kind)
    network, params = convert.from_torch(model)
    state = convert.to_torch(network, params)
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    theirs(torch, kind, seed=1).load_state_dict(state, strict=True)


def test_a_whole_t5_and_a_file_give_the_same_encoder(torch, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    whole = T5ForConditionalGeneration(
        T5Config(vocab_size=64, num_decoder_layers=1, **KINDS["v1.1"])
    )
    whole.save_pretrained(tmp_path)
    network, params = convert.from_torch(whole)
    # there the embedding has one name only
    again, same = convert.from_torch(tmp_path / "model.safetensors")
    assert again == network
    jax.tree.map(np.testing.assert_array_equal, params, same)
    text = t5.T5Text.from_directory(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, dict(text.init(jax.random.key(0))))
    with pytest.raises(UserError, match="depth=5 contradicts"):
        convert.from_torch(tmp_path / "model.safetensors", depth=5)


def test_shards_and_bfloat16_files(torch, spiece, tmp_path):
    model = theirs(torch, "v1.1").bfloat16()
    folder(model, spiece, tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    text = t5.T5Text.from_directory(tmp_path / "shards")
    params = text.init(jax.random.key(0))
    want = (
        model.state_dict()["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"].float().numpy().T
    )
    np.testing.assert_array_equal(params["layers"]["gate"]["kernel"][1], want)
    half = t5.T5Text.from_directory(tmp_path / "shards", dtype="bfloat16")
    kept = half.init(jax.random.key(0))
    assert (
        kept["layers"]["q"]["kernel"].dtype == jnp.bfloat16
        and kept["norm"]["scale"].dtype == np.float32
    )
    ids, mask = half.tokenizer()(CAPTIONS, 16)
    exact, rough = (
        np.asarray(jax.jit(one.embed)(weights, ids, mask))
        for one, weights in ((text, params), (half, kept))
    )
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_folders_with_pytorch_files_only(torch, tmp_path, dtype):
    model = theirs(torch, "v1.1").to(getattr(torch, dtype))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    text = t5.T5Text.from_directory(tmp_path)
    network, want = convert.from_torch(model)
    assert network == text.network
    jax.tree.map(np.testing.assert_array_equal, want, dict(text.init(jax.random.key(0))))


def test_pickled_code_is_refused_and_views_are_read(torch, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save(
        {"view": whole[1:, ::2].T, "parameter": torch.nn.Parameter(whole[0, :1])},
        tmp_path / "a.bin",
    )
    read = torch_archive.readers(tmp_path / "a.bin", "weights")
    np.testing.assert_array_equal(read["view"](), whole[1:, ::2].T.numpy())
    np.testing.assert_array_equal(read["parameter"](), [0.0])
    torch.save({"code": print}, tmp_path / "b.bin")
    with pytest.raises(UserError, match="holds a .*print"):
        torch_archive.readers(tmp_path / "b.bin", "weights")
    (tmp_path / "c.bin").write_bytes(b"no zip")
    torch.save(whole, tmp_path / "d.bin")
    for name in ("c.bin", "d.bin"):
        with pytest.raises(UserError, match="save them as safetensors"):
            torch_archive.readers(tmp_path / name, "weights")


def test_encoding_text_is_equal_to_the_package(torch, spiece, tmp_path, monkeypatch):
    from parti_pytorch import t5 as package

    class Tokenizer:  # sentencepiece as the package's tokenizer calls it
        def batch_encode_plus(self, texts, max_length, **_):
            import sentencepiece

            ids = sentencepiece.SentencePieceProcessor(model_proto=spiece).encode(texts)
            ids = [[*row[: max_length - 1], 1] for row in ids]
            longest = max(map(len, ids))
            rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
            encoded = type("Encoded", (), {})()
            encoded.input_ids, encoded.attention_mask = (
                rows,
                torch.arange(longest)[None] < torch.tensor([[len(row)] for row in ids]),
            )
            return encoded

    model = theirs(torch, "t5")
    path = folder(model, spiece, tmp_path / "t5")
    monkeypatch.setitem(package.T5_CONFIGS, "here", {"model": model, "tokenizer": Tokenizer()})
    want, want_mask = package.t5_encode_text(CAPTIONS, "here")
    embeds, mask = t5.t5_encode_text(CAPTIONS, path)
    np.testing.assert_array_equal(mask, want_mask.numpy())
    assert embeds.shape == tuple(want.shape) and error(embeds, want) <= NETWORK
    assert t5.get_encoded_dim(path) == package.get_encoded_dim("here")

    text = t5.T5Text.from_directory(path, max_length=64)
    params = text.init(jax.random.key(0))
    rows = list(
        cache.embed_captions(
            text, params, text.tokenizer(), iter(CAPTIONS), batch_size=2, dtype="float32"
        )
    )
    lengths = np.minimum(want_mask.numpy().sum(1), 64)
    assert [len(row) for row in rows] == lengths.tolist()
    assert error(rows[0], want[0, : lengths[0]]) <= NETWORK


def test_token_ids_are_equal_to_those_of_transformers(torch, spiece, tmp_path):
    from transformers import T5Tokenizer

    (tmp_path / "spiece.model").write_bytes(spiece)
    package = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    package.save_pretrained(tmp_path / "json")  # there it is a tokenizer.json
    assert not (tmp_path / "json" / "spiece.model").exists()
    texts = [*CAPTIONS, "  A Red   circle: Zürich ☃ "]
    texts += ["a red </s> circle</s>", " <pad>a  <unk> ", "</s>"]  # as text, special all the same
    want = package(texts, padding="max_length", max_length=24, truncation=True, return_tensors="np")
    for ours in (tokenizer.load(tmp_path), tokenizer.load(tmp_path / "json")):
        ids, mask = ours(texts, 24)
        np.testing.assert_array_equal(ids, want.input_ids)
        np.testing.assert_array_equal(mask, want.attention_mask.astype(bool))


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (64, 300)])
def test_buckets_of_all_distances(torch, buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    want = T5Attention._relative_position_bucket(offsets, True, buckets, max_distance)
    np.testing.assert_array_equal(relative_bucket(600, buckets, max_distance), want.numpy())


def test_published_sizes_need_no_network(torch):
    from transformers import T5Config

    counts = {
        "t5-small": 35_330_816,
        "google/t5-v1_1-base": 109_628_544,
        "google/flan-t5-xxl": 4_762_310_656,
    }
    for name, count in counts.items():
        text = t5.T5Text.from_directory(name)
        assert sum(leaf.size for leaf in jax.tree.leaves(text.shapes())) == count, name
    assert t5.get_encoded_dim("google/t5-v1_1-large") == 1024
    text = t5.T5Text.from_directory("t5-large", max_length=77, dtype="bfloat16")
    known = {"T5Text": t5.T5Text, "T5Encoder": T5Encoder}
    assert config.from_dict(json.loads(json.dumps(config.to_dict(text))), known) == text
    assert SIZES["t5-base"].mlp_dim == 3072 and T5Config().d_model == SIZES["t5-small"].dim


def test_mistakes_are_one_sentence_each(torch, tmp_path, key):
    with pytest.raises(
        UserError, match="google/t5-v1_1-bas.*neither a folder.*did you mean 'google/t5-v1_1-base'"
    ):
        t5.T5Text.from_directory("google/t5-v1_1-bas")
    with pytest.raises(UserError, match="has no config.json"):
        t5.T5Text.from_directory(tmp_path)
    theirs(torch, "t5").save_pretrained(tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(given | {"d_kv": 8}))
    with pytest.raises(
        UserError, match=r"SelfAttention.q.weight has shape \(16, 16\) instead of \(32, 16\)"
    ):
        t5.T5Text.from_directory(tmp_path).init(key)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model.bin"):
        t5.T5Text.from_directory(tmp_path).init(key)
    with pytest.raises(UserError, match="feed_forward='relo'.*relu"):
        T5Encoder(feed_forward="relo")
    with pytest.raises(UserError, match="list of captions"):
        t5.t5_encode_text("a red circle", tmp_path)
