"""Training the diffusion prior: a `Task` of one objective over CLIP's embeddings of images and
captions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.config import one_of, some_of
from t2i_jax.diffusion.denoiser import denoiser, training_losses
from t2i_jax.diffusion.discrete import DiscreteDdpm
from t2i_jax.diffusion.noise import Noise
from t2i_jax.errors import UserError
from t2i_jax.models import diffusion_prior
from t2i_jax.models.image_text import TextEmbedding
from t2i_jax.nn.flops import flops_of
from t2i_jax.pixels import SIGNED, to_float
from t2i_jax.systems.base import Given, Part, SystemTask
from t2i_jax.systems.clip.task import ClipTask
from t2i_jax.systems.prior import sampling
from t2i_jax.systems.prior.options import COMPAT, PriorOptions
from t2i_jax.systems.prior.sampling import PriorSampling
from t2i_jax.systems.prior.system import PriorSystem
from t2i_jax.text.stored import StoredText
from t2i_jax.types import Array, Batch, Key, Metrics, Objective, Params, SamplingProgram, Stats

ON_SPHERE = ("init", "training", "sampling", "final")
_USUAL_STEPS = {"ancestral": 250, "ddim": 64, "heun": 32, "dpm_solver": 32}


class Draws(NamedTuple):
    """The random numbers of a training step.

    `keep_text_B` and `keep_image_B` are False in rows that lose their caption or their noised
    embedding; `guess` is whether a self-conditioned network sees an estimate, None for others.
    """

    level_B: Array
    eps_BD: Array
    keep_text_B: Array
    keep_image_B: Array
    guess: Array | None = None


@dataclasses.dataclass(frozen=True)
class PriorTask(SystemTask):
    """Trains a network to make CLIP's embedding of an image from its caption (Ramesh et al. 2022,
    section 2.2).

        PriorTask(DiffusionPriorNetwork(dim=512, depth=6))

    Its part "clip" embeds the images and captions of the data and is not trained; or the data hold
    the embeddings (`stored`), which `t2i data encode-clip` writes. One group: "prior".

    Attributes:
      model: the network; widths of embeddings and encodings are set to CLIP's.
      noise: of the diffusion: `DiscreteDdpm`, `Ddpm` or `Edm`. The paper predicts "x_start".
      clip: network of the part; None: not known, or embeddings are stored.
      use_encodings: whether the network sees the encodings of the caption's tokens beside the
        caption's embedding.
      text_drop_prob: share of the captions that are dropped, for classifier-free guidance.
      image_drop_prob: share of the noised embeddings that are dropped, as dalle2-pytorch does.
      scale: embeddings are multiplied by it before they are noised; None: the square root of their
        width, so that their coordinates have about unit variance.
      on_sphere: where vectors are brought to the length of CLIP's: "init" (the noise that sampling
        starts from), "training" (predictions of the clean embedding), "sampling" (estimates in
        every step), "final" (what is sampled).
      stored: the data hold the embeddings, and images and CLIP are not read while it trains.
      compat: "dalle2-pytorch": in training a self-conditioned network that predicts noise or v is
        shown what it predicted, though in sampling the estimate of the clean embedding, and
        "training" of `on_sphere` is for predictions of v too, as in that package; None: the
        estimate in both.
    """

    model: Any
    noise: Any = DiscreteDdpm(objective="x_start")
    clip: Any = None
    use_encodings: bool = True
    text_drop_prob: float = 0.1
    image_drop_prob: float = 0.0
    scale: float | None = None
    on_sphere: tuple[str, ...] = ("final",)
    stored: bool = False
    compat: str | None = None

    parts: ClassVar[Mapping[str, Part]] = {"clip": Part(ClipTask, "clip")}
    options: ClassVar[type] = PriorOptions
    ema_groups: ClassVar[tuple[str, ...]] = ("prior",)

    def __post_init__(self):
        for name in ("text_drop_prob", "image_drop_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is outside [0, 1]; try 0.1.")
        if self.scale is not None and not self.scale > 0:
            raise UserError(
                f"scale={self.scale} is not above 0; leave it out for the square root of the width."
            )
        if not isinstance(self.noise, Noise):
            raise UserError(
                f"noise={self.noise!r} is no diffusion; give DiscreteDdpm(objective='x_start')."
            )
        some_of("on_sphere", self.on_sphere, ON_SPHERE)
        if self.compat is not None:
            one_of("compat", self.compat, (COMPAT,))
            if not isinstance(self.noise, DiscreteDdpm):
                raise UserError(
                    f"compat={self.compat!r} is of whole timesteps and noise is a "
                    f"{type(self.noise).__name__}; leave it out."
                )
        predicted = getattr(self.noise, "objective", None)
        fit = ("x_start",) if self.compat is None else ("x_start", "v")
        if "training" in self.on_sphere and predicted not in fit:
            raise UserError(
                "on_sphere=('training',) is for a network that predicts the clean embedding; give "
                "noise=DiscreteDdpm(objective='x_start')."
            )
        self._check_timesteps()

    def _check_timesteps(self):
        known = self.model.num_timesteps
        if known is None:
            return
        if not isinstance(self.noise, DiscreteDdpm):
            raise UserError(
                f"model.num_timesteps={known} has vectors for whole timesteps alone; leave it out "
                f"for noise={type(self.noise).__name__}(...)."
            )
        if known < self.noise.timesteps:
            raise UserError(
                f"model.num_timesteps={known} is below noise.timesteps={self.noise.timesteps}; "
                "make them equal."
            )

    @functools.cached_property
    def network(self) -> Any:
        """The network with the widths of CLIP's embeddings and encodings."""
        if self.clip is None:
            return self.model
        own = {"embed_dim": self.clip.width, "text_dim": self.clip.text_width}
        fields = {name: None if wide == self.model.dim else wide for name, wide in own.items()}
        if not self.use_encodings:
            fields["text_dim"] = None
        return self.model.clone(parent=None, **fields)

    @property
    def length(self) -> float:
        """The length of embeddings as they are noised."""
        return math.sqrt(self.network.width) if self.scale is None else self.scale

    @property
    def text_encoder(self) -> Any:
        """The encoder from captions to what CLIP reads; with stored embeddings their shapes, and
        None where there are no captions.
        """
        if not self.stored:
            return None if self.clip is None else self.clip.captions
        if not self.use_encodings:
            return None
        wide = self.network.text_dim or self.model.dim
        length = self.model.max_text_len if self.clip is None else self.clip.text_length
        return StoredText(wide, length)

    @property
    def trains_vocabulary(self) -> bool:
        """False: captions are read by CLIP's vocabulary."""
        return False

    @property
    def text_lengths(self) -> Mapping[str, int]:
        """`max_text_len` of the prior, where it reads encodings of tokens."""
        return {"the prior": self.model.max_text_len} if self.use_encodings else {}

    @property
    def image_size(self) -> int | None:
        """Side of the images that CLIP sees; None where it is not known."""
        return None if self.clip is None else self.clip.image_size

    @property
    def samples(self) -> tuple[str, ...]:
        """Images and captions."""
        return "image", "caption"

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The loss of the diffusion."""
        return (Objective("prior", self.loss),)

    def with_parts(self, parts: Mapping[str, Given]) -> PriorTask:
        """The task with the network of its CLIP.

        Raises:
          UserError: no CLIP where the data do not hold its embeddings.
        """
        if "clip" not in parts and not self.stored and self.clip is None:
            raise UserError(
                "parts.clip is not given, and the prior learns the embeddings of a CLIP; give the "
                "recipe or the run of a ClipTask, or stored=True for data that hold them."
            )
        return super().with_parts(parts)

    def prepare_text(
        self, folder: Any, captions: Callable[[], Iterable[str]], parts: Mapping[str, Given]
    ) -> None:
        """Copies the vocabulary of CLIP."""
        if not self.stored and "clip" in parts:
            parts["clip"].system.save_vocabulary(folder)

    def frozen(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """CLIP's weights; nothing where embeddings are stored."""
        return {} if self.stored else super().frozen(parts)

    def frozen_shapes(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """The shapes of `frozen`."""
        return {} if self.stored else super().frozen_shapes(parts)

    def columns(self, parts: Mapping[str, Given]) -> Mapping[str, Mapping[str, Any]]:
        """Stored embeddings, made by the CLIP that is the part; {} where CLIP makes them."""
        if not self.stored:
            return {}
        made_by = {"clip": parts["clip"].fingerprint} if "clip" in parts else {}
        found = {"clip": {"dim": self.network.width, **made_by}}
        if self.text_encoder is not None:
            found["text"] = {"dim": self.text_encoder.dim, **made_by}
        return found

    def init(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """First parameters (boxed) and stats (none)."""
        made = diffusion_prior.init(self.network, key, encodings=self.use_encodings)
        return {"prior": made}, {}

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images and token ids, or stored embeddings of images and captions."""

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

        if self.stored:
            wide = self.network.width
            spec = {name: of(jnp.float32, wide) for name in ("image_embeds", "caption_embeds")}
        elif self.clip is None:
            return {}
        else:
            side = self.clip.image_size
            spec = {"image": of(jnp.uint8, side, side, self.clip.channels)}
        encoder = self.text_encoder
        return spec if encoder is None else {**spec, **encoder.spec(batch_size)}

    def system(
        self, params, stats: Stats, parts: Mapping[str, Given], frozen, text_tokenizer: Any
    ) -> PriorSystem:
        """The trained prior."""
        clip = parts["clip"].system if "clip" in parts else None
        own = {} if clip is None else {"clip": clip.weights}
        return PriorSystem(self, params, own, clip)

    def sampling_of(self, options: PriorOptions) -> PriorSampling:
        """The settings for which a sampling run with these options is compiled."""
        most = getattr(self.noise, "timesteps", None)
        steps = options.steps
        if steps is None:
            usual = _USUAL_STEPS[options.sampler]
            whole = usual if options.sampler != "ancestral" else most
            steps = usual if most is None else min(whole, most)
        return PriorSampling(options.sampler, steps, options.guidance != 1, options.compat)

    def check_options(self, options: PriorOptions) -> None:
        """Refuses more steps than there are timesteps, guidance without dropped captions, and a
        package's DDIM without timesteps.
        """
        most = getattr(self.noise, "timesteps", None)
        if most is not None and options.steps is not None and options.steps > most:
            raise UserError(
                f"steps={options.steps} are more than the {most} timesteps of the prior; give "
                f"{most} at most."
            )
        if options.compat is not None and options.sampler == "ddim" and most is None:
            raise UserError(
                f"compat={options.compat!r} with sampler='ddim' walks whole timesteps, and the "
                f"prior's noise is a {type(self.noise).__name__}; leave compat out."
            )
        if options.guidance != 1 and not self.text_drop_prob:
            raise UserError(
                f"guidance={options.guidance} of a prior that was trained with text_drop_prob=0, "
                "so never without its caption; give 1."
            )
        jax.eval_shape(lambda: sampling.levels_of(self.noise, self.sampling_of(options)))

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """The program that makes embeddings."""
        spec = self.batch_spec(batch_size)
        prompt = {name: leaf for name, leaf in spec.items() if not name.startswith("image")}
        function = functools.partial(
            sampling.generate, task=self, sampling=self.sampling_of(PriorOptions())
        )
        return {"prior": SamplingProgram("prior", function, prompt)}

    def text_of(self, frozen: Any, batch: Batch) -> TextEmbedding:
        """The embeddings of the captions of a batch: stored ones, or CLIP's.

        `encodings_BLE` and `mask_BL` are None where the network is given none.
        """
        if "caption_embeds" in batch:
            tokens = (cast(Array, batch.get(name)) for name in ("text_embeds", "text_mask"))
            found = TextEmbedding(batch["caption_embeds"], *tokens)
        else:
            found = self.clip.embed_text(frozen["clip"]["clip"], batch["text"], batch["text_mask"])
        found = jax.lax.stop_gradient(found)
        if self.use_encodings:
            return found
        return found._replace(encodings_BLE=cast(Array, None), mask_BL=cast(Array, None))

    def image_of(self, frozen: Any, batch: Batch) -> Array:
        """The embeddings (B, D), of length 1, of the images of a batch."""
        if "image_embeds" in batch:
            return batch["image_embeds"]
        image_BHWC = to_float(batch["image"], SIGNED)
        return jax.lax.stop_gradient(self.clip.embed_image(frozen["clip"]["clip"], image_BHWC))

    def draws(self, key: Key, rows: int) -> Draws:
        """The draws of a step."""
        of_level, of_eps, of_text, of_image, of_guess = jax.random.split(key, 5)
        return Draws(
            self.noise.train_levels(of_level, rows),
            jax.random.normal(of_eps, (rows, self.network.width)),
            jax.random.bernoulli(of_text, 1 - self.text_drop_prob, (rows,)),
            jax.random.bernoulli(of_image, 1 - self.image_drop_prob, (rows,)),
            jax.random.bernoulli(of_guess, 0.5) if self.model.self_cond else None,
        )

    def losses(
        self,
        params: Params,
        text: TextEmbedding,
        image_BD: Array,
        draws: Draws,
        dropout: Key | None = None,
    ) -> Array:
        """The loss (B,) of each image embedding, given by CLIP, and its caption."""
        bind = functools.partial(sampling.bound, self.network, params, text, dropout=dropout)
        net = bind(keep_text_B=draws.keep_text_B, keep_image_B=draws.keep_image_B)
        if "training" in self.on_sphere:
            net = sampling.on_sphere(net, self.length)
        x0, last = image_BD * self.length, None
        if draws.guess is not None:
            last = self._estimate(bind(), x0, draws)
        return training_losses(net, self.noise, x0, draws.eps_BD, draws.level_B, None, last)

    def _estimate(self, net, x0, draws):
        """The estimate that a self-conditioned network is shown: its own in half of the steps."""
        noise = self.noise
        if self.compat is not None:  # whatever it predicts passes for the clean embedding there
            noise = dataclasses.replace(noise, objective="x_start")
        denoise = denoiser(net, noise, self_conditioned=True)

        def estimate():
            return denoise(self.noise.add(x0, draws.eps_BD, draws.level_B), draws.level_B)

        return jax.lax.stop_gradient(
            jax.lax.cond(draws.guess, estimate, lambda: jnp.zeros_like(x0))
        )

    def loss(self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array):
        """(loss, (metrics, stats))."""
        for_draws, for_dropout = jax.random.split(key)
        image_BD = self.image_of(frozen, batch)
        drops_out = self.model.attn_dropout or self.model.ff_dropout
        losses = self.losses(
            params["prior"], self.text_of(frozen, batch), image_BD,
            self.draws(for_draws, image_BD.shape[0]), for_dropout if drops_out else None,
        )  # fmt: skip
        loss = jnp.mean(losses)
        return loss, ({"loss": loss}, stats)

    def validate(
        self, params, stats: Stats, frozen: Any, batch: Batch, key: Key, step: Array
    ) -> Metrics:
        """The loss with all captions and embeddings, at noise that the key draws."""
        model = self.model.clone(parent=None, attn_dropout=0.0, ff_dropout=0.0)
        told = dataclasses.replace(self, model=model, text_drop_prob=0.0, image_drop_prob=0.0)
        return super(PriorTask, told).validate(params, stats, frozen, batch, key, step)

    def flops(self, batch_size: int) -> float:
        """FLOPs of one step, from the traced networks: 3 forward passes of the prior, 1 of CLIP."""
        params = sharding.unbox(jax.eval_shape(lambda key: self.init(key)[0], jax.random.key(0)))
        spec, network = self.batch_spec(1), self.network
        embed = jax.ShapeDtypeStruct((1, network.width), jnp.float32)
        tokens = jax.ShapeDtypeStruct((1, 1, network.text_dim or network.dim), jnp.float32)

        def forward(params, x_BD, tokens_BLE):
            of_tokens = tokens_BLE if self.use_encodings else None
            return network.apply({"params": params}, x_BD, jnp.zeros((1,)), x_BD, of_tokens)

        once = flops_of(forward, params["prior"], embed, tokens)
        if self.stored or self.clip is None:
            return 3.0 * batch_size * once
        weights = sharding.unbox(jax.eval_shape(self.clip.init, jax.random.key(0)))

        def embedded(weights, image, text, mask):
            frozen = {"clip": {"clip": weights}}
            batch = {"image": image, "text": text, "text_mask": mask}
            return self.image_of(frozen, batch), self.text_of(frozen, batch).embed_BD

        clip = flops_of(embedded, weights, *(spec[n] for n in ("image", "text", "text_mask")))
        return batch_size * (3.0 * once + clip)
