"""CLIP: its task, what it learns, retrieval, views, masked words, towers that stay as they are."""

import dataclasses
import functools
import pathlib
import re

import jax
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax.cli import rerank
from t2i_jax.data.shapes import Shapes
from t2i_jax.errors import UserError
from t2i_jax.eval.judge_shapes import JudgeShapes
from t2i_jax.models.image_text import MOST_SCALE, Features
from t2i_jax.on_host import initialise
from t2i_jax.runs.check import check
from t2i_jax.runs.recipe import load_recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.systems.clip import retrieval
from t2i_jax.systems.clip.masked_words import MaskedWords
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.clip.views import Views
from t2i_jax.systems.clip.visual_ssl import VisualSsl, nt_xent
from t2i_jax.text.tokenizer import train_bpe
from t2i_jax.train import state as states
from t2i_jax.train.step import train_step

_ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = dict(
    dim_text=16, dim_image=16, dim_latent=8, num_text_tokens=40, text_enc_depth=1, text_seq_len=6,
    text_heads=1, text_dim_head=16, visual_enc_depth=1, visual_heads=1, visual_dim_head=16,
    visual_image_size=8, visual_patch_size=4, visual_patch_dropout=0.0,
)  # fmt: skip


def _batch(task, rows=8):
    rng = np.random.default_rng(0)
    text = rng.integers(3, 40, (rows, 6))
    mask = np.arange(6) < rng.integers(3, 7, (rows, 1))
    image = rng.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    return {"image": image, "text": np.where(mask, text, 0).astype(np.int32), "text_mask": mask}


def _trained(task, steps, batch):
    config = t2i.TrainConfig(
        steps=steps, batch_size=8, optim=t2i.OptimConfig(learning_rate=0.01, weight_decay=0.1)
    )
    optimisers = states.optimisers_of(task, config)
    first = initialise(states.start_of(task, optimisers, 0.0), jax.random.key(0))

    @jax.jit
    def run(state, batch):
        def one(state, _):
            return train_step(state, {}, batch, task=task, optimisers=optimisers)

        return jax.lax.scan(one, state, None, length=steps)

    state, metrics = run(first, batch)
    return first, state, metrics


def test_everything_at_once_learns_and_a_frozen_tower_stays():
    task = ClipTask(
        t2i.CLIP(
            **{**TINY, "visual_patch_dropout": 0.25}, use_mlm=True, extra_latent_projection=True
        ),
        mlm=MaskedWords(),
        views=Views(images=1),
        sim_reg_loss_weight=0.1,
        visual_ssl=VisualSsl("simclr", hidden_dim=16, projection_dim=8),
        freeze_image_encoder=True,
        rows=4,
    )
    first, state, metrics = _trained(task, 60, _batch(task))
    metrics = jax.device_get(metrics)
    assert metrics["contrastive"][-10:].mean() < 0.8 * metrics["contrastive"][0]
    assert metrics["mlm"][-10:].mean() < metrics["mlm"][0]
    before, after = jax.device_get((first.params["clip"], state.params["clip"]))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert not any(jax.tree.leaves(moved["visual"]))
    assert moved["to_visual_latent"]["kernel"] and moved["text"]["embedding"]
    assert {"loss", "accuracy", "scale", "multiview", "regulariser"} <= metrics.keys()
    quiet = jax.jit(task.validate)(state.params, {}, {}, _batch(task), jax.random.key(1), 0)
    assert float(quiet["loss"]) == float(quiet["contrastive"])


def test_fine_grained_sigmoid_learns_and_knows_its_pairs():
    model = t2i.CLIP(**TINY, use_all_token_embeds=True, logit_bias=-2.0)
    task = ClipTask(model, contrast="sigmoid")
    batch = _batch(task)
    _, state, metrics = _trained(task, 60, batch)
    assert metrics["accuracy"][-1] > 0.9
    system = task.system(state.params, {}, {}, {}, None)
    scores = system.similarity(batch["image"], batch["text"])
    assert scores.shape == (8, 8) and (scores.argmax(1) == np.arange(8)).mean() > 0.9
    assert np.allclose(np.linalg.norm(system.embed_text(batch["text"]), axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def system():
    task = ClipTask(t2i.CLIP(**TINY))
    params = initialise(task.init, jax.random.key(0))[0]
    words = ["a red circle", "a blue square", "a green cross"]
    return task.system(params, {}, {}, {}, train_bpe(words, 40))


def test_batches_sizes_and_forms_of_input_do_not_matter(system):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    whole = system.embed_images(images)
    assert np.allclose(whole, system.embed_images(images, batch_size=2), atol=1e-6)
    assert system.embed_images(images[0]).shape == (1, 8)
    captions = ["a red circle", "a blue square"]
    scores = system.similarity(images, captions)
    assert scores.shape == (5, 2)
    assert np.allclose(scores, whole @ system.embed_text(captions).T, atol=1e-6)
    assert system.classify(images[:1], captions)[0] in captions
    assert system.classify(images[:1], captions[0]) == captions[:1]
    ids = system.text_tokenizer(captions, 6)[0]
    assert np.allclose(system.embed_text(ids), system.embed_text(captions))
    alike = system.likeness(images, images[:2])
    assert alike.shape == (len(images), 2)
    assert np.allclose(np.diagonal(alike), 1) and alike[0, 1] < 1


def _compiled(caplog):
    """The names of the programs that were compiled."""
    told = re.compile(r"Finished XLA compilation of (\S+) in")
    return [found[1] for one in caplog.records if (found := told.match(one.getMessage()))]


@pytest.mark.parametrize("by_tokens", [False, True])
def test_ranking_compiles_each_tower_once(caplog, capsys, by_tokens):
    """Trying the captions, and ranking one caption's images after the other."""
    task = ClipTask(t2i.CLIP(**TINY, use_all_token_embeds=by_tokens))
    params = initialise(task.init, jax.random.key(0))[0]
    captions = ["a red circle", "a blue square", "a green cross and a long rest of a caption"]
    ranker = task.system(params, {}, {}, {}, train_bpe(captions, 40))
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    with jax.log_compiles():
        rerank.tried(ranker, captions, 3)
        tried = _compiled(caplog)
        best, scores = rerank.best(ranker, images, captions, 2)
    towers = ["jit(of_text)", "jit(of_image)"] if by_tokens else ["jit(embed)", "jit(<lambda>)"]
    assert [tried.count(one) for one in towers] == [1, 1], tried
    assert _compiled(caplog) == tried
    assert best.shape == (6, 8, 8, 3) and scores.shape == (3, 2)
    assert capsys.readouterr().err.count("are cut; so are 2 others") == 1
    ranker.ids(np.array(captions))
    assert capsys.readouterr().err.count("are cut; so are 2 others") == 1


def test_classes_are_told_without_training_on_them_and_while_it_trains(system):
    """Where few captions come again and again; with a caption of its own for each image not."""
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    names = ["a red circle", "a blue square"]

    def held_out(captions):
        return lambda count, _: {"image": images[:count], "caption": captions[:count]}

    few = held_out(names * 8)
    evaluation = t2i.Evaluation(pictures=16, preview=8)
    right = [a == b for a, b in zip(system.classify(images, names), names * 8, strict=True)]
    found = system.evaluate(few, evaluation).metrics
    assert found["classified_heldout"] == pytest.approx(np.mean(right))
    _, seen = system.preview(few, evaluation)
    assert seen["eval/classified"] == pytest.approx(np.mean(right[:8]))
    many = held_out([f"a circle {i}" for i in range(16)])
    assert "classified_heldout" not in system.evaluate(many, evaluation).metrics


def test_what_another_task_gets_as_its_part(system, tmp_path):
    network, params = system.task.network, system.weights["clip"]
    assert (network.width, network.text_width, network.text_length) == (8, 16, 6)
    system.save_vocabulary(tmp_path / "text_tokenizer")
    tokenizer = network.captions.tokenizer(tmp_path / "text_tokenizer")
    ids, mask = tokenizer(["a red circle"], network.text_length)
    found = jax.jit(network.embed_text)(params, ids, mask)
    assert np.allclose(found.embed_BD, system.embed_text(["a red circle"]), atol=1e-6)
    assert found.encodings_BLE.shape == (1, 6, 16)
    assert not np.asarray(found.encodings_BLE)[~mask].any()
    large = np.full((1, 16, 16, 3), 0.5, np.float32)
    small = np.full((1, 8, 8, 3), 0.5, np.float32)
    embed_image = jax.jit(network.embed_image)
    assert np.allclose(embed_image(params, large), embed_image(params, small), atol=1e-5)
    with pytest.raises(UserError, match="came without a vocabulary"):
        dataclasses.replace(system, text_tokenizer=None).embed_text("a red circle")
    with pytest.raises(UserError, match="ids from 1 to 99"):
        system.embed_text(np.array([[1, 99]]))


@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_recipes(name):
    recipe = load_recipe(_ROOT / "configs" / "clip" / f"{name}.py")
    again = recipe_from_dict(recipe_to_dict(recipe))
    assert again == recipe
    sizes = [leaf.size for leaf in jax.tree.leaves(recipe.task.weights_shapes())]
    assert sum(sizes) < 2_000_000
    assert recipe.task.flops(2) == 2 * recipe.task.flops(1) > 1e6


def test_recall_by_hand():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.3, 0.3]])
    found = retrieval.measures(scores.T, np.eye(3, dtype=bool))
    assert found["recall@1/text_to_image"] == pytest.approx(1 / 3)
    assert found["recall@1/image_to_text"] == 1.0
    assert found["recall@5/text_to_image"] == 1.0
    same = np.eye(3, dtype=bool)
    same[1, 0] = same[0, 1] = True
    assert retrieval.recall(scores, same, 1) == pytest.approx(2 / 3)
    nothing = retrieval.measures(np.zeros((100, 100)), np.eye(100, dtype=bool))
    assert nothing["recall@1/text_to_image"] == 0.0


def test_what_says_the_same_is_right_too():
    records = [Shapes(split="heldout")[i] for i in range(12)]
    images = np.stack([record["image"] for record in records])
    own = [record["caption"] for record in records]
    other = [caption.replace("above", "over").replace("a ", "") for caption in own]
    assert retrieval.agreement(images, own, own, None).sum() == 12
    right = retrieval.agreement(images, own, other, JudgeShapes())
    assert np.diagonal(right).all() and right.mean() < 0.4


def test_masked_words_hide_the_share_that_is_wanted(key):
    mask = np.arange(20) < np.array([[20], [10], [3]])
    text = np.where(mask, 7, 0)

    def hidden(**fields):
        hide = jax.jit(MaskedWords(**fields).hide, static_argnums=2)
        return jax.device_get(hide(text, mask, 40, key))

    found = hidden(mask_prob=0.25, replace_prob=1.0)
    assert found.target_BL.sum(1).tolist() == [5, 3, 1]
    assert (found.target_BL <= mask).all()
    assert ((found.text_BL == 40) == found.target_BL).all()
    random = hidden(random_token_prob=0.5)
    other = (random.text_BL != text) & (random.text_BL != 40)
    assert other.any() and (random.text_BL[~mask] == 0).all()
    hide = jax.jit(MaskedWords(random_token_prob=1.0).hide, static_argnums=(2, 4))
    for pad in (0, 2):  # of four ids, any but the one of padding
        drawn = jax.device_get(hide(np.full((8, 20), 3), np.ones((8, 20), bool), 4, key, pad))
        assert set(np.unique(drawn.text_BL)) == {0, 1, 2, 3} - {pad}


def test_self_supervision_by_its_definitions(key):
    views = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    logits = np.where(np.eye(6, dtype=bool), -np.inf, views @ views.T / 0.5)
    own = logits[np.arange(6), (np.arange(6) + 3) % 6]
    wanted = np.mean(np.log(np.exp(logits).sum(axis=1)) - own)
    found = jax.jit(nt_xent, static_argnums=2)(views[:3], views[3:], 0.5)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    ssl = VisualSsl("simsiam", hidden_dim=8, projection_dim=4)
    params = initialise(functools.partial(ssl.init, 3), key)
    image = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)

    def loss(params):
        return ssl.loss(params, lambda view, _: Features(view.mean((1, 2)), view), image, key)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert 0 < float(value) < 8
    for name in ("prediction", "wide"):
        assert np.abs(gradient[name]["kernel"]).max() > 0


def test_views_stay_in_range_and_keep_ends(key):
    image = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    (view,) = jax.jit(Views(crop=1.0, brightness=0.0).of_images)(image, key)
    assert np.allclose(view, image, atol=1e-5)
    first, second = jax.jit(Views(images=2).of_images)(image, key)
    assert first.shape == image.shape and not np.allclose(first, second)
    assert np.abs(first).max() <= 1
    mask = np.arange(9) < np.array([[9], [5]])
    text = np.where(mask, np.arange(1, 10), 0)
    of_texts = jax.jit(Views(images=0, texts=1, dropped_words=0.9).of_texts, static_argnums=3)
    ((same, seen),) = jax.device_get(of_texts(text, mask, key, True))
    assert (seen <= mask).all() and seen[:, 0].all() and seen[0, 8] and seen[1, 4]
    assert seen.sum() < mask.sum() and np.array_equal(same, text)
    ((closed, there),) = jax.device_get(of_texts(text, mask, key, False, 7))
    for row in range(2):
        kept = text[row, seen[row]]
        padded = np.pad(kept, (0, 9 - len(kept)), constant_values=7)
        assert np.array_equal(closed[row], padded)
        assert there[row].tolist() == [i < len(kept) for i in range(9)]
    holes = mask & ~np.isin(np.arange(9), (0, 2))  # padding at the start and within
    ((_, seen),) = jax.device_get(of_texts(text, holes, key, True))
    assert (seen <= holes).all() and seen[:, 1].all() and seen[0, 8] and seen[1, 4]


_CAUSAL = dict(TINY, text_causal_mask=True, text_seq_len=12)


@pytest.mark.parametrize(
    "model",
    [
        t2i.CLIP(**{**TINY, "text_seq_len": 12}),
        t2i.CLIP(**{**TINY, "text_seq_len": 12}, text_encode_without_mask=True),
        t2i.CLIP(**_CAUSAL),
        t2i.CLIP(**_CAUSAL, text_eos_id=39),
        t2i.CLIP(**_CAUSAL, text_encode_without_mask=True),
        t2i.OpenAIClip(
            embed_dim=8, image_resolution=8, vision_layers=1, vision_width=16, vision_patch_size=4,
            context_length=12, vocab_size=40, transformer_width=16, transformer_heads=1,
            transformer_layers=1,
        ),
    ],
    ids=["masked", "unmasked", "causal", "causal to its end", "causal unmasked", "openai"],
)  # fmt: skip
def test_a_view_of_a_caption_depends_on_what_it_keeps_up_to_its_end(model, key):
    """Of every network, whatever it does with a mask."""
    task = ClipTask(model, views=Views(images=0, texts=1, dropped_words=0.4))
    params = initialise(model.init, key)
    image = np.zeros((1, 8, 8, 3), np.float32)
    mask = np.arange(12)[None] < 10

    @jax.jit
    def of(text):
        _, (_, view) = task._views(image, text, mask, key)
        return model.text_features(params, *view).pooled_BE, view[1].sum()

    text = np.where(mask, [5, 6, 7, 8, 9, 10, 11, 12, 13, 39, 0, 0], 0)
    whole, kept = of(text)
    changed = []
    for place in range(10):
        other = text.copy()
        other[0, place] = 30
        if float(np.abs(of(other)[0] - whole).max()) > 1e-5:
            changed.append(place)
    assert len(changed) == int(kept) < 10 and {0, 9} <= set(changed)


def _recipe(task, **train):
    train = t2i.TrainConfig(steps=1, **train)
    return t2i.Recipe(task, t2i.DataConfig(source="shapes", image_size=8), train)


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulate", "told"),
    [
        (48, 64, 1, "rows=48 does not divide the 64 captions of a micro-batch .*; try rows=32"),
        (16, 72, 3, "the 24 captions .*train.batch_size=72, train.accumulate=3.*; try rows=12"),
        (5, 7, 1, "try rows=1"),
        (16, 64, 2, None),
        (48, 64, 2, None),  # less than one block
        (None, 7, 1, None),
    ],
)
def test_rows_divide_the_micro_batch(rows, batch_size, accumulate, told):
    """Found before anything compiles; held-out batches, which have sizes of their own, go on."""
    task = ClipTask(t2i.CLIP(**TINY), rows=rows)
    recipe = _recipe(task, batch_size=batch_size, accumulate=accumulate)
    if told is None:
        check(recipe)
    else:
        with pytest.raises(UserError, match=told):
            check(recipe)
        with pytest.raises(UserError, match=f"rows={rows} does not divide the batch of"):
            _shapes_of(task.loss, task, batch_size // accumulate)
    _shapes_of(task.validate, task, 7)


def _shapes_of(function, task, size):
    rest = {"clip": task.weights_shapes()["clip"]}, {}, {}, dict(task.batch_spec(size))
    return jax.eval_shape(function, *rest, jax.random.key(0), 0)


@pytest.mark.parametrize("field", ["freeze_image_encoder", "freeze_text_encoder"])
def test_a_tower_that_is_not_trained_comes_from_a_run(field, tmp_path):
    recipe = _recipe(ClipTask(t2i.CLIP(**TINY), **{field: True}), batch_size=8)
    with pytest.raises(UserError, match=f"task.{field}=True leaves .* random ones; give init=RUN"):
        check(recipe)
    with pytest.raises(UserError, match="init=.*none' is not a folder"):  # which it looks for
        check(dataclasses.replace(recipe, init=t2i.Init(str(tmp_path / "none"))))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: ClipTask(t2i.CLIP(**TINY), contrast="sigmoid"), "needs a learnt bias"),
        (lambda: ClipTask(t2i.CLIP(**TINY), contrast="infonce"), "contrast='infonce' is not known"),
        (lambda: ClipTask(t2i.CLIP(**TINY, use_mlm=True)), "give mlm=MaskedWords"),
        (lambda: ClipTask(t2i.CLIP(**TINY), mlm=MaskedWords()), "use_mlm=True"),
        (lambda: ClipTask(t2i.CLIP(**TINY), multiview_loss_weight=-1.0), "is negative"),
        (lambda: t2i.CLIP(visual_image_size=30), "visual_image_size=30 is not a multiple"),
        (lambda: t2i.CLIP(downsample_image_embeds=True), "use_all_token_embeds=True; set both"),
        (lambda: t2i.CLIP(text_eos_id=3), "without text_causal_mask"),
        (lambda: t2i.CLIP(text_heads=0), "text_heads=0 is not positive"),
        (lambda: Views(images=0), "make no further view"),
        (lambda: VisualSsl(compat=("x-clip",)), "visual_ssl.compat"),
    ],
)
def test_refusals(made, message):
    with pytest.raises(UserError, match=message):
        made()


@pytest.mark.parametrize("model", [t2i.CLIP(**TINY), t2i.OpenAIClip()])
def test_a_scale_that_has_gone_too_far_comes_back(model):
    task = ClipTask(model)
    far = {"clip": {model.scale_name: np.float32(5.0), "text": np.float32(5.0)}}
    assert jax.grad(model.log_scale)(far["clip"])[model.scale_name] == 0
    near, _ = task.after_update(far, {}, {}, jax.random.key(0), 0)
    assert near["clip"]["text"] == 5.0 and near["clip"][model.scale_name] == np.float32(MOST_SCALE)
    assert jax.grad(model.log_scale)(near["clip"])[model.scale_name] == 1
    same, _ = task.after_update({"clip": {model.scale_name: np.float32(4.6)}}, {}, {}, None, 0)
    assert same["clip"][model.scale_name] == np.float32(4.6)
