"""One sample: the record of a position read, and its images cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i_jax.data.crop import crop, resized
from t2i_jax.data.heldout import Division, caption_of
from t2i_jax.data.image_file import in_channels
from t2i_jax.data.source import BadSample, Source

if TYPE_CHECKING:
    import grain

    from t2i_jax.data.pipeline import DataConfig

HELD_OUT = "held out"
"""The value that stands for a sample that training does not see."""


class Prepare:
    """Reads and cuts one sample; what cannot be used comes back as its BadSample, to be counted in
    one place.
    """

    def __init__(
        self,
        source: Source,
        order: grain.MapDataset,
        config: DataConfig,
        kept: set[str],
        seed: int,
        channels: Mapping[str, int],
        division: Division | None,
    ):
        self._source, self._order, self._config, self._kept = source, order, config, kept
        self._seed, self._channels, self._division = seed, channels, division
        self._with_image = "image" in kept
        self._by_chance = config.flip or config.crop == "random"

    @property
    def records(self) -> int:
        """Records of the source."""
        return len(self._source)

    @property
    def source(self) -> Source:
        """The source of the samples."""
        return self._source

    @property
    def positions(self) -> int:
        """Length of the order; a repeated one is practically endless."""
        return len(self._order)

    def __call__(self, position: int) -> dict[str, Any] | BadSample | str:
        """The entries of the sample at a position; a BadSample, or `HELD_OUT`, in place of one."""
        index = int(self._order[position])  # pyright: ignore[reportArgumentType]
        if self._division is not None and self._division.is_held_out(
            index, caption_of(self._source, index)
        ):
            return HELD_OUT
        try:
            record = self._read(index)
            for name in sorted(self._kept):
                if record.get(name) is None:
                    raise BadSample(f"no {name}", f"record {index}")
                if isinstance(record[name], BadSample):
                    raise record[name]
        except BadSample as bad:
            return bad
        sample = {name: record[name] for name in self._kept}
        if "text_embeds" in sample and record.get("text_mask") is not None:
            sample["text_mask"] = record["text_mask"]
        if "cond_image" in sample and self._with_image:
            sample["cond_image"] = _fitted(sample["cond_image"], sample["image"])
        for name in {"image", "cond_image"} & set(sample):
            sample[name] = self._cut(in_channels(sample[name], self._channels[name]), position)
        return sample

    def _read(self, index):
        if "cond_image" not in self._kept:
            return self._read_own(index)
        others = self._read_own(index) if len(self._kept) > 1 else {}
        channels = self._channels["cond_image"]
        return {**others, "cond_image": self._source.cond_image(index, channels)}

    def _read_own(self, index):
        if self._kept - {"cond_image"} == {"caption"}:  # neither an image nor stored arrays
            return {"caption": self._source.caption(index)}
        if not self._with_image:
            return self._source.without_image(index)
        if "caption" not in self._kept:
            return self._source.without_caption(index)
        return self._source[index]

    def _cut(self, image_HWC, position):
        # The 0 was once the process's number: a run of one process that was saved then goes on with
        # the same crops.
        rng = np.random.default_rng((self._seed, 0, position)) if self._by_chance else None
        image_HWC = crop(image_HWC, self._config.image_size, self._config.crop, rng)
        return image_HWC[:, ::-1] if self._config.flip and rng.random() < 0.5 else image_HWC


def _fitted(image_HWC, like_HWC):
    """An image at the size of another, so that both are cut alike."""
    height, width = like_HWC.shape[:2]
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    return resized(image_HWC, (width, height))
