"""Training CLIP: a `Task` of one objective over images and their captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.models.image_text import Features
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems.base import SystemTask
from t2i_jax.systems.clip import masked_words
from t2i_jax.systems.clip.losses import Contrastive
from t2i_jax.systems.clip.masked_words import MaskedWords
from t2i_jax.systems.clip.system import ClipSystem
from t2i_jax.systems.clip.views import Views
from t2i_jax.systems.clip.visual_ssl import VisualSsl
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, Stats


@dataclasses.dataclass(frozen=True)
class ClipTask(SystemTask):
    """Trains a network to tell which caption belongs to which image.

        ClipTask(CLIP(dim_text=128, dim_image=128, dim_latent=128, ...))

    One group, "clip": the network's parameters, and with `visual_ssl` "ssl". The text transformer
    is the network's own; the captions' vocabulary is trained on them, or comes from `text.source`.

    Attributes:
      model: `CLIP` or `OpenAIClip`.
      text: `CaptionIds` with another vocabulary than `model.captions`; None: those.
      contrast: "softmax", the loss of CLIP over the whole batch; or "sigmoid" (SigLIP), for a model
        with a `logit_bias`.
      decoupled_contrastive_learning: the own partner is left out of the sums (Yeh et al. 2021); the
        loss then goes below zero.
      mlm: masked language modelling of the captions beside it, for a model with `use_mlm`; None:
        none.
      visual_ssl: self-supervised learning of the image transformer; None: none.
      views: further views of images and captions; None: none. multiview_loss_weight: of the loss
        between all pairs of views but the first; that one keeps the rest of 1.
      sim_reg_loss_weight: of the squared difference between similarities within the captions and
        within the images of a batch (arXiv 2309.08773).
      freeze_image_encoder, freeze_text_encoder: this transformer is not trained, only what follows
        it (Zhai et al. 2021, LiT). Such a run begins with one that has its weights (`Recipe.init`).
      rows: captions whose scores with all images are made at once, a divisor of the micro-batch;
        None: as many as 64 MiB of scores on each device allow.
      compat: what to keep of x-clip where it is wrong: "filip_image_to_text", with tokens and
        patches compared one by one the loss of images is a softmax over images, not over texts.
    """

    model: Any
    text: Any = None
    contrast: str = "softmax"
    decoupled_contrastive_learning: bool = False
    mlm: MaskedWords | None = None
    visual_ssl: VisualSsl | None = None
    views: Views | None = None
    multiview_loss_weight: float = 0.1
    sim_reg_loss_weight: float = 0.0
    freeze_image_encoder: bool = False
    freeze_text_encoder: bool = False
    rows: int | None = None
    compat: tuple[str, ...] = ()

    compares_rows: ClassVar[bool] = True

    def __post_init__(self):
        _ = self.contrastive  # refuses an unknown loss
        for field in ("multiview_loss_weight", "sim_reg_loss_weight"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{field}={getattr(self, field)} is negative; try 0.1.")
        if self.rows is not None and self.rows < 1:
            raise UserError(f"rows={self.rows} is not positive; give 1 or more, or None.")
        self._check_padding()
        has_mlm = getattr(self.model, "use_mlm", False)
        if (self.mlm is not None) != has_mlm:
            remedy = "give mlm=MaskedWords()" if has_mlm else "give the model use_mlm=True"
            raise UserError(f"model.use_mlm={has_mlm} and mlm={self.mlm} do not fit; {remedy}.")
        has_bias = getattr(self.model, "logit_bias", None) is not None
        if self.contrast == "sigmoid" and not has_bias:
            raise UserError(
                "contrast='sigmoid' needs a learnt bias; give the model logit_bias=-10.0."
            )
        if self.weight < 0:
            raise UserError(
                "mlm.weight, visual_ssl.weight and multiview_loss_weight leave "
                f"{self.weight:g} for the contrastive loss; give less."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = {}
        if self.views is None:
            found["multiview_loss_weight"] = "views=None"
        if self.contrast == "sigmoid":
            found["decoupled_contrastive_learning"] = "contrast='sigmoid'"
        if not self.contrastive.by_tokens:
            found["compat"] = "model.use_all_token_embeds=False"
        return found

    @property
    def network(self) -> Any:
        """The network."""
        return self.model

    @property
    def text_encoder(self) -> Any:
        """The encoder from captions to token ids."""
        return self.model.captions if self.text is None else self.text

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.image_size

    @property
    def samples(self) -> tuple[str, ...]:
        """Images and their captions."""
        return "image", "caption"

    @property
    def weight(self) -> float:
        """The weight of the contrastive loss between captions and images themselves."""
        others = [one.weight for one in (self.mlm, self.visual_ssl) if one is not None]
        others += [] if self.views is None else [self.multiview_loss_weight]
        return 1 - sum(others)

    @functools.cached_property
    def contrastive(self) -> Contrastive:
        """The loss between captions and images."""
        return Contrastive(
            self.model, self.contrast, self.decoupled_contrastive_learning, self.rows, self.compat
        )

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The contrastive loss, and what is added to it."""
        return (Objective("clip", self.loss),)

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The groups with EMA weights: all that is trained."""
        return ("clip",)

    @property
    def held_as_begun(self) -> str:
        """The transformers that are not trained."""
        frozen = ("freeze_image_encoder", "freeze_text_encoder")
        return ", ".join(f"{name}=True" for name in frozen if getattr(self, name))

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Refuses a micro-batch that `rows` does not divide."""
        size = batch_size // accumulate
        if not self._divides(size):
            fitting = next(rows for rows in range(self.rows or 1, 0, -1) if size % rows == 0)
            raise UserError(
                f"rows={self.rows} does not divide the {size} captions of a micro-batch "
                f"(train.batch_size={batch_size}, train.accumulate={accumulate}); try "
                f"rows={fitting}."
            )

    @property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """The transformers that are not trained."""
        frozen = {"visual": self.freeze_image_encoder, "text": self.freeze_text_encoder}
        return {"clip": tuple(name for name, is_frozen in frozen.items() if is_frozen)}

    def weights_shapes(self) -> Any:
        """Shapes of {"clip"}."""
        return sharding.unbox(sharding.parameters_of(self))

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats (none)."""
        params = self.model.init(key)
        if self.visual_ssl is not None:
            features = jax.eval_shape(
                self._image_once, sharding.unbox(params), self.batch_spec(1)["image"]
            )
            width, own = features.pooled_BE.shape[-1], jax.random.fold_in(key, 1)
            params["ssl"] = self.visual_ssl.init(width, own)
        return {"clip": params}, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """uint8 images, token ids and their mask."""
        size = self.model.image_size
        shape = (batch_size, size, size, self.model.channels)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
            **self.text_encoder.spec(batch_size),
        }

    def system(self, params, stats: Stats, parts, frozen, text_tokenizer: Any) -> ClipSystem:
        """The trained CLIP."""
        return ClipSystem(self, params, text_tokenizer)

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats))."""
        found, metrics = self._losses(params["clip"], batch, key)
        return found, ({"loss": found, **metrics}, stats)

    def after_update(
        self, params: Mapping[str, Params], stats: Stats, batch: Batch, key: Key, step: Array
    ):
        """Clamps the scale of similarities to 100 (Radford et al. 2021, section 2.5); returns
        `(params, stats)`.
        """
        return {**params, "clip": self.model.clamped(params["clip"])}, stats

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The contrastive loss of whole images and captions alone, and the share of both whose
        partner scores highest in the batch.
        """
        own, size = params["clip"], len(batch["image"])
        image_BHWC = to_float(batch["image"], SIGNED)
        texts = [self.model.text_features(own, batch["text"], batch["text_mask"])]
        images = [self.model.image_features(own, image_BHWC)]
        # held-out batches are of other sizes than those that are trained on
        task = self if self._divides(size) else dataclasses.replace(self, rows=None)
        found, metrics = task._contrast(own, texts, images)
        return {"loss": found.main, **metrics}

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes of each view, 1 of what is
        frozen. The products of latents are left out.
        """
        params, batch = self.weights_shapes()["clip"], self.batch_spec(1)
        images, texts = (0, 0) if self.views is None else (self.views.images, self.views.texts)
        image = flops_of(self._image_once, params, batch["image"])
        text = flops_of(self.model.text_features, params, batch["text"], batch["text_mask"])
        once = text
        images += 2 * (self.visual_ssl is not None)
        image *= (1 + images) * (1 if self.freeze_image_encoder else 3)
        text *= (1 + texts) * (1 if self.freeze_text_encoder else 3)
        words = 0.0 if self.mlm is None else 3 * once
        return batch_size * (image + text + words)

    def _check_padding(self):
        own, given = self.model.captions.pad_id, getattr(self.text, "pad_id", None)
        if given not in (None, own):
            raise UserError(
                f"text.pad_id={given} is not the model's text_pad_id={own}; give text.pad_id={own}."
            )

    def _divides(self, size):
        """Whether a batch of this size is whole blocks of `rows`, or less than one."""
        return self.rows is None or size <= self.rows or size % self.rows == 0

    def _image_once(self, params, image_BHWC):
        return self.model.image_features(params, to_float(image_BHWC, SIGNED), jax.random.key(0))

    def _losses(self, params, batch, key):
        """(the loss that is trained, metrics)."""
        for_patches, for_views, for_words = jax.random.split(key, 3)
        image_BHWC, text_BL = to_float(batch["image"], SIGNED), batch["text"]
        images, texts = self._views(image_BHWC, text_BL, batch["text_mask"], for_views)
        keys = jax.random.split(for_patches, len(images))
        of_images = [
            _held(self.model.image_features(params, one, own), self.freeze_image_encoder)
            for one, own in zip(images, keys, strict=True)
        ]
        of_texts = [
            _held(self.model.text_features(params, *text), self.freeze_text_encoder)
            for text in texts
        ]
        found, metrics = self._contrast(params, of_texts, of_images)
        loss = self.weight * found.main
        if self.views is not None:
            loss += self.multiview_loss_weight * found.further
            metrics["multiview"] = found.further
        if self.mlm is not None:
            nats, share = self._masked_words(params, text_BL, batch["text_mask"], for_words)
            loss += self.mlm.weight * nats
            metrics |= {"mlm": nats, "mlm_accuracy": share}
        if self.visual_ssl is not None:
            of = functools.partial(self._image_features, params)
            own = jax.random.fold_in(for_words, 1)
            metrics["visual_ssl"] = self.visual_ssl.loss(params["ssl"], of, image_BHWC, own)
            loss += self.visual_ssl.weight * metrics["visual_ssl"]
        if self.sim_reg_loss_weight:
            latents = (
                self.contrastive.text(params, of_texts[0]),
                self.contrastive.image(params, of_images[0]),
            )
            metrics["regulariser"] = self.contrastive.regulariser(*latents)
            loss += self.sim_reg_loss_weight * metrics["regulariser"]
        return loss, metrics

    def _image_features(self, params, image_BHWC, key):
        features = self.model.image_features(params, image_BHWC, key)
        return _held(features, self.freeze_image_encoder)

    def _views(self, image_BHWC, text_BL, mask_BL, key):
        """(images, token ids of captions with their masks), the ones that were given first."""
        if self.views is None:
            return [image_BHWC], [(text_BL, mask_BL)]
        for_images, for_texts = jax.random.split(key)
        by_mask, pad_id = self.model.hides_by_mask, self.model.captions.pad_id
        further = self.views.of_texts(text_BL, mask_BL, for_texts, by_mask, pad_id)
        return (
            [image_BHWC, *self.views.of_images(image_BHWC, for_images)],
            [(text_BL, mask_BL), *further],
        )

    def _contrast(self, params, of_texts: list[Features], of_images: list[Features]):
        """(contrast, metrics) of the features of all views."""
        texts = [self.contrastive.text(params, one) for one in of_texts]
        images = [self.contrastive.image(params, one) for one in of_images]
        found = self.contrastive(params, texts, images)
        metrics = {
            "contrastive": found.main,
            "accuracy": (found.hits_text + found.hits_image) / 2,
            "scale": jnp.exp(self.model.log_scale(params)),
        }
        return found, metrics

    def _masked_words(self, params, text_BL, mask_BL, key):
        pad_id = self.model.captions.pad_id
        masked = self.mlm.hide(text_BL, mask_BL, self.model.mask_id, key, pad_id)
        return masked_words.cross_entropy(self.model, params, masked, text_BL, mask_BL)


def _held(features: Features, is_frozen: bool) -> Features:
    """The features, without a gradient for a transformer that is not trained."""
    return jax.lax.stop_gradient(features) if is_frozen else features
