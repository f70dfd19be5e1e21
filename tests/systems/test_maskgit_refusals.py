"""Mistakes that MaskGIT's task and system refuse before anything compiles."""

import dataclasses

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.maskgit.options import MaskGitOptions
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.maskgit.task import MaskGitTask
from tests.systems.toy_muse import (
    CAPTIONS,
    CRITIC,
    NETWORK,
    SUPERRES,
    TASK,
    TEXT,
    TOKENIZER,
    images_of,
    system_of,
)


# the systems of test_maskgit_sampling.py
@pytest.fixture(scope="module")
def system():
    return system_of(TASK)


@pytest.fixture(scope="module")
def superres():
    return system_of(SUPERRES)


@pytest.fixture(scope="module")
def critical():
    return system_of(dataclasses.replace(TASK, critic=CRITIC))


_IMAGES = images_of(3, 8, 8)


@pytest.mark.parametrize(
    ("prompts", "changes", "says"),
    [
        ([], {}, "prompts="),
        (None, {}, "prompts=None: this system was trained on captions"),
        (CAPTIONS, {"negative_prompts": ["zebra"]}, "negative_prompts has 1 caption for 3 prompts"),
        (CAPTIONS, {"negative_prompts": CAPTIONS, "guidance": 1.0}, "guidance=1"),
        (CAPTIONS, {"steps": 0}, "steps=0 is not a number from 1"),
        (CAPTIONS, {"steps": 10**6}, "steps=1000000 is too many"),
        (CAPTIONS, {"guidance": float("inf")}, "guidance=inf"),
        (CAPTIONS, {"temperature": -1.0}, "temperature=-1.0 is below 0"),
        (CAPTIONS, {"top_p": 0.0}, "top_p"),
        (CAPTIONS, {"top_k": 0}, "top_k"),
        (CAPTIONS, {"order": "halon"}, "did you mean 'halton'"),
        (CAPTIONS, {"plausibility": 1.5}, r"plausibility=1.5 is outside \[0, 1\]"),
        (CAPTIONS, {"critic": True}, "critic=True, and none was trained"),
        (CAPTIONS, {"critic_noise": 2.0}, "critic_noise=2.0 is noise on the scores of a critic"),
        (CAPTIONS, {"remask": True}, "no_mask_token_prob=0 of the task never trained it"),
        (CAPTIONS, {"remask": True, "order": "halton"}, "remask=True does nothing"),
        (CAPTIONS, {"critic": True, "order": "random"}, "and so does order='random'"),
        (CAPTIONS, {"choice_temperature": 1.0, "order": "random"}, "does not look at"),
        (CAPTIONS, {"compat": "muse"}, "compat='muse' is not known"),
        (CAPTIONS, {"seed": -1}, "seed=-1"),
        (CAPTIONS, {"images_per_prompt": 10**8}, "makes 300000000 images"),
        (CAPTIONS, {"batch_size": 0}, "batch_size"),
        (CAPTIONS, {"on_step": "show"}, "on_step='show' is no function"),
        (CAPTIONS, {"stepps": 2}, "did you mean 'steps'"),
        (CAPTIONS, {"options": ImagenOptions()}, "another system; give MaskGitOptions"),
        (CAPTIONS, {"mask": np.ones((8, 8), bool)}, "mask says what becomes of init_images"),
        (CAPTIONS, {"edit_steps": 3}, "edit_steps=3 says what becomes of init_images"),
        (CAPTIONS, {"outpaint": (0, 0, 0.5, 0)}, "outpaint=.* says what becomes of init_images"),
        (CAPTIONS, {"outpaint": (0.5, 0, 0.5, 0)}, "leaves no room for init_images"),
        (CAPTIONS, {"outpaint": (0, 0, 0, 0)}, "or none around them"),
        (CAPTIONS, {"outpaint": 0.5}, r"outpaint=0.5 is not \(left, top, right, bottom\)"),
        (
            CAPTIONS,
            {"init_images": _IMAGES, "mask": np.ones((8, 8), bool), "edit_steps": 3},
            "mask and edit_steps=3 say different things",
        ),
        (CAPTIONS, {"init_images": _IMAGES[:2]}, "one image per prompt"),
        (CAPTIONS, {"init_images": _IMAGES, "mask": np.ones((3, 9), bool)}, "mask is 9x3 pixels"),
        (CAPTIONS, {"init_images": _IMAGES, "mask": np.eye(8) > 0}, "mask keeps no token"),
        (
            CAPTIONS,
            {"init_images": _IMAGES, "outpaint": (0.45, 0.45, 0.45, 0.45)},
            r"outpaint=\(0.45, .* keeps no token",
        ),
        (CAPTIONS, {"init_images": _IMAGES, "strength": 0.0}, "strength=0.0 is outside"),
        (CAPTIONS, {"init_images": _IMAGES, "feather": -1}, "feather=-1 is outside"),
        (CAPTIONS, {"cond_images": _IMAGES}, "this system enlarges no images"),
        (CAPTIONS, {"image_size": (8, 13)}, r"not both multiples of 2 pixels; try \(8, 14\)"),
        (CAPTIONS, {"image_size": 4}, r"smaller than the 8x8 pixels of training; try \(8, 8\)"),
        (CAPTIONS, {"image_size": (8, 8, 3)}, "is no size in pixels"),
        (CAPTIONS, {"image_size": 0}, "image_size=0 is no size"),
        (CAPTIONS, {"overlap": 1.0}, "overlap=1.0 is outside"),
        (CAPTIONS, {"overlap": 0.2}, "overlap=0.2 is nothing without image_size"),
        (CAPTIONS, {"strength": 0.2}, "strength=0.2 is nothing without init_images"),
        (CAPTIONS, {"feather": 2, "init_images": _IMAGES}, "nothing without mask or outpaint"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_compiles(system, prompts, changes, says, monkeypatch):
    monkeypatch.setattr(
        "t2i_jax.systems.maskgit.sampling.generate", lambda *args, **kwargs: pytest.fail("it ran")
    )
    with pytest.raises(UserError, match=says):
        system.generate(prompts, **changes)


def test_mistakes_with_other_systems(critical, superres, monkeypatch):
    monkeypatch.setattr(
        "t2i_jax.systems.maskgit.sampling.generate", lambda *args, **kwargs: pytest.fail("it ran")
    )
    with pytest.raises(UserError, match="give critic_noise, or critic=False"):
        critical.generate(CAPTIONS, choice_temperature=2.0)
    with pytest.raises(UserError, match="critic_noise=1.0 is noise on the scores of a critic"):
        critical.generate(CAPTIONS, critic=False, critic_noise=1.0)
    with pytest.raises(UserError, match="this system enlarges images of 8 pixels; give one"):
        superres.generate(CAPTIONS)
    with pytest.raises(UserError, match=r"multiples of 4 pixels; try \(16, 24\)"):
        superres.generate(CAPTIONS, cond_images=_IMAGES, image_size=(16, 22))
    alone = MaskGitSystem(dataclasses.replace(TASK, text=None), {}, {})
    with pytest.raises(UserError, match="prompts are given to a system that was trained without"):
        alone.generate(CAPTIONS)
    with pytest.raises(UserError, match="guidance=5.0 is towards a caption"):
        alone.generate(guidance=5.0)


_VIT = VitVQGanVAE(
    dim=8, image_size=8, layers=1, patch_size=2, heads=1, dim_head=8, codebook_size=16
)


def test_guidance_without_dropped_captions_is_said(system, capsys):
    never = dataclasses.replace(system, task=dataclasses.replace(TASK, cond_drop_prob=0.0))
    for one, guidance, negative, told in (
        (never, 3.0, None, True), (never, 1.0, None, False), (never, 3.0, CAPTIONS, False),
        (system, 3.0, None, False),
    ):  # fmt: skip
        one._texts(CAPTIONS, negative, MaskGitOptions(guidance=guidance))
        assert ("guidance=1 is what it has learnt" in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MaskGitTask(NETWORK.clone(codebook_size=17), TEXT, TOKENIZER), "codebook_size=17"),
        (lambda: MaskGitTask(NETWORK.clone(fmap_size=5), TEXT, TOKENIZER), "fmap_size=5"),
        (lambda: MaskGitTask(NETWORK.clone(text_embed_dim=9), TEXT, TOKENIZER), "text_embed_dim=9"),
        (lambda: MaskGitTask(NETWORK, TEXT), "model.fmap_size=None is not known"),
        (lambda: MaskGitTask(CRITIC, TEXT, TOKENIZER), "model=TokenCritic"),
        (lambda: dataclasses.replace(TASK, critic=NETWORK), "critic=MaskGitTransformer"),
        (lambda: dataclasses.replace(TASK, cond_drop_prob=1.5), "cond_drop_prob=1.5"),
        (lambda: dataclasses.replace(TASK, critic_loss_weight=-1.0), "critic_loss_weight=-1.0"),
        (lambda: dataclasses.replace(TASK, trains=()), r"trains=\(\) trains nothing"),
        (lambda: dataclasses.replace(TASK, trains=("critic",)), "trains='critic' is not known"),
        (lambda: dataclasses.replace(TASK, image_size=9), "image_size=9"),
        (lambda: dataclasses.replace(SUPERRES, cond_image_size=6), "cond_image_size=6 is no part"),
        (lambda: dataclasses.replace(SUPERRES, cond_image_size=16), "is no part"),
        (
            lambda: dataclasses.replace(
                SUPERRES, stored_tokens=True, tokenizer=None, superres_tokenizer=TOKENIZER
            ),
            "cond_image_size=8 needs tokens of both sizes; give a tokenizer",
        ),
        (
            lambda: dataclasses.replace(
                SUPERRES, superres_tokenizer=TOKENIZER.clone(parent=None, channels=1)
            ),
            "superres_tokenizer.channels=1 is not that of tokenizer, 3",
        ),
        (lambda: MaskGitTask(NETWORK, TEXT, _VIT, image_size=16), "weights are those of one size"),
        (
            lambda: MaskGitTask(NETWORK, TEXT, _VIT).check_options(MaskGitOptions(image_size=16)),
            "image_size=16 is another size than the tokenizer's image_size=8",
        ),
        (
            lambda: MaskGitSystem(
                MaskGitTask(NETWORK.clone(fmap_size=2, codebook_size=4), TEXT), {}, {}
            ).generate(["a"]),
            "tokenizer=None",
        ),
        (lambda: MaskGitSystem(TASK, {}, {}).generate(["a"]), "caption 'a' names none of the 4"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
