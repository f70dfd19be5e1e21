"""Checks of a decoder's task, before anything compiles: its fields, and its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i_jax.errors import UserError
from t2i_jax.systems.cascade.task import check_stages
from t2i_jax.systems.decoder import latents

if TYPE_CHECKING:
    from t2i_jax.systems.decoder.task import DecoderTask


def check(task: DecoderTask) -> None:
    """Refuses fields that no decoder has, and what contradicts the parts as far as they are known.

    Raises:
      UserError: the field, its value and a remedy.
    """
    check_stages(task.stages, task.train_stages, "DecoderStage")
    for name in ("image_cond_drop_prob", "text_cond_drop_prob"):
        if not 0 <= getattr(task, name) <= 1:
            raise UserError(f"{name}={getattr(task, name)} is outside [0, 1]; try 0.1.")
    _check_parts(task)


def embed_width(task: DecoderTask) -> int:
    """Width of the image embeddings.

    Raises:
      UserError: nothing tells it.
    """
    if task.clip is not None:
        return task.clip.width
    if task.image_embed_dim is None:
        raise UserError(
            "parts.clip is not given, and the decoder is conditioned on image embeddings; give the "
            "recipe or the run of a CLIP, or image_embed_dim of stored embeddings."
        )
    return task.image_embed_dim


def text_width(task: DecoderTask) -> int:
    """Width of the encodings of captions.

    Raises:
      UserError: nothing tells it.
    """
    if task.text is not None:
        return task.text.dim
    if task.clip is None:
        raise UserError(
            "parts.clip is not given, and the decoder is conditioned on captions; give the recipe "
            "or the run of a CLIP, or text=StoredText(...)."
        )
    return task.clip.text_width


def _check_parts(task):
    width = task.image_embed_dim if task.clip is None else task.clip.width
    if task.image_embed_dim not in (None, width):
        raise UserError(
            f"image_embed_dim={task.image_embed_dim}, and CLIP's embeddings are {width} wide; "
            "leave it out."
        )
    sees = 0 if task.clip is None or not task.by_image else task.clip.channels
    if sees not in (0, task.channels):
        raise UserError(
            f"channels={task.channels}, and CLIP, which embeds the images, sees some of {sees}; "
            "make them equal, or store its embeddings with the data (t2i data encode-clip) and "
            f"give image_embed_dim={width} in place of the part."
        )
    for i, stage in enumerate(task.stages):
        own = stage.unet.image_embed_dim if stage.unet.cond_on_image_embeds else None
        if width is not None and own not in (None, width):
            raise UserError(
                f"stages[{i}].unet.image_embed_dim={own}, and the image embeddings are {width} "
                "wide; leave it out."
            )
        if stage.latent and task.tokenizer is not None:
            sizes = (stage.image_size, stage.unet.multiple, task.channels)
            latents.check(task.tokenizer, f"stages[{i}]", *sizes)
