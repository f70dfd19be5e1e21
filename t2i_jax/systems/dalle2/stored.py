"""Parts of DALL-E 2 that were trained on stored embeddings: whether its CLIP made them, and what is
made of its captions in their place.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from t2i_jax.errors import UserError
from t2i_jax.systems.base import Given
from t2i_jax.systems.generation import tell
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
    _check(fingerprint, prior, decoder)
    own, unread = decoder.system, _unread(clip, fingerprint, decoder)
    if _reads_stored(own) and not unread:
        own = own.reading(clip)
    return Joined(_prior_with(clip, prior.system), own, unread)


def _check(fingerprint, prior, decoder):
    """Refuses stored embeddings of another CLIP; a line on stderr tells of which parts that is not
    known.
    """
    untold = []
    for name, part in (("prior", prior), ("decoder", decoder)):
        if part.system.task.clip is not None:
            continue
        made_by = [about for about in part.made_with.values() if about.get("clip")]
        for about in made_by if fingerprint else ():
            if about["clip"] != fingerprint:
                raise UserError(
                    f"parts.{name} was trained on stored embeddings of {_told(about)}, and "
                    f"parts.clip is another one (fingerprint {fingerprint}); give the run of that "
                    "one, or parts of one CLIP."
                )
        if not (made_by and fingerprint):
            untold.append(f"parts.{name}")
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
    network, own = prior.task.network, clip.task.network
    widths = {"embeddings": (network.width, own.width)}
    if prior.task.use_encodings:
        widths["encodings of tokens"] = (network.text_dim or network.dim, own.text_width)
    for what, (learnt, made) in widths.items():
        if learnt != made:
            raise UserError(
                f"parts.prior was trained on {what} {learnt} wide, and those of parts.clip are "
                f"{made} wide; give the run of the CLIP that made them."
            )
    task = dataclasses.replace(prior.task, clip=own)
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
