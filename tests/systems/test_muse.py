"""Muse: two stages joined, what each is given, and what becomes of images at both sizes."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from PIL import Image

from t2i_jax import runs
from t2i_jax.cli import sample
from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given
from t2i_jax.systems.maskgit.options import MaskGitOptions
from t2i_jax.systems.muse.options import MuseOptions
from t2i_jax.systems.muse.system import MuseSystem
from t2i_jax.systems.muse.task import MuseTask
from t2i_jax.systems.placing import on_mesh
from t2i_jax.text.learned import LearnedText
from tests.e2e.command import pictures

from .toy_muse import (
    CAPTIONS,
    CRITIC,
    SUPERRES,
    TASK,
    images_of,
    system_of,
    tokens_of,
)

_STEPS = {"steps": 3, "superres_steps": 2}


def _joined(base, superres):
    parts = {"base": Given(base.task.network, base.weights, base)}
    parts["superres"] = Given(superres.task.network, superres.weights, superres)
    task = MuseTask().with_parts(parts)
    return task.system({}, {}, parts, {}, None)


@pytest.fixture(scope="module")
def base():
    return system_of(TASK)


@pytest.fixture(scope="module")
def superres():
    return system_of(SUPERRES)


@pytest.fixture(scope="module")
def system(base, superres):
    return _joined(base, superres)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("base", MaskGitOptions(steps=3)), ("system", MuseOptions(steps=3, superres_steps=2))],
)
def test_what_ranks_images_ranks_these(request, monkeypatch, tmp_path, kind, options):
    """`t2i sample --best-of`, by the brightness of the images in place of a CLIP."""
    system = request.getfixturevalue(kind)
    ranker = types.SimpleNamespace(
        compares=True,
        task=TASK,
        text_tokenizer=None,
        similarity=lambda images, captions: np.mean(images, (1, 2, 3))[:, None],
    )
    (tmp_path / "clip").mkdir()
    monkeypatch.setattr(
        "t2i_jax.runs.load", lambda run, **_: ranker if run.name == "clip" else system
    )
    best = {"count": 2, "best_of": 3, "rerank": tmp_path / "clip", "out": tmp_path / "out"}
    sample._sample(sample._Command(tmp_path, ("green",), **best), options, {})
    every = system.generate(["green"], options, images_per_prompt=3)
    brightest = every[np.argsort(-every.mean((1, 2, 3)))[:2]]
    np.testing.assert_array_equal(list(pictures(tmp_path / "out").values()), brightest)
    told = (tmp_path / "out" / "scores.tsv").read_text().splitlines()[1:]
    assert [float(line.split("\t")[1]) for line in told] == pytest.approx(
        brightest.mean((1, 2, 3)), abs=1e-3
    )


def test_the_second_stage_enlarges_what_the_first_has_made(system, base, superres):
    stages = system.generate(CAPTIONS, return_stages=True, **_STEPS)
    assert [stage.shape for stage in stages] == [(3, 8, 8, 3), (3, 16, 16, 3)]
    np.testing.assert_array_equal(system.generate(CAPTIONS, stop_at="base", **_STEPS), stages[0])
    whole = system.generate(CAPTIONS, **_STEPS)
    np.testing.assert_array_equal(whole, stages[1])
    np.testing.assert_array_equal(whole, system.generate(CAPTIONS, batch_size=2, **_STEPS))
    assert not np.array_equal(whole, system.generate(CAPTIONS, seed=1, **_STEPS))
    # with the second stage's own key, from the tokens of the first
    rows = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(3))
    keys = [jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(rows) for n in range(2)]
    options = MuseOptions(**_STEPS)
    small = base.make(base.prepare(CAPTIONS, options.base), keys[0], options.base)
    arrays = superres.prepare(CAPTIONS, options.superres, from_tokens=True)
    made = superres.make(arrays | {"cond_ids": small.ids_BN}, keys[1], options.superres)
    np.testing.assert_array_equal(made.images, whole)
    assert repr(system).startswith("MuseSystem(base=MaskGitSystem(captions by ClassLabels, ")


def test_its_fingerprint_is_of_its_stages_and_of_their_tokenizers(system, base, superres):
    def negative(tree):
        return jax.tree.map(lambda leaf: -leaf, tree)

    frozen = {**base.frozen, "tokenizer": negative(base.frozen["tokenizer"])}
    others = (
        {"base": dataclasses.replace(base, weights=negative(base.weights))},
        {"superres": dataclasses.replace(superres, weights=negative(superres.weights))},
        {"base": dataclasses.replace(base, frozen=frozen)},
    )
    made = [system, *(dataclasses.replace(system, **other) for other in others)]
    assert len({runs.fingerprint(one) for one in made} | {runs.fingerprint({})}) == 5
    assert runs.fingerprint(_joined(base, superres)) == runs.fingerprint(system)


def test_previews_of_both_stages(system):
    steps = system.generate(CAPTIONS, return_steps=True, **_STEPS)
    assert [step.shape[1] for step in steps] == [8, 8, 8, 16, 16]
    stages = system.generate(CAPTIONS, return_stages=True, **_STEPS)
    np.testing.assert_array_equal(steps[2], stages[0])
    np.testing.assert_array_equal(steps[-1], stages[1])
    pictures = system.generate(
        CAPTIONS, return_steps=True, return_pil=True, stop_at="base", batch_size=2, **_STEPS
    )
    assert len(pictures) == 3 and len(pictures[0]) == 3 and pictures[0][0].size == (8, 8)


def test_both_stages_hand_their_images_out_while_they_are_made(system):
    seen = []
    given = {"on_step": seen.append, "return_steps": True, "batch_size": 2}
    steps = system.generate(CAPTIONS[:2], **given, **_STEPS)
    assert [one.shape for one in seen] == [step.shape for step in steps]
    for one, step in zip(seen, steps, strict=True):
        np.testing.assert_array_equal(one, step)


def test_both_stages_are_guided_each_by_its_own_scale(system):
    def sample(**changes):
        return system.generate(
            CAPTIONS, temperature=0.0, plausibility=0.0, return_stages=True, **_STEPS, **changes
        )

    plain, strong = sample(), sample(superres_guidance=12.0)
    np.testing.assert_array_equal(plain[0], strong[0])
    assert not np.array_equal(plain[1], strong[1])
    against = sample(negative_prompts="zebra far off")
    assert not np.array_equal(plain[0], against[0]) and not np.array_equal(plain[1], against[1])
    hot = sample(superres_temperature=4.0)
    np.testing.assert_array_equal(plain[0], hot[0])
    assert not np.array_equal(plain[1], hot[1])


class _Words:
    """A tokenizer with a token per word."""

    vocab_size = 10

    def lengths(self, captions):
        return [len(caption.split()) for caption in captions]

    def __call__(self, captions, max_length):
        lengths = np.minimum(self.lengths(captions), max_length)
        mask = np.arange(max_length) < lengths[:, None]
        return mask.astype(np.int32), mask


def test_what_either_stage_cuts_of_captions_is_said(monkeypatch, capsys):
    """Captions of 3, 5 and 7 words, for stages that read as many or more, or fewer."""
    captions = [" ".join("abcdefg"[:length]) for length in (3, 5, 7)]
    monkeypatch.setattr(MuseSystem, "_stages", lambda *_: 1 / 0)  # nothing is sampled

    def said(of_base, of_superres, **options):
        stages = []
        for task, length in ((TASK, of_base), (SUPERRES, of_superres)):
            text = LearnedText(
                dim=8, depth=1, heads=2, mlp_dim=16, vocab_size=10, max_length=length
            )
            read = {"task": dataclasses.replace(task, text=text), "text_tokenizer": _Words()}
            stages.append(dataclasses.replace(system_of(task), **read))
        with pytest.raises(ZeroDivisionError):
            _joined(*stages).generate(np.array(captions), **options)
        return capsys.readouterr().err.splitlines()

    small = "t2i: prompt 1 has 5 tokens, the last one is cut; so is one other."
    large = "t2i: prompt 1 has 5 tokens, the last 2 are cut; so is one other for superres"
    assert said(8, 8) == []
    assert said(4, 4) == [small]
    assert said(8, 3) == [f"{large} (text.max_length=3)."]
    assert said(4, 3) == [small, f"{large} (text.max_length=3)."]
    assert said(8, 3, stop_at="base") == []
    (told,) = said(8, 7, negative_prompts="a b c d e f g h")
    assert told == "t2i: negative prompt 0 has 8 tokens, the last one is cut for superres" + (
        " (text.max_length=7)."
    )


def test_negative_prompts_are_for_the_stages_that_are_guided(system):
    def sample(**changes):
        return system.generate(CAPTIONS, temperature=0.0, return_stages=True, **_STEPS, **changes)

    only_large = {"guidance": 1.0, "superres_guidance": 12.0}
    plain, against = (sample(**only_large, negative_prompts=no) for no in (None, "zebra far off"))
    np.testing.assert_array_equal(plain[0], against[0])
    assert not np.array_equal(plain[1], against[1])
    only_small = {"guidance": 12.0, "superres_guidance": 1.0}
    plain, against = (sample(**only_small, negative_prompts=no) for no in (None, "zebra far off"))
    assert not np.array_equal(plain[0], against[0])


def test_an_open_file_is_read_for_both_sizes(system, tmp_path):
    path = tmp_path / "given.png"
    Image.fromarray(images_of(1, 16, 16)[0]).save(path)
    wanted = system.generate(CAPTIONS[0], init_images=path, strength=0.3, **_STEPS)
    with path.open("rb") as file:
        made = system.generate(CAPTIONS[0], init_images=file, strength=0.3, **_STEPS)
    np.testing.assert_array_equal(made, wanted)


def test_a_mask_keeps_pixels_at_both_sizes(system, capsys):
    images = [Image.fromarray(image) for image in images_of(3, 32, 32)]
    mask = np.zeros((32, 32), bool)
    mask[:, :20] = True
    small, large = system.generate(
        CAPTIONS, init_images=images, mask=mask, feather=0, return_stages=True, **_STEPS
    )
    assert capsys.readouterr().err.count("MaskGIT keeps") == 1
    for made, side, kept in ((small, 8, 5), (large, 16, 10)):
        there = np.stack(
            [np.asarray(image.resize((side, side), Image.BICUBIC)) for image in images]
        )
        np.testing.assert_array_equal(made[:, :, :kept], there[:, :, :kept])
        assert not np.array_equal(made[:, :, kept:], there[:, :, kept:])


@pytest.mark.parametrize("side", [8, 16])
def test_a_mask_may_be_as_large_as_what_either_stage_makes(system, monkeypatch, side):
    """Whatever the shape of the images, of which the middle is used."""

    class Seen(Exception):
        pass

    def see(arrays, *_, **__):
        raise Seen(arrays)

    monkeypatch.setattr("t2i_jax.systems.batching.batches", see)
    mask = np.zeros((side, side), bool)
    mask[:, : side // 2] = True
    with pytest.raises(Seen) as seen:
        system.generate(CAPTIONS, init_images=images_of(3, 32, 16), mask=mask, **_STEPS)
    for name, size in (("0/keep", 8), ("1/keep", 16)):
        wanted = np.broadcast_to(np.arange(size) < size // 2, (3, size, size))
        np.testing.assert_array_equal(seen.value.args[0][name], wanted)


@pytest.mark.parametrize(
    "changes", [{"strength": 0.3}, {"edit_steps": 2, "edit_share": 0.07}], ids=["changed", "edited"]
)
def test_large_tokens_over_small_ones_that_stayed_stay_too(system, base, superres, changes):
    images = images_of(3, 16, 16)
    options = MuseOptions(**_STEPS, **changes)
    seen = {}
    make = type(base).make

    def watch(stage, arrays, keys, own, told):
        made = make(stage, arrays, keys, own, told)
        seen[stage.task.image_size] = np.asarray(made.ids_BN), arrays["init"]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(base), "make", watch)
        system.generate(CAPTIONS, options, init_images=images)
    small, large = (
        (ids.reshape(3, side, side), tokens_of(init).reshape(3, side, side))
        for (ids, init), side in ((seen[None], 4), (seen[16], 8))
    )
    same = small[0] == small[1]
    assert 0.3 < same.mean() < 1
    over = same.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(large[0][over], large[1][over])
    assert not np.array_equal(large[0][~over], large[1][~over])


def test_wide_images_go_through_both_stages(system):
    wide = {"image_size": (16, 24), **_STEPS}
    stages = system.generate(CAPTIONS, return_stages=True, **wide)
    assert [stage.shape for stage in stages] == [(3, 8, 12, 3), (3, 16, 24, 3)]
    np.testing.assert_array_equal(system.generate(CAPTIONS, stop_at="base", **wide), stages[0])
    image = images_of(1, 16, 16)
    beyond = system.generate(
        CAPTIONS[:1], init_images=image, outpaint=(0, 0, 1 / 3, 0), feather=0, **wide
    )
    np.testing.assert_array_equal(beyond[:, :, :16], image)


def test_a_critic_of_one_stage_is_no_mistake_of_the_other(base, superres):
    critical = system_of(dataclasses.replace(TASK, critic=CRITIC))
    system = _joined(critical, superres)
    chosen = system._chosen(MuseOptions(critic=True, critic_noise=2.0))
    assert [(options.critic, options.critic_noise) for _, options in chosen] == [
        (True, 2.0),
        (None, None),
    ]
    assert [stage.task.has_critic_for(options) for stage, options in chosen] == [True, False]
    chosen = _joined(base, superres)._chosen(MuseOptions())
    assert not any(stage.task.has_critic_for(options) for stage, options in chosen)


def test_on_a_mesh_of_one_device_the_images_are_the_same(system):
    there = system.on_mesh({"data": 1})
    np.testing.assert_array_equal(
        there.generate(CAPTIONS, **_STEPS), system.generate(CAPTIONS, **_STEPS)
    )
    assert on_mesh(system.base, {"data": 1}).mesh is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps=0 is not a number from 1"),
        ({"superres_steps": 0}, "superres_steps=0 is not a number from 1"),
        ({"superres_guidance": float("nan")}, "superres_guidance=nan"),
        ({"choice_temperature": None}, "choice_temperature=None is not a finite number"),
        ({"temperature": None}, "temperature=None is not a finite number"),
        ({"images_per_prompt": None}, "images_per_prompt=None is not a number"),
        ({"superres_temperature": -1.0}, "superres_temperature=-1.0 is below 0"),
        ({"stop_at": "bas"}, "did you mean 'base'"),
        ({"critic": True}, "critic=True, and none was trained"),
        ({"image_size": (16, 22)}, r"multiples of 4 pixels; try \(16, 24\)"),
        ({"image_size": 8}, "smaller than the 16x16 pixels of training"),
        ({"mask": np.ones((16, 16), bool)}, "mask says what becomes of init_images"),
        ({"edit_steps": 3}, "edit_steps=3 says what becomes of init_images"),
        ({"init_images": images_of(3, 16, 16), "mask": np.ones((3, 9), bool)}, "mask is 9x3"),
        ({"options": MaskGitOptions()}, "another system; give MuseOptions"),
        ({"negative_prompts": ["zebra"]}, "negative_prompts has 1 caption for 3 prompts"),
        (
            {"negative_prompts": ["zebra"], "guidance": 1.0, "superres_guidance": 2.0},
            "negative_prompts has 1 caption for 3 prompts",
        ),
        ({"negative_prompts": "zebra", "guidance": 1.0}, "have no effect at guidance=1"),
        (
            {"negative_prompts": "zebra", "guidance": 1.0, "stop_at": "base"},
            "have no effect at guidance=1",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_compiles(system, changes, says, monkeypatch):
    monkeypatch.setattr(
        "t2i_jax.systems.maskgit.sampling.generate", lambda *args, **kwargs: pytest.fail("it ran")
    )
    with pytest.raises(UserError, match=says):
        system.generate(CAPTIONS, **changes)


def test_stages_that_do_not_fit_are_refused(base, superres):
    with pytest.raises(UserError, match="parts.superres is not given"):
        MuseTask().with_parts({"base": Given(None, {})})
    with pytest.raises(UserError, match="parts.superres has cond_image_size=None"):
        _joined(base, base)
    with pytest.raises(UserError, match="parts.base makes no images from captions alone"):
        _joined(superres, superres)
    silent = system_of(dataclasses.replace(SUPERRES, text=None))
    with pytest.raises(UserError, match="parts.base reads captions, and parts.superres was"):
        _joined(base, silent)
    wide = system_of(dataclasses.replace(TASK, image_size=16))
    with pytest.raises(UserError, match="enlarges images of 8 pixels, and parts.base makes 16"):
        _joined(wide, superres)


def _planned(task, **parts):
    """A part that was trained with parts of these fingerprints."""
    own = {name: Given(None, {}, fingerprint=digits) for name, digits in parts.items()}
    return Given(None, {}, planned=task, parts=own)


def test_stages_and_tokenizers_are_looked_at_before_they_train():
    large = dataclasses.replace(SUPERRES, superres_tokenizer=SUPERRES.tokenizer)
    base, superres = _planned(TASK, tokenizer="1"), _planned(SUPERRES, tokenizer="2")
    both = {"base": base, "superres": superres}
    with pytest.raises(UserError, match="parts.base makes no images from captions alone"):
        MuseTask().check_parts({"base": superres, "superres": superres})
    for name in ("1", "2"):  # either of them reads it
        MuseTask().check_parts(both | {"tokenizer": Given(None, {}, fingerprint=name)})
    unread = "parts.base and parts.superres came with another tokenizer than parts.tokenizer, which"
    anew = Given(None, {}, planned="a task, still to be trained")
    for other in (anew, Given(None, {}, fingerprint="3")):
        with pytest.raises(UserError, match=unread):
            MuseTask().check_parts(both | {"tokenizer": other})
    both["base"] = _planned(TASK, tokenizer="1", superres_tokenizer="5")  # which it does not read
    both["superres"] = _planned(large, tokenizer="1", superres_tokenizer="4")
    MuseTask().check_parts(both | {"superres_tokenizer": Given(None, {}, fingerprint="4")})
    with pytest.raises(UserError, match="^parts.superres came with another superres_tokenizer"):
        MuseTask().check_parts(both | {"superres_tokenizer": Given(None, {}, fingerprint="5")})


def test_another_tokenizer_of_the_small_images_is_given_its_own_tokens(base, superres, system):
    copied = jax.tree.map(np.array, superres.frozen)
    assert _joined(base, dataclasses.replace(superres, frozen=copied)).shared
    moved = {"tokenizer": jax.tree.map(lambda leaf: leaf + 0.05, superres.frozen["tokenizer"])}
    other = _joined(base, dataclasses.replace(superres, frozen=moved))
    assert not other.shared
    stages = other.generate(CAPTIONS, return_stages=True, image_size=(16, 24), **_STEPS)
    assert [stage.shape for stage in stages] == [(3, 8, 12, 3), (3, 16, 24, 3)]
    same = system.generate(CAPTIONS, return_stages=True, image_size=(16, 24), **_STEPS)
    np.testing.assert_array_equal(stages[0], same[0])
    assert not np.array_equal(stages[1], same[1])
