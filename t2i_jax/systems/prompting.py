"""The prompts and negative prompts of a call as arrays, and what is told of those that are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from t2i_jax.errors import UserError
from t2i_jax.foreign import arrays
from t2i_jax.systems import notices
from t2i_jax.text.encoder import (
    TextEncoder,
    are_captions,
    captions_of,
    told_of_cuts,
    told_of_lengths,
)
from t2i_jax.text.stored import is_pair
from t2i_jax.words import counted

_NEGATIVE = "negative_"


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
    notices.tell(
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
    notices.tell(
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
        notices.tell(told)
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
        notices.tell(f"{told} for {name} (text.max_length={second.task.text.max_length})")


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
        notices.tell(f"{told} for {reader} (max_text_len={most})")


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
