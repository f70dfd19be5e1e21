"""Training and sampling Parti: a `Task` of one objective over image tokens, and the trained system that paints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.decoding import autoregressive
from t2i_jax.decoding.autoregressive import Sampling
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.parti_transformer import PartiTransformer
from t2i_jax.systems import captions
from t2i_jax.types import Array, Batch, Key, Objective, Params, Stats


@dataclasses.dataclass(frozen=True)
class PartiTask:
    """Trains a network over image tokens to continue a picture, given its caption.

        PartiTask(PartiTransformer(dim=128, depth=4, heads=4, mlp_dim=512), text=LearnedText(...), tokenizer=vae)

    One group, "parti": {"decoder": params} and, when the text encoder is trained along, "text". `frozen` of the step:
    "tokenizer" (the image tokenizer's weights, when the batch holds images) and "text" (weights of a frozen encoder).

    Attributes:
      model: `PartiTransformer` or `Parti`; sizes that it leaves at None come from the tokenizer and the text encoder.
      text: `LearnedText`, `T5Text`, or `StoredText` (the batch holds embeddings).
      tokenizer: the image tokenizer's network; None where tokens are all there is.
      stored_tokens: the batch holds "tokens" even though a tokenizer is known. Without one it always does.
      cond_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      label_smoothing: share of the target spread evenly over the codebook.
    """

    model: Any
    text: Any
    tokenizer: Any = None
    stored_tokens: bool = False
    cond_drop_prob: float = 0.1
    label_smoothing: float = 0.0

    sampling_options: ClassVar[tuple[str, ...]] = ("guidance", "temperature", "top_k", "top_p")

    def __post_init__(self):
        for field in ("cond_drop_prob", "label_smoothing"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{field}={getattr(self, field)} is outside [0, 1]; try 0.1.")
        wanted = {"text_embed_dim": (self.text.dim, "text.dim")}
        if self.tokenizer is not None:
            wanted["fmap_size"] = (self.tokenizer.grid[0], "the tokenizer's grid")
            wanted["codebook_size"] = (self.tokenizer.codebook_size, "the tokenizer's codebook_size")
        for field, (value, source) in wanted.items():
            if getattr(self.model, field) not in (None, value):
                raise UserError(
                    f"model.{field}={getattr(self.model, field)} is not {source}={value}; leave it out or change it."
                )

    @functools.cached_property
    def network(self) -> Any:
        """The model with every size known."""
        sizes = {"text_embed_dim": self.text.dim}
        if self.tokenizer is not None:
            sizes |= {"fmap_size": self.tokenizer.grid[0], "codebook_size": self.tokenizer.codebook_size}
        for field in ("fmap_size", "codebook_size"):
            if sizes.get(field) is None and getattr(self.model, field) is None:
                raise UserError(f"model.{field}=None is not known without a tokenizer; give the model {field}.")
        return self.model.clone(parent=None, **sizes)

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
        """All that is trained is averaged."""
        return ("parti",)

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats (none)."""
        for_decoder, for_text = jax.random.split(key)
        ids, embeds = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, self.text.dim))
        params = {"decoder": self.network.init(for_decoder, ids, embeds, jnp.ones((1, 1), bool))["params"]}
        if self.text.trainable:
            params["text"] = self.text.init(for_text)
        return {"parti": params}, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images or tokens, and text ids or embeddings with their mask."""
        of = lambda dtype, *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        if self.on_tokens:
            spec = {"tokens": of(jnp.int32, self.network.num_tokens)}
        else:
            size = self.tokenizer.image_size
            spec = {"image": of(jnp.uint8, size, size, self.tokenizer.channels)}
        return spec | captions.spec(self.text, batch_size)

    @property
    def sequence_length(self) -> int | None:
        """Tokens of the sequence that a mesh may split; None: the network's attention is not made for it."""
        return self.network.num_tokens if isinstance(self.network, PartiTransformer) else None

    def frozen_shapes(self) -> Mapping[str, Any]:
        """Shapes of the parameters that the step reads and never changes."""
        shapes = captions.frozen_shapes(self.text)
        if not self.on_tokens:
            weights = jax.eval_shape(functools.partial(image_tokenizer.init, self.tokenizer), jax.random.key(0))
            shapes = {"tokenizer": sharding.unbox(weights), **shapes}
        return shapes

    def sampling_programs(self, batch_size: int) -> Mapping[str, tuple[str, Any, Mapping[str, jax.ShapeDtypeStruct]]]:
        """{name: (group, `function(params of group, frozen, prompt, keys)`, shapes of prompt)} for guided pictures."""
        function = functools.partial(generate, task=self, sampling=Sampling(guided=True))
        return {"pictures": ("parti", function, captions.spec(self.text, batch_size))}

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats)): mean cross-entropy in nats per token."""
        for_drop, for_dropout, for_text = jax.random.split(key, 3)
        ids_BN = self.tokens(frozen, batch)
        embeds_BLD = self.embed(params["parti"], frozen, batch, for_text)
        keep_B = jax.random.bernoulli(for_drop, 1 - self.cond_drop_prob, ids_BN.shape[:1])
        logits_BNV = self.network.apply(
            {"params": params["parti"]["decoder"]}, ids_BN[:, :-1], embeds_BLD, batch["text_mask"], keep_B,
            deterministic=False, rngs={"dropout": for_dropout},
        )  # fmt: skip
        nats = jnp.mean(cross_entropy(logits_BNV, ids_BN))
        loss = nats
        if self.label_smoothing:
            spread = jnp.mean(jax.nn.logsumexp(logits_BNV, axis=-1) - jnp.mean(logits_BNV, axis=-1))
            loss = (1 - self.label_smoothing) * nats + self.label_smoothing * spread
        hits = jnp.mean(jnp.argmax(logits_BNV, axis=-1) == ids_BN)
        return loss, ({"loss": loss, "accuracy": hits, "perplexity": jnp.exp(nats)}, stats)

    def after_update(self, params, stats: Stats, batch: Batch, key: Key, step: Array):
        """Nothing changes without a gradient."""
        return params, stats

    def tokens(self, frozen: Mapping[str, Any], batch: Batch) -> Array:
        """The batch's tokens (B, N), made from its images where it holds none."""
        if self.on_tokens:
            return batch["tokens"]
        return jax.lax.stop_gradient(image_tokenizer.tokens(self.tokenizer, frozen["tokenizer"], batch["image"]))

    def embed(self, params: Params, frozen: Mapping[str, Any], batch: Batch, key: Key | None = None) -> Array:
        """Text embeddings (B, L, D): stored ones, of the frozen encoder, or of the trained one (`key`: drops out)."""
        return captions.embed(self.text, params, frozen, batch, key)

    def flops(self, batch_size: int) -> float:
        """Of one step, from the sizes of the kernels: 3 forward passes; a frozen tokenizer and text encoder run one."""
        network, text = self.network, self.text
        positions, length = network.num_tokens, text.max_length
        params = sharding.unbox(jax.eval_shape(self.init, jax.random.key(0))[0])["parti"]
        once = 2.0 * positions * network.dim * network.codebook_size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["decoder"]):
            keys = [entry.key for entry in path]
            if keys[-1] == "kernel" and "to_logits" not in keys:
                of_text = "cross_attention" in keys and keys[-2] in ("k", "v", "to_kv")
                once += 2.0 * leaf.size * (length if of_text else positions)
        width = network.heads * getattr(network, "dim_head", network.dim // network.heads)
        once += 4.0 * network.depth * width * positions * (positions + length)
        kernels = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)
        once += 2.0 * length * kernels(params.get("text", {}))
        tokenizing = 0.0
        if not self.on_tokens:
            shapes = image_tokenizer.abstract(self.tokenizer)["generator"]
            tokenizing = kernels(shapes) * positions + self.tokenizer.attention_flops / 2  # the encoder is half of it
        return batch_size * (3 * once + tokenizing)


def cross_entropy(logits_BNV: Array, ids_BN: Array) -> Array:
    """-log softmax(logits)[id] per token, (B, N) float32; compares instead of gathering, which scatters backwards."""
    hit_BNV = jnp.arange(logits_BNV.shape[-1]) == ids_BN[..., None]
    return jax.nn.logsumexp(logits_BNV, axis=-1) - jnp.sum(jnp.where(hit_BNV, logits_BNV, 0.0), axis=-1)


@functools.partial(jax.jit, static_argnames=("task", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: PartiTask,
    sampling: Sampling,
    guidance: Array | float = 3.0,
    temperature: Array | float = 1.0,
) -> tuple[Array, Array | None]:
    """Tokens (B, N) and, with a tokenizer, their uint8 pictures; one compiled program per task, sampling and shapes.

    Args:
      params: of the group "parti". frozen: as in training.
      prompt: "text" or "text_embeds", and "text_mask"; the same with the prefix "negative_" for what the picture
        should not show (None given: guidance starts from no text); "init" (uint8 pictures) and "known" (B, N) bool,
        True for tokens to keep of them.
      keys_B: one key per picture.
    """
    batch, network = keys_B.shape[0], task.network
    embeds_BLD, mask_BL = task.embed(params, frozen, prompt), prompt["text_mask"]
    keep_B = None
    if sampling.guided and "negative_text_mask" in prompt:
        negative = {name[len("negative_") :]: value for name, value in prompt.items() if name.startswith("negative_")}
        embeds_BLD = jnp.concatenate([embeds_BLD, task.embed(params, frozen, negative)])
        mask_BL = jnp.concatenate([mask_BL, negative["text_mask"]])
    elif sampling.guided:
        embeds_BLD, mask_BL = (jnp.concatenate([t, t]) for t in (embeds_BLD, mask_BL))
        keep_B = jnp.arange(2 * batch) < batch
    variables = {"params": params["decoder"]}
    given_BN = None
    if "init" in prompt:
        given_BN = image_tokenizer.tokens(task.tokenizer, frozen["tokenizer"], prompt["init"])
    ids_BN = autoregressive.generate(
        lambda ids_B, position, cache: network.apply(variables, ids_B, position, cache, method="decode"),
        network.apply(
            variables, embeds_BLD, mask_BL, keep_B, autoregressive.rooms(network.num_tokens)[0], method="init_cache"
        ),
        keys_B,
        network.num_tokens,
        sampling=sampling,
        grow=network.grow_cache,
        guidance=guidance,
        temperature=temperature,
        given_BN=given_BN,
        known_BN=prompt.get("known"),
    )
    if task.tokenizer is None:
        return ids_BN, None
    images = image_tokenizer.pixels(task.tokenizer, frozen["tokenizer"], ids_BN)
    return ids_BN, sharding.constrain(images, None, None, None, None)  # whole in every process
