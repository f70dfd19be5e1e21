"""What all that generates from prompts shares: options, prompts and negative prompts, keys,
batches, devices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from t2i_jax import config, sharding
from t2i_jax.errors import UserError
from t2i_jax.text.encoder import TextEncoder
from t2i_jax.types import Key

_NEGATIVE = "negative_"
Options = TypeVar("Options")


def with_changes(
    kind: type[Options], options: Options | None, changes: Mapping[str, Any]
) -> Options:
    """The options with some of them changed; None: the defaults of their class.

    Raises:
      UserError: options of another system, or a name that is none.
    """
    if options is None:
        options = kind()
    if not isinstance(options, kind):
        raise UserError(
            f"options={options!r} are those of another system; give {kind.__name__}(...)."
        )
    known = config.fields_of(kind)
    for name in changes:
        if name not in known:
            raise UserError(f"generate has no option {name!r}; {config.did_you_mean(name, known)}")
    return dataclasses.replace(options, **changes) if changes else options  # type: ignore[type-var]


def texts(
    encoder: TextEncoder, tokenizer: Any, prompts: Any, negative_prompts: Any, *, guided: bool
) -> dict[str, np.ndarray]:
    """The arrays of prompts, those of negative prompts under names that begin with "negative_".

    Raises:
      UserError: nothing that the encoder takes, another number of negative prompts, or some without
        guidance.
    """
    found = encoder.encode(tokenizer, prompts, "prompts")
    if negative_prompts is None:
        return found
    if not guided:
        raise UserError(
            "negative_prompts have no effect at guidance=1; raise the guidance or leave them out."
        )
    negative = encoder.encode(tokenizer, negative_prompts, "negative_prompts")
    count, wanted = len(negative["text_mask"]), len(found["text_mask"])
    if count != wanted:
        raise UserError(
            f"negative_prompts has {count} entries for {wanted} prompts; give one for each."
        )
    return found | {_NEGATIVE + name: value for name, value in negative.items()}


def negative_of(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The negative prompts among the arrays of `texts`, under the names of prompts.

    {} where there are none.
    """
    return {
        name[len(_NEGATIVE) :]: value
        for name, value in prompt.items()
        if name.startswith(_NEGATIVE)
    }


def without_negative(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The other arrays."""
    return {name: value for name, value in prompt.items() if not name.startswith(_NEGATIVE)}


class Rows(NamedTuple):
    """A batch of what is generated.

    Attributes:
      arrays: of the prompts, a row per image. keys_B: one PRNG key per image.
      count: images that are wanted; the last batch is filled up with copies, so that one program
        serves all.
    """

    arrays: dict[str, np.ndarray]
    keys_B: Key
    count: int


def batches(
    prompt: Mapping[str, np.ndarray],
    total: int,
    images_per_prompt: int,
    seed: int,
    batch_size: int | None,
    *,
    progress: bool = False,
) -> Iterator[Rows]:
    """The images to generate, batch by batch; those of one prompt stand together.

    The key of an image depends on the seed and on its number alone, so that batches of any size
    give the same images.

    Args:
      prompt: a row per prompt. total: images in all. batch_size: None: all at once. progress: shows
        a bar where there are several batches.
    """
    rows = {name: np.repeat(value, images_per_prompt, axis=0) for name, value in prompt.items()}
    batch_size = min(batch_size or total, total)
    starts = range(0, total, batch_size)
    for start in tqdm(
        starts, desc="sampling", unit="batch", disable=not progress or len(starts) == 1, leave=False
    ):
        index = np.minimum(np.arange(start, start + batch_size), total - 1)
        keys_B = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
            jnp.asarray(index)
        )
        yield Rows(
            {name: value[index] for name, value in rows.items()},
            keys_B,
            min(batch_size, total - start),
        )


def places(
    task: Any, shape: Mapping[str, int] | None
) -> tuple[jax.sharding.Mesh, Mapping[str, Any]]:
    """A mesh of all devices, and by group the sharding of each parameter of the task, as its
    logical axes say.

    Args:
      shape: sizes of the mesh's axes; None: all devices on "data".

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh = sharding.make_mesh(shape)
    boxed = dict(jax.eval_shape(task.init, jax.random.key(0))[0])
    return mesh, sharding.shardings(boxed, mesh, sharding.rules_of(shape))


def on_mesh(system: Any, shape: Mapping[str, int] | None) -> Any:
    """A system with `weights`, `frozen` and `mesh`, which samples on a mesh of all devices.

    Its images stay the same.

    Parameters are sharded as their logical axes say, images over the batch's axes, heads (and the
    KV cache) over "tensor".

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh, place = places(system.task, shape)
    weights = jax.device_put(
        dict(system.weights), {group: place[group] for group in system.weights}
    )
    frozen = sharding.place_frozen(system.frozen, mesh, sharding.rules_of(shape))
    return dataclasses.replace(system, weights=weights, frozen=frozen, mesh=mesh)


def plain(options: Any) -> None:
    """Makes Python numbers of the NumPy and JAX scalars in a frozen dataclass, and tuples of its
    lists.
    """
    for name in config.fields_of(type(options)):
        object.__setattr__(options, name, _plain(getattr(options, name)))


def _plain(value):
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def check_number(
    name: str,
    value: Any,
    remedy: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """Refuses what is no finite number, and what is outside of [low, high].

    Args:
      remedy: ends the sentence, "try 1.0".
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        says = "is not a finite number"
    elif low <= value <= high:
        return
    else:
        says = f"is outside [{low:g}, {high:g}]" if math.isfinite(high) else f"is below {low:g}"
    raise UserError(f"{name}={value!r} {says}; {remedy}.")


def _finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # of an integer that no float holds
        return False


def check_count(name: str, value: Any) -> None:
    """Refuses what is neither None nor a number from 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name}={value!r} is not a number from 1; give 1 or more.")


def check_images(name: str, images: Any, count: int, channels: int) -> np.ndarray:
    """uint8 images (count, H, W, channels) as an array.

    Raises:
      UserError: another number, rank, dtype or number of channels.
    """
    images = np.asarray(images)
    if (
        images.ndim != 4
        or images.dtype != np.uint8
        or images.shape[3] != channels
        or not images.size
    ):
        raise UserError(
            f"{name} is {images.dtype} {images.shape}; give uint8 ({count}, height, width, "
            f"{channels})."
        )
    if len(images) != count:
        raise UserError(f"{name} has {len(images)} images for {count} prompts; give one for each.")
    return images


def check_mask(mask: Any, init: np.ndarray | None) -> np.ndarray:
    """bool (P, H, W) of the images `init`, True where they are kept.

    Raises:
      UserError: no images, another size or dtype, or nothing to keep.
    """
    if init is None:
        raise UserError("mask says what to keep of init_images; give init_images too.")
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape not in (init.shape[1:3], init.shape[:3]):
        raise UserError(
            f"mask is {mask.dtype} {mask.shape}; give bool {init.shape[1:3]} or {init.shape[:3]} "
            "like init_images, True where to keep."
        )
    if not mask.any():
        raise UserError(
            "mask keeps nothing of init_images; leave both out, or set it to True where to keep."
        )
    return np.broadcast_to(mask, init.shape[:3])
