"""Parts of DALL-E 2 that were trained on stored embeddings: whether its CLIP made them, and what is
made of its captions in their place.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given
from t2i_jax.systems.notices import tell
from t2i_jax.text.stored import is_stored
from t2i_jax.values import shown

if TYPE_CHECKING:
    from t2i_jax.systems.clip.system import ClipSystem
    from t2i_jax.systems.decoder.system import DecoderSystem
    from t2i_jax.systems.prior.system import PriorSystem


class Joined(NamedTuple):
    """A prior and a decoder that read captions by one CLIP.

    Attributes:
      unread: what made the decoder's stored text, where that is another encoder, so that it reads
        no captions; "": it reads them, or was trained without.
    """

    prior: PriorSystem
    decoder: DecoderSystem
    unread: str


def joined(clip: ClipSystem, fingerprint: str, prior: Given, decoder: Given) -> Joined:
    """The systems of both parts, with this CLIP where they were trained on stored embeddings.

    Args:
      fingerprint: of the CLIP; "": not known.

    Raises:
      UserError: stored embeddings of another CLIP, or of another width.
    """
    check(clip.task.network, fingerprint, prior, decoder)
    _tell_untold(fingerprint, prior, decoder)
    own, unread = decoder.system, _unread(clip, fingerprint, decoder)
    if _reads_stored(own) and not unread:
        own = own.reading(clip)
    return Joined(_prior_with(clip, prior.system), own, unread)


def check(network: Any, fingerprint: str, prior: Given, decoder: Given) -> None:
    """Refuses stored embeddings of another CLIP, or of another width.

    Args:
      network: of the CLIP. fingerprint: its own; "": not known.
    """
    for name, about in _made_by(prior, decoder):
        if fingerprint and about["clip"] != fingerprint:
            raise UserError(
                f"parts.{name} was trained on stored embeddings of {_told(about)}, and "
                f"parts.clip is another one (fingerprint {fingerprint}); give the run of that "
                "one, or parts of one CLIP."
            )
    task = prior.task
    learnt = {} if task.clip is not None else {"embeddings": (task.network.width, network.width)}
    if learnt and task.use_encodings:
        wide = task.network.text_dim or task.network.dim
        learnt["encodings of tokens"] = (wide, network.text_width)
    for what, (wide, made) in learnt.items():
        if wide != made:
            raise UserError(
                f"parts.prior was trained on {what} {wide} wide, and those of parts.clip are "
                f"{made} wide; give the run of the CLIP that made them."
            )


def _stored(prior, decoder):
    """The parts, by name, that were trained on stored embeddings."""
    both = {"prior": prior, "decoder": decoder}
    return {name: part for name, part in both.items() if part.task.clip is None}


def _made_by(prior, decoder):
    """(name of a part, what made a stored column of it) of each column that a CLIP made."""
    for name, part in _stored(prior, decoder).items():
        yield from ((name, about) for about in part.made_with.values() if about.get("clip"))


def _tell_untold(fingerprint, prior, decoder):
    """Says of which parts it is not known which CLIP made their stored embeddings."""
    told = {name for name, _ in _made_by(prior, decoder)} if fingerprint else set()
    untold = [f"parts.{name}" for name in _stored(prior, decoder) if name not in told]
    if untold:
        tell(
            f"{' and '.join(untold)} learnt stored embeddings, and nothing tells of which CLIP (a "
            "run that was begun before that was kept, or converted); they are taken for those of "
            "parts.clip"
        )


def _prior_with(clip, prior):
    """A prior that has its CLIP: where it was trained on stored embeddings, this one."""
    if prior.clip is not None:
        return prior
    task = dataclasses.replace(prior.task, clip=clip.task.network)
    return dataclasses.replace(prior, task=task, clip=clip, frozen={"clip": clip.weights})


def _reads_stored(decoder):
    """Whether a decoder was trained on stored text."""
    return decoder.task.by_text and is_stored(decoder.task.text)


def _unread(clip, fingerprint, decoder):
    """`Joined.unread`; where nothing tells what made stored text, it is taken for this CLIP's."""
    about = decoder.made_with.get("text", {})
    if not _reads_stored(decoder.system):
        return ""
    if about.get("clip"):
        return "" if about["clip"] == fingerprint or not fingerprint else _told(about)
    if about:
        return f"a T5 (t5={shown(about.get('t5'))})"
    wide, own = decoder.system.task.text.dim, clip.task.network.text_width
    if wide != own:
        return f"an encoder {wide} wide"
    if decoder.system.task.clip is not None:  # else `_check` has told
        tell(
            "parts.decoder learnt stored text, and nothing tells what made it; it is taken for "
            "that of parts.clip"
        )
    return ""


def _told(about):
    return f"a CLIP (run={shown(about.get('run'))}, fingerprint {about['clip']})"
