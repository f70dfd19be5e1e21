"""A trained DALL-E 2: captions to images, images to variations, and what lies between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i_jax import values
from t2i_jax.errors import UserError
from t2i_jax.eval.ranking import most_similar
from t2i_jax.pixels import as_pil
from t2i_jax.systems import batching, calls, given, notices, prompting
from t2i_jax.systems.dalle2.options import DALLE2Options, told_of_prior
from t2i_jax.systems.dalle2.sphere import slerp
from t2i_jax.systems.decoder.system import UNREAD
from t2i_jax.systems.text_to_image import TextToImage
from t2i_jax.text.stored import is_pair

if TYPE_CHECKING:
    from t2i_jax.systems.clip.system import ClipSystem
    from t2i_jax.systems.dalle2.task import DALLE2Task
    from t2i_jax.systems.decoder.system import DecoderSystem
    from t2i_jax.systems.prior.system import PriorSystem

_NOT_OF_A_WAY = ("images", "image_embeds", "other_images", "instead_of")


@dataclasses.dataclass(frozen=True)
class DALLE2System(TextToImage):
    """A trained DALL-E 2.

    >>> dalle2 = t2i.load("runs/dalle2")                                       # doctest: +SKIP
    >>> images = dalle2.generate(["a corgi playing a trumpet"], guidance=2.0)  # doctest: +SKIP
    >>> again = dalle2.variations("photo.png", images_per_prompt=4)            # doctest: +SKIP

    Attributes:
      task: the task that joins its parts. weights: {}; they are those of the parts.
      clip, prior, decoder: the parts.
      unread: what made the stored text that the decoder was trained on, where that is not `clip`,
        so that it reads no captions; "": it reads them, or was trained without.
    """

    task: DALLE2Task
    weights: Any
    clip: ClipSystem
    prior: PriorSystem
    decoder: DecoderSystem
    unread: str = ""

    def __repr__(self) -> str:
        """A line for each part."""
        return f"DALLE2System(prior={self.prior!r}, decoder={self.decoder!r})"

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer of CLIP, whose embeddings the prior reads."""
        return self.clip.text_tokenizer

    def made_size(self, options: DALLE2Options, trained_at: int | None = None) -> int | None:
        """That of the decoder."""
        return self.decoder.made_size(options, trained_at)

    def samplers(self, options: DALLE2Options) -> list[dict[str, Any]]:
        """The sampler and the steps of the prior, then of each stage of the decoder."""
        own = self.prior.task.sampling_of(options.prior)
        prior = {"sampler": own.sampler, "steps": own.steps}
        return [prior, *self.decoder.samplers(options.decoder)]

    def on_mesh(self, shape: Any, devices: Any = None) -> DALLE2System:
        """The same system, all parts of which work on a mesh, see `placing.on_mesh`."""
        names = ("clip", "prior", "decoder")
        parts = {name: getattr(self, name).on_mesh(shape, devices) for name in names}
        return dataclasses.replace(self, **parts)

    def offloaded(self) -> DALLE2System:
        """The same system: of its parts, and of the stages of the decoder, only the one that runs
        is on the device.
        """
        parts = {name: getattr(self, name).offloaded() for name in ("clip", "prior", "decoder")}
        return dataclasses.replace(self, **parts)

    def generate(
        self,
        prompts: Any = None,
        options: DALLE2Options | None = None,
        *,
        images: Any = None,
        other_images: Any = None,
        instead_of: Any = None,
        image_embeds: Any = None,
        seed: int | Sequence[int] = 0,
        images_per_prompt: int = 1,
        negative_prompts: Any = None,
        init_images: Any = None,
        mask: Any = None,
        return_stages: bool = False,
        return_pil: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **changes: Any,
    ) -> Any:
        """Images, uint8 (prompts * images_per_prompt, H, W, C); those of one prompt stand together.

        What they show comes from captions alone, by the prior; or from `images`: variations of
        them, with `other_images` what lies between both (`options.blend`), with `instead_of` what
        they are when the caption `instead_of` becomes the prompt (`options.change`; Ramesh et al.
        2022, section 3), which the decoder is not told otherwise: it would follow the prompt rather
        than the image. Prompts that stand beside `images` without `instead_of` are what the
        decoder reads, where it reads captions.

        Args:
          prompts: a caption, a list of them, or token ids (P, L); beside images or their embeddings
            also what a decoder that was trained on stored text takes, the pair (embeddings, mask).
          options: sampling options; None: the defaults of `DALLE2Options`. changes: single options
            by name, guidance=2.0.
          images, other_images: in any form and size, see `given.images`. instead_of: one caption
            for all, or one for each prompt.
          image_embeds: (P, D), in place of what the prior makes.
          seed: the same seed gives the same images, whatever the batch size. A list has
            one for each prompt, or for each image.
          negative_prompts, init_images, mask: as of `DecoderSystem.generate`.
          return_stages: a list with the images of every stage of the decoder. return_pil: PIL
            images.
          batch_size: images made at a time; None: all. progress: shows bars.

        Raises:
          UserError: an argument that does not fit, before anything compiles.
        """
        inputs = {
            "images": images, "other_images": other_images, "instead_of": instead_of,
            "image_embeds": image_embeds, "init_images": init_images, "mask": mask,
        }  # fmt: skip
        chosen = calls.with_changes(DALLE2Options, options, changes, inputs)
        calls.check_amounts(images_per_prompt, batch_size)
        self._check_given(prompts, images, other_images, instead_of, image_embeds, chosen.eta)
        own = {"seed": seed, "images_per_prompt": images_per_prompt}
        reads = self.decoder.task.by_text and prompts is not None and instead_of is None
        if reads and self.unread and not is_pair(prompts):
            raise UserError(
                f"prompts are captions, and parts.decoder was trained on stored text of "
                f"{self.unread}, which parts.clip does not make; give "
                "image_embeds=dalle2.prior.embed(captions), and as prompts nothing, or the pair "
                "(embeddings, mask) of that text."
            )
        if images is not None:
            images, init_images = self.decoder.begun_with(chosen.decoder, images, init_images)
        beside = {
            "negative_prompts": negative_prompts,
            "init_images": given.read_once("init_images", init_images, self.task.channels),
            "mask": given.read_once("mask", mask, None),
        }
        more = {**own, **beside, "batch_size": batch_size}
        if images is None and image_embeds is None:
            with notices.quiet():  # it is told when the prior and the decoder are given them
                rows = len(next(iter(self.prior.prompt(prompts, "prompts").values())))
            with told_of_prior():
                self.prior.check(chosen.prior, rows * images_per_prompt)
            self._check_decoder(rows, prompts if reads else None, chosen.decoder, more)
            if batch_size is not None:  # which that many images need
                own["batch_size"] = min(batch_size * chosen.prior.num_samples, 2**31 - 1)
            embeds = self.prior.embed(prompts, chosen.prior, **own, progress=progress)
            each = images_per_prompt
        else:
            embeds, each = image_embeds, 1
            if images is not None:
                seen, others, rows = self._seen(images, other_images, prompts, instead_of)
                embeds = _Later(
                    rows, lambda: self._embeds(seen, others, prompts, instead_of, chosen)
                )
            if isinstance(embeds, _Later):
                read = _repeated(prompts, 1, embeds.rows) if reads else None
                self._check_decoder(embeds.rows, read, chosen.decoder, more)
                embeds = embeds.made()
            with notices.quiet():
                embeds = self.decoder.checked_embeds(embeds)
            if prompts is not None and instead_of is None and not self.decoder.task.by_text:
                notices.tell(UNREAD)
        rest = {"images_per_prompt": images_per_prompt // each, "batch_size": batch_size}
        return self.decoder.generate(
            _repeated(prompts, each, len(embeds)) if reads else None,
            chosen.decoder,
            image_embeds=embeds,
            seed=seed,
            negative_prompts=_repeated(negative_prompts, each),
            init_images=_each_repeated(beside["init_images"], each),
            mask=_each_repeated(beside["mask"], each),
            return_stages=return_stages,
            return_pil=return_pil,
            progress=progress,
            **rest,
        )

    def variations(
        self,
        images: Any,
        options: DALLE2Options | None = None,
        *,
        best_of: int | None = None,
        **arguments: Any,
    ) -> Any:
        """Images with the same CLIP embeddings as these; arguments as of `generate`.

        Without `eta` nothing else of them is kept. With it sampling begins with the noise that
        leads to each image, as in the paper (Ramesh et al. 2022, section 3.1): the smaller `eta`,
        the more of its layout stays.

        Args:
          best_of: this number of images is made of each, and the `images_per_prompt` of them whose
            embeddings are the most similar to the image's are kept, best first; None: all are
            kept. A list of seeds is for all that are made.

        Raises:
          UserError: `best_of` below `images_per_prompt`, or with `other_images`, `instead_of` or
            `return_stages`; and as of `generate`.
        """
        if images is None:
            raise UserError("images=None: variations are made of images; give some.")
        if best_of is None:
            return self.generate(options=options, images=images, **arguments)
        count, as_images = arguments.pop("images_per_prompt", 1), arguments.pop("return_pil", False)
        _check_best_of(best_of, count, arguments)
        images = given.read_once("images", images, self.task.channels)
        with notices.quiet():  # it is told when they are embedded
            shown = self.clip.pixels(images)
        batching.check_total(len(shown) * best_of, "best_of", best_of)
        more = {"images_per_prompt": best_of, **arguments}
        made = self.generate(options=options, images=images, **more)
        alike = self.clip.likeness(made, shown)
        rows = np.arange(len(made))
        scores = alike[rows, rows // best_of % len(shown)].reshape(-1, best_of)
        kept, _ = most_similar(made, scores, count)
        return as_pil(kept) if as_images else kept

    def interpolate(
        self,
        image: Any,
        other: Any,
        shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        options: DALLE2Options | None = None,
        **arguments: Any,
    ) -> Any:
        """Images on the way from one image to another, uint8 (shares * images_per_prompt, H, W, C).

        Args:
          image, other: one each, in any form. shares: how far each result is on the way, from 0
            to 1. arguments: as of `generate`.

        Raises:
          UserError: several images, or shares that are none.
        """
        for name in _NOT_OF_A_WAY:
            if arguments.get(name) is not None:
                raise UserError(
                    f"{name} is given to interpolate, which goes from image to other; leave it out."
                )
        shares = _shares(shares)
        pair = []
        for name, shown in (("image", image), ("other", other)):
            pair.append(self.clip.pixels(shown, name))
            if (count := len(pair[-1])) != 1:
                raise UserError(
                    f"{name} has {count} images, and there is a way from one to one other; give "
                    "one."
                )

        def made():
            one, two = self.clip.embed_images(np.concatenate(pair))[:, None]
            return np.concatenate([slerp(one, two, share) for share in shares])

        arguments = {name: one for name, one in arguments.items() if name not in _NOT_OF_A_WAY}
        return self.generate(options=options, image_embeds=_Later(len(shares), made), **arguments)

    def edit(
        self,
        images: Any,
        caption: Any,
        instead_of: Any,
        options: DALLE2Options | None = None,
        **arguments: Any,
    ) -> Any:
        """Images changed by the difference of two captions: image + caption - instead_of, by
        `options.change`; arguments as of `generate`.
        """
        if instead_of is None:
            raise UserError(
                "instead_of=None: an edit goes from one caption to another; give the caption that "
                "says what is there now."
            )
        return self.generate(caption, options, images=images, instead_of=instead_of, **arguments)

    def nearest(self, images: Any, captions: Sequence[str]) -> list[str]:
        """The caption of each image whose embedding is the nearest to the image's."""
        return self.clip.classify(images, captions)

    def _check_given(self, prompts, images, other_images, instead_of, image_embeds, eta):
        if images is not None and image_embeds is not None:
            raise UserError("images and image_embeds are both given; give one of them.")
        if images is None and image_embeds is None and prompts is None:
            raise UserError("prompts=None: give captions, or images to vary.")
        if other_images is not None and eta is not None:
            raise UserError(
                f"eta={eta} begins with the noise of one image, and other_images are given; leave "
                "one of them out."
            )
        for name, value in (("other_images", other_images), ("instead_of", instead_of)):
            if value is not None and images is None:
                raise UserError(f"{name} is nothing without images; give images too.")
        if instead_of is not None and prompts is None:
            raise UserError(
                "instead_of is the caption that the prompt takes the place of; give a prompt too."
            )

    def _check_decoder(self, rows, read, options, beside):
        """Refuses what does not fit the decoder, as it was given and before embeddings are made.

        Args:
          rows: embeddings that there will be. read: the prompts, where the decoder reads them.
          beside: further arguments of it.
        """
        with notices.quiet():  # it is told when the decoder is given them
            self.decoder.check(read, options, rows=rows, **beside)

    def _seen(self, images, other_images, prompts, instead_of):
        """(images and other images as CLIP sees them, the number of embeddings that are made of
        them and of captions); nothing compiles.
        """
        images, texts = self.clip.pixels(images), {}
        counts = {"images": len(images)}
        if other_images is not None:
            other_images = self.clip.pixels(other_images, "other_images")
            counts["other_images"] = len(other_images)
        if instead_of is not None:
            with notices.quiet():  # it is told when CLIP embeds them
                given_as = {"prompts": prompts, "instead_of": instead_of}
                texts = {name: self.clip.ids(one, name)["text"] for name, one in given_as.items()}
            counts |= {name: len(ids) for name, ids in texts.items()}
        rows = max(counts.values())
        for name, count in counts.items():
            if count not in (1, rows):
                most = next(other for other, there in counts.items() if there == rows)
                raise UserError(
                    f"{name} has {count} for {rows} of {most}; give one, or one for each."
                )
        if texts:
            _check_differ(texts["prompts"] != texts["instead_of"])
        return images, other_images, rows

    def _embeds(self, images, other_images, prompts, instead_of, options):
        """The embeddings (P, D), of length 1, that images and captions make."""
        embeds = self.clip.embed_images(images)
        if other_images is not None:
            others = self.clip.embed_images(other_images)
            embeds = slerp(*np.broadcast_arrays(embeds, others), options.blend)
        if instead_of is None:
            return embeds
        given_as = {"prompts": prompts, "instead_of": instead_of}
        after, before = (self.clip.embed_text(one, field=name) for name, one in given_as.items())
        difference = after - before
        _check_differ(difference)
        lengths = np.linalg.norm(difference, axis=1, keepdims=True)
        return slerp(*np.broadcast_arrays(embeds, difference / lengths), options.change)


@dataclasses.dataclass(frozen=True)
class _Later:
    """Embeddings that are made when all else is known to fit: how many there will be, and a
    function without arguments.
    """

    rows: int
    made: Callable[[], Any]


def _check_best_of(best_of, count, arguments):
    """Refuses a choice among fewer images than are kept, and what is not compared with."""
    calls.check_amounts(count, None)
    calls.check_count("best_of", best_of)
    if best_of < count:
        raise UserError(
            f"best_of={best_of} is below images_per_prompt={count}; make it {count} or more."
        )
    unfit = [name for name in ("other_images", "instead_of") if arguments.get(name) is not None]
    unfit += ["return_stages"] if arguments.get("return_stages") else []
    if unfit:
        raise UserError(
            f"{unfit[0]} is given with best_of, which compares finished images with those that "
            "they vary; leave one of them out."
        )


def _shares(shares):
    """The numbers of a list, tuple or array of shares."""
    listed = np.asarray(shares).tolist() if hasattr(shares, "ndim") else shares
    if not isinstance(listed, (list, tuple)) or not listed:
        raise UserError(
            f"shares={values.shown(listed)} is no list of numbers; try (0.0, 0.5, 1.0)."
        )
    found = [share.item() if isinstance(share, np.number) else share for share in listed]
    for share in found:
        calls.check_number("shares", share, "give numbers in it", low=0, high=1)
    return found


def _check_differ(difference):
    """Refuses captions of which there is no difference, in any of the rows."""
    if not np.any(difference, axis=1).all():
        raise UserError(
            "instead_of is the same caption as the prompt; give one that says what is there now."
        )


def _each_repeated(read, each):
    """Images of `given.read_once`, each `each` times; one that stands alone is for all."""
    return [one for one in read for _ in range(each)] if isinstance(read, list) else read


def _repeated(prompts, each, rows=None):
    """Captions, each of them `each` times; one that stands alone, as often as there are `rows`."""
    prompts = [prompts] if isinstance(prompts, str) and rows is not None else prompts
    found = prompting.repeated(prompts, each)
    if not rows or found is None or len(found) != 1:
        return found
    return prompting.repeated(found, rows)
