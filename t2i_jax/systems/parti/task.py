"""Training and sampling Parti: a `Task` of one objective over image tokens, and how it becomes a
trained system.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.nn.flops import flops_of
from t2i_jax.systems import captions, stored_tokens
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.parti import sampling
from t2i_jax.systems.parti.options import PartiOptions
from t2i_jax.systems.parti.system import PartiSystem
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, SamplingProgram, Stats


@dataclasses.dataclass(frozen=True)
class PartiTask(SystemTask):
    """Trains a network over image tokens to continue an image, given its caption.

        PartiTask(PartiTransformer(dim=128, depth=4, heads=4, mlp_dim=512), text=LearnedText(...),
        tokenizer=vae)

    One group, "parti": {"decoder": params} and, for a jointly trained text encoder, "text".
    `frozen` of the step: "tokenizer" (the image tokenizer's weights, when the batch holds images)
    and "text" (weights of a frozen encoder).

    Attributes:
      model: `PartiTransformer` or `Parti`; sizes that it leaves at None come from the tokenizer and
        the text encoder.
      text: `LearnedText`, `T5Text`, `ClipText`, `ClassLabels` or `StoredText` (the batch holds
        embeddings).
      tokenizer: the image tokenizer's network; None where tokens are all there is.
      stored_tokens: the batch holds "tokens" even though a tokenizer is known. Without one it
        always does.
      cond_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      label_smoothing: share of the target spread evenly over the codebook.
    """

    model: Any
    text: Any
    tokenizer: Any = None
    stored_tokens: bool = False
    cond_drop_prob: float = 0.1
    label_smoothing: float = 0.0

    parts: ClassVar[Mapping[str, Part]] = {"tokenizer": Part(TokenizerTask, "tokenizer")}
    options: ClassVar[type] = PartiOptions
    makes_images: ClassVar[bool] = True

    def __post_init__(self):
        for field in ("cond_drop_prob", "label_smoothing"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{field}={getattr(self, field)} is outside [0, 1]; try 0.1.")
        wanted = {"text_embed_dim": (self.text.dim, "text.dim")}
        if self.tokenizer is not None:
            wanted["fmap_size"] = (self.tokenizer.grid[0], "the tokenizer's grid")
            wanted["codebook_size"] = (
                self.tokenizer.codebook_size,
                "the tokenizer's codebook_size",
            )
        for field, (value, source) in wanted.items():
            if getattr(self.model, field) not in (None, value):
                raise UserError(
                    f"model.{field}={getattr(self.model, field)} is not {source}={value}; leave it "
                    "out or change it."
                )

    @functools.cached_property
    def network(self) -> Any:
        """The model with every size known."""
        sizes = {"text_embed_dim": self.text.dim}
        if self.tokenizer is not None:
            sizes |= {
                "fmap_size": self.tokenizer.grid[0],
                "codebook_size": self.tokenizer.codebook_size,
            }
        for field in ("fmap_size", "codebook_size"):
            if sizes.get(field) is None and getattr(self.model, field) is None:
                raise UserError(
                    f"model.{field}=None is not known without a tokenizer; give the model {field}."
                )
        return self.model.clone(parent=None, **sizes)

    @property
    def image_size(self) -> int | None:
        """Side of the images; None where tokens are all there is."""
        return None if self.tokenizer is None else self.tokenizer.image_size

    @property
    def channels(self) -> int | None:
        """Channels of the images; None where tokens are all there is."""
        return None if self.tokenizer is None else self.tokenizer.channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Negative prompts, and images to inpaint."""
        return "negative_prompts", "init_images", "mask"

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions, with their embeddings where these are stored."""
        return samples_of(self.text)

    @property
    def text_lengths(self) -> Mapping[str, int]:
        """`max_text_len` of a model that has one."""
        most = getattr(self.model, "max_text_len", None)
        return {} if most is None else {"the decoder": most}

    @property
    def on_tokens(self) -> bool:
        """Whether a batch holds tokens rather than images."""
        return self.stored_tokens or self.tokenizer is None

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The cross-entropy of the next token."""
        return (Objective("parti", self.loss),)

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The groups with EMA weights: all that is trained."""
        return ("parti",)

    @property
    def idle_parts(self) -> tuple[str, ...]:
        """The tokenizer where a batch holds tokens."""
        return ("tokenizer",) if self.on_tokens else ()

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats (none)."""
        for_decoder, for_text = jax.random.split(key)
        ids, embeds = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, self.text.dim))
        params = {
            "decoder": self.network.init(for_decoder, ids, embeds, jnp.ones((1, 1), bool))["params"]
        }
        if self.text.trainable:
            params["text"] = self.text.init(for_text)
        return {"parti": params}, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images or tokens, and text ids or embeddings with their mask."""

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        if self.on_tokens:
            spec = {"tokens": of(jnp.int32, self.network.num_tokens)}
        else:
            size = self.tokenizer.image_size
            spec = {"image": of(jnp.uint8, size, size, self.tokenizer.channels)}
        return {**spec, **captions.spec(self.text, batch_size)}

    @property
    def sequence_length(self) -> int | None:
        """Tokens of the sequence that a mesh may split.

        None: the network's attention is not made for it.
        """
        network = self.network
        whole = isinstance(network, PartiTransformer) and network.window is None
        return network.num_tokens if whole else None

    def columns(self, parts: Mapping[str, Given]) -> Mapping[str, Mapping[str, Any]]:
        """Stored tokens, of a grid and codebook like these and of this tokenizer.

        Stored embeddings of the text.
        """
        stored = super().columns(parts)
        if not self.on_tokens:
            return stored
        made = stored_tokens.made_with(self.network, parts.get("tokenizer"))
        return {"tokens": made, **stored}

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """Guided images, in one program."""
        function = functools.partial(sampling.generate, task=self, sampling=PartiOptions().sampling)
        return {"images": SamplingProgram("parti", function, captions.spec(self.text, batch_size))}

    def with_parts(self, parts: Mapping[str, Given]) -> PartiTask:
        """The task with the tokenizer's network.

        Raises:
          UserError: the batch would hold images and no tokenizer is given.
        """
        if not self.on_tokens and "tokenizer" not in parts:
            remedy = (
                "give the recipe or the run of an image tokenizer, or stored_tokens=True with "
                "packed tokens"
            )
            raise UserError(
                f"parts.tokenizer is not given, and training on images needs its weights; {remedy}."
            )
        return super().with_parts(parts)

    def system(
        self, params, stats: Stats, parts, frozen: Mapping[str, Any], text_tokenizer: Any
    ) -> PartiSystem:
        """The trained Parti."""
        return PartiSystem(self, params, frozen, text_tokenizer)

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats)): mean cross-entropy in nats per token."""
        for_drop, for_dropout, for_text = jax.random.split(key, 3)
        ids_BN = self.tokens(frozen, batch)
        embeds_BLD = self.embed(params["parti"], frozen, batch, for_text)
        keep_B = jax.random.bernoulli(for_drop, 1 - self.cond_drop_prob, ids_BN.shape[:1])
        logits_BNV = self.network.apply(
            {"params": params["parti"]["decoder"]},
            ids_BN[:, :-1],
            embeds_BLD,
            batch["text_mask"],
            keep_B,
            deterministic=False,
            rngs={"dropout": for_dropout},
        )
        nats = jnp.mean(cross_entropy(logits_BNV, ids_BN))
        loss = nats
        if self.label_smoothing:
            spread = jnp.mean(jax.nn.logsumexp(logits_BNV, axis=-1) - jnp.mean(logits_BNV, axis=-1))
            loss = (1 - self.label_smoothing) * nats + self.label_smoothing * spread
        hits = jnp.mean(jnp.argmax(logits_BNV, axis=-1) == ids_BN)
        return loss, ({"loss": loss, "accuracy": hits, "perplexity": jnp.exp(nats)}, stats)

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The metrics of the loss, with all captions, without dropout and label smoothing."""
        quiet = dataclasses.replace(
            self,
            model=self.model.clone(parent=None, dropout=0.0),
            text=captions.quiet(self.text),
            cond_drop_prob=0.0,
            label_smoothing=0.0,
        )
        return super(PartiTask, quiet).validate(params, stats, frozen, batch, key, step)

    def tokens(self, frozen: Mapping[str, Any], batch: Batch) -> Array:
        """The batch's tokens (B, N), made from its images where it holds none."""
        if self.on_tokens:
            return batch["tokens"]
        return jax.lax.stop_gradient(
            image_tokenizer.tokens(self.tokenizer, frozen["tokenizer"], batch["image"])
        )

    def embed(
        self, params: Params, frozen: Mapping[str, Any], batch: Batch, key: Key | None = None
    ) -> Array:
        """Text embeddings (B, L, D): stored ones, of the frozen encoder, or of the trained one
        (`key`: drops out).
        """
        return captions.embed(self.text, params, frozen, batch, key)

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes.

        Frozen networks run one forward pass.
        """
        shapes = sharding.unbox(sharding.parameters_of(self))["parti"]
        batch = {
            **self.batch_spec(1),
            "tokens": jax.ShapeDtypeStruct((1, self.network.num_tokens), jnp.int32),
        }
        encoded = jax.ShapeDtypeStruct((1, self.text.max_length, self.text.dim), jnp.float32)
        once = flops_of(
            self._forward, shapes["decoder"], batch["tokens"], encoded, batch["text_mask"]
        )
        frozen = 0.0
        if self.text.trainable:
            once += flops_of(self.text.embed, shapes["text"], batch["text"], batch["text_mask"])
        elif encoder := self.text.frozen_shapes():
            frozen += flops_of(self.text.embed, encoder["text"], batch["text"], batch["text_mask"])
        if not self.on_tokens:
            weights = sharding.unbox(image_tokenizer.abstract(self.tokenizer))
            frozen += flops_of(
                functools.partial(image_tokenizer.tokens, self.tokenizer), weights, batch["image"]
            )
        return batch_size * (3 * once + frozen)

    def _forward(self, decoder, ids_BN, embeds_BLD, mask_BL):
        return self.network.apply({"params": decoder}, ids_BN[:, :-1], embeds_BLD, mask_BL)


def cross_entropy(logits_BNV: Array, ids_BN: Array) -> Array:
    """-log softmax(logits)[id] per token, (B, N) float32.

    Compares instead of gathering, which scatters backwards.
    """
    hit_BNV = jnp.arange(logits_BNV.shape[-1]) == ids_BN[..., None]
    return jax.nn.logsumexp(logits_BNV, axis=-1) - jnp.sum(
        jnp.where(hit_BNV, logits_BNV, 0.0), axis=-1
    )
