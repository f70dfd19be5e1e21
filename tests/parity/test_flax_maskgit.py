"""MaskGIT's own networks: the live package of google-research/maskgit in Flax, and its files."""

import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.convert import flax_io, flax_maskgit
from t2i_jax.decoding import masked
from t2i_jax.errors import UserError
from t2i_jax.models import maskgit_bert
from t2i_jax.runs import export_torch, import_torch
from tests.parity.test_vit_vqgan import error

_WHY = "the 'test' extra has it"
networks = pytest.importorskip("maskgit.nets.maskgit_transformer", reason=_WHY)
tokenizers = pytest.importorskip("maskgit.nets.vqgan_tokenizer", reason=_WHY)
configs = pytest.importorskip("maskgit.configs.vqgan_config", reason=_WHY)

NETWORK = 1e-5  # of the largest value, in float32: sums in another order, two layers deep
CODES, CLASSES, SIDE = 16, 5, 4
BERT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def _drawn(shapes):
    """Weights of the size of trained ones; biases and scales are no zeros and ones."""

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        noise = np.random.default_rng(sum(map(ord, name))).normal(size=leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if "kernel" in name else 4
        scale = 1.5 / np.sqrt(fan_in) if "kernel" in name else 0.5 if leaf.ndim > 1 else 0.2
        return np.float32(scale * noise + ("scale" in name))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _theirs(kind):
    """(network, its variables)."""
    if kind == "transformer":
        network = networks.Transformer(
            CODES + CLASSES + 1, max_position_embeddings=SIDE**2 + 1, **BERT
        )
        inputs = jnp.zeros((1, SIDE**2 + 1), jnp.int32)
    else:
        config = configs.get_config()
        config.vqvae.update(
            filters=32, channel_multipliers=[1, 2], embedding_dim=8, codebook_size=CODES
        )
        network = tokenizers.VQVAE(config=config, train=True)
        inputs = {"image": jnp.zeros((1, 8, 8, 3))}

    def init(key):
        if kind == "transformer":
            return network.init(key, inputs)
        return network.init(key, inputs, method=_both)

    return network, _drawn(jax.eval_shape(init, jax.random.key(0)))


def _both(network, inputs):
    quantized, found = network.encode(inputs)
    return network.decode(quantized), found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files as the package's were written: without an ending."""
    folder = tmp_path_factory.mktemp("maskgit")
    for kind in ("transformer", "tokenizer"):
        data = flax.serialization.to_bytes(_theirs(kind)[1])
        (folder / f"{kind}_imagenet_checkpoint").write_bytes(data)
    return folder


def _read(files, kind, **fields):
    return convert.from_torch(files / f"{kind}_imagenet_checkpoint", **fields)


def test_logits_of_the_transformer(files):
    theirs, variables = _theirs("transformer")
    model, params = _read(files, "transformer", codebook_size=CODES)
    assert (model.num_classes, model.fmap_size, model.heads) == (CLASSES, SIDE, 2)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CODES + 1, (2, SIDE**2))
    labels = rng.integers(0, CLASSES, (2, 1))
    row = np.concatenate([CODES + labels, np.where(ids == CODES, -1, ids)], axis=1)
    classes = params["text"]["embedding"][labels]
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(theirs.apply)(variables, row)[:, 1:, :CODES]
        logits = jax.jit(model.apply)({"params": params["decoder"]}, ids, classes, labels >= 0)
    assert error(logits, wanted) < NETWORK


def test_images_codes_and_loss_of_the_tokenizer(files):
    theirs, variables = _theirs("tokenizer")
    model, weights = _read(files, "tokenizer", image_size=8)
    assert (model.dim, model.dim_mults, model.pixel_range) == (32, (1, 2), (0.0, 1.0))
    image = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    with jax.default_matmul_precision("highest"):
        wanted, found = jax.jit(functools.partial(theirs.apply, method=_both))(
            variables, {"image": image}
        )
        own = {"params": weights["generator"]}
        made, encoded = jax.jit(model.apply, static_argnums=3)(own, image, {}, True)
    np.testing.assert_array_equal(encoded.ids, found["encoding_indices"])
    assert len(np.unique(encoded.ids)) > 3
    assert error(made, wanted) < NETWORK
    assert abs(found["entropy_loss"]) > 0.05  # a term that is seen in the sum
    assert error(encoded.loss, found["quantizer_loss"]) < NETWORK


@pytest.mark.parametrize("kind", ["transformer", "tokenizer"])
def test_weights_go_back_bit_for_bit(files, kind, tmp_path):
    fields = {"codebook_size": CODES} if kind == "transformer" else {"groups": 32}
    model, params = _read(files, kind, **fields)
    name = {"tokenizer": "maskgit VQGAN (Flax)"}.get(kind)
    flax_io.write(tmp_path / "back.msgpack", convert.to_state(model, params, name))
    back = flax.serialization.from_bytes(None, (tmp_path / "back.msgpack").read_bytes())
    variables = _theirs(kind)[1]
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_both_files_become_a_system_and_go_back(files, tmp_path):
    """Its images are those of its classes; the transformer and the tokenizer go out by
    themselves.
    """
    source = files / "transformer_imagenet_checkpoint"
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nwhite shark\ncock\nhen\n")
    given = {
        "tokenizer": str(files / "tokenizer_imagenet_checkpoint"),
        "class_names": str(tmp_path / "names.txt"),
    }
    import_torch(source, tmp_path / "ours", codebook_size=CODES, maskgit=given)
    system = t2i.load(tmp_path / "ours")
    options = t2i.MaskGitOptions(steps=3, guidance=1.0, choice_temperature=4.5, compat="maskgit")
    images = system.generate(["a goldfish", "hen"], options)
    assert images.shape == (2, 8, 8, 3) and not np.array_equal(*images)
    for run, kind in (("ours", "transformer"), ("ours/tokenizer", "tokenizer")):
        out = export_torch(tmp_path / run, tmp_path / f"{kind}.msgpack")
        back = flax.serialization.from_bytes(None, out.read_bytes())
        jax.tree.map(np.testing.assert_array_equal, back, _theirs(kind)[1])
    with pytest.raises(UserError, match="has 16 codes.*codebook_size=15; give codebook_size=16"):
        import_torch(source, tmp_path / "x", codebook_size=15, maskgit=given)
    with pytest.raises(UserError, match="without its image tokenizer.*maskgit.tokenizer=FILE"):
        import_torch(source, tmp_path / "x", codebook_size=CODES)
    with pytest.raises(UserError, match="no argument 'tokeniser' .*did you mean 'tokenizer'"):
        import_torch(source, tmp_path / "x", codebook_size=CODES, maskgit={"tokeniser": "x"})
    with pytest.raises(UserError, match="class_names has 1 names, and the weights 5 classes"):
        few = {**given, "class_names": ("tench",)}
        import_torch(source, tmp_path / "x", codebook_size=CODES, maskgit=few)


def test_tokens_are_drawn_as_the_package_draws_them():
    """`decode` of its `parallel_decode` in NumPy, with the noise that `masked.generate` draws; so
    many steps that a token has to be kept for the cosine to go on.
    """
    steps, tokens, codes, choice = 12, 9, 6, 4.5
    table = np.random.default_rng(0).normal(size=(tokens, codes)).astype(np.float32)
    key = jax.random.key(0)

    def predict(ids_BN, memory):
        hidden_B = jnp.sum(ids_BN == codes, axis=-1)[:, None, None]
        return table * (1 + 0.1 * hidden_B), memory

    sampling = masked.Sampling(steps=steps, guided=False, schedule="maskgit")
    generate = jax.jit(functools.partial(masked.generate, predict, sampling=sampling),
                       static_argnums=(1, 2))  # fmt: skip
    ids, trace = generate(key[None], tokens, codes, choice_temperature=choice)

    now = np.full(tokens, -1)
    for t in range(steps):
        keys = jax.random.split(jax.random.fold_in(key, t), 3)
        places = jax.vmap(jax.random.fold_in, (None, 0))(keys[0], jnp.arange(tokens))
        noise = jax.vmap(lambda one: jax.random.gumbel(one, (codes,)))(places)
        hidden = now == -1
        logits = table * (1 + 0.1 * np.float32(hidden.sum()))
        drawn = np.where(hidden, np.argmax(logits + noise, -1), now)
        np.testing.assert_array_equal(trace[t, 0], drawn)
        log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(tokens), drawn]
        ratio = (t + 1) / steps
        count = max(1, min(hidden.sum() - 1, int(tokens * np.cos(np.pi / 2 * ratio))))
        sure = log_p + choice * (1 - ratio) * np.asarray(jax.random.gumbel(keys[2], (tokens,)))
        sure = np.where(hidden, sure, np.inf)
        now = np.where(sure < np.sort(sure)[count], -1, drawn)
    np.testing.assert_array_equal(ids[0], drawn)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", "cannot be read as a msgpack file of Flax .*; fetch it again, or give .safet"),
        (b"\x80\x02}q\x00.", "is a pickle, as PyTorch writes; fetch it again"),
        (b"", "is empty; fetch or write it again"),
        (flax.serialization.msgpack_serialize({"params": {"a": 1.5}}), "holds no array by name"),
        (flax.serialization.msgpack_serialize({"a": np.ones(2)}), "of no network known here"),
        (b"\x81\xa1a\xc7\x0a\x01\x93\x91\xce\xff\xff\xff\xff\xa2f4\xc4", "cannot be read as a ms"),
    ],
    ids=["text", "pickle", "empty", "number", "unknown", "false sizes"],
)
def test_other_files_are_refused_in_a_sentence(content, told, tmp_path):
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match=told):
        convert.from_torch(tmp_path / "checkpoint")


def test_damaged_files_are_refused_in_a_sentence(files, tmp_path):
    whole = (files / "transformer_imagenet_checkpoint").read_bytes()
    edits = [
        (b"float32", b"float99"),
        (b"float32", b"|O8,|O8"),
        (b"Mlp_0", b"Mlp_9"),
        (b"TransformerLayer_1", b"TransformerLayer_7"),
        (b"position_embeddings", b"position_embeddingx"),
        (b"\x93\x92\x10\x18", b"\x93\x92\x18\x10"),
    ]
    bad = [whole[:end] for end in (1, 10, len(whole) // 2, len(whole) - 1)]
    for before, after in edits:
        assert before in whole
        bad.append(whole.replace(before, after, 1))
    for content in bad:
        (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(UserError) as refused:
            convert.from_torch(tmp_path / "checkpoint", codebook_size=CODES)
        assert "\n" not in str(refused.value)


def test_presets_have_the_size_of_the_public_weights():
    """172,457,193 parameters at 256 pixels, the classes' embeddings included."""
    for model, total in ((maskgit_bert.IMAGENET_256, 172_457_193),
                         (maskgit_bert.IMAGENET_512, 172_457_193 + 768 * 768)):  # fmt: skip
        shapes = flax_maskgit.NETWORK.shapes(model)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


def test_what_does_not_fit_the_network_is_said():
    with pytest.raises(UserError, match="dim=10 is not a multiple of heads=4; try dim=12"):
        maskgit_bert.MaskGitBert(dim=10, depth=1, heads=4)
    model = maskgit_bert.MaskGitBert(dim=8, depth=1, heads=2, fmap_size=4, codebook_size=8)
    with pytest.raises(UserError, match="text_embed_dim=6 is not dim=8"):
        t2i.MaskGitTask(model, t2i.ClassLabels(("a", "b"), dim=6))
    text = t2i.StoredText(dim=8, max_length=3)
    with pytest.raises(UserError, match="3 embeddings per image.*of a class alone"):
        jax.eval_shape(t2i.MaskGitTask(model, text).init, jax.random.key(0))
