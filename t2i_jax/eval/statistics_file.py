"""Statistics of a reference set in a file, in the three forms that tools exchange.

- pytorch-fid, TTUR, EDM, clean-fid: an npz with `mu` (D,) and `sigma` (D, D).
- clean-fid's for KID: an npz with `feats` (N, D).
- ADM: an npz with `arr_0` (N, H, W, 3) uint8, and `mu`, `sigma`, `mu_s`, `sigma_s` or not.

None of them says how the images were made smaller, or by which network the features were made. What
is written here has a JSON file beside it that does; of other files the user has to say it.

A file has the statistics of one mode of Inception. Those of further modes are in files beside it,
FILE-tf.npz beside FILE.npz, and are found there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from t2i_jax import config, files, paths
from t2i_jax.errors import UserError
from t2i_jax.eval.frechet import Gaussian
from t2i_jax.eval.moments import Moments
from t2i_jax.eval.rows import Rows, StoredRows, moments_of, write_rows

SCHEMA = 1
_MOST = 4  # fields that a refusal names
_PART = 2**22  # bytes that are read at a time
_KEYS = ("mu", "sigma", "mu_s", "sigma_s", "feats", "arr_0")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a reference set, as read from a file.

    Attributes:
      path: of the file. sha256: of its bytes, hexadecimal.
      gaussian: mean and covariance of its features; None where the file has none.
      features_ND: the features themselves, float32, which KID and recall need, left in the file
        where they can be; None without.
      spatial: ADM's second Gaussian, for sFID; None without.
      images_NHWC: ADM's images, uint8 (N, H, W, 3); None without.
      count: images of which the Gaussian was made; None: nobody has said.
      about: what the file beside it says of the extractor; {} without such a file.
    """

    path: pathlib.Path
    sha256: str
    gaussian: Gaussian | None = None
    features_ND: Rows | None = None
    spatial: Gaussian | None = None
    images_NHWC: np.ndarray | None = None
    count: int | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_statistics(path: pathlib.Path, extractor: str, mode: str | None = None) -> Statistics:
    """The statistics for features of `extractor`: those of FILE.npz, or where it has those of
    another mode, of the file that `of_mode` names, where its JSON says that they are of
    `extractor`.

    Args:
      extractor: the name of what makes the features that they are compared with, as
        "inception-clean".
      mode: the extractor that made those of FILE.npz, where the user says so: its name, or what
        follows "inception-" in it; None: the JSON file beside them says it.

    Raises:
      UserError: the file can't be read or holds no statistics, it was changed since the JSON file
        was written, nobody says which extractor made them, or it was another one.
    """
    path = paths.given("reference", path)
    if (further := _further(path, extractor, mode)) is not None:
        path, mode = further, None
    named = f"reference={paths.shown(path)}"
    arrays = _arrays(path, named)
    digest, about = files.sha256(path), _beside(path, named)
    if about and about.get("sha256") != digest:
        raise UserError(
            f"{named} is not the file that {_json(path).name} beside it describes; make both anew, "
            "or remove the JSON file and give reference_mode."
        )
    made_by = _made_by(about)
    said = {mode, f"inception-{mode}"} if mode else {made_by}
    if made_by is None and mode is None:
        raise UserError(
            f"{named} does not say by which preprocessing its statistics were made; say it with "
            f"--reference-mode, for example {_mode(extractor)}."
        )
    if extractor not in said or (made_by is not None and made_by not in said):
        there, beside = made_by or mode, of_mode(path, _mode(extractor)).name
        raise UserError(
            f"{named} has statistics of {there}, not of {extractor}; give statistics of that, or "
            f"as {beside} beside it where both are compared (t2i evaluate reference --protocol "
            "writes both), or its images as folder:DIR."
        )
    return _statistics(path, arrays, digest, about, named)


def of_mode(path: pathlib.Path, mode: str) -> pathlib.Path:
    """The path FILE-MODE.npz of the statistics of a further mode beside those of FILE.npz."""
    return path.with_name(f"{path.stem}-{mode}.npz")


def write_statistics(
    path: pathlib.Path,
    moments: Moments,
    about: Mapping[str, Any],
    features_ND: Rows | None = None,
    images_NHWC: Rows | None = None,
    spatial: Moments | None = None,
) -> None:
    """Writes FILE.npz and FILE.json beside it; both appear whole or not at all, FILE.npz last.

    Args:
      about: JSON of the extractor, with its "name", and whatever else tells how they were made.
      features_ND: kept as `feats`, float32, for KID and recall; None: not kept.
      images_NHWC: kept as `arr_0`, uint8, for ADM's evaluator; None: not kept. Of these and of the
        features a part at a time is in memory.
      spatial: kept as `mu_s` and `sigma_s`, without which that evaluator reads no `mu` and `sigma`.
    """
    kept: dict[str, Any] = {} if images_NHWC is None else {"arr_0": _Rows(images_NHWC, np.uint8)}
    kept |= {"mu": moments.mean_D, "sigma": moments.covariance_DD}
    if spatial is not None:
        kept |= {"mu_s": spatial.mean_D, "sigma_s": spatial.covariance_DD}
    if features_ND is not None:
        kept["feats"] = _Rows(features_ND, np.float32)
    with files.replacing(path) as temporary:
        _save(temporary, kept)
        digest = files.sha256(temporary)
        said = {"schema": SCHEMA, "sha256": digest, "count": moments.count, **about}
        text = json.dumps(said, indent=1, sort_keys=True) + "\n"
        with files.replacing(_json(path)) as beside:
            beside.write_text(text, encoding="utf-8")


def check_new(path: pathlib.Path) -> None:
    """Refuses a FILE.npz that is there and that `made_before` can tell nothing of, or beside which
    a FILE.json is of something else.

    Raises:
      UserError: it is there, or that.
    """
    named = f"out={paths.shown(path)}"
    if path.suffix != ".npz":
        raise UserError(f"{named} is no .npz; name a new FILE.npz.")
    try:
        about = _beside(path, named)
    except UserError:
        about = None
    if path.exists() and not (path.is_file() and "command" in (about or {})):
        raise UserError(
            f"{named} exists, and no {_json(path).name} beside it says by which command it was "
            "made; name a new FILE.npz."
        )
    if about is None:
        raise UserError(
            f"{named} gets a {_json(path).name} beside it, and another file is there; name a new "
            "FILE.npz."
        )


def made_before(path: pathlib.Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the FILE.json beside a FILE.npz, where that was made as it would be made now.

    Args:
      about: JSON of how it would be made, with "command".

    Raises:
      UserError: it was made in another way, with the field that differs, or was changed since.
    """
    named = f"out={paths.shown(path)}"
    found = _beside(path, named)
    if changed := config.differences({name: found.get(name) for name in about}, dict(about)):
        raise UserError(
            f"{named} exists and was made by another command ({'; '.join(changed[:_MOST])}); name "
            "a new FILE.npz."
        )
    if found.get("sha256") != files.sha256(path):
        raise UserError(
            f"{named} is not the file that {_json(path).name} beside it describes; remove both, or "
            "name a new FILE.npz."
        )
    return found


def of_clean_fid(folder: pathlib.Path, name: str, mode: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The two files that clean-fid looks for in its folder `stats` when it is given
    `dataset_name=name, mode=mode, dataset_split="custom"`: mean and covariance, and the features
    for KID.
    """
    stem = f"{name}_{mode}_custom_na".lower()
    return folder / f"{stem}.npz", folder / f"{stem}_kid.npz"


def write_clean_fid(
    folder: pathlib.Path, name: str, mode: str, moments: Moments, features_ND: Rows
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the two files of `of_clean_fid`, from features and their moments, and returns their
    paths. Files that are there already stay where they are the same.

    Raises:
      UserError: one that is there is another.
    """
    gaussian, features = of_clean_fid(folder, name, mode)
    for path, arrays in (
        (gaussian, {"mu": moments.mean_D, "sigma": moments.covariance_DD}),
        (features, {"feats": _Rows(features_ND, np.float32)}),
    ):
        with files.replacing(path) as temporary:
            _save(temporary, arrays)
            if path.exists() and files.sha256(path) != files.sha256(temporary):
                raise UserError(
                    f"{paths.shown(path)} exists and has statistics of other images; give another "
                    "name, or remove it."
                )
    return gaussian, features


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz of these arrays, not compressed; the same arrays are the same bytes."""
    with files.replacing(path) as temporary:
        _save(temporary, arrays)


class _Rows(NamedTuple):
    """An array that is read part by part while it is written, and its type in the file."""

    rows: Rows
    dtype: type


def _save(path, arrays):
    """Writes what `numpy.savez` writes, to the byte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, _Rows):
                    write_rows(member, *array)
                else:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _further(path, extractor, mode):
    """The file beside FILE.npz with the statistics of an extractor; None: FILE.npz itself has them,
    or there is no such file.
    """
    beside, named = of_mode(path, _mode(extractor)), f"reference={paths.shown(path)}"
    said = _made_by(_beside(path, named)) or mode
    if said in (extractor, _mode(extractor)) or not beside.is_file():
        return None
    with contextlib.suppress(UserError):  # a JSON file of something else
        return beside if _made_by(_beside(beside, named)) == extractor else None


def _mode(extractor):
    """The mode of an extractor: "tf" of "inception-tf"; of other extractors their name."""
    return extractor.removeprefix("inception-")


def _made_by(about):
    return about.get("extractor", {}).get("name")


def _json(path):
    return path.with_suffix(".json")


def _arrays(path, named):
    try:
        with files.open_regular(path) as file, np.load(file, allow_pickle=False) as found:
            if not hasattr(found, "files"):
                raise ValueError("it is one array")
            return {name: _array(path, found, name) for name in found.files if name in _KEYS}
    except Exception as error:  # whatever readers of damaged archives and headers raise
        said = getattr(error, "strerror", None) or "it is no npz of plain arrays"
        raise UserError(
            f"{named} can't be read as statistics ({said}); give an npz with mu and sigma, feats "
            "or arr_0."
        ) from None


def _array(path, found, name):
    """An array of an open npz; features stay in the file where they lie there row by row."""
    if name == "feats":
        with found.zip.open(f"{name}.npy") as file:  # which compares its checksum
            while file.read(_PART):
                pass
        with contextlib.suppress(LookupError, ValueError):
            return StoredRows([path], name)
    return found[name]


def _beside(path, named):
    try:
        found = json.loads(files.read_regular(_json(path), 2**24))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("extractor"), dict):
        raise UserError(
            f"{named}: {_json(path).name} beside it is not what `t2i evaluate reference` writes; "
            "make both anew, or remove it."
        )
    return found


def _statistics(path, arrays, digest, about, named):
    for names in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if len({name in arrays for name in names}) == 2:
            raise UserError(f"{named} has one of {' and '.join(names)} alone; give both.")
    for name, array in arrays.items():
        _check_form(name, array, named)
    features_ND = arrays.get("feats")
    try:
        gaussian = _gaussian(arrays, "mu", "sigma")
        spatial = _gaussian(arrays, "mu_s", "sigma_s")
        if gaussian is None and features_ND is not None:
            gaussian = Gaussian.of(moments_of(features_ND))
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    if gaussian is None and "arr_0" not in arrays:
        raise UserError(f"{named} has neither mu and sigma nor feats nor arr_0; give one of them.")
    count = about.get("count", None if features_ND is None else len(features_ND))
    images_NHWC = arrays.get("arr_0")
    if images_NHWC is not None:  # gray ones have one channel
        images_NHWC = np.broadcast_to(images_NHWC, (*images_NHWC.shape[:-1], 3))
    return Statistics(path, digest, gaussian, features_ND, spatial, images_NHWC, count, about)


def _check_form(name, array, named):
    """Refuses an array of a file that is not what its name says."""
    told = f"{named}: {name} is {array.dtype}{array.shape}"
    if name == "arr_0":
        is_filled = array.ndim == 4 and 0 not in array.shape
        if array.dtype != np.uint8 or not is_filled or array.shape[-1] not in (1, 3):
            raise UserError(
                f"{told}, and images are uint8 (N, H, W, 3); give these, or save statistics by "
                "their names, as numpy.savez(FILE, mu=mu, sigma=sigma) or feats=features."
            )
    elif array.dtype.kind not in "fiu":
        raise UserError(f"{told}, no real numbers; give float64.")
    elif name == "feats" and array.ndim != 2:
        raise UserError(f"{told}; give (N, D).")


def _gaussian(arrays, mean, covariance):
    if mean not in arrays:
        return None
    return Gaussian(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
