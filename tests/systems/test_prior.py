"""The diffusion prior: what it trains on, what it samples, what it measures, what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.cli.embeddings import encode_clip
from t2i_jax.data.arrayrecord import PackedSource
from t2i_jax.data.pack import pack
from t2i_jax.data.source import open_source
from t2i_jax.errors import UserError
from t2i_jax.models.image_text import TextEmbedding
from t2i_jax.pixels import save_png
from t2i_jax.runs import stored_text, training
from t2i_jax.runs.evaluation import evaluate
from t2i_jax.systems.prior import sampling
from t2i_jax.systems.prior.sampling import bound, denoise
from tests.systems import toy_dalle2 as toy
from tests.weights import drawn


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("prior")
    recipe = toy.prior()
    with toy.few_captions():
        runs.train(dataclasses.replace(recipe, parts={"clip": toy.clip()}), home / "run")
    return home / "run"


@pytest.fixture(scope="module")
def prior(run):
    return t2i.load(run)


def test_embeddings_do_not_depend_on_batches_and_the_best_is_kept(prior):
    captions = ["a red circle", "a blue square above a green cross"]
    once = prior.embed(captions, steps=2, images_per_prompt=2)
    assert once.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1, atol=1e-5)
    again = prior.embed(captions, steps=2, images_per_prompt=2, batch_size=3)
    np.testing.assert_allclose(again, once, atol=1e-5)
    assert not np.allclose(once, prior.embed(captions, steps=2, images_per_prompt=2, seed=1))
    each = prior.embed(captions, steps=2, images_per_prompt=4, num_samples=1)
    text = prior.clip.embed_text(captions)
    best = [rows[(rows @ text[i // 2]).argmax()] for i, rows in enumerate(each.reshape(4, 2, 16))]
    np.testing.assert_allclose(once, best, atol=1e-5)
    ids = prior.clip.text_tokenizer(captions, 12)[0]
    kept = prior.embed(prior.clip.encode_text(captions), steps=2, images_per_prompt=2)
    np.testing.assert_allclose(kept, once, atol=1e-5)
    np.testing.assert_allclose(prior.embed(ids, steps=2, images_per_prompt=2), once, atol=1e-5)


def test_guidance_without_the_noised_embedding_that_was_never_dropped_is_said(prior, capsys):
    text = prior.clip.encode_text(["a red circle"])
    said = {}
    for drop, compat, scale in (
        (0.0, "dalle2-pytorch", 2.0), (0.1, "dalle2-pytorch", 2.0), (0.0, None, 2.0),
        (0.0, "dalle2-pytorch", 1.0),
    ):  # fmt: skip
        task = dataclasses.replace(prior.task, image_drop_prob=drop)
        options = {"guidance": scale, "compat": compat, "steps": 1, "num_samples": 1}
        one = dataclasses.replace(prior, task=task)
        with pytest.MonkeyPatch.context() as patch:  # nothing is sampled
            patch.setattr(sampling, "generate", lambda *_, **__: (np.ones((1, 16)), np.ones(1)))
            one.embed(text, batch_size=1, **options)
        said[drop, compat, scale] = "(image_drop_prob=0)" in capsys.readouterr().err
    assert [key for key, told in said.items() if told] == [(0.0, "dalle2-pytorch", 2.0)]


def test_what_the_prior_does_not_read_of_a_caption_is_said(prior, capsys):
    assert prior.task.model.max_text_len == 8 < prior.clip.task.text_encoder.max_length
    [sentence] = training._told_of_unread(prior.task)
    assert "the prior reads 8 tokens of a caption (max_text_len)" in sentence
    captions = ["a red circle above a blue square on a white background", "a"]
    ids = prior.clip.text_tokenizer(captions, 12)[0]
    told = "caption 0 has 12 tokens, the last 4 are cut for the prior (max_text_len=8)"
    # however they are given
    for given in (captions, np.array(captions), ids, prior.clip.encode_text(captions)):
        prior.prompt(given)
        assert told in capsys.readouterr().err
    for given in (["a"], ids[1:], prior.clip.encode_text(["a"])):
        prior.prompt(given)
        assert not capsys.readouterr().err


def test_guidance_takes_the_caption_away_and_compat_the_embedding_too(prior):
    task, params = prior.task, prior.weights["prior"]
    text = TextEmbedding(*map(jnp.asarray, prior.clip.encode_text(["a red circle"] * 2)))
    x, level = jax.random.normal(jax.random.key(0), (2, 16)), jnp.full(2, 7.0)
    options = t2i.PriorOptions(guidance=3.0)

    @jax.jit
    def all_of(x):
        def of(net, options, scale):
            return denoise(task, net, task.sampling_of(options), scale)(x, level)

        net = bound(task.network, params, text)
        no = jnp.zeros(2, bool)
        null = bound(task.network, params, text, keep_text_B=no)
        blind = bound(task.network, params, text, keep_text_B=no, keep_image_B=no)
        plain = t2i.PriorOptions()
        compat = dataclasses.replace(options, compat="dalle2-pytorch")
        theirs = bound(task.network, params, text, null_sees_image=False)
        return (
            of(net, options, 3.0), of(net, plain, 1.0), of(null, plain, 1.0),
            of(theirs, compat, 3.0), of(blind, plain, 1.0), of(net, options, 1.0),
        )  # fmt: skip

    guided, cond, null, theirs, blind, one = map(np.asarray, all_of(x))
    np.testing.assert_allclose(guided, null + 3 * (cond - null), atol=1e-4)
    np.testing.assert_allclose(theirs, blind + 3 * (cond - blind), atol=1e-4)
    np.testing.assert_allclose(one, cond, atol=1e-5)
    assert np.abs(null - cond).max() > 1e-3 and np.abs(null - blind).max() > 1e-3


def test_what_a_run_measures_and_draws(run, prior):
    evaluate(runs.load_run_recipe(run), prior, run)
    found = json.loads((run / "metrics.json").read_text())
    assert {"cosine_heldout", "cosine_heldout/baseline", "cosine_heldout/unrelated"} <= found.keys()
    assert all(-1.01 <= found[name] <= 1.01 for name in found if name.startswith("cosine"))
    assert (run / "samples" / "heldout.png").exists()


def test_stored_embeddings_train_as_clip_itself_does(run, prior, tmp_path, capsys):
    packed = tmp_path / "packed"
    _packed(packed)
    encode_clip(packed, run, dtype="float32", batch_size=8)
    told, source = capsys.readouterr(), PackedSource(str(packed))
    lengths = prior.clip.text_tokenizer.lengths([source.caption(i) for i in range(len(source))])
    count = int((lengths > 12).sum())
    cut = {"caption of more than 12 tokens": count} if count else {}
    assert source.stored["text"]["cut"] == cut and all(reason in told.out for reason in cut)
    assert "prompt" not in told.err and not source.stored["clip"]["cut"]
    record = PackedSource(str(packed))[3]
    image_D = prior.clip.embed_images(record["image"])[0]
    np.testing.assert_allclose(record["image_embeds"], image_D, atol=1e-5)
    task = dataclasses.replace(toy.prior().task, stored=True)
    data = t2i.DataConfig(source=f"arrayrecord:{packed}", image_size=16, threads=0, heldout=0.0)
    recipe = t2i.Recipe(task, data, toy.TRAIN, {"clip": str(run / "clip")}, toy.prior().evaluation)
    system = runs.train(recipe, tmp_path / "stored")
    _check_another_clip_is_refused(recipe, tmp_path / "stored", source)
    assert system.task.frozen({}) == {}
    assert system.embed(["a red circle"], steps=2).shape == (1, 16)
    rows = [PackedSource(str(packed))[i] for i in range(4)]
    ids, mask = prior.clip.text_tokenizer([row["caption"] for row in rows], 12)
    live = {"image": np.stack([row["image"] for row in rows]), "text": ids, "text_mask": mask}
    frozen, params = {"clip": prior.clip.weights}, {"prior": prior.weights["prior"]}
    wide = max(len(row["text_embeds"]) for row in rows)
    stored = {
        name: np.stack([row[name] for row in rows]) for name in ("image_embeds", "caption_embeds")
    }
    stored["text_embeds"] = np.stack([_filled(row["text_embeds"], wide) for row in rows])
    stored["text_mask"] = np.stack([_filled(row["text_mask"], wide) for row in rows])
    key = jax.random.key(1)
    one = jax.jit(prior.task.loss)(params, {}, frozen, live, key, 0)[0]
    other = jax.jit(system.task.loss)(params, {}, {}, stored, key, 0)[0]
    np.testing.assert_allclose(one, other, rtol=1e-4)


def _check_another_clip_is_refused(recipe, run, source):
    """What made each column is kept with the run, and with what is exported of it."""
    runs.export(run, run / "exported")
    for name, column in (("stored_clip.json", "clip"), ("stored_text.json", "text")):
        about = json.loads((run / name).read_text())
        assert about["clip"] == source.stored[column]["clip"]
        assert json.loads((run / "exported" / name).read_text()) == about
        (run / name).write_text(json.dumps({**about, "clip": "0" * 16}))
        with pytest.raises(UserError, match=r"holds \w+ of a CLIP .*, and this run was begun with"):
            stored_text.note(run, recipe, {}, source)
        (run / name).unlink()
        stored_text.note(run, recipe, {}, source)  # of a run that was begun before it was kept
        assert json.loads((run / name).read_text()) == about


def _filled(rows, length):
    return np.pad(rows, ((0, length - len(rows)), *((0, 0),) * (rows.ndim - 1)))


def _packed(folder):
    source = open_source("shapes", image_size=16)
    images = folder.parent / "images"
    images.mkdir()
    for i in range(12):
        record = source[i]
        save_png(images / f"{i:02d}.png", record["image"])
        (images / f"{i:02d}.txt").write_text(record["caption"])
    pack(open_source(f"folder:{images}", image_size=16), folder, name="few")


@pytest.mark.parametrize("objective", ["noise", "v"])
def test_a_self_conditioned_network_of_each_objective_has_finite_losses(objective):
    network = toy.NETWORK.clone(parent=None, self_cond=True, ff_dropout=0.1)
    noise = dataclasses.replace(toy.NOISE, objective=objective)
    task = t2i.PriorTask(network, noise, toy.CLIP, image_drop_prob=0.2)
    params, frozen = drawn(task.init)[0], {"clip": {"clip": drawn(toy.CLIP.init)}}
    batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in task.batch_spec(2).items()}
    loss = jax.jit(task.loss)(params, {}, frozen, batch, jax.random.key(2), 0)[0]
    assert np.isfinite(loss)
    assert task.flops(2) > 0


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: t2i.PriorTask(toy.NETWORK, text_drop_prob=2.0), "text_drop_prob=2.0"),
        (lambda: t2i.PriorTask(toy.NETWORK, scale=-1.0), "scale=-1.0 is not above 0"),
        (lambda: t2i.PriorTask(toy.NETWORK, on_sphere=("end",)), "on_sphere="),
        (lambda: t2i.PriorTask(toy.NETWORK, "cosine"), "is no diffusion"),
        (
            lambda: t2i.PriorTask(toy.NETWORK, t2i.DiscreteDdpm(), on_sphere=("training",)),
            "predicts the clean embedding",
        ),
        (
            lambda: t2i.PriorTask(toy.NETWORK, t2i.Edm(), compat="dalle2-pytorch"),
            "is of whole timesteps and noise is a Edm",
        ),
        (
            lambda: t2i.PriorTask(toy.NETWORK.clone(num_timesteps=10), toy.NOISE),
            "model.num_timesteps=10 is below noise.timesteps=20",
        ),
        (
            lambda: t2i.PriorTask(toy.NETWORK.clone(num_timesteps=10), t2i.Edm()),
            "has vectors for whole timesteps alone",
        ),
        (lambda: t2i.PriorOptions(guidance=float("nan")), "guidance=nan"),
        (lambda: t2i.PriorOptions(sampler="euler"), "sampler='euler'"),
        (lambda: t2i.PriorTask(toy.NETWORK).with_parts({}), "parts.clip is not given"),
        (lambda: t2i.DiffusionPriorNetwork(dim=7, depth=1), "dim=7 makes no sines"),
        (lambda: t2i.DiffusionPriorNetwork(dim=8, depth=0), "depth=0 is not positive"),
        (
            lambda: t2i.DiffusionPriorNetwork(dim=8, depth=1, embed_dim=4, final_proj=False),
            "final_proj=False gives predictions of dim=8",
        ),
    ],
)
def test_bad_values_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_bad_requests_are_refused(prior):
    for given, said in (
        ({"steps": 30}, "steps=30 are more than the 20 timesteps"),
        ({"images_per_prompt": 0}, "images_per_prompt=0"),
        ({"temperature": 1.0}, "no option 'temperature'"),
    ):
        with pytest.raises(UserError, match=said):
            prior.embed(["a red circle"], **given)
    bare = dataclasses.replace(prior, clip=None)
    with pytest.raises(UserError, match="trained without its CLIP"):
        bare.embed(["a red circle"])
    with pytest.raises(UserError, match=r"^captions is None; give a string"):
        prior.embed(None)
    with pytest.raises(UserError, match="^num_samples=2 makes 120000 samples for 60000 embeddings"):
        prior.embed("a", images_per_prompt=60_000, num_samples=2)
    with pytest.raises(UserError, match="^images_per_prompt=200000 makes 200000 images"):
        prior.embed("a", images_per_prompt=200_000)
    text = TextEmbedding(np.eye(2, 16), np.ones((2, 5, 16)), np.ones((2, 5), bool))
    for changed, said in (
        ({"embed_BD": np.zeros((1, 3))}, r"captions.embed_BD have shape \(1, 3\); give \(P, 16\)"),
        ({"embed_BD": np.zeros((0, 16))}, r"captions.embed_BD have shape \(0, 16\)"),
        ({"embed_BD": np.full((2, 16), np.nan)}, "embed_BD have only values that are not finite"),
        ({"embed_BD": np.full((2, 16), "a")}, "embed_BD are no numbers"),
        ({"embed_BD": np.zeros((2, 16))}, r"embed_BD\[0\] is zeros"),
        ({"encodings_BLE": "a"}, "encodings_BLE are no numbers"),
        ({"encodings_BLE": np.full((2, 5, 16), np.inf)}, "encodings_BLE have only values that are"),
        ({"mask_BL": np.ones((2, 4), bool)}, r"mask_BL is bool \(2, 4\); give bool \(2, 5\)"),
        ({"mask_BL": np.full((2, 5), np.nan)}, "mask_BL has nan in it, where 1"),
        ({"mask_BL": np.full((2, 5), -1e9)}, "mask_BL has -1e.09 in it, where 1 is seen"),
    ):
        with pytest.raises(UserError, match=said):
            prior.embed(text._replace(**changed))
    with pytest.raises(UserError, match="makes no images from text"):
        prior.generate(["a red circle"])
