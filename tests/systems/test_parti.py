"""Parti's task and system, tiny: losses, what each batch holds, and every option of `generate`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.parti import Parti
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.on_host import initialise
from t2i_jax.runs.training import _told_of_unread
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.parti.system import PartiSystem
from t2i_jax.systems.parti.task import PartiTask, cross_entropy
from t2i_jax.systems.tokenizer.system import TokenizerSystem
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.learned import LearnedText
from t2i_jax.text.stored import StoredText
from tests.weights import moved

_TOKENIZER = VitVQGanVAE(
    dim=8,
    image_size=12,
    layers=1,
    patch_size=4,
    heads=1,
    dim_head=8,
    ff_mult=1,
    codebook_size=16,
    discr_layers=0,
)
_LEARNED = LearnedText(dim=8, depth=1, heads=2, mlp_dim=16, vocab_size=30, max_length=5)
_PAPER = PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=16)
_TASK = PartiTask(_PAPER, _LEARNED, _TOKENIZER)
_STORED = PartiTask(
    Parti(dim=16, depth=1, heads=2, dim_head=8), StoredText(dim=6, max_length=5), _TOKENIZER
)
_tokens = jax.jit(functools.partial(image_tokenizer.tokens, _TOKENIZER))
_pixels = jax.jit(functools.partial(image_tokenizer.pixels, _TOKENIZER))


class Words:
    """Captions to ids: a word's length and first letter."""

    vocab_size = 30

    def lengths(self, captions):
        return [len(caption.split()) for caption in captions]

    def __call__(self, captions, max_length):
        ids = np.zeros((len(captions), max_length), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            words = caption.split()[:max_length]
            row[: len(words)] = [1 + (len(word) + ord(word[0])) % 29 for word in words]
        return ids, ids > 0


@pytest.fixture(scope="module")
def weights():
    return initialise(functools.partial(image_tokenizer.init, _TOKENIZER), jax.random.key(7))


def test_captions_that_the_network_does_not_read_to_their_end_are_told(capsys):
    task = dataclasses.replace(_STORED, model=_STORED.model.clone(max_text_len=3))
    embeds, mask = np.zeros((3, 5, 6), np.float32), np.arange(5) < np.array([[3], [5], [4]])
    for own, told in (
        (
            task,
            "prompt 1 has 5 tokens, the last 2 are cut; so is one other for the decoder (max_text_",
        ),
        (_STORED, ""),
        (dataclasses.replace(_STORED, model=_PAPER), ""),
    ):
        with pytest.raises(UserError, match="init_images"):
            PartiSystem(own, {}, {}).generate((embeds, mask), init_images=[])
        assert told in (said := capsys.readouterr().err) and bool(told) == bool(said)
        assert len(list(_told_of_unread(own))) == bool(told)  # when it is trained


@functools.cache
def _params(task):
    # Larger than at the start, so that captions matter.
    return moved(initialise(task.init, jax.random.key(0))[0], 0.3)


@pytest.fixture(scope="module")
def system(weights):
    return PartiSystem(_TASK, _params(_TASK), {"tokenizer": weights}, Words())


@pytest.fixture(scope="module")
def stored(weights):
    return PartiSystem(_STORED, _params(_STORED), {"tokenizer": weights})


_CAPTIONS = ["a red circle", "two blue squares", "green"]


def _embeddings(rows=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4, 6)).astype(np.float32), np.arange(4)[None] < np.array(
        [[4], [2], [3]]
    )[:rows]


def _images(rows=3):
    return np.random.default_rng(1).integers(0, 256, (rows, 12, 12, 3), dtype=np.uint8)


def _batch(task):
    rng, spec = np.random.default_rng(2), task.batch_spec(2)
    draw = {
        "image": lambda s: rng.integers(0, 256, s.shape, dtype=np.uint8),
        "tokens": lambda s: rng.integers(0, 16, s.shape, dtype=np.int32),
        "text": lambda s: rng.integers(0, 30, s.shape, dtype=np.int32),
        "text_embeds": lambda s: rng.normal(size=s.shape).astype(np.float32),
        "text_mask": lambda s: np.ones(s.shape, bool),
    }
    return {name: draw[name](shape) for name, shape in spec.items()}


def test_a_step_on_images_is_a_step_on_their_tokens(weights):
    task = _STORED
    params, batch, frozen = _params(task), _batch(task), {"tokenizer": weights}

    def loss(task, batch):
        return jax.jit(task.loss)(params, {}, frozen, batch, jax.random.key(3), jnp.int32(0))[0]

    tokens = _tokens(weights, batch["image"])
    on_tokens = dataclasses.replace(task, stored_tokens=True)
    assert "image" in task.batch_spec(2) and "tokens" in on_tokens.batch_spec(2)
    np.testing.assert_allclose(
        loss(task, batch), loss(on_tokens, {**batch, "tokens": tokens}), rtol=1e-6
    )


def test_everything_trained_gets_a_gradient_and_the_first_loss_is_that_of_guessing():
    task = dataclasses.replace(_TASK, stored_tokens=True)
    params, batch = initialise(task.init, jax.random.key(0))[0], _batch(task)

    def keyed(params):
        return task.loss(params, {}, {}, batch, jax.random.key(5), jnp.int32(0))

    (loss, (metrics, _)), gradients = jax.jit(jax.value_and_grad(keyed, has_aux=True))(params)
    assert abs(float(loss) - np.log(16)) < 0.3
    assert metrics.keys() == {"loss", "accuracy", "perplexity"}
    np.testing.assert_allclose(metrics["perplexity"], np.exp(metrics["loss"]), rtol=1e-5)
    still = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(leaf).max() > 0
    ]
    # no caption was dropped in this batch
    assert {str(path[-1].key) for path in still} <= {"null_text"}


def test_dropping_every_caption_trains_without_text():
    task = dataclasses.replace(_STORED, cond_drop_prob=1.0, stored_tokens=True)
    params, batch = _params(task), _batch(task)
    jitted = jax.jit(task.loss)

    def loss(batch):
        return jitted(params, {}, {}, batch, jax.random.key(3), jnp.int32(0))[0]

    np.testing.assert_array_equal(
        loss(batch), loss({**batch, "text_embeds": batch["text_embeds"] + 1})
    )


def test_cross_entropy_and_smoothing(key):
    logits, ids = jax.random.normal(key, (2, 3, 7)), jnp.array([[0, 6, 2], [1, 1, 5]])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = -np.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, ids), expected, atol=1e-5)
    task = dataclasses.replace(_STORED, stored_tokens=True)
    params, batch = _params(task), _batch(task)

    def smooth(s):
        return dataclasses.replace(task, label_smoothing=s)

    @jax.jit
    def losses(params):
        tasks = (smooth(s) for s in (0.5, 0.0, 1.0))
        return [task.loss(params, {}, {}, batch, key, 0)[0] for task in tasks]

    half, none, whole = map(float, losses(params))
    assert abs(half - (none + whole) / 2) < 1e-5


def test_the_task_counts_its_work_and_survives_json():
    assert _TASK.flops(2) == 2 * _TASK.flops(1) > 0
    known = {cls.__name__: cls for cls in (PartiTask, PartiTransformer, LearnedText, VitVQGanVAE)}
    assert config.from_dict(config.to_dict(_TASK), known) == _TASK


def test_the_same_seed_gives_the_same_pictures_in_any_batch(system):
    whole = system.generate(_CAPTIONS, seed=4)
    assert whole.shape == (3, 12, 12, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, system.generate(_CAPTIONS, seed=4, batch_size=2))
    assert not np.array_equal(whole, system.generate(_CAPTIONS, seed=5))
    np.testing.assert_array_equal(whole[:1], system.generate(_CAPTIONS[:1], seed=4))


def test_pictures_of_one_prompt_stand_together_and_differ(system):
    several = system.generate(_CAPTIONS[:1], images_per_prompt=3)
    assert several.shape[0] == 3 and len({image.tobytes() for image in several}) > 1
    pictures = system.generate(_CAPTIONS[:1], images_per_prompt=3, return_pil=True)
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), several)


def test_prompts_come_as_people_write_them(system, capsys):
    several = system.generate(_CAPTIONS[:2], seed=4)
    for same in (tuple(_CAPTIONS[:2]), np.array(_CAPTIONS[:2])):
        np.testing.assert_array_equal(system.generate(same, seed=4), several)
    np.testing.assert_array_equal(system.generate(_CAPTIONS[0], seed=4), several[:1])
    against = [["zebra far off"] * 2, "zebra far off"]
    made = [system.generate(_CAPTIONS[:2], negative_prompts=given) for given in against]
    np.testing.assert_array_equal(*made)
    assert capsys.readouterr().err == ""
    long = ["one", " ".join("abcdefghijklm"), " ".join("abcdefg")]
    told = "t2i: prompt 1 has 13 tokens, the last 8 are cut; so is one other.\n"
    for same in (long, np.array(long), np.array(long, object), list(map(np.str_, long))):
        system.generate(same)
        assert capsys.readouterr().err == told
    system.generate(np.str_(long[1]))
    assert "prompt 0 has 13 tokens, the last 8 are cut" in capsys.readouterr().err


def test_all_bits_of_a_seed_count(system):
    made = {
        seed: system.generate(_CAPTIONS[0], seed=seed).tobytes()
        for seed in (0, 1, 2**32, 2**32 + 1, 2**63 - 1)
    }
    assert len(set(made.values())) == len(made)
    assert system.generate(_CAPTIONS[0], seed=np.uint32(1)).tobytes() == made[1]


def test_a_system_is_one_line(system):
    assert repr(system) == (
        "PartiSystem(12x12 pixels, captions by LearnedText, 3,976 parameters of parti)"
    )


def test_captions_guidance_and_negatives_matter(system):
    greedy = {"temperature": 0.0}
    plain, strong = (system.generate(_CAPTIONS, guidance=g, **greedy) for g in (1.0, 8.0))
    assert not np.array_equal(plain, strong)
    # With the caption itself as the negative, guidance adds nothing.
    same = system.generate(_CAPTIONS, guidance=8.0, negative_prompts=_CAPTIONS, **greedy)
    np.testing.assert_array_equal(same, plain)
    other = system.generate(
        _CAPTIONS, guidance=8.0, negative_prompts=["zebra far off"] * 3, **greedy
    )
    assert not np.array_equal(other, strong)


def test_completion_keeps_known_tokens_and_continues(system, weights, capsys):
    images, ids = _images(), _tokens(weights, _images())
    whole = np.ones((12, 12), bool)
    expected = _pixels(weights, ids)
    np.testing.assert_array_equal(
        system.generate(_CAPTIONS, init_images=images, mask=whole), expected
    )
    np.testing.assert_array_equal(
        system.generate(_CAPTIONS, init_images=images, known_rows=3), expected
    )
    half = system.generate(_CAPTIONS, init_images=images, known_rows=1)
    assert not np.array_equal(half, expected)
    # The first row is kept: with its pixels as the mask, the same images; a token is kept when all
    # its pixels are.
    for kept in (4, 7):
        mask = np.broadcast_to(np.arange(12)[:, None] < kept, (12, 12))
        np.testing.assert_array_equal(
            half, system.generate(_CAPTIONS, init_images=images, mask=mask)
        )
    np.testing.assert_array_equal(
        half, system.generate(_CAPTIONS, init_images=images, keep_rows=0.4)
    )
    capsys.readouterr()
    pictures = [Image.fromarray(image) for image in images]
    white = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    for kept in (white, np.asarray(white), np.where(mask, 1.0, 0.0), [mask] * 3):
        np.testing.assert_array_equal(
            half, system.generate(_CAPTIONS, init_images=pictures, mask=kept)
        )
    told = "t2i: Parti keeps whole tokens, 4x4 pixels each: 9 of 27; 108 kept pixels beside them "
    assert capsys.readouterr().err == (told + "are inpainted.\n") * 4


def test_another_decoder_shows_the_same_tokens(system, weights):
    def moved(name):
        generator = {
            **weights["generator"],
            name: jax.tree.map(
                lambda leaf: np.asarray(leaf) + np.float32(0.1), weights["generator"][name]
            ),
        }
        other = {**weights, "generator": generator}
        return TokenizerSystem(TokenizerTask(_TOKENIZER), other)

    decoder = moved("decoder")
    seen = system.with_tokenizer(decoder)
    whole = TokenizerSystem(TokenizerTask(_TOKENIZER), weights)
    images = _images(1)
    np.testing.assert_array_equal(whole.encode(images), decoder.encode(images))
    before, after = (one.generate("a red circle", seed=3) for one in (system, seen))
    assert before.shape == after.shape and (before != after).any()
    same = system.with_tokenizer(whole).generate("a red circle", seed=3)
    np.testing.assert_array_equal(before, same)
    with pytest.raises(UserError, match="tokenizer has other tokens.*trained='decoder'"):
        system.with_tokenizer(moved("encoder"))


def test_stored_text_takes_embeddings(stored):
    embeds, mask = _embeddings()
    images = stored.generate((embeds, mask), top_k=0.5, top_p=0.9)
    np.testing.assert_array_equal(
        images, stored.generate((embeds, mask), top_k=8, top_p=0.9, batch_size=1)
    )
    negative = stored.generate((embeds, mask), negative_prompts=(embeds, mask), temperature=0.0)
    np.testing.assert_array_equal(
        negative, stored.generate((embeds, mask), guidance=1.0, temperature=0.0)
    )


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([], {}, "prompts="),
        ([3], {}, r"prompts\[0\] is an int and no caption"),
        (["a", None], {}, r"prompts\[1\] is None and"),
        (b"a cat", {}, "prompts is a bytes"),
        ({"a": 1}, {}, "prompts is a dict"),
        (["a", "caf\udce9"], {}, r"prompts\[1\] has '\\udce9' at character 3"),
        (_CAPTIONS, {"negative_prompts": ["a"]}, "negative_prompts has 1 caption for 3 prompts"),
        (_CAPTIONS, {"negative_prompts": _CAPTIONS, "guidance": 1.0}, "guidance=1"),
        (_CAPTIONS, {"guidance": float("inf")}, "guidance=inf"),
        (_CAPTIONS, {"temperature": -1.0}, "temperature"),
        (_CAPTIONS, {"top_p": 0.0}, "top_p"),
        (_CAPTIONS, {"top_k": 0}, "top_k"),
        (_CAPTIONS, {"temperature": float("nan")}, "temperature=nan"),
        (_CAPTIONS, {"temperature": "hot"}, "temperature='hot' is not a finite number"),
        (_CAPTIONS, {"guidance": None}, "guidance=None"),
        (_CAPTIONS, {"plausibility": 1.5}, r"plausibility=1.5 is outside \[0, 1\]"),
        (_CAPTIONS, {"seed": -1}, "seed=-1 is not a whole number from 0"),
        (_CAPTIONS, {"seed": 2**63}, f"seed={2**63} is not a whole number"),
        (_CAPTIONS, {"seed": 0.5}, "seed=0.5"),
        (_CAPTIONS, {"images_per_prompt": 10**8}, "makes 300000000 images"),
        (_CAPTIONS, {"images_per_prompt": 0}, "images_per_prompt"),
        (_CAPTIONS, {"images_per_prompt": None}, "images_per_prompt=None is not a number"),
        (_CAPTIONS, {"guidance": 1e39}, "guidance=1e.39 is beyond what a float32 holds"),
        (_CAPTIONS, {"temperature": -(10**60)}, "temperature=.* is beyond what a float32 holds"),
        (_CAPTIONS, {"batch_size": 0}, "batch_size"),
        (_CAPTIONS, {"known_rows": 1}, "init_images"),
        (
            _CAPTIONS,
            {"init_images": _images(), "known_rows": 1, "mask": np.ones((12, 12), bool)},
            "give one of them",
        ),
        (_CAPTIONS, {"init_images": _images(), "keep_rows": 1.0}, "keep_rows=1.0"),
        (_CAPTIONS, {"keep_rows": 0.3}, "keep_rows=0.3 is nothing without init_images; leave it"),
        (_CAPTIONS, {"gidance": 2.0}, "generate has no option 'gidance'; did you mean 'guidance'"),
        (_CAPTIONS, {"options": ImagenOptions()}, "another system; give PartiOptions"),
        (_CAPTIONS, {"init_images": _images(2), "known_rows": 1}, "one image per prompt"),
        (_CAPTIONS, {"init_images": _images() / 1.0, "known_rows": 1}, "values from 0 to 255"),
        (_CAPTIONS, {"init_images": [], "known_rows": 1}, r"init_images=\[\] is empty"),
        (
            _CAPTIONS,
            {"init_images": _images(), "known_rows": 4},
            "known_rows=4 .* from 1 to",
        ),
        (
            _CAPTIONS,
            {"init_images": _images(), "mask": np.ones((3, 9), bool)},
            "mask is 9x3 pixels",
        ),
        (_CAPTIONS, {"init_images": _images(), "mask": np.eye(12) > 0}, "mask keeps no token"),
    ],
)
def test_mistakes_are_refused_before_anything_compiles(system, prompts, options, says, monkeypatch):
    monkeypatch.setattr(
        "t2i_jax.systems.parti.sampling.generate", lambda *args, **kwargs: pytest.fail("it ran")
    )
    with pytest.raises(UserError, match=says):
        system.generate(prompts, **options)


@pytest.mark.parametrize("kind", [lambda system: system, lambda _: "runs/x/tokenizer"])
def test_what_is_no_tokenizer_is_refused(system, kind):
    with pytest.raises(UserError, match="tokenizer=.* is no trained image tokenizer; give load"):
        system.with_tokenizer(kind(system))


def test_embeddings_of_another_shape_are_refused(stored):
    embeds, mask = _embeddings()
    shapes = ((embeds[..., :3], mask), (embeds, mask[:, :2]), (embeds[:0], mask[:0]))
    for bad in (*shapes, (embeds * np.nan, mask), ([["a"]], mask)):
        with pytest.raises(UserError, match="prompts"):
            stored.generate(bad)
    for captions in (_CAPTIONS, _CAPTIONS[:2], "a cat", tuple(_CAPTIONS[:2])):
        with pytest.raises(UserError, match="this run needs stored text embeddings; give the pair"):
            stored.generate(captions)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: PartiTask(_PAPER.clone(codebook_size=17), _LEARNED, _TOKENIZER),
            "codebook_size=17",
        ),
        (lambda: PartiTask(_PAPER.clone(fmap_size=4), _LEARNED, _TOKENIZER), "fmap_size=4"),
        (lambda: PartiTask(_PAPER.clone(text_embed_dim=9), _LEARNED), "text_embed_dim=9"),
        (lambda: PartiTask(_PAPER, _LEARNED).network, "fmap_size=None"),
        (lambda: PartiTask(_PAPER, _LEARNED, cond_drop_prob=1.5), "cond_drop_prob"),
        (
            lambda: PartiSystem(PartiTask(_PAPER, _LEARNED), {}, {}).generate(["a"]),
            "tokenizer=None",
        ),
        (lambda: PartiSystem(_TASK, {}, {}).generate(["a"]), "text_tokenizer=None"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
