"""Generated images in a folder: shards of PNG files, each written whole or not at all."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t2i_jax import files
from t2i_jax.data import image_file
from t2i_jax.errors import UserError
from t2i_jax.pixels import png_bytes
from t2i_jax.runs.scoring.split import Split

MANIFEST = "manifest.jsonl"
_MOST_MANIFEST = 2**28  # bytes


class ImageShards:
    """The images of a plan, by their numbers.

    Args:
      folder: below which the folders of the shards are. split: images into shards.
    """

    def __init__(self, folder: pathlib.Path, split: Split):
        self.folder, self.split = folder, split

    def path(self, index: int) -> pathlib.Path:
        """The path of an image."""
        return self._home(index // self.split.size) / f"{index:06d}.png"

    def read(self, index: int) -> np.ndarray:
        """The pixels of an image, uint8 (H, W, 3)."""
        name = self.path(index).name
        return image_file.decode(image_file.file_bytes(self.path(index), name), name)

    def key(self, shard: int) -> str:
        """The SHA-256 of a shard's manifest, which tells its images apart from all others."""
        return hashlib.sha256(self._manifest(shard)).hexdigest()

    def about(self) -> dict[str, Any]:
        """The entry about the images in the results."""
        keys = [self.key(shard) for shard in range(self.split.shards)]
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()
        return {"kind": "generated", "count": self.split.count, "encoding": "png", "sha256": digest}

    def is_whole(self, shard: int) -> bool:
        """Whether all images of a shard are there, and as they were written."""
        try:
            lines = [json.loads(line) for line in self._manifest(shard).splitlines()]
            wanted = [(line["file"], line["sha256"]) for line in lines]
        except (UserError, ValueError, KeyError, TypeError):
            return False
        if len(wanted) != len(self.split.rows(shard)):
            return False
        home = self._home(shard)
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return all(pool.map(lambda one: _sha256(home / one[0]) == one[1], wanted))

    def write(self, shard: int, images: np.ndarray, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes a shard in the place of what is left of it.

        Args:
          images: uint8 (N, H, W, C). lines: what the manifest says of each, beside its file and its
            SHA-256.
        """
        home, rows = self._home(shard), self.split.rows(shard)
        if home.exists():
            shutil.rmtree(home)
        home.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(home) as temporary:
            temporary.mkdir()
            told = []
            for index, image, line in zip(rows, images, lines, strict=True):
                data, name = png_bytes(image), self.path(index).name
                (temporary / name).write_bytes(data)
                told.append({**line, "file": name, "sha256": hashlib.sha256(data).hexdigest()})
            text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in told)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")

    def drop(self, shard: int, kept: int) -> None:
        """Removes the images of a shard with numbers from `kept` on; the manifest stays."""
        for index in self.split.rows(shard):
            if index >= kept:
                self.path(index).unlink(missing_ok=True)

    def _home(self, shard):
        return self.folder / f"{shard:05d}"

    def _manifest(self, shard):
        path = self._home(shard) / MANIFEST
        try:
            return files.read_regular(path, _MOST_MANIFEST)
        except OSError:
            raise UserError(
                f"{str(path)!r} is missing; start the command again, which makes its images again."
            ) from None


def _sha256(path):
    try:
        return hashlib.sha256(files.read_regular(path, image_file.MOST_BYTES)).hexdigest()
    except OSError:
        return ""
