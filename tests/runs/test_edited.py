"""Files of a run that a person edited or a disk damaged: they load, or one sentence names the file
and the field.
"""

import json
import pathlib
import pickle
import re
import shutil
import tarfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import t2i_jax as t2i
from t2i_jax.errors import UserError
from t2i_jax.eval.compare import compare, table
from t2i_jax.runs import folder
from t2i_jax.runs.recipe import Recipe, recipe_from_dict, recipe_to_dict
from t2i_jax.runs.scoring.results import MARKS, RESULTS, VALUES, read_results
from t2i_jax.text.tokenizer import train_bpe
from tests.e2e import tiny, tiny_imagen
from tests.foreign.edits import edits
from tests.runs import untrained
from tests.toy_system import recipe as toy


def _stored(recipe):
    return json.loads(json.dumps(recipe_to_dict(recipe)))


_BEFORE = pathlib.Path(__file__).parent / "before" / "super_resolution.tar.xz"
STORED = [_stored(tiny.get_config()), _stored(tiny_imagen.get_config())]
FORMER = {  # as recipes were stored before there were parts and options
    **{name: value for name, value in STORED[0].items() if name != "parts"},
    "tokenizer": STORED[0]["parts"]["tokenizer"],
    "evaluation": {"type": "Evaluation", "judge": None, "guidance": 2.0, "top_k": 3},
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A Parti with its tokenizer, as `export` writes it."""
    place = tmp_path_factory.mktemp("edited") / "system"
    untrained.write(tiny.get_config(), place)
    return place


@pytest.fixture
def changed(system):
    """A function that replaces a file of the system for one test."""
    before = {}

    def change(name, content):
        path = system / name
        before.setdefault(path, path.read_bytes() if path.exists() else None)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    yield change
    for path, content in before.items():
        path.unlink() if content is None else path.write_bytes(content)


@given(st.sampled_from([*STORED, FORMER]).flatmap(edits))
@settings(max_examples=4 * settings.default.max_examples)
def test_any_edit_of_a_recipe_gives_a_recipe_or_a_sentence(edited):
    try:
        assert isinstance(recipe_from_dict(edited, "run='x/system.json'"), Recipe)
    except UserError as error:
        assert str(error).startswith("run='x/system.json': recipe")


def _replaced(path, value):
    found = node = json.loads(json.dumps(STORED[0]))
    for key in path.split(".")[:-1]:
        node = node[key]
    node[path.split(".")[-1]] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("task.model.dim", "16", r"recipe\.task\.model\.dim='16' is not a whole number"),
        ("task.model.dim", -16, r"recipe\.task\.model\.dim=-16 is below"),
        ("task.model.depth", 10**9, r"recipe\.task\.model: depth=1000000000 is more than 1000"),
        ("task.model.dim", 10**30, r"recipe\.task\.model\.dim=10+ has more than 64 bits"),
        ("task.model.dtype", "fp16", r"recipe\.task\.model: dtype='fp16' is not known"),
        ("task.model.type", "PartiTransformr", "did you mean 'PartiTransformer'"),
        ("task.model.type", "load", r"recipe\.task\.model\.type='load' is not known"),
        ("task.text", {"type": "LearnedText", "dim": 16}, "LearnedText has no 'depth'; add it"),
        ("train.steps", 2.5, r"recipe\.train\.steps=2\.5 is not a whole number"),
        ("train.optim.learning_rate", float("nan"), "learning_rate is nan"),
        ("parts", [], ""),
        ("parts", 3, r"recipe\.parts=3 is no object"),
        ("task.model.dim", 32, "the weights do not fit the recipe.* has shape "),
        ("task.text.vocab_size", 8, "pieces for an embedding of 8 rows|do not fit the recipe"),
    ],
)
def test_the_field_and_the_file_are_named(system, changed, path, value, said):
    changed("system.json", _replaced(path, value))
    if not said:
        return
    with pytest.raises(UserError, match=said) as caught:
        t2i.load(system)
    assert str(system) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("system.json", b"", "is empty"),
        ("system.json", b"[" * 10**5, "too deep|is no JSON"),
        ("system.json", b'{"type": "Recipe", "type": "Recipe"}', "the key 'type' twice"),
        ("system.json", b'{"type": "Evaluation"}', r"recipe\.type='Evaluation' is not 'Recipe'"),
        ("parts.json", b"{", "parts.json' is no JSON"),
        ("parts.json", {"tokenizer": 3}, "parts.json': tokenizer is 3 and not an object"),
        ("parts.json", {"tokenizer": {"folder": 3}}, "tokenizer.folder is 3"),
        ("text_tokenizer/tokenizer.json", b"{}", "text_tokenizer/tokenizer.json differs"),
        ("text_tokenizer.json", b"{", "text_tokenizer.json' is no JSON"),
        ("weights.safetensors", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("weights.safetensors", b"x" * 64, "weights.safetensors' cannot be read"),
        ("tokenizer/system.json", b"[1]", r"recipe=\(?\[?1.* is no object"),
    ],
)
def test_a_damaged_file_of_a_system_is_named(system, changed, name, content, said):
    changed(name, content)
    with pytest.raises(UserError, match=said):
        t2i.load(system)


@pytest.mark.parametrize("part", ["", "tokenizer/"])
def test_a_changed_bit_of_the_weights_of_a_system_or_of_its_part_is_found(system, changed, part):
    name = f"{part}weights.safetensors"
    content = bytearray((system / name).read_bytes())
    content[-4] ^= 1  # the lowest bit of a float32
    changed(name, bytes(content))
    said = rf"{name}': (params|stats)/.* is not what was written; restore it from a copy"
    with pytest.raises(UserError, match=said):
        t2i.load(system)


def _with_another_id(folder):
    path = folder / "tokenizer.json"
    path.write_text(re.sub(r'": \d+}', '": 4}', path.read_text(), count=1))


def _with_another(folder):
    train_bpe(["a blue cross"], 60).save(folder)


def _replaced_whole(folder):
    shutil.rmtree(folder)
    _with_another(folder)


def _with_one_more(folder):
    (folder / "spiece.model").write_bytes(b"x")  # would be read in place of the other


def _emptied(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_with_another_id, "tokenizer.json differs"),
        (_with_another, "tokenizer.json differs"),
        (_replaced_whole, "tokenizer.json differs"),
        (_with_one_more, "spiece.model differs"),
        (_emptied, "tokenizer.json is missing"),
    ],
)
def test_a_vocabulary_that_is_not_the_one_of_the_weights_is_found(system, tmp_path, damage, said):
    place, out = shutil.copytree(system, tmp_path / "system"), tmp_path / "out"
    before = t2i.load(place).text_tokenizer
    damage(place / "text_tokenizer")
    for use in (t2i.load, lambda run: folder.export(run, out)):
        with pytest.raises(
            UserError, match=rf"another vocabulary .*\(text_tokenizer/{said}\); rest"
        ):
            use(place)
    assert not out.exists()
    (place / "text_tokenizer.json").unlink()  # as exports were before there were digests
    if damage is _with_another:
        assert pickle.dumps(t2i.load(place).text_tokenizer) != pickle.dumps(before)
        t2i.load(folder.export(place, out))
        assert (out / "text_tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"folder": "gone"}, "tokenizer is missing at '.*gone'"),
        ({"folder": "../gone"}, "tokenizer is missing at '.*gone'"),
        ({"folder": "../other"}, "is a run of MeanColourTask, not of TokenizerTask"),
        ({"folder": "."}, "is a run of PartiTask, not of TokenizerTask"),
        ({"folder": "tokenizer/.."}, "is a run of PartiTask, not of TokenizerTask"),
        ({"fingerprint": "0" * 16}, r"has other weights \(fingerprint .* was trained with \(0+\)"),
    ],
)
def test_a_part_that_is_not_the_one_of_the_run_is_told(system, changed, recorded, said):
    if not (other := system.parent / "other").exists():
        untrained.write(toy.get_config().parts["mean"], other)
    changed("parts.json", {"tokenizer": recorded})
    out = system.parent / "out"
    for use in (t2i.load, folder.read, lambda run: folder.export(run, out)):
        with pytest.raises(UserError, match=f"part .*{said}.*; (restore it from a|copy it there)"):
            use(system)
        assert not out.exists()


def test_an_export_knows_its_parts(system, changed, tmp_path):
    found = folder.fingerprint(t2i.load(system / "tokenizer").weights)
    changed("parts.json", {"tokenizer": {"folder": "tokenizer", "fingerprint": found}})
    t2i.load(folder.export(system, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out" / "tokenizer")
    with pytest.raises(UserError, match="part tokenizer is missing"):
        t2i.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float32(1), r"has shape \(\) instead of"),
        (np.zeros((3, 3), np.float32), r"has shape \(3, 3\) instead of"),
        (None, "is missing"),
        (np.nan, "has 1 of .* values that are not finite"),
        ("int", "is of the type int32 instead of float32"),
    ],
)
def test_arrays_that_do_not_fit_are_named(system, changed, value, said):
    arrays = load_file(system / "weights.safetensors")
    name = next(name for name in arrays if name.endswith("kernel"))
    good = arrays.pop(name)
    if isinstance(value, float):
        arrays[name] = good.copy()
        arrays[name].flat[0] = value
    elif value is not None:
        arrays[name] = good.astype(np.int32) if isinstance(value, str) else np.asarray(value)
    changed("weights.safetensors", b"x")
    save_file(arrays, system / "weights.safetensors")
    with pytest.raises(UserError, match=f"{name.partition('/')[2]} {said}"):
        t2i.load(system)


@given(edits(STORED[0]))
@settings(max_examples=settings.default.max_examples // 5)
def test_any_edit_of_system_json_loads_or_is_a_sentence(system, edited):
    path = system / "system.json"
    good = path.read_text()
    path.write_text(json.dumps(edited))
    try:
        t2i.load(system)
    except UserError as error:
        assert "run=" in str(error) or "tokenizer=" in str(error)
    finally:
        path.write_text(good)


def test_the_recipe_of_a_checkpoint_is_named_too(tmp_path):
    with tarfile.open(_BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    path = next(tmp_path.rglob("checkpoints/*/config/metadata"))
    stored = json.loads(path.read_text())
    stored["task"]["model"]["blocks"] = "1"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"checkpoints.*recipe\.task\.model\.blocks='1' is not a"):
        t2i.load(path.parents[3])


_HALVES = {"low": 1.0, "high": 2.0, "halves": [1.0, 1.5, 2.0], "halves_seed": 0, "stderr": 0.1}
_MEASURED = {"n_generated": 12, "extractor": {"name": "x", "sha256": "0"}, "estimator": {}}
RESULT_FILES = {
    RESULTS: {
        "schema": 1,
        "protocol": {"name": "coco30k", "count": 12},
        "prompts": {"sha256": "1"},
        "metrics": [
            {"name": "fid", "value": 1.5, "interval": _HALVES, **_MEASURED},
            {"name": "kid", "value": 0.5, "interval": {"stderr": 0.1}, **_MEASURED},
            {"name": "clip", "value": 0.5, "interval": None, **_MEASURED},
        ],
    },
    VALUES: {"clip": [[f"{row:05d}", 0, row / 8] for row in range(12)]},
    MARKS: [[f"{row:05d}", 0, "0a"] for row in range(12)],
}


def _write(folder, files):
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("name", RESULT_FILES)
def test_any_edit_of_results_gives_a_comparison_or_a_sentence(tmp_path, name):
    _write(tmp_path, RESULT_FILES)
    whole = read_results(tmp_path)

    @given(edits(RESULT_FILES[name]))
    @settings(max_examples=4 * settings.default.max_examples)
    def edited(value):
        _write(tmp_path, {**RESULT_FILES, name: value})
        try:
            found = read_results(tmp_path)
            marks = (whole.marks, found.marks)
            pair = whole.results, found.results, whole.values, found.values
            assert table(compare(*pair, marks=marks))
        except UserError as error:
            assert str(error).endswith(".") and "\n" not in str(error)

    edited()
    for damage in ([3], None, 3, {"metrics": 3}, {"metrics": [3]}, {"clip": [[1, 2]]}, {"a": 1}):
        _write(tmp_path, {**RESULT_FILES, name: damage})
        with pytest.raises(UserError, match=f"{name}' is missing or damaged"):
            read_results(tmp_path)
    (tmp_path / name).write_text("[" * 10**6)
    with pytest.raises(UserError, match="is missing or damaged"):
        read_results(tmp_path)


def test_weights_of_any_type_have_a_fingerprint():
    types = (np.float32, np.float16, ml_dtypes.bfloat16)
    found = {folder.fingerprint({"a": np.ones((2, 3), one), "b": one(2)}) for one in types}
    assert len(found) == len(types)
    # as it always was: those of earlier runs are compared with it
    whole = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(1)}
    assert folder.fingerprint(whole) == "47b91d996bfd8f75"
