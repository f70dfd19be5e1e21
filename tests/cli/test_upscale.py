"""`t2i sample --upscale`: every kind of run that enlarges images works, with captions and without,
or is refused before an image is made.
"""

import dataclasses
import types

import numpy as np
import pytest

from t2i_jax import runs
from t2i_jax.cli import sample
from t2i_jax.errors import UserError
from t2i_jax.models.super_resolution import SuperResolution
from t2i_jax.systems import given, prompting
from t2i_jax.systems.imagen.options import ImagenOptions
from t2i_jax.systems.imagen.system import ImagenSystem
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.super_resolution.system import SuperResolutionSystem
from t2i_jax.systems.super_resolution.task import SuperResolutionTask
from t2i_jax.text.classes import ClassLabels
from t2i_jax.text.stored import StoredText
from tests.systems.toy_cascade import TASK, UNET

LABELS = ClassLabels(("circle", "square"), dim=6)
OF_WORDS = dataclasses.replace(TASK, text=LABELS)
OF_IMAGES = dataclasses.replace(TASK, text=None)
TRAINED = {"stage_1": 1, "stage_2": 1}


class Cascade(ImagenSystem):
    """One whose programs make blank images, and that remembers what they were given."""

    def _program(self, params, prompt, keys_B, *, size, sampling, **_):
        SEEN.append((prompt, sampling))
        return np.zeros((len(keys_B), *size, 3), np.float32)


class First:
    """Makes blank images, of the size of its options, and remembers that it has."""

    task = types.SimpleNamespace(text_encoder=LABELS, image_size=8)

    def generate(self, prompts, options, *, images_per_prompt, **_):
        SEEN.append("made")
        count = (len(prompts) if prompts else 1) * images_per_prompt
        return np.zeros((count, *(options or (8, 8)), 3), np.uint8)


SEEN: list = []


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Samples, and enlarges by this system; returns the images' shapes."""
    (tmp_path / "larger").mkdir()

    def run(larger, *captions, options=None, size=None, **fields):
        SEEN.clear()
        monkeypatch.setattr(
            runs, "load", lambda path, **_: larger if path.name == "larger" else First()
        )
        options = types.SimpleNamespace(evaluation=types.SimpleNamespace(options=options))
        monkeypatch.setattr(runs, "load_run_recipe", lambda path: options)
        saved = []
        monkeypatch.setattr(sample, "_save", lambda out, images, *_: saved.append(images.shape))
        common = sample._Command(
            tmp_path, captions, upscale=tmp_path / "larger", out=tmp_path / "out", **fields
        )
        sample._sample(common, size, {})
        return saved[0]

    return run


def cascade(task, updates=TRAINED):
    return Cascade(task, {"stage_1": {}, "stage_2": {}}, updates, {}, LABELS.tokenizer())


def network():
    task = SuperResolutionTask(SuperResolution(scale=2, blocks=1, channels=8), image_size=16)
    return SuperResolutionSystem(task, {})


@pytest.mark.parametrize("captions", [(), ("a circle", "a square")])
@pytest.mark.parametrize("task", [TASK, OF_WORDS, OF_IMAGES], ids=["stored", "words", "images"])
def test_a_cascade_of_any_kind_enlarges(command, capsys, task, captions):
    made = command(cascade(task), *captions, count=2, batch_size=3)
    assert made == (2 * max(len(captions), 1), 16, 16, 3) and SEEN[0] == "made"
    prompt, sampling = SEEN[1]
    reads = task is OF_WORDS and captions
    assert sampling.guided == bool(reads) and ("dropped" in prompt) == (
        task.text is not None and not reads
    )
    if reads:
        np.testing.assert_array_equal(prompt["text"][:, 0], [0, 0, 1])
    told = "reads stored text embeddings and enlarges without captions; --t5"
    assert (told in capsys.readouterr().err) == (task is TASK and bool(captions))


def superres():
    """A super-resolution with MaskGIT that hands on what it is given."""

    class Superres(MaskGitSystem):
        def generate(self, prompts, options, *, cond_images, **_):
            read = given.images("cond_images", cond_images, len(prompts), 3)
            return given.fitted("cond_images", read, (8, 8))

    small = types.SimpleNamespace(image_size=8, channels=3)
    task = types.SimpleNamespace(text=LABELS, text_encoder=LABELS, cond_image_size=8)
    task.tokenizers = (small, small)
    made = Superres(task, {}, {}, LABELS.tokenizer())
    object.__setattr__(made, "check_upscale", lambda *_, **__: None)
    return made


@pytest.mark.parametrize("larger", [cascade(OF_WORDS), superres()], ids=["cascade", "maskgit"])
def test_what_is_cut_off_the_images_that_were_made_is_told_once(command, capsys, larger):
    for size, told in (((8, 12), 1), ((12, 8), 1), ((16, 16), 0)):
        command(larger, "a circle", count=3, size=size)
        said = [line for line in capsys.readouterr().err.splitlines() if "in its middle" in line]
        assert len(said) == told
        for line in said:
            assert f"is {size[1]}x{size[0]} pixels" in line and "likewise 2 others" in line


class Words:
    """A T5 for which every word is a token."""

    dim = TASK.text.dim

    def __init__(self, max_length):
        self.max_length = max_length

    def tokenizer(self):
        def lengths(captions):
            return [len(one.split()) for one in captions]

        return types.SimpleNamespace(lengths=lengths)

    def init(self, key):
        return {}


@pytest.fixture
def t5(monkeypatch):
    """The T5 that any --t5 names."""

    def pair(text, params, captions):
        shape = (len(captions), text.max_length)
        return np.zeros((*shape, text.dim), np.float32), np.zeros(shape, bool)

    named = types.SimpleNamespace(from_directory=lambda path, *, max_length: Words(max_length))
    monkeypatch.setattr("t2i_jax.text.t5.T5Text", named)
    monkeypatch.setattr("t2i_jax.text.t5.pair_of", pair)
    monkeypatch.setattr("t2i_jax.runs.stored_text.check_t5", lambda *_: None)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (8, 4, ["last 2 are cut for upscale="]),
        (5, 4, ["the last one is cut.", "last 2 are cut for upscale="]),
        (4, 4, ["last 2 are cut."]),
        (4, 8, ["last 2 are cut."]),
        (8, 8, []),
        (None, 4, ["last 2 are cut."]),  # the first reads them itself
    ],
)
def test_what_t5_cuts_is_told_once_of_each_length(
    command, capsys, monkeypatch, t5, first, second, told
):
    text = None if first is None else StoredText(dim=TASK.text.dim, max_length=first)
    task = types.SimpleNamespace(text_encoder=text or LABELS, image_size=8)
    monkeypatch.setattr(First, "task", task)
    monkeypatch.setattr(First, "generate", lambda *_, **__: np.zeros((1, 8, 8, 3), np.uint8))
    text = StoredText(dim=TASK.text.dim, max_length=second)
    larger = cascade(dataclasses.replace(TASK, text=text))
    command(larger, "one two three four five six", count=1, t5="t5")
    said = [line for line in capsys.readouterr().err.splitlines() if "cut" in line]
    assert len(said) == len(told)
    for line, one in zip(said, told, strict=True):
        assert one in line and ("(text.max_length=4)" in line) == ("for upscale" in one)


@pytest.mark.parametrize("kind", [list, np.asarray])
def test_prompts_of_any_kind_are_repeated_each_beside_itself(kind):
    words = kind(["one", "two"])
    assert list(prompting.repeated(words, 2)) == ["one", "one", "two", "two"]
    pair = kind([[[0.0]], [[1.0]]]), kind([[True], [False]])
    embeds, mask = prompting.repeated(pair, 2)
    np.testing.assert_array_equal(embeds[:, 0, 0], [0, 0, 1, 1])
    np.testing.assert_array_equal(mask[:, 0], [True, True, False, False])
    for alone in (None, "one"):
        assert prompting.repeated(alone, 3) is alone


def test_t5_without_captions_is_refused(command):
    with pytest.raises(UserError, match="captions are missing"):
        command(cascade(TASK), t5="/does/not/exist")
    assert SEEN == []


def test_it_enlarges_as_its_recipe_says_with_the_seed_and_the_batches_of_the_command(command):
    options = ImagenOptions(steps=7, guidance=(3.0, 1.5))
    command(cascade(OF_WORDS), "circle", options=options, count=3, batch_size=2, seed=5)
    assert [sampling.steps for _, sampling in SEEN[1:]] == [7, 7]
    assert [len(prompt["small"]) for prompt, _ in SEEN[1:]] == [2, 2]


THREE = dataclasses.replace(
    OF_WORDS, stages=(*OF_WORDS.stages, dataclasses.replace(OF_WORDS.stages[1], image_size=32))
)


@pytest.mark.parametrize(
    ("stages", "ran", "told"),
    [
        ({}, [16, 32], ""),
        ({"stop_at": 1}, [16, 32], "stop_at=1 is left out, as images are enlarged from stage 2"),
        ({"stop_at": 2}, [16], ""),
        ({"start_at": 2, "stop_at": 1}, [16, 32], "stop_at=1 is left out"),
        ({"start_at": 3}, [32], "start_at=3, so that images to enlarge take the place of those"),
        ({"start_at": 3, "stop_at": 2}, [32], "stop_at=2 is left out, as images are enlarged from"),
    ],
)
def test_a_recipe_that_names_stages_enlarges_from_the_first_that_can(
    command, capsys, stages, ran, told
):
    larger = cascade(THREE, {**TRAINED, "stage_3": 1})
    larger = dataclasses.replace(larger, weights={**larger.weights, "stage_3": {}})
    made = command(larger, "circle", count=1, options=ImagenOptions(**stages))
    assert made == (1, ran[-1], ran[-1], 3) and len(SEEN) == 1 + len(ran)
    said = [line for line in capsys.readouterr().err.splitlines() if "_at=" in line]
    assert told in "".join(said) and said == sorted(set(said), key=said.index)
    assert bool(said) == bool(told)


def test_a_stop_that_is_asked_for_by_name_is_refused_where_nothing_would_run():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="stop_at=1 is before start_at=2"):
        cascade(OF_WORDS).upscale(images, ["circle"], stop_at=1)


@pytest.mark.parametrize(
    ("system", "options", "told"),
    [
        (cascade(TASK, {"stage_1": 1}), None, "stage 2 was never trained"),
        (cascade(TASK), ImagenOptions(steps=(1, 2, 3)), "has 3 values for 2 stages"),
        (
            cascade(
                dataclasses.replace(
                    TASK,
                    stages=(
                        TASK.stages[0],
                        dataclasses.replace(
                            TASK.stages[1],
                            unet=UNET.clone(memory_efficient=True, cond_images_channels=3),
                        ),
                    ),
                )
            ),
            None,
            "cond_images do not fit the cascade",
        ),
        (
            cascade(dataclasses.replace(TASK, text=ClassLabels(("tree",), dim=6))),
            None,
            "names none of the 1 classes",
        ),
    ],
)
def test_what_cannot_enlarge_is_refused_before_an_image_is_made(command, system, options, told):
    system = dataclasses.replace(
        system, text_tokenizer=system.task.text.tokenizer() or system.text_tokenizer
    )
    with pytest.raises(UserError, match=told):
        command(system, "a circle", options=options)
    assert SEEN == []


def test_a_network_of_images_alone_is_given_batches(command, monkeypatch):
    sizes = []

    def upscale(params, images, *, model):
        sizes.append(len(images))
        return np.repeat(np.repeat(images, 2, 1), 2, 2)

    monkeypatch.setattr("t2i_jax.systems.super_resolution.system.upscale", upscale)
    larger = SuperResolutionSystem(network().task, {"super_resolution": {}})
    assert command(larger, "circle", count=5, batch_size=2) == (5, 16, 16, 3)
    assert sizes == [2, 2, 2]
