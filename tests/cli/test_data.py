"""`t2i data`: from a folder of pictures to a run that trains on stored embeddings and tokens, and
what is refused.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from t2i_jax import PartiTask, PartiTransformer, StoredText, runs
from t2i_jax.cli import embeddings, sample
from t2i_jax.cli import main as cli
from t2i_jax.data.arrayrecord import PackedSource
from t2i_jax.data.crop import crop
from t2i_jax.data.ledger import Ledger
from t2i_jax.errors import UserError
from t2i_jax.models import encoder_side
from t2i_jax.runs import folder
from t2i_jax.runs.check import check_data
from t2i_jax.runs.ledger import DataLedger
from t2i_jax.text.t5 import t5_encode_text
from tests.data.hostile import BAD, encode, photo
from tests.e2e import tiny
from tests.parity import reference
from tests.runs import untrained
from tests.systems import toy_dalle2

COUNT = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, a T5 and a trained tokenizer."""
    here = tmp_path_factory.mktemp("data")
    (here / "photos").mkdir()
    for i in range(COUNT):
        (here / "photos" / f"{i:02d}.png").write_bytes(encode(photo(i, (24 + i, 20))))
        (here / "photos" / f"{i:02d}.txt").write_text(f"picture number {i}" + " and more" * (i % 3))
    _t5(here / "t5")
    recipe = tiny.get_config().parts["tokenizer"]
    data = dataclasses.replace(recipe.data, source=f"folder:{here / 'photos'}", max_bad_rate=0.5)
    train = dataclasses.replace(recipe.train, steps=2)
    runs.train(dataclasses.replace(recipe, data=data, train=train), here / "vae")
    return here


def _t5(folder):
    import sentencepiece

    reference.load("transformers")
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"picture number {i} and more" for i in range(COUNT)]),
        hard_vocab_limit=False,
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )


@pytest.fixture
def t2i(place, monkeypatch, capfd):
    """Runs `t2i data ...` in the place.

    Returns what it printed, or its sentence when it is refused.
    """
    monkeypatch.chdir(place)

    def run(*arguments, refused=False):
        monkeypatch.setattr(sys, "argv", ["t2i", "data", *map(str, arguments)])
        if not refused:
            cli.main()
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stop:
            cli.main()
        lines = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("t2i: "), lines
        return lines[0]

    return run


@pytest.fixture
def packed(t2i, tmp_path):
    """The pictures, packed."""
    assert "packed: 12 records in 1 shard" in t2i("pack", "folder:photos", tmp_path / "packed")
    return tmp_path / "packed"


def test_from_a_folder_to_a_run_on_embeddings_and_tokens(t2i, place, packed, tmp_path, capfd):
    said = t2i(
        "encode-text",
        packed,
        "--t5",
        "t5",
        "--max-length",
        8,
        "--batch-size",
        5,
        "--dtype",
        "bfloat16",
    )
    assert "16 wide, of 12 captions" in said and "StoredText(dim=16, max_length=8)" in said
    assert "16 tokens of each of 12 images" in t2i(
        "encode-images", packed, "vae", "--batch-size", 5
    )
    source, vae = PackedSource(str(packed)), runs.load(place / "vae")
    for i in (0, 7, 11):
        record = source[i]
        embeds, mask = t5_encode_text([record["caption"]], place / "t5")
        assert record["text_mask"].all() and len(record["text_mask"]) == min(8, mask.sum())
        if mask.sum() <= 8:  # what is not cut is the same, but for eight bits of mantissa
            np.testing.assert_allclose(
                record["text_embeds"].astype(np.float32), embeds[0], rtol=2**-8, atol=1e-6
            )
        cut = crop(record["image"], 16, "center")[None]
        np.testing.assert_array_equal(record["tokens"], np.asarray(vae.encode(cut))[0])
    for length, told in ((8, ""), (4, "stored with up to 8 tokens; it is cut to 4")):
        DataLedger(None, length).begin("packed", source, ())
        assert told in (said := capfd.readouterr().err) and bool(said) == bool(told)
    recipe = _parti(place, packed)
    system = runs.train(recipe, tmp_path / "run")
    losses = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses and np.isfinite([value for row in losses for value in row.values()]).all()
    embeds, mask = source[0]["text_embeds"].astype(np.float32)[None], source[0]["text_mask"][None]
    assert system.generate((embeds, mask), seed=0).shape == (1, 16, 16, 3)
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()  # drawn from stored embeddings
    _check_other_encoders_are_refused(t2i, place, packed, recipe, tmp_path)


def _check_other_encoders_are_refused(t2i, place, packed, recipe, tmp_path):
    run, others = tmp_path / "run", place / "other_t5"
    shutil.copytree(place / "t5", others, dirs_exist_ok=True)
    weights = load_file(others / "model.safetensors")
    weights = {name: array + 1 for name, array in weights.items()}
    save_file(weights, others / "model.safetensors", {"format": "pt"})
    runs.export(run, tmp_path / "exported")
    path = tmp_path / "exported" / "stored_text.json"
    joined = types.SimpleNamespace(dim=16, max_length=8, entry="text_embeds")

    def sampled(t5, run=path.parent):
        return sample._embedded(run, joined, str(t5), ["picture number 1"], {})

    (embeds, mask), _ = sampled(place / "t5")
    assert embeds.shape == (1, 8, 16) and mask.any()
    for one in (run, path.parent):
        with pytest.raises(UserError, match=r"has other weights .* a T5 \(t5='t5', fingerprint"):
            sampled(others, one)
    about = json.loads(path.read_text())
    path.write_text(json.dumps({"clip": "0" * 16, "run": "runs/clip", "dim": 16}))
    with pytest.raises(UserError, match="made by a CLIP .run='runs/clip'.*encode_text"):
        sampled(place / "t5")
    for unknown in ({}, {**about, "weights": None}):  # of earlier releases
        path.write_text(json.dumps(unknown))
        sampled(others)
    path.unlink()
    sampled(others)
    t2i("encode-text", packed, "--t5", others, "--max-length", 8, "--replace")
    with pytest.raises(UserError, match=r"text of a T5 .*other_t5.*, and this run was begun with"):
        runs.train(recipe, run)


def _parti(place, packed, **task):
    recipe = tiny.get_config()
    task = {"stored_tokens": True, "text": StoredText(dim=16, max_length=8), **task}
    return dataclasses.replace(
        recipe,
        task=PartiTask(model=PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=16), **task),
        data=dataclasses.replace(recipe.data, source=f"arrayrecord:{packed}"),
        train=dataclasses.replace(recipe.train, steps=2, eval_every=2, save_every=2),
        tokenizer=str(place / "vae"),
        evaluation=dataclasses.replace(recipe.evaluation, judge=None),
    )


def test_a_run_is_refused_whose_data_hold_something_else(t2i, place, packed, tmp_path):
    with pytest.raises(
        UserError, match="holds no tokens; pack it, and run `t2i data encode-images"
    ):
        runs.train(_parti(place, packed), tmp_path / "run")
    t2i("encode-images", packed, "vae")
    with pytest.raises(UserError, match="holds no text_embeds; .* `t2i data encode-text"):
        runs.train(_parti(place, packed), tmp_path / "run")
    t2i("encode-text", packed, "--t5", "t5")
    with pytest.raises(UserError, match="text made with dim=16, and the task has dim=8"):
        runs.train(_parti(place, packed, text=StoredText(dim=8)), tmp_path / "run")
    path, vae = packed / "manifest.json", runs.load(place / "vae")
    made_by = encoder_side.fingerprint(vae.task.network, vae.weights)
    path.write_text(path.read_text().replace(made_by, "0" * 16))
    with pytest.raises(UserError, match="tokens made with tokenizer='0000000000000000'"):
        runs.train(_parti(place, packed), tmp_path / "run")


def test_tokens_stay_valid_for_another_decoder_and_for_no_other_encoder(t2i, place, packed):
    """Also those that were stored with the fingerprint of all weights."""
    t2i("encode-images", packed, "vae")
    t2i("encode-text", packed, "--t5", "t5")
    vae = folder.part_in(place / "vae")
    network, held = vae.network, set(encoder_side.encoder_parameters(vae.network))

    def check(moved):
        """With the parameters changed whose paths `moved` picks."""

        def change(path, leaf):
            return leaf + 1 if moved(encoder_side.path_of(path)) else leaf

        generator = jax.tree_util.tree_map_with_path(change, vae.weights["generator"])
        weights = {**vae.weights, "generator": generator}
        part = dataclasses.replace(vae, weights=weights, fingerprint=runs.fingerprint(weights))
        recipe = _parti(place, packed)
        parts = {"tokenizer": part}
        recipe = dataclasses.replace(recipe, task=recipe.task.with_parts(parts))
        check_data(recipe, parts)

    check(lambda path: False)
    check(lambda path: path not in held)
    for name in sorted(held)[:1] + [name for name in held if "quantizer" in name][:1]:
        with pytest.raises(UserError, match="tokens made with tokenizer="):
            check(lambda path, name=name: path == name)

    path, written = packed / "manifest.json", (packed / "manifest.json").read_text()
    older = written.replace(
        encoder_side.fingerprint(network, vae.weights), runs.fingerprint(vae.weights)
    )
    assert older != written
    path.write_text(older)
    check(lambda path: False)
    assert "there already" in t2i("encode-images", packed, "vae")
    with pytest.raises(UserError, match="tokens made with tokenizer="):
        check(lambda path: path not in held)  # that fingerprint can't tell


def test_tokens_of_two_sizes_have_a_tokenizer_each(t2i, place, packed, tmp_path):
    """The small image is the large one made smaller; tokens of one size stay as they are."""
    vae = runs.load(place / "vae")
    small = dataclasses.replace(vae.task, model=vae.task.model.clone(parent=None, image_size=8))
    params, stats = small.initialise(jax.random.key(1))
    recipe = tiny.get_config().parts["tokenizer"]
    data = dataclasses.replace(recipe.data, image_size=8)
    of_small = dataclasses.replace(recipe, task=small, data=data)
    folder.write_system(tmp_path / "small", of_small, params, stats, {})
    t2i("encode-images", packed, "vae")
    column = json.loads((packed / "manifest.json").read_text())["columns"]["tokens"]
    command = ("encode-images", packed, tmp_path / "small", "--cond-image-size", 8)
    command = (*command, "--superres-tokenizer", "vae", "--batch-size", 5)
    assert "16 and 4 tokens of each of 12 images" in t2i(*command)
    assert "there already: superres tokens of vae" in t2i(*command)
    columns = json.loads((packed / "manifest.json").read_text())["columns"]
    assert columns["tokens"] == column and columns["superres_tokens"]["cond_image_size"] == 8
    source, encode = PackedSource(str(packed)), runs.load(tmp_path / "small").encode
    for i in (0, 7):
        cut = crop(source[i]["image"], 16, "center")[None]
        shrunk = np.uint8(np.round(np.float32(cut).reshape(1, 8, 2, 8, 2, 3).mean((2, 4))))
        np.testing.assert_array_equal(source[i]["superres_tokens"], source[i]["tokens"])
        np.testing.assert_array_equal(source[i]["cond_tokens"], np.asarray(encode(shrunk))[0])
    # a run's folder that holds both
    held = tmp_path / "held"
    held.mkdir()
    (held / "superres_tokenizer").symlink_to(place / "vae")
    (held / "tokenizer").symlink_to(tmp_path / "small")
    assert "there already" in t2i("encode-images", packed, held, "--cond-image-size", 8)
    told = t2i(*command, "--crop", "resize", refused=True)
    assert "has superres_tokens of crop='center'; give --replace" in told
    for more, says in (
        (("--cond-image-size", 4), "cond_image_size=4 is another size than the tokenizer's"),
        (("--image-size", 32), "image_size=32 is another size than the tokenizer's"),
        (
            ("--superres-tokenizer", tmp_path / "small"),
            "cond_image_size=8 is no part of image_size",
        ),
    ):
        assert says in t2i(*command, *more, refused=True), more
    alone = ("encode-images", packed, "vae", "--superres-tokenizer", "vae")
    assert "is nothing without a cond_image_size" in t2i(*alone, refused=True)


def test_an_exported_tokenizer_is_the_same_one(t2i, place, packed, tmp_path):
    t2i("encode-images", packed, "vae")
    runs.export(place / "vae", tmp_path / "exported")
    assert "there already" in t2i("encode-images", packed, tmp_path / "exported")


def test_a_second_time_nothing_is_done_and_something_else_is_refused(t2i, packed):
    t2i("encode-text", packed, "--t5", "t5", "--max-length", 8)
    before = {path.name: path.stat().st_mtime_ns for path in packed.iterdir()}
    assert "there already" in t2i("encode-text", packed, "--t5", "t5", "--max-length", 8)
    assert "has text of max_length=8; give --replace" in t2i(
        "encode-text", packed, "--t5", "t5", refused=True
    )
    assert before == {path.name: path.stat().st_mtime_ns for path in packed.iterdir()}
    t2i("encode-text", packed, "--t5", "t5", "--replace")
    assert PackedSource(str(packed)).stored["text"]["max_length"] == 128


def test_killed_while_it_encodes_a_set_stays_as_it_was_and_the_same_command_ends_the_work(
    t2i, place, packed, tmp_path
):
    untrained.write(toy_dalle2.clip(), tmp_path / "clip")
    commands = (
        ("encode-text", str(packed), "--t5", "t5", "--max-length", "8", "--batch-size", "5"),
        ("encode-clip", str(packed), str(tmp_path / "clip"), "--batch-size", "5", "--replace"),
    )
    for command in commands:
        before = (packed / "manifest.json").read_text()
        killed = subprocess.run(
            [sys.executable, "-m", "tests.cli.killed", "7", *command],
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert (packed / "manifest.json").read_text() == before
        assert list(packed.glob("*partial*"))  # what the killed command left
        assert len(PackedSource(str(packed))) == COUNT
        t2i(*command)
        assert not list(packed.glob("*partial*"))
    told = json.loads((packed / "manifest.json").read_text())["columns"]
    assert set(told) == {"text", "clip"} and told["text"]["clip"]
    for record in (PackedSource(str(packed))[i] for i in range(COUNT)):
        assert len(record["text_embeds"]) == record["text_mask"].sum() > 0
        assert record["image_embeds"].shape == record["caption_embeds"].shape


def test_inspect_shows_what_there_is(t2i, packed, tmp_path):
    sheet = tmp_path / "sheet.png"
    said = t2i("inspect", "folder:photos", "--sheet", sheet)
    assert "records: 12, looked at all of them" in said and f"contact sheet: {sheet}" in said
    assert "images: 12, width 24 to 35 (median 29.5), height 20 pixels" in said
    assert (
        "captions: 12, 12 different, 3 to 7 (median 5) words" in said
        and "can't be used" not in said
    )
    picture = np.asarray(Image.open(sheet))
    assert picture.shape == (8 + 2 * (160 + 8 + 42), 8 + 6 * (160 + 8), 3)  # two rows of six
    assert all(
        (picture[y : y + 160, x : x + 160] < 250).mean() > 0.3
        for y in (8, 212)
        for x in range(8, 1016, 168)
    )
    t2i("encode-images", packed, "vae")
    said = t2i("inspect", f"arrayrecord:{packed}", "--sheet", sheet, "--samples", 5)
    assert (
        "looked at 5 of them" in said
        and "tokens: tokenizer=" in said
        and "codebook_size=16" in said
    )
    assert f"contact sheet: {tmp_path / 'sheet-2.png'}" in said  # the first one is kept
    assert "records: 20000, looked at 3" in t2i(
        "inspect", "shapes", "--samples", 3, "--sheet", sheet
    )


def test_inspect_and_pack_count_what_cannot_be_used(t2i, tmp_path):
    for name, (ending, data, _) in BAD.items():
        (tmp_path / (name + ending)).write_bytes(data)
        (tmp_path / (name + ".txt")).write_text("words")
    said = t2i("inspect", f"folder:{tmp_path}")
    assert (
        f"images that can't be used: {len(BAD)}" in said
        and "truncated image: 1 (short.jpg)" in said
        and "bomb.png" in said
    )
    assert f"captions: {len(BAD)}, 1 different" in said and "contact sheet" not in said
    sentence = t2i("pack", f"folder:{tmp_path}", tmp_path / "out", refused=True)
    assert (
        f"{len(BAD)} of {len(BAD)} samples cannot be used" in sentence
        and "bomb.png" in sentence
        and not (tmp_path / "out").exists()
    )
    for i in range(4):
        (tmp_path / f"good{i}.png").write_bytes(encode(photo(i)))
    said = t2i("inspect", f"folder:{tmp_path}")
    assert "captions that can't be used: 4\n  no caption: 4 (good0.png, " in said
    said = t2i(
        "pack", f"folder:{tmp_path}", tmp_path / "out", "--no-captions", "--max-bad-rate", 0.7
    )
    assert "packed: 4 records" in said and "left out: " in said and "empty file 1" in said
    assert "  bomb.png: too many pixels" in said


def test_inspect_counts_what_an_encoder_cuts_and_what_is_passed_over(t2i, place, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode(photo(i)))
        (tmp_path / f"{i}.txt").write_text("picture number 1" + " and more" * 9 * (i == 1))
    (tmp_path / "x.heic").write_bytes(b"x")
    said = t2i("inspect", f"folder:{tmp_path}", "--t5", place / "t5", "--max-length", 30)
    assert "captions that are not read whole: 1\n  caption of more than 30 tokens: 1 (" in said
    assert "passed over: 1\n  file of .heic: 1 (x.heic)" in said
    said = t2i("inspect", f"folder:{tmp_path}", "--t5", place / "t5")
    assert "captions that are cut at 128 tokens: 0" in said
    assert "reads no captions; leave --run out" in t2i(
        "inspect", f"folder:{tmp_path}", "--run", place / "vae", refused=True
    )
    assert "file of .heic 1" in t2i("pack", f"folder:{tmp_path}", tmp_path / "out")
    said = t2i("encode-text", tmp_path / "out", "--t5", place / "t5", "--max-length", 30)
    assert "captions that were not read whole: 1" in said
    said = t2i("inspect", f"arrayrecord:{tmp_path / 'out'}")
    assert f"\n  file of .heic (when it was packed): 1 (folder:{tmp_path})\n" in said
    assert "max_length=30" in said and "\n  cut: caption of more than 30 tokens 1\n" in said


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (1e6, "float16", "'word b' have 1 of 8 values that are not finite in dtype='float16'; st"),
        (1e6, "bfloat16", ""),
        (np.nan, "float32", "'word b' have 1 of 8 values that are not finite in dtype='float32'"),
    ],
)
def test_encodings_of_a_clip_that_are_not_finite_are_refused(value, dtype, says):
    class Source(list):
        caption = list.__getitem__

    rows_BLE, mask_BL = np.ones((2, 3, 4), np.float32), np.array([[True, True, False]] * 2)
    rows_BLE[1, 0, 0], rows_BLE[:, 2] = value, np.nan  # the last is padding
    system = types.SimpleNamespace(
        text_tokenizer=types.SimpleNamespace(lengths=lambda texts: [2] * len(texts)),
        task=types.SimpleNamespace(text_encoder=types.SimpleNamespace(max_length=3)),
        encode_text=lambda *_: types.SimpleNamespace(encodings_BLE=rows_BLE, mask_BL=mask_BL),
    )
    captions, cut = Source(["a word", "word b"]), Ledger()
    made = embeddings._encodings(captions, system, "center", 2, jax.numpy.dtype(dtype), cut)
    with pytest.raises(UserError, match=says) if says else contextlib.nullcontext():
        assert [row["text_embeds"].shape for row in made] == [(2, 4)] * 2


def test_files_that_another_source_reads_are_passed_over_with_its_name(t2i, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(photo(0)))
    (tmp_path / "a.txt").write_text("a")
    for name in ("rows.parquet", "b.tar"):
        (tmp_path / name).write_bytes(b"x")
    said = t2i("inspect", f"folder:{tmp_path}")
    assert "file of .parquet; alone in a folder, data.source=hf:FOLDER reads it: 1 (rows" in said
    assert "data.source=webdataset:FOLDER/*.tar reads it: 1 (b.tar)" in said
    (tmp_path / "a.png").unlink()
    assert "hf:FOLDER reads it" in t2i("inspect", f"folder:{tmp_path}", refused=True)


def test_mistakes_get_one_sentence(t2i, place, packed, tmp_path):
    t2i("pack", "folder:photos", tmp_path / "silent", "--no-captions", "--size", 10)
    assert PackedSource(str(tmp_path / "silent")).without_caption(0)["image"].shape == (10, 12, 3)
    for arguments, says in (
        (("pack", "foldr:photos", "x"), "did you mean 'folder'"),
        (("pack", "folder:photos", packed), "exists and is not empty"),
        (("pack", "folder:photos", "x", "--size", 0), "size=0"),
        (("pack", "folder:photos", "x", "--shard-mb", 0), "shard_mb=0"),
        (("inspect", "folder:photos", "--samples", 0), "samples=0"),
        (("inspect", "folder:photos", "--split", "val"), "which has no splits; leave it out"),
        (("pack", "folder:photos", "out", "--split", "val"), "which has no splits; leave it out"),
        (("inspect", "folder:photos", "--size", 64), "has images of its own size; leave it out"),
        (("inspect", "folder:photos", "--max-length", 64), "is nothing without --t5"),
        (("inspect", "folder:photos", "--t5", "t5", "--run", "vae"), "give one of them"),
        (("inspect", "arrayrecord:photos"), "has no manifest.json"),
        (("encode-text", "photos", "--t5", "t5"), "has no manifest.json"),
        (("encode-text", packed, "--t5", "photos"), "has no config.json"),
        (("encode-text", packed, "--t5", "t5", "--dtype", "int8"), "dtype='int8'"),
        (("encode-text", tmp_path / "silent", "--t5", "t5"), "holds no captions"),
        (("encode-images", packed, "photos"), "photos"),
        (("encode-images", packed, "nowhere"), "is not a folder"),
        (("encode-images", packed, "vae", "--crop", "random"), "crop='random'"),
        (("encode-images", packed, "vae", "--batch-size", 0), "batch_size=0"),
    ):
        assert says in t2i(*arguments, refused=True), arguments
    assert not (place / "x").exists()


def test_a_system_with_a_network_that_makes_no_codes_is_refused_by_name(t2i, packed, tmp_path):
    untrained.write(toy_dalle2.clip(), tmp_path / "clip")
    said = t2i("encode-images", packed, tmp_path / "clip", refused=True)
    assert "ClipSystem makes no codes of images; give the run of an image tokenizer" in said


def test_a_sheet_among_the_images_is_refused_before_anything_is_read(t2i, place, monkeypatch):
    before = sorted(place.rglob("*"))
    monkeypatch.chdir(place / "photos")
    sentence = t2i("inspect", "folder:.", refused=True)
    assert "sheet='contact_sheet.png' would lie in source='folder:.'" in sentence
    assert "name a file outside it" in sentence
    told = t2i("inspect", f"folder:{place / 'photos'}", "--sheet", place / "photos" / "a.png",
               refused=True)  # fmt: skip
    assert "would lie in" in told and sorted(place.rglob("*")) == before
    assert "contact sheet: .sheet.png" in t2i("inspect", "folder:.", "--sheet", ".sheet.png")
    (place / "photos" / ".sheet.png").unlink()
