"""What holds for every T5, without PyTorch; tests/parity has the comparison with transformers."""

import jax
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.on_host import initialise
from t2i_jax.text import cache, t5, tokenizer
from t2i_jax.text.t5 import T5Text
from t2i_jax.text.t5_encoder import T5Encoder

TEXT = T5Text(
    None, T5Encoder(dim=8, depth=2, heads=2, dim_head=6, mlp_dim=10, vocab_size=64), max_length=40
)
CAPTIONS = ["a red circle", "", "a blue square below a green cross", "cross", "a red square"]


def test_padding_is_not_seen_and_its_length_does_not_matter(key):
    params = initialise(TEXT.init, key)
    ids = np.array([[5, 9, 1]], np.int32)
    longer = np.array([[5, 9, 1, 33, 0, 7]], np.int32)
    embed = jax.jit(TEXT.embed)
    short = embed(params, ids, ids > 0)
    long = embed(params, longer, np.arange(6)[None] < 3)
    np.testing.assert_allclose(long[:, :3], short, rtol=1e-5, atol=1e-5)
    assert np.abs(long[:, 3:]).max() > 0.1  # computed, not zeroed


def test_captions_become_rows_in_order_without_padding(key):
    params, vocabulary = initialise(TEXT.init, key), tokenizer.train_bpe(CAPTIONS, 64)
    rows = list(
        cache.embed_captions(
            TEXT, params, vocabulary, iter(CAPTIONS), batch_size=2, dtype="float32"
        )
    )
    assert [len(row) for row in rows] == vocabulary.lengths(CAPTIONS).tolist()
    ids, mask = vocabulary(CAPTIONS, 40)
    embeds = np.asarray(jax.jit(TEXT.embed)(params, ids, mask))
    for row, whole, seen in zip(rows, embeds, mask):
        np.testing.assert_allclose(row, whole[seen], rtol=1e-5, atol=1e-5)
    small = next(cache.embed_captions(TEXT, params, vocabulary, CAPTIONS, batch_size=2))
    assert small.dtype == np.float16
    with pytest.raises(UserError, match="dtype='float8'"):
        cache.embed_captions(TEXT, params, vocabulary, CAPTIONS, dtype="float8")


def test_what_the_one_call_encoding_does_not_read_is_told(monkeypatch, capsys):
    loaded = TEXT, {}, tokenizer.train_bpe(CAPTIONS, 64), lambda _, ids, mask: ids[..., None]
    monkeypatch.setattr(t5, "_loaded", lambda *_: loaded)
    assert t5.t5_encode_text(CAPTIONS, "here")[1].shape[0] == len(CAPTIONS)
    assert capsys.readouterr().err == ""
    t5.t5_encode_text(["a red circle", "red ☃ " * 40], "here")
    told = capsys.readouterr().err
    assert told.startswith("t2i: text 1 has ") and "are cut; text 1 has letters" in told


def test_weights_have_a_place_on_every_mesh(key):
    placed = sharding.shardings(
        TEXT.shapes(), sharding.make_mesh(devices=jax.devices()[:1]), "fsdp_tp"
    )
    assert jax.tree.structure(placed) == jax.tree.structure(jax.eval_shape(TEXT.init, key))
    names = TEXT.shapes()["layers"]["wide"]["kernel"].names
    assert names == ("layers", "embed", "mlp")


def test_mistakes_are_refused(key):
    with pytest.raises(UserError, match="source=None has no tokenizer"):
        TEXT.tokenizer()
    with pytest.raises(UserError, match="max_length=0"):
        T5Text(None, TEXT.network, 0)
    with pytest.raises(UserError, match="buckets=31"):
        T5Encoder(buckets=31)
