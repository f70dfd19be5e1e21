"""One process of eight simulated devices that measures what one device measures, too: `python -m
tests.e2e.measuring_eight HOME`, where HOME is what `tests.e2e.measuring` has left.
"""

import os
import sys

if __name__ == "__main__":
    from tests.flags import FAST

    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {FAST}"

import json
import pathlib
from unittest import mock

import jax
import numpy as np

from t2i_jax import runs
from t2i_jax.runs.samples import held_out
from t2i_jax.runs.scoring import tokenizer
from t2i_jax.runs.scoring.monitoring import Measurer
from t2i_jax.runs.scoring.split import Share
from t2i_jax.runs.scoring.wanted import Wanted
from tests.e2e import measuring
from tests.runs import scoring_toys
from tests.toy_system.system import ToySystem

DEVICES = 8


def monitored(home: pathlib.Path, workdir: pathlib.Path) -> dict[str, float]:
    """What the run logs of its last state."""
    recipe, system = runs.load_run_recipe(home / "run"), runs.load(home / "run")
    return dict(Measurer(recipe, Wanted.of(recipe), held_out(recipe), workdir).start(system)())


def tokens(home: pathlib.Path, out: pathlib.Path, system: scoring_toys.Levels) -> None:
    """What `t2i evaluate tokenizer` does, of nine images."""
    images = tokenizer.CroppedImages(f"folder:{home / 'real'}", 12, "adm", 9)
    measures = tokenizer.Measures([scoring_toys.toy_extractor("inception-tf")])
    tokenizer.evaluate(out, system, images, measures, out, Share(), batch_size=3)


def check_features() -> None:
    """Fails where features of a network that rounds differ by a bit between one device and eight,
    in one process, whose threads they share.
    """
    rng, parts = np.random.default_rng(0), []
    images = list(rng.integers(0, 256, (21, 24, 24, 3), dtype=np.uint8))

    def look(x):
        def note(place):
            parts.append(place.shard_shape(x.shape))

        jax.debug.inspect_array_sharding(x, callback=note)

    found = scoring_toys.convolutions(look).features(images, 2)["pool3"]
    with mock.patch.object(jax, "local_devices", lambda: jax.devices()[:1]):
        alone = scoring_toys.convolutions(look).features(images, 2)["pool3"]
    assert parts == [(2, 24, 24, 3)] * 2, parts
    assert found.shape == (21, 32) and np.ptp(found, axis=0).min() > 0
    np.testing.assert_array_equal(found, alone)


class Shared(scoring_toys.Levels):
    """The tokenizer, which is given a part of a batch on each device."""

    def encode(self, images):
        """Of three images on each device."""
        assert images.sharding.shard_shape(images.shape)[0] * DEVICES == len(images) == 3 * DEVICES
        return super().encode(images)


def _check_sampling():
    """Fails where images are not generated on all devices.

    Returns the list to which each time is added how the weight "hidden" lies: its shape, and that
    of the part that a device has.
    """
    generate, parts = ToySystem.generate, []

    def noted(self, prompts, *args, **kwargs):
        assert self.mesh.size * 2 == len(prompts) == DEVICES * 2
        hidden = self.weights["toy"]["net"]["hidden"]
        parts.append((hidden.shape, hidden.sharding.shard_shape(hidden.shape)))
        return generate(self, prompts, *args, **kwargs)

    ToySystem.generate = noted
    return parts


def main(home: pathlib.Path) -> None:
    """Writes the folders "eight", "sharded" and "eight-tokens" and eight.json into HOME."""
    assert jax.local_device_count() == DEVICES
    scoring_toys.use(measuring.Patch())
    (home / "eight.json").write_text(json.dumps(monitored(home, home / "eight-run")))
    parts = _check_sampling()
    measuring.evaluate(home, home / "eight")
    assert parts, "no image was generated"
    assert all(whole == part for whole, part in parts), parts
    parts.clear()
    measuring.evaluate(home, home / "sharded", {"data": 2, "tensor": 4})
    assert parts, "no image was generated"
    assert all(whole == (part[0], part[1] * 4) for whole, part in parts), parts
    tokens(home, home / "eight-tokens", Shared({}))
    check_features()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
