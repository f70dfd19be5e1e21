"""The weights of a metric's network: the file, its SHA-256, and where a missing one comes from."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax import config, files, paths
from t2i_jax.convert import Weights, inception, kind, weights
from t2i_jax.errors import UserError
from t2i_jax.foreign import file


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that is published somewhere; nothing here fetches it.

    Attributes:
      name: of the file. size: how large it is, in words. source: where it is published.
      sha256: the first digits of its hash; "": not known here.
    """

    name: str
    size: str
    source: str
    sha256: str = ""

    def __str__(self) -> str:
        known = f", SHA-256 {self.sha256}..." if self.sha256 else ""
        return f"{self.name} ({self.size}{known}) from {self.source}"


_HUB = "https://huggingface.co"
PUBLISHED: Mapping[str, Published] = {
    "inception": Published(
        inception.FILE, inception.SIZE, inception.SOURCE, inception.HASH
    ),
    "clip-vit-b-32": Published(
        "the folder with model.safetensors, config.json and the tokenizer", "0.6 GB",
        f"{_HUB}/openai/clip-vit-base-patch32",
    ),
    "clip-vit-l-14": Published(
        "the folder with model.safetensors, config.json and the tokenizer", "1.7 GB",
        f"{_HUB}/openai/clip-vit-large-patch14",
    ),
    "clip-vit-l-14-336": Published(
        "the folder with model.safetensors, config.json and the tokenizer", "1.7 GB",
        f"{_HUB}/openai/clip-vit-large-patch14-336",
    ),
    "dinov2": Published(
        "the folder with model.safetensors and config.json", "1.2 GB",
        f"{_HUB}/facebook/dinov2-large",
    ),
    "pickscore": Published(
        "the folder with model.safetensors, config.json and the tokenizer", "3.9 GB",
        f"{_HUB}/yuvalkirstain/PickScore_v1",
    ),
    "hpsv2": Published(
        "HPS_v2_compressed.pt or HPS_v2.1_compressed.pt", "1.9 GB", f"{_HUB}/xswu/HPSv2"
    ),
    "lpips-alex": Published(
        "alexnet-owt-7be5be79.pth", "244 MB",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79",
    ),
    "lpips-vgg": Published(
        "vgg16-397923af.pth", "528 MB",
        "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af",
    ),
}  # fmt: skip


def find(path: str | os.PathLike | None, what: str) -> pathlib.Path:
    """The file or folder that the user names, with `~` replaced by the home folder; of a folder in
    the cache of the Hugging Face hub the snapshot in it.

    Args:
      path: None: nothing was named. what: a key of `PUBLISHED`.

    Raises:
      UserError: nothing is named, or nothing is there: the sentence says what is missing, how large
        it is and where it comes from; or it is no path, see `paths.given`; or there are several
        snapshots.
    """
    config.one_of("weights", what, PUBLISHED)
    if path is None:
        raise UserError(f"{what} needs weights; fetch {PUBLISHED[what]}, and give its path.")
    found = paths.given(what, path)
    if not os.path.lexists(found):
        raise UserError(
            f"{what}={os.fspath(path)!r} is not there; fetch {PUBLISHED[what]}, and give its path."
        )
    return _snapshot(found, what) if found.is_dir() else file.check(found, what)


def network(
    path: pathlib.Path, of: type, what: str, fields: Mapping[str, Any] | None = None
) -> Weights:
    """The network in a file, which must be of a class.

    Args:
      what: a key of `PUBLISHED`. fields: as in `convert.weights`.

    Raises:
      UserError: another network, whatever else is wrong with it or with the fields; or as
        `convert.weights`.
    """
    try:
        found = weights(path, fields or {}, field=what)
    except UserError:
        check_kind(path, of, what)
        raise
    _check_kind(path, type(found.model), of, what)
    return found


def check_kind(path: pathlib.Path, of: type, what: str) -> None:
    """Refuses a file whose arrays have the names of another network than that of a class.

    Args:
      what: a key of `PUBLISHED`.

    Raises:
      UserError: another network, or as `convert.kind`.
    """
    _check_kind(path, kind(path, what), of, what)


def _check_kind(path, found, of, what):
    if not issubclass(found, of):
        raise UserError(
            f"{what}={os.fspath(path)!r} holds a {found.__name__}; give {PUBLISHED[what]}."
        )


def _snapshot(folder, what):
    """The only snapshot in a folder of the hub's cache; another folder is given back."""
    inside = sorted(one for one in (folder / "snapshots").glob("*") if one.is_dir())
    if len(inside) > 1:
        raise UserError(
            f"{what}={os.fspath(folder)!r} has {len(inside)} snapshots; give one of them, as "
            f"snapshots/{inside[0].name} in it."
        )
    return inside[0] if inside else folder


def told_of_other(what: str, about: Mapping[str, Any]) -> str | None:
    """A sentence about a file that is not the published one, without its full stop; None: it is
    that one, or nothing tells.

    Args:
      what: a key of `PUBLISHED`, or another name, of which nothing is known. about: of the file, as
        the function of that name gives it.
    """
    published, digest = PUBLISHED.get(what), about.get("sha256")
    if published is None or digest is None or digest.startswith(published.sha256):
        return None
    begins = digest[: len(published.sha256)]
    return (
        f"{what}={about.get('file')} is not the published {published.name} (its SHA-256 begins "
        f"with {begins}, not {published.sha256}), so its numbers may not be those of others"
    )


def about(path: str | os.PathLike) -> Mapping[str, str]:
    """The entry about a file in the results: its name and its SHA-256."""
    return {"file": os.path.basename(os.fspath(path)), "sha256": files.sha256(path)}
