"""`t2i evaluate reference`: statistics of a set of images, for others to compare with."""

from __future__ import annotations

import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t2i_jax import paths
from t2i_jax.cluster import lock, processes
from t2i_jax.errors import UserError
from t2i_jax.eval import statistics_file
from t2i_jax.eval.extractors import Extractor
from t2i_jax.eval.protocol import Protocol
from t2i_jax.runs.scoring import features
from t2i_jax.runs.scoring.sources import SourceImages
from t2i_jax.runs.scoring.split import Share

LAYERS = {"inception": "pool3", "clip": "image", "cmmd": "image", "dinov2": "cls"}
"""The layer whose statistics are kept, by network."""
_ADM, _SPATIAL = "inception-tf", "spatial"  # the extractor and the layer of ADM's evaluator
_CLEAN, _CLEAN_MODE = "inception-clean", "clean"  # the extractor of clean-fid, and its name there
_MOST_BYTES = 2**34  # of the images that an ADM batch holds


def write(
    images: SourceImages,
    extractor: Extractor,
    layer: str,
    out: pathlib.Path,
    protocol: Protocol | None,
    share: Share,
    *,
    keep_features: bool,
    keep_images: bool,
    clean_fid: str | None = None,
    progress: Callable[[Any], Any] = iter,
) -> dict[str, Any]:
    """Writes OUT and the JSON beside it; every process calls it.

    Features are kept in OUT.shards until all of them are there, so that a command that was killed
    goes on; OUT itself appears last. Where the same command has written it already, that is all.

    Args:
      keep_features: for KID and recall. keep_images: as `arr_0`, for ADM's evaluator.
      clean_fid: the name by which clean-fid finds them, in two more files beside OUT; None: no such
        files.

    Returns:
      What the JSON says of the images; {} in a process that is not the first.

    Raises:
      UserError: images of several sizes that are to be kept, or too many of them, or by another
        extractor than ADM's; another one than clean-fid's for its files, or they exist; or another
        command writes OUT, or has written it (with the field that differs).
    """
    if keep_images and extractor.name != _ADM:
        raise UserError(
            f"--adm is for OpenAI's evaluator, whose features are those of {_ADM}, not of "
            f"{extractor.name}; give --mode tf, or leave it out."
        )
    home = out.with_name(f"{out.name}.shards")
    if clean_fid is not None:
        _check_clean_fid(clean_fid, out, extractor, begun=home.exists() or out.exists())
    layers = (layer, _SPATIAL) if keep_images else (layer,)
    bring = (lambda image: image) if protocol is None else protocol.bring
    told = {} if protocol is None else protocol.about()
    folder = features.folder_of(home, extractor, layers, told)
    kept = {"keep_features": keep_features, "adm": keep_images, "clean_fid": clean_fid}
    asked = _asked(images, extractor, layer, told, kept)
    with lock.held(home, "out"):
        if out.exists():  # of this command, which was killed before its end, or of another one
            return _made_before(out, asked, home, share)
        found = features.compute(images, extractor, layers, folder, bring, share, progress=progress)
        processes.gather(None)
        if share.process:
            return {}
        of = {**images.about(), **images.passed_over(), **found.about}
        about = {**asked, "images": of}
        pixels = _Images(images, found, bring) if keep_images else None
        moments = found.moments(layer)
        spatial = found.moments(_SPATIAL) if keep_images else None
        if clean_fid is not None:
            whole = found.rows(layer)
            statistics_file.write_clean_fid(out.parent, clean_fid, _CLEAN_MODE, moments, whole)
        array = found.rows(layer) if keep_features else None
        statistics_file.write_statistics(out, moments, about, array, pixels, spatial)
        shutil.rmtree(home)
        return about["images"]


def extras(
    extractor: Extractor, among: Sequence[Extractor], adm: bool, clean_fid: str | None
) -> dict[str, Any]:
    """The options of `write` for the statistics of one of several extractors: each other package
    gets the entries of its own mode.

    Args:
      among: all of them. Where none is of that mode, the first is asked, which `write` refuses.
    """

    def is_asked(name):
        return extractor is next((one for one in among if one.name == name), among[0])

    return {
        "keep_images": adm and is_asked(_ADM),
        "clean_fid": clean_fid if is_asked(_CLEAN) else None,
    }


def _asked(images, extractor, layer, protocol, kept):
    """The record of the command in the JSON beside OUT, without the counts of the images used."""
    return _json({
        "extractor": {"name": extractor.name, "layer": layer, **extractor.about},
        "protocol": protocol or None,
        "command": {"images": {**images.about(), "files": images.key(0)[:16]}, **kept},
    })  # fmt: skip


def _made_before(out, asked, home, share):
    """The result of `write` where OUT exists already; the features that are left of it are
    removed.
    """
    found = statistics_file.made_before(out, asked).get("images")
    if not isinstance(found, dict) or not {"count", "left_out"} <= found.keys():
        raise UserError(
            f"out={paths.shown(out)} exists, and the JSON file beside it does not say of how many "
            "images it is; name a new FILE.npz."
        )
    if share.process:
        return {}
    shutil.rmtree(home)
    return found


def _check_clean_fid(name, out, extractor, begun):
    if extractor.name != _CLEAN:
        raise UserError(
            f"--clean-fid={name} is for clean-fid, whose features are those of {_CLEAN}, not of "
            f"{extractor.name}; give --mode {_CLEAN_MODE}, or leave it out."
        )
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--clean-fid={name!r} is no name of files; give letters and digits.")
    if begun:  # a command that was killed may have written them; they are compared later
        return
    for path in statistics_file.of_clean_fid(out.parent, name, _CLEAN_MODE):
        if path.exists():
            raise UserError(f"--clean-fid={name}: {paths.shown(path)} exists; give another name.")


class _Images:
    """The images that could be used, (N, H, W, 3) of one size, read when a slice is asked for."""

    def __init__(self, images, found, bring):
        self._images, self._kept, self._bring = images, found.kept, bring
        self.shape = (len(self._kept), *self._read(0).shape)
        if math.prod(self.shape) > _MOST_BYTES:
            raise UserError(
                f"{self.shape[0]:,} images of {self.shape[2]}x{self.shape[1]} pixels are too many "
                "for one file; leave --adm out."
            )

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        found = [self._read(row) for row in range(*rows.indices(len(self)))]
        if any(image.shape != self.shape[1:] for image in found):
            raise UserError(
                f"images={paths.shown(self._images.spec)} have several sizes, and --adm keeps them "
                "as one array; give --protocol, which brings them to one size."
            )
        return np.stack(found)

    def __array__(self, dtype=None, *, copy=None):
        del copy  # it is always one
        return self[:] if dtype is None else self[:].astype(dtype)

    def _read(self, row):
        return self._bring(self._images.read(int(self._kept[row])))


def _json(value):
    return json.loads(json.dumps(value, default=str))
