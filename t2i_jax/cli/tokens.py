"""`t2i data encode-images`: tokens of images, of one size or of two, stored beside a packed set."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from t2i_jax import paths
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.progress import progress
from t2i_jax.errors import UserError
from t2i_jax.values import Fraction, Range
from t2i_jax.words import counted

_Size = Annotated[Annotated[int, Range(1, 65_536)] | None, Shown("PIXELS")]
_Many = Annotated[int, Range(1, 65_536)]  # images that are in memory at once


class _Coder(NamedTuple):
    """A trained tokenizer at one size: its network for that, its weights and its run."""

    network: Any
    weights: Any
    run: pathlib.Path


def encode_images(
    packed: pathlib.Path,
    run: pathlib.Path,
    image_size: _Size = None,
    cond_image_size: _Size = None,
    superres_tokenizer: pathlib.Path | None = None,
    crop: str = "center",
    batch_size: _Many = 32,
    max_bad_rate: Fraction = 0.05,
    replace: bool = False,
) -> None:
    """Store a trained tokenizer's tokens beside a packed set, for a task with stored_tokens=True.

    With --cond-image-size they are those of two sizes, for a super-resolution, and the tokens of
    one size that are stored already stay beside them.

    Args:
        packed: Folder that `t2i data pack` wrote.
        run: Folder of the tokenizer's run, or of a run that holds one.
        image_size: Side of the images, where the tokenizer is not used at its own.
        cond_image_size: Side of the smaller images that a super-resolution is conditioned on.
        superres_tokenizer: Folder of the run of the large images' tokenizer, where `run` is that of
            the small ones; left out it is the one that `run` holds, or one serves both.
        crop: How images become square: center, or resize, which squeezes them.
        batch_size: Images that are encoded at once.
        max_bad_rate: Which fraction of the records may be damaged.
        replace: Make them anew where there are some of another tokenizer, size or crop.
    """
    from t2i_jax.config import one_of
    from t2i_jax.data.arrayrecord import PackedSource
    from t2i_jax.data.columns import add_column, is_wanted
    from t2i_jax.runs.folder import fingerprint

    one_of("crop", crop, ("center", "resize"))
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not positive; give 1 or more.")
    packed, run = paths.given("packed", packed), paths.given("run", run)
    source = PackedSource(str(packed), columns=())
    coders = _coders(run, image_size, cond_image_size, superres_tokenizer)
    column, large = next(iter(coders.items()))
    about = {**_made_with(large), "crop": crop}
    if cond_image_size is not None:
        cond = _made_with(coders["cond_tokens"])
        about |= {f"cond_{name}": cond[name] for name in ("tokenizer", "image_size", "num_tokens")}
    # older sets have the fingerprint of all weights
    same = (about["tokenizer"], fingerprint(large.weights))
    if not is_wanted(packed, column, {**about, "tokenizer": same}, replace):
        print(f"there already: {column.replace('_', ' ')} of {large.run} in {packed}")
        return
    about["run"] = str(large.run)
    if cond_image_size is not None:
        about["cond_run"] = str(coders["cond_tokens"].run)
    rows = _tokens(source, coders, crop, batch_size)
    add_column(packed, column, rows, about=about, max_bad_rate=max_bad_rate)
    number = " and ".join(str(coder.network.num_tokens) for coder in coders.values())
    print(f"stored: {number} tokens of each of {counted(len(source), 'image')} in {packed}")


def _coders(run, image_size, cond_image_size, superres_tokenizer) -> Mapping[str, _Coder]:
    """The tokenizers by the array that they fill, that of the large images first."""
    from t2i_jax import runs
    from t2i_jax.systems import stored_tokens

    load = functools.cache(runs.load)  # one run may serve both sizes
    within = run / "superres_tokenizer"
    own = run / "tokenizer" if (run / "tokenizer").is_dir() else run
    if cond_image_size is None:
        if superres_tokenizer is not None:
            raise UserError(
                f"superres_tokenizer={str(superres_tokenizer)!r} is nothing without a "
                "cond_image_size; give --cond-image-size, or it as run."
            )
        return {"tokens": _coder(load, "image_size", own, image_size)}
    if superres_tokenizer is not None:
        large = paths.given("superres_tokenizer", superres_tokenizer)
    else:
        large = within if within.is_dir() else own
    coders = {
        "superres_tokens": _coder(load, "image_size", large, image_size),
        "cond_tokens": _coder(load, "cond_image_size", own, cond_image_size),
    }
    large, small = (coder.network for coder in coders.values())
    stored_tokens.check_pair(large, small, cond_image_size)
    return coders


def _coder(load, field, run, size):
    """The tokenizer of a run at a size; None: at its own."""
    from t2i_jax.models.image_tokenizer import at_size

    system = load(run)
    size = system.coded_size if size is None else size  # a system without codes says so here
    return _Coder(at_size(field, system.task.network, size), system.weights, run)


def _made_with(coder):
    """What tokens of a tokenizer are made with, for the manifest."""
    from t2i_jax.models import encoder_side

    return {
        "tokenizer": encoder_side.fingerprint(coder.network, coder.weights),
        "image_size": coder.network.image_size,
        "num_tokens": coder.network.num_tokens,
        "codebook_size": coder.network.codebook_size,
    }


def _tokens(source, coders, crop, batch_size) -> Iterator[Any]:
    """The tokens of each record, in the smallest integers that hold them, or the BadSample that it
    is. Those of the smaller image are of the large one made smaller, as training does.
    """
    from t2i_jax.compiler import Program
    from t2i_jax.data.crop import crop as cut
    from t2i_jax.data.pack import in_batches
    from t2i_jax.models import image_tokenizer
    from t2i_jax.pixels import shrink

    large = next(iter(coders.values())).network
    size, channels = large.image_size, large.channels
    dtype = np.uint16 if large.codebook_size <= 2**16 else np.int32
    programs = {
        name: Program(functools.partial(image_tokenizer.tokens, coder.network))
        for name, coder in coders.items()
    }

    source = source.in_channels(channels)

    def image(index):
        return cut(source.without_caption(index)["image"], size, crop)

    def encoded(images):
        # always as many: one program
        images_BHWC = np.zeros((batch_size, size, size, channels), np.uint8)
        images_BHWC[: len(images)] = images
        ids = {}
        for name, (network, weights, _) in coders.items():
            scale = size // network.image_size
            shown_BHWC = images_BHWC if scale == 1 else shrink(images_BHWC, scale)
            ids[name] = np.asarray(programs[name](weights, shown_BHWC)).astype(dtype)
        return [{name: ids_BN[row] for name, ids_BN in ids.items()} for row in range(len(images))]

    records = progress("encoding")(range(len(source)))
    yield from in_batches(image, encoded, records, batch_size)
