"""Functions of all systems that generate from prompts: options, prompts and negative prompts, keys,
batches, devices.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from t2i_jax import config, heap, seeds, sharding
from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays
from t2i_jax.terminal import say
from t2i_jax.text.encoder import (
    TextEncoder,
    are_captions,
    captions_of,
    told_of_cuts,
    told_of_lengths,
)
from t2i_jax.text.stored import is_pair
from t2i_jax.types import Key
from t2i_jax.values import shown
from t2i_jax.words import counted

_NEGATIVE = "negative_"
MOST_IMAGES = 100_000  # most images of one call: they are kept in memory
_FLOAT32 = float(np.finfo(np.float32).max)
Options = TypeVar("Options")


def with_changes(
    kind: type[Options],
    options: Options | None,
    changes: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> Options:
    """The options with some of them changed; None: the defaults of their class.

    Args:
      given: by name the arguments of `generate` on which it depends whether an option has an
        effect, None where they are not given; None: of that nothing is said.

    Raises:
      UserError: options of another system, a name that is none, or a change as of `check_used`.
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
    if not changes:
        return options
    changed = dataclasses.replace(options, **changes)  # type: ignore[type-var]
    if given is not None:
        check_used(options, changed, [name for name, one in given.items() if one is not None])
    return changed


def check_used(
    before: Any,
    options: Any,
    given: Iterable[str],
    told: Callable[[str], str] = str,
    beside: Callable[[str], None] | None = None,
) -> None:
    """Refuses options that were changed and have no effect without an argument or another option,
    as `needs` of their class says.

    A line on stderr tells those that have none beside another one (`idle_with`), or for its value
    (`idle_fields`): calls may share their settings, and a sweep comes upon guidance=1.

    Args:
      before: the options that were changed to `options`. given: names of the arguments of
        `generate` that are given. told: spells the name of an argument or an option.
      beside: is given the sentence of an option that does nothing beside another one; None: `tell`.

    Raises:
      UserError: the first of them.
    """
    kind = type(options)
    there = {*given, *(n for n in config.fields_of(kind) if getattr(options, n) is not None)}
    needs, idle_with = (getattr(kind, name, {}) for name in ("needs", "idle_with"))
    idle = getattr(options, "idle_fields", {})
    for name in config.fields_of(kind):
        value = getattr(options, name)
        if value == getattr(before, name):
            continue
        needed = needs.get(name, ())
        if needed and there.isdisjoint(needed):
            raise UserError(
                f"{name}={value!r} is nothing without {' or '.join(map(told, needed))}; leave it "
                "out or give it."
            )
        for other in idle_with.get(name, ()):
            if other in there:
                (beside or tell)(
                    f"{name}={value!r} does nothing beside {told(other)}; leave out one of them"
                )
        if name in idle:
            tell(f"{name}={value!r} has no effect with {idle[name]}")


def texts(
    encoder: TextEncoder,
    tokenizer: Any,
    prompts: Any,
    negative_prompts: Any,
    *,
    guided: bool,
    dropped: float | None = None,
    field: str = "prompts",
) -> dict[str, np.ndarray]:
    """The arrays of prompts, those of negative prompts under names that begin with "negative_".

    Where a prompt is longer than the encoder reads, a line on stderr says what is cut; another one
    where guidance starts from what was never trained, because no captions were dropped.

    Args:
      prompts: as the encoder takes them, see its `encode`; or `Dropped`.
      negative_prompts: one for each of them; a string is for all; None: none.
      guided: whether there is guidance. dropped: share of the captions that training dropped; None:
        of that nothing is said. field: the prompts' name in messages.

    Raises:
      UserError: nothing that the encoder takes, another number of negative prompts, or some without
        guidance.
    """
    if guided and dropped == 0 and negative_prompts is None:
        tell_never_dropped("captions", "cond_drop_prob")
    found = _encoded(encoder, tokenizer, prompts, field)
    if negative_prompts is None:
        return found
    if not guided:
        raise UserError(
            "negative_prompts have no effect at guidance=1; raise the guidance or leave them out."
        )
    wanted = len(found["text_mask"])
    negative = _encoded(encoder, tokenizer, negative_prompts, "negative_prompts")
    if isinstance(negative_prompts, str):
        negative = {name: np.repeat(value, wanted, axis=0) for name, value in negative.items()}
    check_negative(len(negative["text_mask"]), wanted)
    return found | {_NEGATIVE + name: value for name, value in negative.items()}


class Dropped(NamedTuple):
    """A number of prompts that are all dropped, as training drops captions.

    Attributes:
      count: how many.
    """

    count: int


def unprompted(encoder: TextEncoder, count: int, dropped: float) -> Any:
    """Prompts for images without captions, as `texts` takes them: dropped ones; empty captions, and
    a line on stderr, where training dropped none.

    Args:
      dropped: share of the captions that training dropped.
    """
    if dropped:
        return Dropped(count)
    tell(
        "no prompts are given, and this run was trained without dropping captions "
        "(cond_drop_prob=0); one for each image is what it has learnt"
    )
    return encoder.empty(count)


def repeated(prompts: Any, each: int) -> Any:
    """Prompts, as an encoder takes them, each of them `each` times; None and a string, which is for
    all, as they are.
    """
    if prompts is None or isinstance(prompts, str) or each == 1:
        return prompts
    if is_pair(prompts):
        return tuple(_rows(part, each) for part in prompts)
    if hasattr(prompts, "ndim"):
        return np.repeat(np.asarray(prompts), each, axis=0)
    return [one for one in prompts for _ in range(each)]


def _rows(part, each):
    """Rows of numbers, each so many times; something else as it is, which its encoder refuses."""
    try:
        return np.repeat(arrays.given(part), each, axis=0)
    except ValueError:
        return part


def tell_never_dropped(what: str, field: str) -> None:
    """Tells that guidance starts from what was never trained: images without what the task's
    `field` drops.
    """
    tell(
        f"guidance starts from images without {what}, and this run was trained without dropping "
        f"any ({field}=0); guidance=1 is what it has learnt"
    )


def check_negative(count: int, wanted: int) -> None:
    """Refuses another number of negative prompts than of prompts."""
    if count != wanted:
        raise UserError(
            f"negative_prompts has {counted(count, 'caption')} for "
            f"{counted(wanted, 'prompt')}; give one for each, or one string for all."
        )


def _encoded(encoder, tokenizer, prompts, field):
    if isinstance(prompts, Dropped):
        found = encoder.encode(tokenizer, encoder.empty(prompts.count), field)
        return {**found, "text_mask": np.zeros_like(found["text_mask"])}
    found = encoder.encode(tokenizer, prompts, field)
    if "text" in found and (told := _cut(encoder, tokenizer, prompts, field)) is not None:
        tell(told)
    return found


def _cut(encoder, tokenizer, prompts, field):
    """A sentence about what an encoder cuts of captions; None where it cuts nothing, or is given
    none.
    """
    if tokenizer is None or not are_captions(prompts):
        return None
    one = field.removesuffix("s").replace("_", " ")
    return told_of_cuts(tokenizer, captions_of(prompts, field), encoder.max_length, one)


def tell_cut_again(first: Any, second: Any, name: str, prompts: Any, field: str) -> None:
    """Writes a line to stderr where the second of two systems that read the same captions cuts them
    otherwise than the first, of which `texts` has told.

    Args:
      first, second: each with its `task.text` and `text_tokenizer`. name: of the second. prompts,
        field: as of `texts`; None: there are none.
    """
    if prompts is None or second.task.text is None:
        return
    there, told = (
        _cut(one.task.text, one.text_tokenizer, prompts, field) for one in (first, second)
    )
    if told not in (None, there):
        tell(f"{told} for {name} (text.max_length={second.task.text.max_length})")


def tell_unread(
    texts: Mapping[str, np.ndarray], read: Mapping[str, int], field: str = "prompts"
) -> None:
    """Writes a line to stderr where a network reads less of a caption than its encoder.

    Args:
      texts: of `texts`. read: by network the tokens that it reads, see `SystemTask.text_lengths`.
    """
    if not read or "text_mask" not in texts:
        return
    reader, most = min(read.items(), key=lambda item: item[1])
    one = field.removesuffix("s").replace("_", " ")
    told = told_of_lengths(np.asarray(texts["text_mask"]).sum(axis=1), most, one)
    if told is not None:
        tell(f"{told} for {reader} (max_text_len={most})")


_TOLD = contextvars.ContextVar("told", default=frozenset(("images", "others")))


@contextlib.contextmanager
def quiet(*, images: bool = True) -> Iterator[None]:
    """Keeps messages back within the body: for images that nobody asked for one by one.

    Args:
      images: False: what becomes of images that are given is told all the same.
    """
    token = _TOLD.set(_TOLD.get() - ({"images", "others"} if images else {"others"}))
    try:
        yield
    finally:
        _TOLD.reset(token)


def tell(sentence: str, of: Literal["images", "others"] = "others") -> None:
    """Writes a line to stderr about what was done with what a user gave.

    Args:
      of: "images": what became of images, see `quiet`.
    """
    if of in _TOLD.get():
        say(f"t2i: {sentence}.")


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
    """The arrays of prompts without those of negative prompts."""
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
    seed: int | Sequence[int],
    batch_size: int | None,
    *,
    candidates: int = 1,
    progress: bool = False,
) -> Iterator[Rows]:
    """The images to generate, batch by batch; those of one prompt stand together.

    The key of an image depends on the seed and on its number alone, so that batches of any size
    give the same images.

    Args:
      prompt: a row per prompt. total: images in all, candidates included.
      seed: see `seeds.key_of`; a sequence, or an array, has one for each image, which then depends
        on nothing else, or one for each prompt, which its images share.
      batch_size: None: all at once. candidates: how many are made for each image that is wanted;
        they share its seed. progress: shows a bar where there are several batches.

    Raises:
      UserError: a seed that is none, a sequence of another length, or more images than one call
        makes.
    """
    check_total(total, "images_per_prompt", images_per_prompt)
    batch_size = min(batch_size or total, total)
    seed = np.asarray(seed).tolist() if getattr(seed, "ndim", 0) == 1 else seed
    if isinstance(seed, Sequence):
        keys_of = _keys_of_each(seed, total, total // images_per_prompt, total // candidates)
    else:
        keys_of = _keys_of_all(seed)
    return _batches(prompt, total, images_per_prompt, keys_of, batch_size, progress)


def _keys_of_all(seed):
    """Numbers of images -> their keys, all of one seed."""
    return jax.vmap(functools.partial(jax.random.fold_in, seeds.key_of("seed", seed)))


def _keys_of_each(numbers, total, prompts, images):
    """Numbers of images -> their keys, of seeds that their prompts or they have."""
    if not numbers or len(numbers) not in (prompts, images):
        of_prompts = "" if prompts == images else f" of {counted(prompts, 'prompt')}"
        raise UserError(
            f"seed has {counted(len(numbers), 'number')} for {counted(images, 'image')}"
            f"{of_prompts}; give one for each{of_prompts and ' image or for each prompt'}."
        )
    each, keys = total // len(numbers), seeds.keys_of("seed", numbers)
    if each == 1:
        return keys.__getitem__
    return lambda index: jax.vmap(jax.random.fold_in)(keys[index // each], index % each)


def _batches(prompt, total, images_per_prompt, keys_of, batch_size, progress):
    starts = range(0, total, batch_size)
    for start in tqdm(
        starts, desc="sampling", unit="batch", disable=not progress or len(starts) == 1, leave=False
    ):
        index = np.minimum(np.arange(start, start + batch_size), total - 1)
        keys_B = keys_of(jnp.asarray(index))
        yield Rows(
            {name: value[index // images_per_prompt] for name, value in prompt.items()},
            keys_B,
            min(batch_size, total - start),
        )
        if start == 0 and len(starts) > 1:
            heap.clear()  # frees the memory that compiling for this batch has left


def check_total(total: int, name: str, value: Any) -> None:
    """Refuses more images than are made at once.

    Args:
      name, value: the argument of the user from which this number follows.
    """
    if total > MOST_IMAGES:
        raise UserError(
            f"{name}={shown(value)} makes {shown(total)} images, and one call makes "
            f"{MOST_IMAGES} at most; give less, and other seeds for more of them."
        )


def places(
    task: Any, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
) -> tuple[jax.sharding.Mesh, Mapping[str, Any]]:
    """A mesh of devices, and by group the sharding of each parameter of the task, as its logical
    axes say.

    Args:
      shape: sizes of the mesh's axes; None: all devices on "data". devices: None: all there are.

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh = sharding.make_mesh(shape, devices)
    boxed = sharding.parameters_of(task)
    return mesh, sharding.shardings(boxed, mesh, sharding.rules_of(shape))


def on_mesh(
    system: Any, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
) -> Any:
    """A system with `weights`, `frozen` and `mesh`, which samples on a mesh of all devices, or of
    these.

    Its images stay the same.

    Parameters are sharded as their logical axes say, images over the batch's axes, heads (and the
    KV cache) over "tensor".

    Raises:
      UserError: a mesh that does not fit the devices.
    """
    mesh, place = places(system.task, shape, devices)
    weights = jax.device_put(
        dict(system.weights), {group: place[group] for group in system.weights}
    )
    frozen = sharding.place_frozen(system.frozen, mesh, sharding.rules_of(shape))
    return dataclasses.replace(system, weights=weights, frozen=frozen, mesh=mesh)


def offloaded(system: Any) -> Any:
    """A system with `weights`, `frozen` and `mesh`, whose weights are in the host's memory; its
    images stay the same.

    A program has on the device what it reads, and nothing when it has ended.

    Raises:
      UserError: a system on a mesh, whose devices share the weights.
    """
    if system.mesh is not None:
        raise UserError(
            "offload keeps weights out of the memory of one device, and a mesh shares them among "
            "several; give one of the two."
        )
    own = {name: jax.device_get(getattr(system, name)) for name in ("weights", "frozen")}
    return dataclasses.replace(system, **own)


def plain(options: Any) -> None:
    """Makes Python values of the NumPy and JAX scalars in a frozen dataclass, and tuples of its
    lists.

    Raises:
      UserError: something else than True and False where one of them is meant.
    """
    for name in config.fields_of(type(options)):
        object.__setattr__(options, name, _plain(getattr(options, name)))
    config.check_flags(options)


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
    """Refuses what is no finite number, also as the float32 that a program is given, and what is
    outside of [low, high].

    Args:
      remedy: ends the sentence, "try 1.0".
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        says = "is not a finite number"
    elif abs(value) > _FLOAT32:
        says = f"is beyond what a float32 holds, {_FLOAT32:.4g}"
    elif low <= value <= high:
        return
    else:
        says = f"is outside [{low:g}, {high:g}]" if math.isfinite(high) else f"is below {low:g}"
    raise UserError(f"{name}={shown(value)} {says}; {remedy}.")


def _finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def check_amounts(images_per_prompt: Any, batch_size: Any) -> None:
    """Refuses what are not numbers from 1; the size of a batch may be None."""
    if images_per_prompt is None:
        raise UserError("images_per_prompt=None is not a number from 1; give 1 or more.")
    check_count("images_per_prompt", images_per_prompt)
    check_count("batch_size", batch_size)


def check_count(name: str, value: Any, most: int = 2**31 - 1) -> None:
    """Refuses what is neither None nor a whole number from 1 to `most`."""
    if value is None:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise UserError(f"{name}={shown(value)} is not a number from 1; give 1 or more.")
    if value > most:
        raise UserError(f"{name}={shown(value)} is too many; give {most} at most.")
