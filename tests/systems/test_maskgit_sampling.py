"""MaskGIT's system, tiny: every option of `generate`; images to complete, change and enlarge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import SelfCritic
from t2i_jax.systems.maskgit import windows
from t2i_jax.systems.maskgit.blend import blended
from t2i_jax.systems.maskgit.canvas import box_of
from t2i_jax.systems.maskgit.options import MaskGitOptions
from tests.systems.toy_muse import (
    CAPTIONS,
    CRITIC,
    NETWORK,
    STORED,
    SUPERRES,
    TASK,
    batch_of,
    images_of,
    loss_of,
    system_of,
    tokens_of,
)

_STEPS = {"steps": 3}


@pytest.fixture(scope="module")
def system():
    return system_of(TASK)


@pytest.fixture(scope="module")
def superres():
    return system_of(SUPERRES)


@pytest.fixture(scope="module")
def critical():
    return system_of(dataclasses.replace(TASK, critic=CRITIC))


def _arrays_of(system, options, **inputs):
    """(what was made, with its tokens) of the captions."""
    options = system.fitting(options)
    arrays = system.prepare(CAPTIONS, options, **inputs)
    return system.make(arrays, jax.random.split(jax.random.key(0), len(CAPTIONS)), options)


def test_the_same_seed_gives_the_same_images_in_any_batch(system):
    whole = system.generate(CAPTIONS, seed=4, **_STEPS)
    assert whole.shape == (3, 8, 8, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, system.generate(CAPTIONS, seed=4, batch_size=2, **_STEPS))
    assert not np.array_equal(whole, system.generate(CAPTIONS, seed=5, **_STEPS))
    np.testing.assert_array_equal(
        whole[:1], system.generate(CAPTIONS[0], seed=4, batch_size=2, **_STEPS)
    )
    each = [system.generate(CAPTIONS, seed=one, **_STEPS) for one in ([4, 5, 6], np.arange(4, 7))]
    np.testing.assert_array_equal(*each)
    several = system.generate(CAPTIONS[:1], images_per_prompt=3, return_pil=True, **_STEPS)
    assert len({image.tobytes() for image in several}) > 1


def test_previews_show_every_step_and_end_in_the_images(system):
    steps = system.generate(CAPTIONS, seed=4, return_steps=True, **_STEPS)
    assert len(steps) == 3 and steps[0].shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(steps[-1], system.generate(CAPTIONS, seed=4, **_STEPS))
    assert not np.array_equal(steps[0], steps[-1])
    assert isinstance(
        system.generate(CAPTIONS, return_steps=True, return_pil=True, **_STEPS)[0][0], Image.Image
    )


@pytest.mark.parametrize("changes", [{}, {"image_size": (8, 12)}, {"edit_steps": 2}])
def test_previews_come_while_it_samples_and_cost_the_images_nothing(system, changes):
    """Of two batches, of which the second is filled up; what the caller raises is raised."""
    if "edit_steps" in changes:
        changes = {**changes, "init_images": images_of(3, 8, 8)}
    seen = []
    given = {"seed": 4, "batch_size": 2, "return_steps": True, **changes, **_STEPS}
    steps = system.generate(CAPTIONS, on_step=seen.append, **given)
    np.testing.assert_array_equal(steps, system.generate(CAPTIONS, **given))
    assert [len(one) for one in seen] == [2] * len(steps) + [1] * len(steps)
    for i, step in enumerate(steps):
        found = np.concatenate([seen[i], seen[len(steps) + i]])
        np.testing.assert_array_equal(found, step)

    def stop(images):
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        system.generate(CAPTIONS, on_step=stop, **given)
    assert len(system.generate(CAPTIONS, **given)) == len(steps)  # nobody is told any more


def test_guidance_and_negative_prompts(system):
    def sample(**changes):
        return system.generate(CAPTIONS, temperature=0.0, plausibility=0.0, **_STEPS, **changes)

    plain, strong = sample(guidance=1.0), sample(guidance=8.0)
    assert not np.array_equal(plain, strong)
    # with the caption itself as the negative, guidance adds nothing
    np.testing.assert_array_equal(sample(guidance=8.0, negative_prompts=CAPTIONS), plain)
    against = [["zebra far off"] * 3, "zebra far off"]
    made = [sample(guidance=8.0, negative_prompts=given) for given in against]
    np.testing.assert_array_equal(*made)
    assert not np.array_equal(made[0], strong)
    assert not np.array_equal(sample(guidance=8.0, growing=False), strong)


def test_a_scale_that_is_all_but_1_is_no_guidance(system):
    def sample(**changes):
        return system.generate(CAPTIONS, plausibility=0.0, **_STEPS, **changes)

    np.testing.assert_array_equal(sample(guidance=1.0), sample(guidance=1.0 + 1e-7))


def test_filters_orders_and_remasking(system):
    def sample(**changes):
        return system.generate(CAPTIONS, **_STEPS, **changes)

    plain = sample()
    for changes in (
        {"order": "halton"}, {"order": "random"}, {"order": "random", "remask": True},
        {"choice_temperature": 20.0}, {"top_k": 1}, {"top_p": 0.3},
    ):  # fmt: skip
        assert not np.array_equal(sample(**changes), plain), changes
    np.testing.assert_array_equal(sample(top_k=1), sample(temperature=0.0))
    np.testing.assert_array_equal(sample(top_k=0.999, top_p=1.0), plain)
    seen = dataclasses.replace(system, task=dataclasses.replace(TASK, no_mask_token_prob=0.1))
    kept, again = (
        _arrays_of(one, MaskGitOptions(remask=remask, temperature=3.0, **_STEPS)).trace_SBN
        for one, remask in ((system, False), (seen, True))
    )

    def settles(trace):
        """The number of tokens that change more often than once."""
        return ((np.diff(np.asarray(trace), axis=0) != 0).sum(0) > 1).sum()

    assert settles(again) > 0 and not np.array_equal(kept, again)


def test_a_critic_is_used_where_there_is_one_and_not_where_another_order_is_asked(critical):
    task = dataclasses.replace(critical.task, critic=None)
    weights = {"maskgit": critical.weights["maskgit"]}
    plain = dataclasses.replace(critical, task=task, weights=weights)

    def sample(system, **changes):
        return system.generate(CAPTIONS, **{"steps": 5, **changes})

    judged = sample(critical)
    assert not np.array_equal(judged, sample(plain))
    np.testing.assert_array_equal(judged, sample(critical, critic=True, critic_noise=1.0))
    np.testing.assert_array_equal(sample(critical, critic=False), sample(plain))
    np.testing.assert_array_equal(sample(critical, order="halton"), sample(plain, order="halton"))
    assert not np.array_equal(sample(critical, critic_noise=50.0), judged)


def test_a_critic_of_the_networks_own_vectors_and_self_conditioning():
    task = dataclasses.replace(TASK, model=NETWORK.clone(self_cond=True), critic=SelfCritic())
    system = system_of(task)

    def sample(**changes):
        return system.generate(CAPTIONS, **{"steps": 5, "guidance": 6.0, **changes})

    judged = sample()
    assert not np.array_equal(judged, sample(critic=False))
    assert not np.array_equal(judged, sample(compat="muse-maskgit-pytorch"))
    np.testing.assert_array_equal(judged[1:2], system.generate(
        CAPTIONS, steps=5, guidance=6.0, batch_size=1)[1:2])  # fmt: skip
    deaf = dataclasses.replace(system, task=dataclasses.replace(task, model=NETWORK))
    assert not np.array_equal(judged, deaf.generate(CAPTIONS, steps=5, guidance=6.0))


def test_without_texts_and_from_stored_text():
    task = dataclasses.replace(TASK, text=None)
    system = system_of(task)
    images = system.generate(images_per_prompt=3, **_STEPS)
    assert images.shape == (3, 8, 8, 3) and len({image.tobytes() for image in images}) > 1
    again = system.generate(None, images_per_prompt=3, batch_size=2, guidance=1.0, **_STEPS)
    np.testing.assert_array_equal(images, again)
    assert "negative_prompts" not in task.inputs and task.samples == ()
    loss, (metrics, _) = loss_of(task, batch_of(task))
    assert np.isfinite(loss) and "text" not in task.batch_spec(1)
    stored = system_of(dataclasses.replace(STORED, stored_tokens=False))
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 3, 6)).astype(np.float32), np.ones((2, 3), bool)
    assert stored.generate(pair, negative_prompts=pair, **_STEPS).shape == (2, 8, 8, 3)


# --- images to complete, to change and to enlarge


def test_known_tokens_are_kept_and_pixels_with_a_seam(system, capsys):
    images, options = images_of(3, 8, 8), MaskGitOptions(**_STEPS)
    ids = tokens_of(images)
    whole = _arrays_of(system, options, init_images=images, mask=np.ones((8, 8), bool))
    np.testing.assert_array_equal(whole.ids_BN, ids)
    capsys.readouterr()
    mask = np.zeros((8, 8), bool)
    mask[:5] = True  # two rows of tokens, and half of the third
    made = _arrays_of(system, options, init_images=images, mask=mask)
    told = "t2i: MaskGIT keeps whole tokens, 2x2 pixels each: 24 of 48; 24 kept pixels beside "
    assert capsys.readouterr().err == f"{told}them are inpainted.\n"
    assert (np.asarray(made.trace_SBN)[..., :8] == ids[:, :8]).all()
    assert not np.array_equal(made.ids_BN[:, 8:], ids[:, 8:])
    sharp = system.generate(CAPTIONS, init_images=images, mask=mask, feather=0, **_STEPS)
    assert "them are laid over what is made" in capsys.readouterr().err
    np.testing.assert_array_equal(sharp[:, mask], images[:, mask])
    bare = system.generate(CAPTIONS, init_images=images, mask=mask, **_STEPS)
    np.testing.assert_array_equal(sharp[:, ~mask], bare[:, ~mask])
    white = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    pictures = [Image.fromarray(image) for image in images]
    again = system.generate(CAPTIONS, init_images=pictures, mask=white, **_STEPS)
    np.testing.assert_array_equal(again, bare)


@pytest.mark.parametrize("feather", [1, 4, 12])
def test_a_seam_lies_inside_of_what_is_kept(feather):
    init, made = np.full((1, 40, 40, 3), 200, np.uint8), np.zeros((1, 40, 40, 3), np.uint8)
    keep = np.broadcast_to(np.arange(40) >= 20, (1, 40, 40))
    mixed = blended(made, init, keep, feather)
    row = mixed[0, 20, :, 0]
    assert (row[:20] == 0).all() and (np.diff(row[20:].astype(int)) >= 0).all()
    assert (row[20 + feather + 1 :] == 200).all() and 0 < row[20] < 200
    np.testing.assert_array_equal(blended(made, init, np.ones_like(keep), feather), init)


def test_images_are_changed_by_a_share_and_edited_little_by_little(system):
    images = images_of(3, 8, 8)
    ids = tokens_of(images)

    def changed(**options):
        made = _arrays_of(system, MaskGitOptions(**options), init_images=images)
        return (np.asarray(made.ids_BN) != ids).sum(1)

    some = changed(strength=0.25, **_STEPS)
    assert (some <= 4).all() and some.sum() > 0  # of 16
    assert changed(strength=1.0, **_STEPS).sum() > some.sum()
    few = changed(edit_steps=2, edit_share=0.07)
    assert (few <= 2).all() and few.sum() > 0
    # negative prompts have a say
    options = dict(edit_steps=3, edit_share=1.0, guidance=8.0, temperature=0.0)
    one, other = (
        system.generate(CAPTIONS, init_images=images, negative_prompts=against, **options)
        for against in (None, "zebra far off")
    )
    assert not np.array_equal(one, other)


def test_superres_enlarges_any_image(superres, system):
    small = images_of(3, 8, 8)
    large = superres.generate(CAPTIONS, cond_images=small, **_STEPS)
    assert large.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(
        large[1:2],
        superres.generate(CAPTIONS, cond_images=list(small), batch_size=2, **_STEPS)[1:2],
    )
    assert not np.array_equal(large, superres.generate(CAPTIONS, cond_images=small[::-1], **_STEPS))
    # from tokens, as Muse hands them on: the same
    options = superres.fitting(MaskGitOptions(**_STEPS))
    keys = jax.random.split(jax.random.key(0), 3)
    of_images = superres.prepare(CAPTIONS, options, cond_images=small)
    of_tokens = superres.prepare(CAPTIONS, options, from_tokens=True) | {
        "cond_ids": tokens_of(small)
    }
    made = [superres.make(arrays, keys, options).images for arrays in (of_images, of_tokens)]
    np.testing.assert_array_equal(*made)
    assert superres.upscale(small, prompts=CAPTIONS, **_STEPS).shape == (3, 16, 16, 3)
    assert superres.upscale(small, **_STEPS).shape == (3, 16, 16, 3)
    dropped, changes = superres._enlarging(3, None)  # as where training dropped captions
    assert not superres.prepare(dropped, options, cond_images=small)["text_mask"].any()
    assert changes == {"guidance": 1.0}
    superres.check_upscale(CAPTIONS, batch_size=2)
    with pytest.raises(UserError, match="batch_size=0"):
        superres.check_upscale(batch_size=0)
    with pytest.raises(UserError, match="makes no larger images"):
        system.upscale(small)
    with pytest.raises(UserError, match="makes no codes of images; give the run of an image"):
        _ = system.coded_size
    mask = np.arange(16)[:, None] * np.ones(16) < 8
    kept = superres.generate(
        CAPTIONS,
        cond_images=small,
        init_images=images_of(3, 16, 16),
        mask=mask,
        feather=0,
        **_STEPS,
    )
    np.testing.assert_array_equal(kept[:, :8], images_of(3, 16, 16)[:, :8])


# --- larger images


def test_windows_cover_the_grid_and_overlap():
    for length, overlap in ((4, 0.5), (5, 0.5), (9, 0.5), (9, 0.0), (13, 0.75), (30, 0.3)):
        found = windows.windows_over((4, length), 4, overlap)
        columns = [column for row, column in found.starts]
        assert columns[0] == 0 and columns[-1] == length - 4 and found.grid == (4, length)
        strides = np.diff(columns)
        assert (strides > 0).all() and (strides <= max(1, int(4 * (1 - overlap)))).all()
    # over whole tokens of the smaller image
    over = windows.windows_over((8, 20), 8, 0.5, small_side=4)
    assert over.small_grid == (4, 10)
    assert [(row / 2, column / 2) for row, column in over.starts] == list(over.small[1])


def test_a_window_is_drawn_as_an_image_of_its_own_and_given_those_before_it(system):
    """The first window is what is made of the first window's key, and later ones keep it."""
    options = MaskGitOptions(image_size=(8, 12), **_STEPS)
    made = _arrays_of(system, options)
    assert made.grid == (4, 6) and made.images.shape == (3, 8, 12, 3) and len(made.trace_SBN) == 2
    first, last = np.asarray(made.trace_SBN).reshape(2, 3, 4, 6)
    assert (first[:, :, 4:] == 16).all() and (last < 16).all()
    np.testing.assert_array_equal(first[:, :, :4], last[:, :, :4])  # the seam shares tokens
    keys = jax.random.split(jax.random.key(0), 3)
    plain = MaskGitOptions(**_STEPS)
    arrays = system.prepare(CAPTIONS, plain)

    def number(i):
        return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)

    alone = np.asarray(system.make(arrays, number(0), plain).ids_BN).reshape(3, 4, 4)
    np.testing.assert_array_equal(first[:, :, :4], alone)
    # the second one is an inpainting of what it shares with the first
    known = np.zeros((4, 4), bool)
    known[:, :2] = True
    known = np.broadcast_to(known.reshape(-1), (3, 16))

    def given(params, frozen, ids):
        from t2i_jax.decoding import masked
        from t2i_jax.systems.maskgit.sampling import _networks, _texts

        texts = _texts(params, frozen, arrays, 3, TASK, True)
        predict, _ = _networks(params, None, TASK, texts, None, True, True, 3.0)

        def logits(vectors):
            return TASK.network.apply({"params": params["decoder"]}, vectors, method="logits")

        return masked.generate(
            predict, number(1), 16, 16, sampling=plain.sampling, given_BN=ids, guidance=3.0,
            logits=logits, plausibility=0.1, critic_noise=1.0, known_BN=known,
        )[0]  # fmt: skip

    start = np.concatenate([alone[:, :, 2:], np.zeros((3, 4, 2), int)], axis=-1).reshape(3, 16)
    second = jax.jit(given)(system.weights["maskgit"], system.frozen, start)
    np.testing.assert_array_equal(np.asarray(second).reshape(3, 4, 4), last[:, :, 2:])


def test_wide_images_in_any_batch_and_as_previews(system):
    wide = {"image_size": (8, 12), **_STEPS}
    whole = system.generate(CAPTIONS, seed=4, **wide)
    assert whole.shape == (3, 8, 12, 3)
    np.testing.assert_array_equal(whole, system.generate(CAPTIONS, seed=4, batch_size=2, **wide))
    seen = system.generate(CAPTIONS, seed=4, return_steps=True, **wide)
    assert (seen[0][:, :, 8:] == 127).all() and len(seen) == 2
    np.testing.assert_array_equal(seen[1], whole)
    np.testing.assert_array_equal(
        system.generate(CAPTIONS, image_size=8, **_STEPS), system.generate(CAPTIONS, **_STEPS)
    )


def test_wide_images_are_inpainted_changed_and_edited(system, capsys):
    wide, images = {"image_size": (8, 12)}, images_of(3, 8, 12)
    ids = tokens_of(images)
    mask = np.ones((8, 12), bool)
    mask[2:6, 4:10] = False
    made = _arrays_of(system, MaskGitOptions(**wide, **_STEPS), init_images=images, mask=mask)
    known = mask[::2, ::2].reshape(-1)
    assert (np.asarray(made.ids_BN)[:, known] == ids[:, known]).all()
    assert not np.array_equal(made.ids_BN, ids)

    def changed(**options):
        made = _arrays_of(system, MaskGitOptions(**wide, **options), init_images=images)
        return (np.asarray(made.ids_BN) != ids).sum(1)

    assert (changed(strength=0.25, **_STEPS) <= 6).all()  # of 24
    assert (changed(edit_steps=1, edit_share=0.07) <= 2).all()  # one of each window


def test_an_image_goes_on_beyond_its_edge(system):
    image = images_of(1, 8, 8)
    options = {"image_size": (8, 16), "outpaint": (0.25, 0, 0.25, 0), "feather": 0}
    made = system.generate(CAPTIONS[:1], init_images=image, **options, **_STEPS)
    assert made.shape == (1, 8, 16, 3)
    np.testing.assert_array_equal(made[:, :, 4:12], image)
    assert len(np.unique(made[:, :, :4])) > 10
    box = box_of((0.5, 0, 0, 0.25), (8, 16))
    assert box.size == (6, 8) and box.keep_HW.sum() == 48 and not box.keep_HW[:, :8].any()
    assert box_of((0.999, 0, 0, 0), (8, 8)).size == (8, 1)


def test_superres_windows_are_conditioned_on_their_part_of_the_small_image(superres):
    options = MaskGitOptions(image_size=(16, 24), **_STEPS)
    arrays = superres.prepare(CAPTIONS, options, from_tokens=True)
    cond = np.random.default_rng(0).integers(0, 16, (3, 4, 6))
    other = cond.copy()
    other[:, :, 4:] = (other[:, :, 4:] + 1) % 16  # in the last window alone

    def made(ids):
        keys = jax.random.split(jax.random.key(0), 3)
        return superres.make(arrays | {"cond_ids": jnp.asarray(ids.reshape(3, -1))}, keys, options)

    whole, again = made(cond), made(other)
    assert whole.images.shape == (3, 16, 24, 3) and len(whole.trace_SBN) == 2
    np.testing.assert_array_equal(whole.trace_SBN[0], again.trace_SBN[0])
    assert not np.array_equal(whole.ids_BN, again.ids_BN)
    small = images_of(3, 8, 12)
    of_images = superres.generate(CAPTIONS, cond_images=small, image_size=(16, 24), **_STEPS)
    assert of_images.shape == (3, 16, 24, 3)
