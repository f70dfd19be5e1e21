"""`t2i data ...`: look at images, pack them, and store what is computed from them once."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from t2i_jax import paths
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.progress import progress
from t2i_jax.errors import UserError
from t2i_jax.values import Count, Fraction, Range
from t2i_jax.words import counted

_Size = Annotated[Annotated[int, Range(1, 65_536)] | None, Shown("PIXELS")]
_Many = Annotated[int, Range(1, 65_536)]  # images or captions that are in memory at once
_COUNTED = {"bad": "left out", "cut": "cut"}  # entries of a stored column, and how they are told
_BUILT_IN_SIZE = 32  # pixels; of a built-in dataset, when no size is given
_TOKENS = 128  # of a caption, when no number is given


def pack(
    source: str,
    out: pathlib.Path,
    size: _Size = None,
    split: str = "train",
    captions: bool = True,
    max_bad_rate: Fraction = 0.05,
    shard_mb: Count = 256,
) -> None:
    """Write a source as shards of ArrayRecord with a manifest.

    `data.source=arrayrecord:OUT` reads it.

    Args:
        source: As in a recipe: folder:PATH, webdataset:GLOB, tfds:NAME, hf:NAME, shapes, digits,
            compositions.
        out: New folder; nothing is overwritten.
        size: Make larger images smaller, until the shorter side has this many pixels.
        split: Of a source that has splits.
        captions: Images without a caption count as bad; --no-captions packs images alone.
        max_bad_rate: Which fraction may be unusable before packing stops.
        shard_mb: Size of a shard in MiB, about.
    """
    from t2i_jax.data.pack import pack as pack_source

    out = paths.new_folder("out", out)
    if shard_mb < 1:
        raise UserError(f"shard_mb={shard_mb} is not positive; give 1 or more, for example 256.")
    manifest = pack_source(
        _open(source, size, split),
        out,
        name=source,
        size=size,
        captions=captions,
        max_bad_rate=max_bad_rate,
        shard_bytes=shard_mb * 2**20,
        progress=progress("packing"),
    )
    records, shards = manifest["count"], len(manifest["shards"])
    print(f"packed: {counted(records, 'record')} in {counted(shards, 'shard')}")
    for field in ("bad", "read_in_part", "passed_over"):
        if counts := manifest[field]:
            title = "left out" if field == "bad" else field.replace("_", " ")
            print(f"{title}: " + ", ".join(f"{reason} {count}" for reason, count in counts.items()))
    for name in manifest["bad_names"]:
        print(f"  {name}")
    print(f"train on them with data.source=arrayrecord:{out}")


def inspect(
    source: str,
    samples: Count = 1000,
    sheet: pathlib.Path = pathlib.Path("contact_sheet.png"),
    size: _Size = None,
    split: str = "train",
    heldout: float = 0.05,
    run: pathlib.Path | None = None,
    t5: Annotated[str | None, Shown("FOLDER|NAME")] = None,
    max_length: Count = _TOKENS,
) -> None:
    """Show counts, sizes, captions and what can't be used, and draw a contact sheet.

    Args:
        source: As in a recipe: folder:PATH, webdataset:GLOB, arrayrecord:DIR, tfds:NAME, hf:NAME,
        shapes, digits, compositions.
        samples: How many records are read, evenly spread.
        sheet: PNG file to write, outside the images; an existing one is kept, and the new one
            numbered.
        size: Side of the images of the built-in sets.
        split: Of a source that has splits.
        heldout: Share of the captions whose records data.heldout would hold out; how many is shown.
        run: Folder of a run whose text encoder is to read the captions: those that it cuts are
            counted.
        t5: Folder of a T5, or its name on the hub, in place of a run.
        max_length: Tokens of a caption, with --t5.
    """
    from t2i_jax.data.heldout import divide
    from t2i_jax.data.ledger import Ledger
    from t2i_jax.data.overview import contact_sheet, look, note_cut, note_unknown
    from t2i_jax.data.pipeline import DataConfig
    from t2i_jax.data.source import EMBEDDED
    from t2i_jax.pixels import save_png
    from t2i_jax.text.tokenizer import unknown_letters

    sheet = paths.new_file("sheet", sheet)
    DataConfig(heldout=heldout)  # refuses a share that is none
    _check_inspected(source, source in EMBEDDED, size, run, t5, max_length)
    opened = _open(source, size, split)
    if opened.takes(sheet):
        raise UserError(
            f"sheet={paths.shown(sheet)} would lie in source={paths.shown(source)} and count among "
            "its images; name a file outside it, as --sheet ../contact_sheet.png."
        )
    found = look(opened, samples, progress=progress("reading"))
    for line in found.lines():
        print(line)
    if heldout and source not in EMBEDDED:
        print(f"data.heldout={heldout} holds out {divide(opened, heldout).line()}")
    tokenizer, max_length = _text_tokenizer(run, t5, max_length)
    if tokenizer is not None:
        cut = note_cut(Ledger(), found.captions, tokenizer.lengths, max_length)
        note_unknown(cut, found.captions, unknown_letters(tokenizer, found.captions))
        none = [f"captions that are cut at {max_length} tokens: 0"]
        for line in cut.lines("captions that are not read whole") or none:
            print(line)
    for line in _of_columns(opened.stored):
        print(line)
    if found.shown:
        path = _new_file(sheet)
        save_png(path, contact_sheet(found.shown))
        print(f"contact sheet: {path}")


def encode_text(
    packed: pathlib.Path,
    t5: Annotated[str, Shown("FOLDER|NAME", positional=False)],
    max_length: _Many = 128,
    dtype: str = "float16",
    batch_size: _Many = 64,
    max_bad_rate: Fraction = 0.05,
    replace: bool = False,
) -> None:
    """Store the T5 embeddings of the captions beside a packed set, for a task with
    text=StoredText(dim, max_length).

    Args:
        packed: Folder that `t2i data pack` wrote.
        t5: Folder of a T5, or its name on the hub, such as google/t5-v1_1-base.
        max_length: Tokens of a caption; longer ones are cut.
        dtype: Of the stored numbers: float16, bfloat16 or float32.
        batch_size: Captions that are encoded at once.
        max_bad_rate: Which fraction of the records may be damaged.
        replace: Make them anew where there are some of another T5 or length.
    """
    import jax

    from t2i_jax.data.arrayrecord import PackedSource
    from t2i_jax.data.columns import add_column, is_wanted
    from t2i_jax.data.ledger import Ledger
    from t2i_jax.data.overview import note_cut, note_unknown
    from t2i_jax.data.source import BadSample
    from t2i_jax.runs.folder import fingerprint
    from t2i_jax.text.cache import embed_captions
    from t2i_jax.text.t5 import T5Text
    from t2i_jax.text.tokenizer import unknown_letters

    packed = paths.given("packed", packed)
    source = PackedSource(str(packed), columns=())
    if not source.manifest["captions"]:
        raise UserError(f"packed={str(packed)!r} holds no captions; pack it without --no-captions.")
    text = T5Text.from_directory(t5, max_length=max_length)
    bad: dict[int, BadSample] = {}
    tokenizer, cut = text.tokenizer(), Ledger()

    def captions() -> Iterator[str]:
        for index in progress("encoding")(range(len(source))):
            try:
                yield source.caption(index)
            except BadSample as sample:
                bad[index] = sample
                yield ""

    def noted() -> Iterator[str]:
        left = captions()
        while some := list(itertools.islice(left, batch_size)):
            note_cut(cut, some, tokenizer.lengths, max_length)
            note_unknown(cut, some, unknown_letters(tokenizer, some))
            yield from some

    params = text.init(jax.random.key(0))
    embeddings = embed_captions(text, params, tokenizer, noted(), batch_size, dtype)
    about = {
        "t5": t5, "weights": fingerprint(params), "max_length": max_length, "dim": text.dim,
        "dtype": dtype,
    }  # fmt: skip
    same = (about["weights"], None)  # older sets do not tell it
    if not is_wanted(packed, "text", {**about, "weights": same}, replace):
        print(f"there already: text embeddings of {t5} in {packed}")
        return
    rows = (
        bad.pop(index, None)
        or {"text_embeds": embeds_LD, "text_mask": np.ones(len(embeds_LD), bool)}
        for index, embeds_LD in enumerate(embeddings)
    )
    add_column(packed, "text", rows, about=about, max_bad_rate=max_bad_rate, cut=cut)
    for line in cut.lines("captions that were not read whole"):
        print(line)
    captions_of = counted(len(source), "caption")
    print(f"stored: text embeddings, {text.dim} wide, of {captions_of} in {packed}")
    print(f"train on them with text=StoredText(dim={text.dim}, max_length={max_length})")


def _of_columns(stored):
    """Lines about each stored column: how it was made, and what its manifest counts as left out and
    cut.
    """
    from t2i_jax.data.columns import made_with

    for name, about in stored.items():
        yield f"{name}: " + ", ".join(f"{key}={value}" for key, value in made_with(about).items())
        for key, told in _COUNTED.items():
            counts = about.get(key)  # older manifests do not count what was cut
            for reason, count in counts.items() if isinstance(counts, dict) else ():
                yield f"  {told}: {reason} {count}"


def _check_inspected(source, is_built_in, size, run, t5, max_length):
    """Refuses options of `inspect` that would have no effect."""
    if size is not None and not is_built_in:
        raise UserError(
            f"size={size} is for the built-in sets, and {source!r} has images of its own size; "
            "leave it out."
        )
    if run is not None and t5 is not None:
        raise UserError(
            f"t5={t5!r} is given beside run={str(run)!r}, whose own text encoder reads the "
            "captions; give one of them."
        )
    if t5 is None and max_length != _TOKENS:
        raise UserError(f"max_length={max_length} is nothing without --t5; leave it out.")


def _open(source, size, split):
    from t2i_jax.data.source import check_split, open_source

    check_split(source, split)
    return open_source(source, image_size=_BUILT_IN_SIZE if size is None else size, split=split)


def _text_tokenizer(run, t5, max_length):
    """The tokenizer of a run or of a T5, and the tokens that a caption may have; None without."""
    if run is not None:
        from t2i_jax import runs
        from t2i_jax.runs import vocabulary

        run = paths.given("run", run)
        encoder = runs.load_run_recipe(run).task.text_encoder
        if encoder is None or encoder.entry != "text":
            raise UserError(f"run={str(run)!r} reads no captions; leave --run out.")
        return vocabulary.load(run, encoder), encoder.max_length
    if t5 is not None:
        from t2i_jax.text.t5 import T5Text

        return T5Text.from_directory(t5, max_length=max_length).tokenizer(), max_length
    return None, max_length


def _new_file(path):
    for i in range(1, 10_000):
        one = path if i == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")
        if not one.exists():
            return one
    raise UserError(f"sheet={str(path)!r} and its numbered neighbours exist; name another file.")
