"""Training MaskGIT: masked image tokens are predicted, given the others, a caption and, for
super-resolution, the tokens of a smaller image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.models.maskgit import SelfCritic
from t2i_jax.pixels import shrink
from t2i_jax.systems import captions, stored_tokens
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.maskgit import checks, flops, losses, sampling
from t2i_jax.systems.maskgit.options import MaskGitOptions
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.maskgit.windows import Windows, windows_of
from t2i_jax.systems.text_to_image import samples_of
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, SamplingProgram, Stats


@dataclasses.dataclass(frozen=True)
class MaskGitTask(SystemTask):
    """Trains a network to predict masked image tokens, and a critic beside it.

        MaskGitTask(MaskGitTransformer(dim=512, depth=8), text=T5Text(...), tokenizer=vae)
        MaskGitTask(MaskGitTransformer(dim=512, depth=8), text=..., tokenizer=vae, image_size=512,
            cond_image_size=256)   # super-resolution

    Groups: "maskgit", {"decoder": params}, with "text" for a jointly trained text encoder and
    "critic" for a `SelfCritic`; and "critic" for a `TokenCritic`. `frozen` of the step: "tokenizer"
    and "superres_tokenizer" (weights of image tokenizers) and "text" (of a frozen encoder).

    Attributes:
      model: `MaskGitTransformer` or `MaskGitBert`; sizes that it leaves at None come from the
        tokenizers and the text encoder.
      text: `LearnedText`, `T5Text`, `ClipText`, `ClassLabels` or `StoredText` (the batch holds
        embeddings); None: images without captions. A `MaskGitBert` takes `ClassLabels`.
      tokenizer: the image tokenizer's network; None where tokens are all there is.
      image_size: side of the images in pixels, where a tokenizer that runs at several sizes is not
        used at its own; None: the tokenizer's.
      cond_image_size: super-resolution: side of the smaller images whose tokens are conditioned on;
        it divides `image_size`. None: there are none.
      superres_tokenizer: super-resolution: the tokenizer of the large images, where `tokenizer`
        is that of the small ones alone; None: one for both.
      stored_tokens: the batch holds "tokens" even though a tokenizer is known. Without one it
        always does. Of a super-resolution it holds "superres_tokens" and "cond_tokens", those of
        the images and of the smaller ones.
      critic: `TokenCritic` or `SelfCritic`; None: the confidence says what is masked again.
      cond_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      label_smoothing: share of the target spread evenly over the codebook (Muse has 0.1,
        muse-maskgit-pytorch none).
      least_masked: the share of masked tokens is drawn above this, see `losses.draw`.
      no_mask_token_prob: share of the masked tokens that are seen all the same.
      self_cond_prob: how often a self-conditioned network sees its own vectors.
      critic_loss_weight: of the critic's loss.
      trains: groups that are trained, "maskgit" and "critic"; None: both. A run may change it when
        it resumes: ("critic",) trains a critic on a frozen generator (Lezama et al. 2022).
    """

    model: Any
    text: Any = None
    tokenizer: Any = None
    image_size: int | None = None
    cond_image_size: int | None = None
    superres_tokenizer: Any = None
    stored_tokens: bool = False
    critic: Any = None
    cond_drop_prob: float = 0.1
    label_smoothing: float = 0.0
    least_masked: float = 0.0
    no_mask_token_prob: float = 0.0
    self_cond_prob: float = 0.9
    critic_loss_weight: float = 1.0
    trains: tuple[str, ...] | None = None

    parts: ClassVar[Mapping[str, Part]] = {
        "tokenizer": Part(TokenizerTask, "tokenizer"),
        "superres_tokenizer": Part(TokenizerTask, "superres_tokenizer"),
    }
    options: ClassVar[type] = MaskGitOptions
    makes_images: ClassVar[bool] = True

    def __post_init__(self):
        checks.check(self)
        _ = self.network, self.token_critic  # refuse sizes that contradict each other

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        found = {}
        if self.text is None:
            found["cond_drop_prob"] = "text=None"
        if self.critic is None:
            found["critic_loss_weight"] = "critic=None"
        if not getattr(self.model, "self_cond", False):
            found["self_cond_prob"] = "model.self_cond=False"
        if self.cond_image_size is None:
            found["superres_tokenizer"] = "cond_image_size=None"
        if self.trains == ("critic",):
            found["label_smoothing"] = f"trains={self.trains!r}"
        return found

    @property
    def unread_parts(self) -> Mapping[str, str]:
        """The tokenizer of large images, where no small ones are enlarged."""
        if self.cond_image_size is not None:
            return {}
        return {"superres_tokenizer": "task.cond_image_size=None"}

    @functools.cached_property
    def network(self) -> Any:
        """The model with every size known."""
        return checks.sized(self, "model", self.model)

    @functools.cached_property
    def token_critic(self) -> Any:
        """The `TokenCritic` with every size known; None without one."""
        return checks.sized(self, "critic", self.critic) if self._has_token_critic else None

    @functools.cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """(of the images, of the smaller ones that are conditioned on), each at its size; None
        where there is none.
        """
        own = getattr(self, self.own_tokenizer)
        if own is not None and self.image_size is not None:
            own = image_tokenizer.at_size("image_size", own, self.image_size)
        small = None
        if self.cond_image_size is not None and self.tokenizer is not None:
            cond = "cond_image_size", self.tokenizer, self.cond_image_size
            small = image_tokenizer.at_size(*cond)
        return own, small

    def made_size(self, options: Any, trained_at: int | None = None) -> int | None:
        """Side of the images that are asked for, or that of their tokenizer; `image_size` where
        that is not known.
        """
        own = self.tokenizers[0]
        if own is None or getattr(options, "image_size", None) is not None:
            return super().made_size(options, trained_at)
        return own.image_size

    @property
    def own_tokenizer(self) -> str:
        """The name in `frozen` of the weights of the images' tokenizer."""
        enlarges = self.cond_image_size is not None and self.superres_tokenizer is not None
        return "superres_tokenizer" if enlarges else "tokenizer"

    @property
    def channels(self) -> int | None:
        """Channels of the images; None where tokens are all there is."""
        return None if self.tokenizers[0] is None else self.tokenizers[0].channels

    @property
    def cond_image_channels(self) -> int:
        """Channels of the images to condition on; 0: there are none."""
        return 0 if self.tokenizers[1] is None else self.tokenizers[1].channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Images to inpaint or change; negative prompts with texts, smaller images to enlarge."""
        names = ("negative_prompts",) if self.text is not None else ()
        cond = ("cond_images",) if self.cond_image_size is not None else ()
        return (*names, "init_images", "mask", *cond)

    @property
    def samples(self) -> tuple[str, ...]:
        """Captions, with their embeddings where these are stored; images to condition on."""
        return samples_of(self.text, *(("image",) if self.cond_image_size is not None else ()))

    @property
    def on_tokens(self) -> bool:
        """Whether a batch holds tokens rather than images."""
        return self.stored_tokens or self.tokenizers[0] is None

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The loss of each group that is trained."""
        known = {"maskgit": self.loss, "critic": self.critic_loss}
        return tuple(Objective(name, known[name]) for name in self.trains or self.groups)

    @property
    def held_as_begun(self) -> str:
        """The generator, where the critic alone is trained."""
        return f"trains={self.trains!r}" if self.trains == ("critic",) else ""

    @property
    def ema_groups(self) -> tuple[str, ...]:
        """The groups with EMA weights: all of them."""
        return self.groups

    @property
    def idle_groups(self) -> tuple[str, ...]:
        """A critic that is not trained; it reads what the generator draws."""
        return ("critic",) if "critic" in self.groups and "critic" not in self.trained else ()

    @property
    def idle_parts(self) -> tuple[str, ...]:
        """The tokenizers of images whose tokens a batch holds."""
        if not self.on_tokens:
            return ()
        cond = ("tokenizer",) if self.cond_image_size is not None else ()
        return tuple(dict.fromkeys((self.own_tokenizer, *cond)))

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) by group, and stats (none)."""
        for_decoder, for_text, for_critic = jax.random.split(key, 3)
        inputs = self.zeros()
        own = {"decoder": self.network.init(for_decoder, *inputs)["params"]}
        if self.text is not None and self.text.trainable:
            own["text"] = self.text.init(for_text)
        if self.critic is not None and not self._has_token_critic:
            own["critic"] = self.critic.init(for_critic, jnp.zeros((1, 1, self.network.dim)))[
                "params"
            ]
        params = {"maskgit": own}
        if self._has_token_critic:
            params["critic"] = self.token_critic.init(for_critic, *inputs)["params"]
        return params, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images or tokens, and text ids or embeddings with their mask."""

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        if self.on_tokens and self.cond_image_size is not None:
            spec = {
                "superres_tokens": of(jnp.int32, self.network.num_tokens),
                "cond_tokens": of(jnp.int32, self.network.cond_fmap_size**2),
            }
        elif self.on_tokens:
            spec = {"tokens": of(jnp.int32, self.network.num_tokens)}
        else:
            own = self.tokenizers[0]
            spec = {"image": of(jnp.uint8, own.image_size, own.image_size, own.channels)}
        return {**spec, **captions.spec(self.text, batch_size)}

    def columns(self, parts: Mapping[str, Given]) -> Mapping[str, Mapping[str, Any]]:
        """Stored tokens, of a grid and codebook like these and of this tokenizer; of a
        super-resolution those of both sizes.

        Stored embeddings of the text.
        """
        stored = super().columns(parts)
        if not self.on_tokens:
            return stored
        network, own = self.network, parts.get(self.own_tokenizer)
        if self.cond_image_size is None:
            return {"tokens": stored_tokens.made_with(network, own), **stored}
        made = stored_tokens.pair_made_with(network, own, parts.get("tokenizer"))
        return {"superres_tokens": made, **stored}

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """Images with the options' defaults, in one program."""
        options = MaskGitOptions(guidance=1.0 if self.text is None else 3.0)
        prompt = dict(captions.spec(self.text, batch_size))
        if self.cond_image_size is not None:
            tokens = self.network.cond_fmap_size**2
            prompt["cond_ids"] = jax.ShapeDtypeStruct((batch_size, tokens), jnp.int32)

        def images(params, frozen, prompt, keys_B):
            return sampling.generate(
                params["maskgit"], frozen, prompt, keys_B, task=self, sampling=options.sampling,
                critic=params.get("critic"), use_critic=self.has_critic_for(options),
                guidance=options.guidance, plausibility=options.plausibility or None,
            )  # fmt: skip

        return {"images": SamplingProgram(None, images, prompt)}

    def check_options(self, options: MaskGitOptions) -> None:
        """Refuses options of a critic that was not trained, of guidance without texts, and those
        for which the network was not trained.
        """
        checks.check_options(self, options)

    def has_critic_for(self, options: MaskGitOptions) -> bool:
        """Whether a critic says which tokens stay."""
        wanted = options.order == "confidence" if options.critic is None else options.critic
        return self.critic is not None and wanted

    def windows(self, options: MaskGitOptions) -> Windows | None:
        """The windows over images of `options.image_size`; None for the size of training.

        Raises:
          UserError: a size that windows can't cover, or a tokenizer of one size.
        """
        return windows_of(options, self.network, *self.tokenizers)

    def with_parts(self, parts: Mapping[str, Given]) -> MaskGitTask:
        """The task with the networks of its tokenizers.

        Raises:
          UserError: the batch would hold images and no tokenizer is given.
        """
        parts = {name: parts[name] for name in self._own(parts)}
        if not self.on_tokens and "tokenizer" not in parts:
            raise UserError(
                "parts.tokenizer is not given, and training on images needs its weights; give the "
                "recipe or the run of an image tokenizer, or stored_tokens=True with packed tokens."
            )
        return super().with_parts(parts)

    def frozen(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """The weights of its own tokenizers and of a frozen text encoder."""
        return super().frozen({name: parts[name] for name in self._own(parts)})

    def frozen_shapes(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """The shapes of `frozen`."""
        return super().frozen_shapes({name: parts[name] for name in self._own(parts)})

    def system(
        self, params, stats: Stats, parts, frozen: Mapping[str, Any], text_tokenizer: Any
    ) -> MaskGitSystem:
        """The trained MaskGIT."""
        return MaskGitSystem(self, params, frozen, text_tokenizer)

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats)): mean cross-entropy of the masked tokens in nats, and the loss
        of a critic that reads the network's vectors.
        """
        for_draws, for_text = jax.random.split(key)
        own = params["maskgit"]
        inputs = self.inputs_of(own, frozen, batch, for_text)
        draws = self.draw(for_draws, inputs.ids_BN.shape)
        logits_BNV, x_BN = losses.predicted(self.network, own["decoder"], inputs, draws)
        loss, nats, accuracy = losses.cross_entropy(
            logits_BNV, inputs.ids_BN, draws.masked_BN, self.label_smoothing
        )
        metrics = {"accuracy": accuracy, "perplexity": jnp.exp(nats)}
        if self.critic is not None and not self._has_token_critic:
            redrawn_BN = losses.redrawn(logits_BNV, x_BN, draws)
            vectors = losses.embedded(
                self.network, own["decoder"], redrawn_BN, inputs, draws.critic_keep_B
            )
            scores_BN = self.critic.apply({"params": own["critic"]}, vectors)
            metrics["critic_loss"] = losses.wrongness(scores_BN, redrawn_BN != inputs.ids_BN)
            loss = loss + self.critic_loss_weight * metrics["critic_loss"]
        return loss, ({"loss": loss, **metrics}, stats)

    def critic_loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats)) of a `TokenCritic`: binary cross-entropy of the tokens that the
        network draws.

        The network's parameters get no gradient.
        """
        for_draws, for_text = jax.random.split(key)
        own = jax.lax.stop_gradient(params["maskgit"])
        inputs = self.inputs_of(own, frozen, batch, for_text)
        draws = self.draw(for_draws, inputs.ids_BN.shape)
        logits_BNV, x_BN = losses.predicted(self.network, own["decoder"], inputs, draws)
        redrawn_BN = losses.redrawn(logits_BNV, x_BN, draws)
        scores_BN = self.token_critic.apply(
            {"params": params["critic"]}, redrawn_BN, inputs.embeds_BLD, inputs.mask_BL,
            draws.critic_keep_B, inputs.cond_ids_BM,
        )  # fmt: skip
        wrong_BN = redrawn_BN != inputs.ids_BN
        loss = losses.wrongness(scores_BN, wrong_BN)
        found = jnp.mean((scores_BN > 0) == wrong_BN)
        metrics = {"critic_loss": loss, "critic_accuracy": found}
        if self.trains == ("critic",):
            metrics["loss"] = loss
        return self.critic_loss_weight * loss, (metrics, stats)

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The metrics of the losses, with all captions and without label smoothing."""
        quiet = dataclasses.replace(
            self, text=captions.quiet(self.text), cond_drop_prob=0.0, label_smoothing=0.0
        )
        return super(MaskGitTask, quiet).validate(params, stats, frozen, batch, key, step)

    def inputs_of(
        self, params: Params, frozen: Any, batch: Batch, key: Key | None = None
    ) -> sampling.Inputs:
        """The inputs of the networks from a batch (`key`: the text encoder drops out)."""
        ids_BN, cond_ids_BM = jax.lax.stop_gradient(self._ids(frozen, batch))
        embeds_BLD, mask_BL = self.embed(params, frozen, batch, len(ids_BN), key)
        return sampling.Inputs(ids_BN, embeds_BLD, mask_BL, cond_ids_BM)

    def embed(
        self, params: Params, frozen: Any, batch: Batch, count: int, key: Key | None = None
    ) -> tuple[Array, Array]:
        """(embeddings (B, L, D), mask (B, L)) of the batch's texts; without texts one vector that
        is masked, for each of `count` images.
        """
        if self.text is None:
            width = self.network.text_embed_dim
            return jnp.zeros((count, 1, width)), jnp.zeros((count, 1), bool)
        return captions.embed(self.text, params, frozen, batch, key), batch["text_mask"]

    def draw(self, key: Key, shape: tuple[int, ...]) -> losses.Draws:
        """The draws of a step for tokens of this shape."""
        return losses.draw(
            key,
            (shape[0], shape[1], self.network.codebook_size),
            least_masked=self.least_masked,
            cond_drop_prob=self.cond_drop_prob,
            no_mask_token_prob=self.no_mask_token_prob,
            self_cond_prob=self.self_cond_prob,
        )

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks."""
        return batch_size * flops.of_image(self)

    def _ids(self, frozen, batch):
        """(tokens of the images (B, N), those of the smaller ones (B, M) or None)."""
        own, cond = self.tokenizers
        if self.on_tokens and self.cond_image_size is None:
            return batch["tokens"], None
        if self.on_tokens:
            return batch["superres_tokens"], batch["cond_tokens"]
        ids_BN = image_tokenizer.tokens(own, frozen[self.own_tokenizer], batch["image"])
        if cond is None:
            return ids_BN, None
        images = shrink(batch["image"], own.image_size // cond.image_size)
        return ids_BN, image_tokenizer.tokens(cond, frozen["tokenizer"], images)

    @property
    def _has_token_critic(self):
        return self.critic is not None and not isinstance(self.critic, SelfCritic)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of parameters."""
        return ("maskgit", "critic") if self._has_token_critic else ("maskgit",)

    @property
    def trained(self) -> tuple[str, ...]:
        """The groups that are trained."""
        return self.trains or self.groups

    def _own(self, parts):
        """The names of the parts that it uses."""
        return [name for name in parts if name not in self.unread_parts]

    def zeros(self) -> tuple[Any, ...]:
        """Inputs of the networks for one image, all zeros."""
        network, length = self.network, 1 if self.text is None else self.text.max_length
        cond = network.cond_fmap_size
        return (
            jnp.zeros((1, network.num_tokens), jnp.int32),
            jnp.zeros((1, length, network.text_embed_dim)),
            jnp.ones((1, length), bool),
            None,
            None if cond is None else jnp.zeros((1, cond**2), jnp.int32),
        )
