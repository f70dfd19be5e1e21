"""`t2i data encode-clip`: embeddings of images and captions, stored beside a packed set."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from t2i_jax import paths
from t2i_jax.cli.progress import progress
from t2i_jax.values import Fraction, Range
from t2i_jax.words import counted

_Many = Annotated[int, Range(1, 65_536)]  # records that are in memory at once


def encode_clip(
    packed: pathlib.Path,
    run: pathlib.Path,
    crop: str = "center",
    dtype: str = "float16",
    batch_size: _Many = 64,
    max_bad_rate: Fraction = 0.05,
    replace: bool = False,
) -> None:
    """Store a trained CLIP's embeddings of images and captions, and its encodings of their tokens,
    beside a packed set, for a task with stored=True.

    Args:
        packed: Folder that `t2i data pack` wrote, with captions.
        run: Folder of the run that embeds them, or of a run that holds one.
        crop: How images become square: center, or resize, which squeezes them.
        dtype: Of the stored encodings of tokens: float16, bfloat16 or float32; embeddings of whole
            images and captions are float32.
        batch_size: Records that are embedded at once.
        max_bad_rate: Which fraction of the records may be damaged.
        replace: Make them anew where there are some of another run or crop.
    """
    import jax.numpy as jnp

    from t2i_jax import runs
    from t2i_jax.config import one_of
    from t2i_jax.data.arrayrecord import PackedSource
    from t2i_jax.data.columns import add_column, is_wanted
    from t2i_jax.data.ledger import Ledger
    from t2i_jax.errors import UserError
    from t2i_jax.runs.folder import fingerprint

    one_of("crop", crop, ("center", "resize"))
    one_of("dtype", dtype, ("float16", "bfloat16", "float32"))
    packed, run = paths.given("packed", packed), paths.given("run", run)
    source = PackedSource(str(packed), columns=())
    if not source.manifest["captions"]:
        raise UserError(f"packed={str(packed)!r} holds no captions; pack it without --no-captions.")
    system = runs.load(run / "clip" if (run / "clip").is_dir() else run)
    # a system that embeds nothing says so here, before anything is made
    shown = system.embed_images(np.zeros((1, 16, 16, 3), np.uint8))
    told = system.encode_text(["a"])
    cut, made_by = Ledger(), {"clip": fingerprint(system.weights)}
    of_tokens = {
        **made_by, "dim": told.encodings_BLE.shape[-1],
        "max_length": told.encodings_BLE.shape[1], "dtype": dtype,
    }  # fmt: skip
    columns = {
        "clip": ({**made_by, "dim": shown.shape[-1], "crop": crop}, _vectors),
        "text": (of_tokens, functools.partial(_encodings, dtype=jnp.dtype(dtype), cut=cut)),
    }
    for column, (about, rows) in columns.items():
        if not is_wanted(packed, column, about, replace):
            print(f"there already: {column} of {run} in {packed}")
            continue
        made = rows(source, system, crop, batch_size)
        add_column(
            packed,
            column,
            made,
            about={**about, "run": str(run)},
            max_bad_rate=max_bad_rate,
            cut=cut if column == "text" else None,
        )
    for line in cut.lines("captions that were not read whole"):
        print(line)
    records = counted(len(source), "record")
    print(f"stored: embeddings, {shown.shape[-1]} wide, of {records} in {packed}")


def _vectors(source, system, crop, batch_size) -> Iterator[Any]:
    """The embeddings of each record's image and caption."""
    from t2i_jax.data.crop import crop as cut
    from t2i_jax.data.pack import in_batches
    from t2i_jax.systems.notices import quiet
    from t2i_jax.text.cache import check_finite

    size = system.task.image_size

    def read(index):
        record = source[index]
        return cut(record["image"], size, crop), record["caption"]

    def embedded(pairs):
        images, captions = zip(*pairs, strict=True)
        image_BD = system.embed_images(np.stack(images), batch_size)
        with quiet():  # what is cut is counted once, with the text
            text_BD = system.encode_text(list(captions), batch_size).embed_BD
        for caption, image_D, text_D in zip(captions, image_BD, text_BD, strict=True):
            for embed_D in (image_D, text_D):
                check_finite(np.asarray(embed_D), caption, "float32")
        return [
            {"image_embeds": image, "caption_embeds": text}
            for image, text in zip(image_BD, text_BD, strict=True)
        ]

    records = progress("encoding")(range(len(source)))
    yield from in_batches(read, embedded, records, batch_size)


def _encodings(source, system, crop, batch_size, dtype, cut) -> Iterator[Any]:
    """The encodings of the tokens of each record's caption, without padding; the captions that are
    not read whole are noted in the ledger `cut`.
    """
    from t2i_jax.data.overview import note_cut, note_unknown
    from t2i_jax.data.pack import in_batches
    from t2i_jax.systems.notices import quiet
    from t2i_jax.text.cache import check_finite
    from t2i_jax.text.tokenizer import unknown_letters

    def embedded(captions):
        tokenizer = system.text_tokenizer
        note_cut(cut, captions, tokenizer.lengths, system.task.text_encoder.max_length)
        note_unknown(cut, captions, unknown_letters(tokenizer, captions))
        with quiet():
            found = system.encode_text(captions, batch_size)
        mask_BL, rows = np.asarray(found.mask_BL), []
        for caption, row_LE, mask_L in zip(
            captions, np.asarray(found.encodings_BLE), mask_BL, strict=True
        ):
            with np.errstate(over="ignore"):  # said by the check
                kept_LE = row_LE[mask_L].astype(dtype)
            check_finite(kept_LE, caption, dtype.name)
            rows.append({"text_embeds": kept_LE, "text_mask": mask_L[mask_L]})
        return rows

    records = progress("encoding")(range(len(source)))
    yield from in_batches(source.caption, embedded, records, batch_size)
