"""DALL-E 2 the whole way: its parts in order, stopped and resumed, images from captions and from
images, `dream`, refusals.
"""

import dataclasses
import functools
import gc
import json
import os
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.cli import dream
from t2i_jax.errors import UserError
from t2i_jax.runs import folder as folder_of
from t2i_jax.runs.check import check
from t2i_jax.systems.base import Given
from t2i_jax.systems.cascade.system import CascadeSystem
from t2i_jax.systems.dalle2.sphere import slerp
from t2i_jax.systems.dalle2.system import DALLE2System
from t2i_jax.text.stored import StoredText
from t2i_jax.train.loop import Hook
from tests.e2e.command import inside
from tests.systems import toy_dalle2 as toy

CAPTIONS = ["a red circle", "a blue square above a green cross"]
IMAGES = [np.full((16, 16, 3), value, np.uint8) for value in (0, 200)]
QUICK = {"steps": 2, "prior_steps": 2}
FEW = {"steps": 2}  # without the prior


class Stopped(Exception):
    """In place of a machine that goes away."""


@pytest.fixture(scope="module")
def there():
    """While a part trains, by the part's task: the shapes of what its run has on the device."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, there):
    """The folder of a run that was stopped within the prior's training, and resumed."""
    folder = tmp_path_factory.mktemp("dalle2") / "runs" / "tiny"

    def hooks(recipe, build_system):
        def stop(state, step, log):
            if isinstance(recipe.task, t2i.PriorTask):
                raise Stopped

        return (Hook(3, stop),)

    with pytest.raises(Stopped), toy.few_captions():
        runs.train(toy.dalle2(), folder, hooks=hooks)
    clip = t2i.load(folder / "clip")
    before = runs.fingerprint(clip.weights)
    assert not (folder / "decoder").exists()
    others = jax.live_arrays()  # held, so that their ids stay theirs
    known = {id(array) for array in others}

    def watched(recipe, build_system):
        def look(state, step, log):
            gc.collect()
            own = [array.shape for array in jax.live_arrays() if id(array) not in known]
            there[type(recipe.task)] = own

        return (Hook(1, look),)

    made = runs.train(toy.dalle2(), folder, hooks=watched)
    there["trained"] = [made.clip, made.prior, made.prior.clip, made.decoder, made.decoder.clip]
    assert runs.fingerprint(t2i.load(folder / "clip").weights) == before
    return folder


@pytest.fixture(scope="module")
def dalle2(run):
    return t2i.load(run)


def test_what_is_trained_before_is_on_the_device_only_where_a_step_reads_it(run, there):
    def matrices_of(task, width):
        return sum(len(shape) > 1 and width in shape for shape in there[task])

    assert matrices_of(t2i.PriorTask, toy.NETWORK.dim) and matrices_of(t2i.PriorTask, 16)
    # CLIP embeds images for the decoder, and the prior does nothing
    assert matrices_of(t2i.DecoderTask, 16) and not matrices_of(t2i.DecoderTask, toy.NETWORK.dim)
    leaves = jax.tree.leaves([(one.weights, one.frozen) for one in there["trained"]])
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    clips = {id(leaf) for leaf in leaves if leaf.shape == (64, 16)}
    assert len(clips) == 1, "CLIP's embedding of tokens lies on the device several times"


def test_samplers_and_steps_are_told_where_options_leave_them_to_their_defaults():
    """By the tasks alone, of networks that are not there."""
    decoder = types.SimpleNamespace(task=toy.decoder().task)
    decoder.samplers = functools.partial(CascadeSystem.samplers, decoder)
    system: Any = types.SimpleNamespace(
        prior=types.SimpleNamespace(task=toy.prior().task), decoder=decoder
    )
    stages = len(decoder.task.stages)
    told = DALLE2System.samplers(system, t2i.DALLE2Options(sampler="ddim"))
    assert len(told) == 1 + stages and all(one["steps"] >= 1 for one in told)
    assert [one["sampler"] for one in told[1:]] == ["ddim"] * stages
    asked = t2i.DALLE2Options(sampler="heun", steps=3, prior_sampler="ddim", prior_steps=7)
    assert DALLE2System.samplers(system, asked) == [
        {"sampler": "ddim", "steps": 7},
        *[{"sampler": "heun", "steps": 3}] * stages,
    ]


def test_captions_become_images_whatever_the_batch(dalle2):
    once = dalle2.generate(CAPTIONS, images_per_prompt=2, **QUICK)
    assert once.shape == (4, 16, 16, 3) and once.dtype == np.uint8
    again = dalle2.generate(CAPTIONS, images_per_prompt=2, batch_size=2, **QUICK)
    assert np.abs(again.astype(int) - once.astype(int)).max() <= 1
    ids = dalle2.clip.text_tokenizer(CAPTIONS, 12)[0]
    np.testing.assert_array_equal(dalle2.generate(ids, images_per_prompt=2, **QUICK), once)
    assert not np.array_equal(dalle2.generate(CAPTIONS, images_per_prompt=2, seed=1, **QUICK), once)
    assert "prior=" in repr(dalle2)


def test_images_become_images(dalle2):
    one, _, two, _ = dalle2.generate(CAPTIONS, images_per_prompt=2, **QUICK)
    varied = dalle2.variations([one, two], images_per_prompt=2, **FEW)
    assert varied.shape == (4, 16, 16, 3)
    embeds = dalle2.clip.embed_images([one, two])
    np.testing.assert_array_equal(
        dalle2.generate(image_embeds=embeds, images_per_prompt=2, **FEW), varied
    )
    way = dalle2.interpolate(one, two, [*np.float32([0.0, 0.4, 0.6]), 1.0], **FEW)
    assert way.shape == (4, 16, 16, 3)
    mixed = dalle2.generate(images=one, other_images=two, blend=0.0, **FEW)
    np.testing.assert_array_equal(mixed[0], dalle2.variations(one, **FEW)[0])
    changed = dalle2.edit(one, CAPTIONS[1], CAPTIONS[0], change=0.0, **FEW)
    np.testing.assert_array_equal(changed, dalle2.variations(one, **FEW))
    assert dalle2.nearest([one, two], CAPTIONS)[0] in CAPTIONS
    half = np.zeros((16, 16), bool)
    half[:8] = True
    known = {"init_images": [one, two], "mask": half, "resample": 1}
    kept = dalle2.generate(CAPTIONS, images_per_prompt=2, **known, **QUICK)
    np.testing.assert_array_equal(kept[:, :8], np.stack([one, one, two, two])[:, :8])
    known = {"init_images": [one], "mask": [half], "resample": 1}
    kept = dalle2.generate(CAPTIONS[:1], images_per_prompt=2, **known, **QUICK)
    np.testing.assert_array_equal(kept[:, :8], np.stack([one, one])[:, :8])
    told = dalle2.variations(one, prompts=CAPTIONS[1], **QUICK)
    np.testing.assert_array_equal(told, dalle2.generate(CAPTIONS[1], images=one, **QUICK))


def test_the_best_of_several_variations(dalle2):
    one, _, two, _ = dalle2.generate(CAPTIONS, images_per_prompt=2, **QUICK)
    every = dalle2.variations([one, two], images_per_prompt=3, **FEW).reshape(2, 3, 16, 16, 3)
    best = dalle2.variations([one, two], best_of=3, images_per_prompt=2, **FEW)
    for image, own, kept in zip((one, two), every, best.reshape(2, 2, 16, 16, 3), strict=True):
        alike = dalle2.clip.embed_images(own) @ dalle2.clip.embed_images(image[None])[0]
        np.testing.assert_array_equal(kept, own[np.argsort(-alike)[:2]])
    as_pil = dalle2.variations([one, two], best_of=3, images_per_prompt=2, return_pil=True, **FEW)
    np.testing.assert_array_equal(np.stack([np.asarray(each) for each in as_pil]), best)
    for given, sentence in (
        (
            {"best_of": 2, "images_per_prompt": 3},
            "best_of=2 is below images_per_prompt=3; make it 3",
        ),
        ({"best_of": 0}, "best_of=0 is not a number from 1"),
        ({"best_of": 2, "other_images": two}, "other_images is given with best_of, which compares"),
    ):
        with pytest.raises(UserError, match=sentence):
            dalle2.variations(one, **given)


def test_variations_begin_with_the_noise_that_leads_to_their_image(dalle2):
    images = [image + 40 * np.eye(16, dtype=np.uint8)[..., None] for image in IMAGES]
    settings = {"guidance": 1.0, "steps": 25}
    free, back, other = (
        dalle2.variations(images, **settings, **own)
        for own in ({}, {"eta": 0.0}, {"eta": 0.0, "seed": 3})
    )
    np.testing.assert_array_equal(back, other)  # nothing is drawn
    off, far = (np.abs(made.astype(int) - np.stack(images)).mean() for made in (back, free))
    assert off < 0.2 * far, (off, far)
    of_decoder = dalle2.decoder.generate(images=images, eta=0.0, **settings)
    np.testing.assert_array_equal(of_decoder, back)
    given = dalle2.generate(images=IMAGES, init_images=images[0], eta=0.0, **settings)
    assert np.abs(given.astype(int) - images[0]).mean() < 0.2 * far


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prompts": CAPTIONS, "eta": 0.5}, "^eta=0.5 is nothing without init_images or images"),
        ({"images": IMAGES, "eta": 1.5}, r"^eta=1.5 is outside \[0, 1\]"),
        ({"images": IMAGES, "eta": 0.5, "sampler": "heun"}, "^eta=0.5 is of the sampler 'ddim'"),
        ({"images": IMAGES, "other_images": IMAGES, "eta": 0.5}, "^eta=0.5 begins with the noise"),
        ({"prompts": CAPTIONS, "negative_prompts": CAPTIONS[:1]}, "has 1 caption for 2 prompts"),
        ({"prompts": CAPTIONS, "negative_prompts": (CAPTIONS[0],)}, "has 1 caption for 2 prompts"),
        ({"prompts": CAPTIONS, "init_images": np.zeros((3, 8, 8, 3), np.uint8)},
         "has 3 images for 2 prompts"),
        ({"prompts": CAPTIONS, "mask": np.ones((8, 8), bool)}, "mask says what to keep"),
        ({"prompts": CAPTIONS, "seed": [1, 2, 3]}, "seed has 3 numbers for 4 images"),
        ({"prompts": CAPTIONS, "stop_at": 3}, "stop_at=3 is no stage"),
        ({"prompts": CAPTIONS, "image_sizes": (16, 32)}, "has 2 sizes for 1 stages"),
        ({"image_embeds": [[1.0] * 16, [1.0]]}, "image_embeds are no numbers"),
        ({"image_embeds": "photo.png"}, "image_embeds are no numbers"),
        ({"image_embeds": np.ones((1, 5))}, r"image_embeds have shape \(1, 5\)"),
        ({"image_embeds": np.ones((1, 16), complex)}, "are no numbers .* type complex128"),
        ({"image_embeds": np.eye(2, 16) - np.eye(1, 16)}, r"image_embeds\[0\] is zeros"),
        ({"prompts": CAPTIONS, "steps": 26}, "^steps=26 are more than the 25 timesteps"),
        ({"prompts": CAPTIONS, "prior_steps": 1, "prior_sampler": "ddim",
          "compat": "dalle2-pytorch"}, "^prior_steps=1 of dalle2-pytorch's DDIM"),
        ({"prompts": CAPTIONS, "prior_num_samples": 1000, "images_per_prompt": 60},
         "^prior_num_samples=1000 makes 120000 samples for 120 embeddings"),
        ({"images": IMAGES, "seed": [1, 2, 3]}, "seed has 3 numbers for 4 images"),
        ({"images": IMAGES, "steps": 26}, "^steps=26 are more than the 25 timesteps"),
        ({"images": IMAGES, "prompts": [*CAPTIONS, "a"]}, "have 3 captions for 2 image embeddings"),
        ({"images": IMAGES, "other_images": [*IMAGES, IMAGES[0]]},
         "images has 2 for 3 of other_images"),
        ({"images": IMAGES, "other_images": 3}, "^other_images is an int"),
        ({"images": IMAGES, "prompts": "a", "instead_of": 7}, "^instead_of is an int"),
        ({"images": IMAGES, "prompts": [*CAPTIONS, "a"], "instead_of": "b"},
         "images has 2 for 3 of prompts"),
        ({"images": IMAGES, "prompts": "a", "instead_of": ["b", "a"]}, "the same caption"),
    ],
)  # fmt: skip
def test_what_is_given_is_counted_as_it_was_given_and_before_the_prior_samples(
    given, sentence, dalle2, monkeypatch
):
    monkeypatch.setattr(type(dalle2.prior), "embed", lambda *_, **__: pytest.fail("it sampled"))
    monkeypatch.setattr(
        type(dalle2.clip), "_in_batches", lambda *_, **__: pytest.fail("it embedded")
    )
    with pytest.raises(UserError, match=sentence):
        dalle2.generate(**{"images_per_prompt": 2, "guidance": 2.0, **given})
    with pytest.raises(UserError, match="instead_of=None: an edit goes from"):
        dalle2.edit(np.zeros((8, 8, 3), np.uint8), CAPTIONS[0], None)
    one, other = IMAGES
    for wrong, said in (({"seed": -1}, "^seed=-1"), ({"seed": [1, 2]}, "^seed.*5")):
        with pytest.raises(UserError, match=said):
            dalle2.interpolate(one, other, **wrong)


def test_a_part_of_several_parts_is_read_once(run, monkeypatch):
    """The CLIP is one of the whole, of its prior and of its decoder."""
    read, arrays = [], folder_of.arrays

    def counted(workdir, *given):
        read.append(os.path.realpath(workdir))
        return arrays(workdir, *given)

    monkeypatch.setattr(folder_of, "arrays", counted)
    system = t2i.load(run)
    assert sorted(read) == [str(run.resolve() / name) for name in ("clip", "decoder", "prior")]
    of_clip = [jax.tree.leaves(one.weights) for one in (system.clip, system.prior.clip)]
    assert all(one is other for one, other in zip(*of_clip, strict=True))


def test_offloaded_it_makes_the_same_images(run, dalle2):
    offloaded = t2i.load(run, offload=True)
    parts = offloaded.clip, offloaded.prior, offloaded.decoder, offloaded.decoder.clip
    kept = [leaf for part in parts for leaf in jax.tree.leaves((part.weights, part.frozen))]
    assert kept and all(isinstance(leaf, np.ndarray) for leaf in kept)
    images = [one.generate(CAPTIONS, **QUICK) for one in (dalle2, offloaded)]
    np.testing.assert_array_equal(*images)
    with pytest.raises(UserError, match="mesh={'data': 1} shares the weights among devices"):
        t2i.load(run, offload=True, mesh={"data": 1})


def test_the_difference_of_captions_moves_an_image_along_the_arc(dalle2):
    image = np.zeros((16, 16, 3), np.uint8)
    options = t2i.DALLE2Options(change=0.5)
    embed = dalle2.clip.embed_images(image)
    found = dalle2._embeds(image, None, CAPTIONS[:1], CAPTIONS[1:], options)
    after, before = dalle2.clip.embed_text(CAPTIONS)
    np.testing.assert_allclose(found, slerp(embed, (after - before)[None], 0.5), atol=1e-5)
    whole = dalle2._embeds(
        image, None, CAPTIONS[:1], CAPTIONS[1:], dataclasses.replace(options, change=0.0)
    )
    np.testing.assert_allclose(whole, embed, atol=1e-6)


def test_slerp():
    one, two = np.eye(4)[:2]
    np.testing.assert_allclose(slerp(one, 3 * two, 1 / 3), [0.75**0.5, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(slerp(one, one, 0.3), one, atol=1e-6)
    rows = np.random.default_rng(0).normal(size=(2, 5, 8))
    for share in (0.0, 0.2, 1.0):
        np.testing.assert_allclose(np.linalg.norm(slerp(*rows, share), axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(slerp(one, -one, 0.25)[1:], 0, atol=1e-6)


def test_the_command_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load", functools.cache(runs.load))  # most of the time is reading
    out = tmp_path / "out"
    few = ("--steps", 2)
    small = (*few, "--prior-steps", 2)
    inside("sample", run, CAPTIONS[0], "--out", out, *small)
    assert len(list(out.glob("*.png"))) == 5
    one, two = out / "000-00.png", out / "000-01.png"
    inside("sample", run, "--image", one, "--out", tmp_path / "varied", "--offload", *few)
    assert len(list((tmp_path / "varied").glob("0*.png"))) == 4
    mix = ("--image", one, f"--image={two}", "--blend", 0.5)
    inside("sample", run, *mix, "--out", tmp_path / "mixed", *few)
    edit = (CAPTIONS[1], "--image", one, "--instead-of", CAPTIONS[0])
    inside("sample", run, *edit, "--out", tmp_path / "edited", *few)
    with pytest.raises(UserError, match="prior_steps=3 does nothing beside --image"):
        _sampled(run, "--image", one, "--prior-steps", 3)
    with pytest.raises(UserError, match="image is given 3 times"):
        _sampled(run, "--image", one, "--image", two, "--image", one)
    varied = ("--image", one, "--out", tmp_path / "by_decoder")
    inside("sample", run / "decoder", *varied, *few)  # alone it varies an image, and mixes none
    assert len(list((tmp_path / "by_decoder").glob("0*.png"))) == 4
    with pytest.raises(UserError, match="image is given 2 times; give one, since this run mixes"):
        _sampled(run / "decoder", "--image", one, "--image", two)
    helped = [inside("sample", of, "--help").stdout for of in (run, run / "decoder")]
    assert ["Given twice" in text for text in helped] == [True, False]
    best = ("--best-of", 4, "--rerank", run / "clip")
    inside("sample", run, CAPTIONS[0], "--count", 2, "--out", tmp_path / "best", *best, *small)
    rows = (tmp_path / "best" / "scores.tsv").read_text().splitlines()[1:]
    scores = [float(row.split("\t")[1]) for row in rows]
    assert len(rows) == 2 and scores[0] >= scores[1]
    told = inside(
        "sample", run, "--image", one, "--count", 2, "--out", tmp_path / "alike", *best, *small
    )
    assert not told.stderr.count("Traceback")
    rows = (tmp_path / "alike" / "scores.tsv").read_text().splitlines()
    assert rows[0].endswith("image") and len(rows) == 3
    scores = [float(row.split("\t")[1]) for row in rows[1:]]
    assert 1 >= scores[0] >= scores[1]
    with pytest.raises(UserError, match="or with one image, and --image is given 2 times"):
        _sampled(run, "--image", one, "--image", two, *best)
    with pytest.raises(UserError, match="--best-of does nothing without --rerank"):
        _sampled(run, "a", "--best-of", 3)
    with pytest.raises(UserError, match="best_of=3 is below count=4"):
        _sampled(run, "a", *best[:1], 3, *best[2:])
    with monkeypatch.context() as patch:  # before many images are made in vain
        patch.setattr(t2i.load(run).__class__, "generate", lambda *_, **__: pytest.fail("it ran"))
        with pytest.raises(UserError, match="is a run of PriorTask; give the run of a CLIP"):
            _sampled(run, "a", *best[:3], run / "prior", *small)
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.delenv("T2I_RUN", raising=False)
    dream.dream(CAPTIONS[0])
    dream.dream(CAPTIONS[0], seed=1, guidance=3.0)
    assert {"a-red-circle.png", "a-red-circle-2.png"} <= set(os.listdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run in the folder runs"):
        dream.dream(CAPTIONS[0])
    monkeypatch.setenv("T2I_RUN", str(tmp_path / "none"))
    with pytest.raises(UserError, match="^T2I_RUN=.* is the folder of no run"):
        dream.dream(CAPTIONS[0])
    with pytest.raises(UserError, match="caption=' ' says nothing"):
        dream.dream(" ")


def _sampled(*words):
    from t2i_jax.cli.sample import command

    command([str(word) for word in words])


def test_export_and_evaluation(run, dalle2, tmp_path):
    runs.export(run, tmp_path / "exported")
    for name in ("prior", "decoder"):  # what was converted has the vocabulary of its CLIP alone
        shutil.rmtree(tmp_path / "exported" / name / "text_tokenizer")
    again = t2i.load(tmp_path / "exported")
    both = (one.generate(CAPTIONS, images_per_prompt=2, **QUICK) for one in (again, dalle2))
    np.testing.assert_array_equal(*both)
    assert runs.fingerprint(again) == runs.fingerprint(dalle2) != runs.fingerprint({})
    for name in ("clip", "prior", "decoder"):  # of the weights of each part
        part = getattr(dalle2, name)
        other = dataclasses.replace(part, weights=jax.tree.map(lambda leaf: -leaf, part.weights))
        changed = dataclasses.replace(dalle2, **{name: other})
        assert runs.fingerprint(changed) != runs.fingerprint(dalle2)
        assert runs.fingerprint(part) == runs.fingerprint(part.weights)
    recipe = runs.load_run_recipe(run)
    from t2i_jax.runs.evaluation import evaluate

    found = evaluate(recipe, dalle2, run)
    assert 0 <= found["alignment_heldout"] <= 1
    assert json.loads((run / "metrics.json").read_text())["alignment_heldout"] is not None


def test_embeddings_of_another_length_are_told_of_once(dalle2, capsys):
    embeds = dalle2.clip.embed_images(IMAGES[0])
    dalle2.generate(image_embeds=embeds, **FEW)
    assert "lengths" not in capsys.readouterr().err
    dalle2.generate(image_embeds=10 * embeds, **FEW)
    told = capsys.readouterr().err
    assert told.count("image_embeds have lengths from 10 to 10, and CLIP's have 1") == 1


def test_what_does_not_fit_is_refused(dalle2, run):
    image = np.zeros((16, 16, 3), np.uint8)
    for given, said in (
        ({}, "prompts=None"),
        ({"instead_of": "a"}, "prompts=None"),
        ({"prompts": CAPTIONS, "instead_of": "a"}, "instead_of is nothing without images"),
        ({"prompts": CAPTIONS, "other_images": image}, "other_images is nothing without images"),
        ({"images": image, "instead_of": "a"}, "give a prompt too"),
        ({"images": image, "image_embeds": np.ones((1, 16))}, "both given"),
        ({"prompts": "a", "images": image, "instead_of": "a"}, "the same caption as the prompt"),
        ({"prompts": CAPTIONS, "blend": 2.0}, "blend=2.0 is outside"),
        ({"prompts": CAPTIONS, "blend": 0.2}, "blend=0.2 is nothing without other_images"),
        ({"images": image, "change": 0.2}, "change=0.2 is nothing without instead_of"),
        (
            {"prompts": CAPTIONS, "prior_steps": 99},
            "^prior_steps=99 are more than the 20 times",
        ),
        ({"prompts": CAPTIONS, "prior_sampler": "euler"}, "^prior_sampler='euler'"),
        ({"prompts": CAPTIONS, "prior_num_samples": 9999}, "^prior_num_samples=9999 is too many"),
        ({"prompts": CAPTIONS, "prior_compat": "x"}, "^prior_compat='x'"),
        ({"prompts": CAPTIONS, "images_per_prompt": None}, "images_per_prompt=None is not a"),
    ):
        with pytest.raises(UserError, match=said):
            dalle2.generate(**given)
    for one, other, shares, said in (
        (image, [image] * 3, (0.5,), "other has 3 images"),
        (np.stack([image] * 2), image, (0.5,), "image has 2 images"),
        (image, image, 0.5, "shares=0.5 is no list"),
        (image, image, (), r"shares=\(\) is no list"),
        (image, image, None, "shares=None is no list"),
        (image, None, (0.5,), "^other is None"),
    ):
        with pytest.raises(UserError, match=said):
            dalle2.interpolate(one, other, shares)
    with pytest.raises(UserError, match="image_embeds is given to interpolate"):
        dalle2.interpolate(image, image, image_embeds=np.ones((1, 16)))
    with pytest.raises(UserError, match="images=None: variations are made of images"):
        dalle2.variations(None, prompts=CAPTIONS)
    with pytest.raises(UserError, match="step=99 is the number of a checkpoint.*joins clip, prior"):
        t2i.load(run, step=99)
    with pytest.raises(UserError, match="parts.clip is not given"):
        t2i.DALLE2Task().with_parts({})
    with pytest.raises(UserError, match="parts.prior was trained with another CLIP"):
        other = dataclasses.replace(dalle2.clip, weights={"clip": {"temperature": np.ones(())}})
        _joined(dalle2, clip=other)


def test_parts_that_cannot_be_joined_are_refused_before_one_trains(run, tmp_path):
    recipe = toy.dalle2()
    own = {"clip": str(run / "clip"), "prior": str(run / "prior")}
    other = folder_of.export(run / "clip", tmp_path / "other")
    arrays = load_file(other / "weights.safetensors")
    save_file(
        {name: np.asarray(array + 1) for name, array in arrays.items()},
        other / "weights.safetensors",
    )
    task = recipe.parts["decoder"].task
    unet = task.stages[0].unet.clone(cond_on_image_embeds=False)
    stages = (dataclasses.replace(task.stages[0], unet=unet), *task.stages[1:])
    blind = dataclasses.replace(
        recipe.parts["decoder"], task=dataclasses.replace(task, stages=stages)
    )
    anew = recipe.parts["clip"]
    for parts, said in (
        ({"decoder": blind}, "parts.decoder makes images without image embeddings"),
        (own | {"clip": anew}, "parts.prior was trained with another CLIP than parts.clip"),
        (own | {"clip": str(other)}, "parts.prior was trained with another CLIP than parts.clip"),
    ):
        changed = dataclasses.replace(recipe, parts={**recipe.parts, **parts})
        with pytest.raises(UserError, match=f"^{said}"):
            runs.train(changed, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    moved = folder_of.export(run / "clip", tmp_path / "moved")  # the same weights elsewhere
    for parts in (own, own | {"clip": str(moved)}):
        check(dataclasses.replace(recipe, parts={**recipe.parts, **parts}), with_data=False)
    check(recipe, run, with_data=False)


def _joined(dalle2, told=None, **parts):
    """Of these parts and the others of a trained one; `told`: of a part what made its stored
    columns, where that is told.
    """
    systems = {name: getattr(dalle2, name) for name in ("clip", "prior", "decoder")} | parts
    made_with = {name: {} for name in systems} | (told or {})
    given = {
        name: Given(
            one.task.network, one.weights, one, made_with=made_with[name],
            fingerprint=OWN if name == "clip" else "",
        )
        for name, one in systems.items()
    }  # fmt: skip
    return t2i.DALLE2Task().with_parts(given).system({}, {}, given, {}, None)


OWN, OTHER = "1" * 16, "2" * 16  # fingerprints of CLIPs
MADE = {name: {"clip": OWN, "run": "runs/clip"} for name in ("clip", "text")}


@pytest.fixture(scope="module")
def stored(dalle2):
    """The prior and the decoder as training on stored embeddings leaves them: without CLIP."""
    model = dalle2.prior.task.network
    prior = dataclasses.replace(dalle2.prior.task, model=model, clip=None, stored=True)
    text = StoredText(dim=16, max_length=12)
    decoder = dataclasses.replace(dalle2.decoder.task, clip=None, image_embed_dim=16, text=text)
    without = {"clip": None, "frozen": {}}
    return {
        "prior": dataclasses.replace(dalle2.prior, task=prior, **without),
        "decoder": dataclasses.replace(
            dalle2.decoder, task=decoder, text_tokenizer=None, **without
        ),
    }


def test_parts_that_learnt_stored_embeddings_make_the_same_images_of_captions(
    dalle2, stored, capsys
):
    joined = _joined(dalle2, {"prior": MADE, "decoder": MADE}, **stored)
    again = joined.offloaded()
    assert not capsys.readouterr().err
    more = {**QUICK, "images_per_prompt": 2, "guidance": 2.0, "negative_prompts": "a green cross"}
    images = [one.generate(CAPTIONS, **more) for one in (dalle2, joined, again)]
    np.testing.assert_array_equal(images[1], images[0])
    np.testing.assert_array_equal(images[2], images[0])
    ids = dalle2.clip.text_tokenizer([*CAPTIONS, "a green cross", "a green cross"], 12)[0]
    more["negative_prompts"] = ids[2:]
    np.testing.assert_array_equal(joined.generate(ids[:2], **more), images[0])
    told = dalle2.clip.encode_text(CAPTIONS[:1])
    of_pair, of_caption = (
        joined.variations(IMAGES[0], prompts=prompts, **FEW)
        for prompts in ((told.encodings_BLE, told.mask_BL), CAPTIONS[0])
    )
    np.testing.assert_array_equal(of_pair, of_caption)
    shorter = dataclasses.replace(stored["decoder"].task, text=StoredText(dim=16, max_length=5))
    short = dataclasses.replace(stored["decoder"], task=shorter)
    made = _joined(dalle2, {"prior": MADE, "decoder": MADE}, **{**stored, "decoder": short})
    made._check_decoder(1, CAPTIONS[1], t2i.DecoderOptions(), {"seed": 0, **NOTHING})
    arrays = made.decoder._told(CAPTIONS[1:], None, np.eye(1, 16), None, [2.0])[1]
    assert made.decoder._encodings(arrays)["encodings"].shape == (1, 5, 16)
    assert "the last 7 are cut for stored text" in capsys.readouterr().err


NOTHING = {"images_per_prompt": 1, "init_images": None, "mask": None, "batch_size": None}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prior": {"clip": {"clip": OTHER, "run": "a"}}},
         f"parts.prior was trained on stored embeddings of a CLIP .run='a', fingerprint {OTHER}., "
         f"and parts.clip is another one .fingerprint {OWN}"),
        ({"prior": MADE, "decoder": {"text": {"clip": OTHER}}}, "parts.decoder was trained on sto"),
        ({"prior": {"text": {"clip": OTHER}}}, "parts.prior was trained on stored"),
    ],
)  # fmt: skip
def test_stored_embeddings_of_another_clip_are_refused(told, said, dalle2, stored):
    with pytest.raises(UserError, match=said):
        _joined(dalle2, told, **stored)


def test_what_nothing_tells_of_stored_embeddings_is_said_once(dalle2, stored, capsys):
    for told, named in (
        ({}, "parts.prior and parts.decoder learnt stored embeddings, and nothing tells of which"),
        ({"prior": MADE}, "t2i: parts.decoder learnt stored embeddings, and nothing tells of whi"),
        ({"decoder": {"clip": MADE["clip"]}}, "t2i: parts.prior learnt stored embeddings, and"),
    ):
        made = _joined(dalle2, told, **stored)
        said = capsys.readouterr().err
        assert said.count(named) == 1 and said.count("\n") == 1
        assert made.decoder.reader is made.clip and not made.unread


def test_stored_text_that_clip_does_not_make_is_refused_as_captions(dalle2, stored, monkeypatch):
    monkeypatch.setattr(type(dalle2.prior), "embed", lambda *_, **__: pytest.fail("it sampled"))
    own_clip = dataclasses.replace(
        dalle2.decoder, task=dataclasses.replace(dalle2.decoder.task, text=StoredText(16, 12))
    )
    of_t5, wider = {"text": {"t5": "t5-base"}}, StoredText(dim=24, max_length=12)
    wide = dataclasses.replace(stored["decoder"].task, text=wider)
    for decoder, about, said in (
        (stored["decoder"], {**MADE, **of_t5}, "stored text of a T5 .t5='t5-base'."),
        (own_clip, {"text": {"clip": OTHER}}, f"stored text of a CLIP .run=None, fing.*{OTHER}"),
        (
            dataclasses.replace(stored["decoder"], task=wide),
            {},
            "stored text of an encoder 24 wide",
        ),
    ):
        made = _joined(dalle2, {"prior": MADE, "decoder": about}, decoder=decoder)
        for given in ({}, {"images": IMAGES}):
            with pytest.raises(UserError, match=f"{said}.*give image_embeds=dalle2.prior.embed"):
                made.generate(CAPTIONS, **QUICK, **given)
        pair = (np.zeros((1, 12, made.decoder.task.text.dim)), np.ones((1, 12), bool))
        made._check_decoder(1, pair, t2i.DecoderOptions(), {"seed": 0, **NOTHING})


def test_a_clip_of_another_width_than_a_stored_prior_is_refused(dalle2, stored):
    for fields, said in (
        ({"dim_latent": 8}, "trained on embeddings 16 wide, and those of parts.clip are 8 wide"),
        ({"dim_text": 8}, "trained on encodings of tokens 16 wide, and those of parts.clip are 8"),
    ):
        task = t2i.ClipTask(dataclasses.replace(toy.CLIP, **fields))
        with pytest.raises(UserError, match=said):
            _joined(dalle2, clip=dataclasses.replace(dalle2.clip, task=task), **stored)


def test_a_run_tells_which_clip_its_parts_are_compared_with(run, dalle2, monkeypatch):
    seen = {}

    def system(self, params, stats, parts, *_):
        seen.update(parts)
        return dalle2

    (run / "prior" / "stored_clip.json").write_text(json.dumps(MADE["clip"]))
    monkeypatch.setattr(t2i.DALLE2Task, "system", system)
    t2i.load(run)
    (run / "prior" / "stored_clip.json").unlink()
    assert seen["clip"].fingerprint == runs.fingerprint(dalle2.clip.weights)
    assert seen["prior"].made_with == {"clip": MADE["clip"]}
