"""The networks of muse-maskgit-pytorch 0.3.5, weight for weight: transformers that see all image
tokens at once, some of them masked, and a text.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models.token_decoder import check_complete, check_sizes, check_text
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, boxed, channel_norm
from t2i_jax.nn.maskgit_layers import CondLayer, FeedForward, Layer, init_scale
from t2i_jax.nn.multi_axis import MultiAxis
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import REMAT, layer_fields, scanned
from t2i_jax.sharding import constrain
from t2i_jax.tracing import traced_once
from t2i_jax.types import Array

COMPAT = ("unit_init", "no_cond_positions")


class _Tokens(nn.Module):
    """The base of `MaskGitTransformer` and `TokenCritic`: tokens, text and conditioning tokens in,
    one vector per token out.
    """

    dim: int
    depth: int
    dim_head: int = 64
    heads: int = 8
    ff_mult: int | float = 4
    fmap_size: int | None = None
    codebook_size: int | None = None
    text_embed_dim: int | None = None
    cond_fmap_size: int | None = None
    self_cond: bool = False
    compat: tuple[str, ...] = ()
    remat: str = "none"
    dtype: str = "float32"
    multi_axis: int | None = None
    cond_depth: int = 0

    dropout = 0.0
    _masks = 0  # ids beyond the codebook

    def __post_init__(self):
        limits.check(self)
        check_sizes(self, "dim", "depth", "dim_head", "heads")
        if self.cond_fmap_size is not None and self.cond_fmap_size < 1:
            raise UserError(
                f"cond_fmap_size={self.cond_fmap_size} is not positive; give 1 or more, or None "
                "where no image is conditioned on."
            )
        if self.cond_depth < 0:
            raise UserError(f"cond_depth={self.cond_depth} is below 0; give 0 for none.")
        if self.multi_axis is not None and self.heads % 2:
            raise UserError(
                f"heads={self.heads} are no two halves, as multi_axis={self.multi_axis} needs; try "
                f"heads={self.heads + 1}."
            )
        if self.multi_axis is not None and self.fmap_size is not None:
            MultiAxis(self.fmap_size, self.multi_axis)  # refuses a block that does not divide
        config.some_of("compat", self.compat, COMPAT)
        config.one_of("remat", self.remat, REMAT)
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        side = cast(int, self.fmap_size)
        return (side, side)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return self.grid[0] * self.grid[1]

    @property
    def mask_id(self) -> int:
        """The id of a masked token: the first that is not in the codebook."""
        return cast(int, self.codebook_size)

    def setup(self):
        """Makes the layers and parameters."""
        check_complete(self)
        normal = nn.initializers.normal(init_scale(self.compat))

        def table(name, rows, axis=None):
            return parameter(
                self, name, boxed(normal, axis, "embed"), (rows, self.dim), jnp.float32
            )

        self.embedding = table("embedding", self.codebook_size + self._masks, "vocab")
        self.pos = table("pos", self.num_tokens)
        if self.cond_fmap_size is not None and "no_cond_positions" not in self.compat:
            self.cond_pos = table("cond_pos", self.cond_fmap_size**2)
        if self.text_embed_dim != self.dim:
            self.text_proj = Dense(self.dim, ("text", "embed"), bias=False, dtype=self.dtype)
        if self.self_cond:
            self.self_cond_in = FeedForward(self.dim, dtype=self.dtype)
        self.layers = scanned(Layer, self.depth, self.remat, inputs=3)(**layer_fields(self, Layer))
        self.norm = channel_norm(None, self.dtype)
        if self.cond_depth:
            self._check_cond()
            stack = scanned(CondLayer, self.cond_depth, self.remat, inputs=1)
            self.cond_layers = stack(**layer_fields(self, CondLayer))
            self.cond_norm = channel_norm(None, self.dtype)

    def embed(
        self,
        ids_BN: Array,
        text_embeds_BLD: Array,
        text_mask_BL: Array,
        keep_B: Array | None = None,
        cond_ids_BM: Array | None = None,
        self_cond_BNC: Array | None = None,
    ) -> Array:
        """One vector per token, (B, N, dim), normalised.

        Args:
          ids_BN: tokens, row by row; `mask_id` where masked.
          text_embeds_BLD, text_mask_BL: text, and True where it is no padding.
          keep_B: False in rows whose text is dropped (classifier-free guidance); None: all True.
          cond_ids_BM: tokens of a conditioning image, which are never dropped; None: there is none.
          self_cond_BNC: vectors of an earlier call with the same tokens; None: zeros.
        """
        check_text(self, text_embeds_BLD)
        mask_BK = text_mask_BL if keep_B is None else text_mask_BL & keep_B[:, None]
        context = text_embeds_BLD.astype(self.dtype)
        context = self.text_proj(context) if self.text_embed_dim != self.dim else context
        if cond_ids_BM is not None:
            cond = self._look_up(cond_ids_BM)
            cond = cond if "no_cond_positions" in self.compat else cond + self.cond_pos
            cond = cond.astype(self.dtype)
            if self.cond_depth:
                cond = self.cond_norm(self.cond_layers(cond, True)[0])
            context = jnp.concatenate([context, cond], axis=1)
            always = jnp.ones(cond_ids_BM.shape, bool)
            mask_BK = jnp.concatenate([mask_BK, always], axis=1)
        x = self._look_up(ids_BN) + self.pos[: ids_BN.shape[1]]
        if self.self_cond:
            x = x + self.self_cond_in(jnp.zeros_like(x) if self_cond_BNC is None else self_cond_BNC)
        x = constrain(x.astype(self.dtype), "batch", "length", None)
        x, _ = self.layers(x, context, mask_BK, True)
        return self.norm(x)

    @nn.nowrap
    def _check_cond(self):
        if self.cond_fmap_size is None or "no_cond_positions" in self.compat:
            raise UserError(
                f"cond_depth={self.cond_depth} is of layers over the tokens of a conditioning "
                "image with positions; give cond_fmap_size, and leave 'no_cond_positions' out of "
                "compat."
            )

    def _look_up(self, ids):
        return constrain(self.embedding, None, None)[ids]


class MaskGitTransformer(_Tokens):
    """The network of MaskGit and Muse in muse-maskgit-pytorch 0.3.5: it predicts image tokens where
    they are masked.

        MaskGitTransformer(dim=512, depth=8, fmap_size=16, codebook_size=8192, text_embed_dim=768)

    Attributes:
      dim, depth, dim_head, heads, ff_mult: sizes.
      fmap_size: tokens per side of an image. codebook_size: number of image tokens. text_embed_dim:
        width of the text embeddings. These three may be None where a `MaskGitTask` knows them.
      cond_fmap_size: tokens per side of an image that is conditioned on (super-resolution); None:
        there is none.
      self_cond: whether it also sees its own vectors of an earlier call (Chen et al. 2022).
      compat: what to keep of the package where it is wrong: "unit_init", embeddings start from
        N(0, 1); "no_cond_positions", tokens of the conditioning image have no positions, so that
        their order is lost (weights of the package need it).
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      dtype: of the computation; norms, softmax and logits are float32.
      multi_axis: side of the blocks of multi-axis self-attention, a part of `fmap_size`, for large
        images (`nn.multi_axis`; Muse, section 2.4); heads are then even. None: every token sees
        every other, as in the package.
      cond_depth: layers of self-attention among the tokens of the conditioning image before they
        are attended to (Muse, section 2.4); 0, as in the package: none.
    """

    _masks = 1

    def setup(self):
        """Makes the layers and parameters."""
        super().setup()
        self.to_logits = Dense(self.codebook_size, ("embed", "vocab"), bias=False)

    def __call__(self, *args: Any, **inputs: Any) -> Array:
        """Float32 logits (B, N, codebook_size) of every token; arguments as of `embed`."""
        return self.logits(self.embed(*args, **inputs))

    def logits(self, embed_BNC: Array) -> Array:
        """Float32 logits (B, N, codebook_size) from the vectors that `embed` gives."""
        return constrain(self.to_logits(embed_BNC), "batch", "length", "vocab").astype(jnp.float32)


class TokenCritic(_Tokens):
    """The critic of muse-maskgit-pytorch 0.3.5 (Lezama et al. 2022, arXiv 2209.04439): it tells
    which tokens of an image are wrong. It sees no masked tokens.

    Attributes:
      dim, depth, dim_head, heads, ff_mult: sizes.
      fmap_size: tokens per side of an image. codebook_size: number of image tokens. text_embed_dim:
        width of the text embeddings. These three may be None where a `MaskGitTask` knows them.
      cond_fmap_size: tokens per side of an image that is conditioned on; None: there is none.
      self_cond: whether it also sees its own vectors of an earlier call.
      compat, remat, dtype, multi_axis, cond_depth: as of `MaskGitTransformer`.
    """

    def setup(self):
        """Makes the layers and parameters."""
        super().setup()
        self.to_logits = Dense(1, ("embed", None), bias=False)

    def __call__(self, *args: Any, **inputs: Any) -> Array:
        """Float32 logits (B, N), high where a token is wrong; arguments as of `_Tokens.embed`."""
        return self.to_logits(self.embed(*args, **inputs))[..., 0].astype(jnp.float32)


class SelfCritic(nn.Module):
    """A critic that reads the vectors of a `MaskGitTransformer`: a linear layer."""

    @nn.compact
    def __call__(self, embed_BNC: Array) -> Array:
        """Float32 logits (B, N), high where a token is wrong."""
        return Dense(1, ("embed", None), name="to_pred")(embed_BNC)[..., 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskGitAndTokenizer:
    """A MaskGIT with the image tokenizers and the critic that were saved along with it, as
    muse-maskgit-pytorch saves them.

    Their parameters are {"transformer": params, "tokenizer": weights of the tokenizer}, with
    "cond_tokenizer" and "critic" where there are such.

    Attributes:
      transformer: the network over tokens.
      tokenizer: the image tokenizer's network.
      cond_tokenizer: that of the small images that super-resolution enlarges; None: `tokenizer`,
        or no image is conditioned on.
      critic: `TokenCritic` or `SelfCritic`; None: none.
    """

    transformer: MaskGitTransformer
    tokenizer: Any
    cond_tokenizer: Any = None
    critic: Any = None


@dataclasses.dataclass(frozen=True)
class BaseAndSuperres:
    """The two MaskGITs of a Muse of muse-maskgit-pytorch, saved as one: captions to images, and
    these to larger ones.

    Their parameters are {"base": parameters of a `MaskGitAndTokenizer`, "superres": likewise}.

    Attributes:
      base: makes the small images.
      superres: makes the large ones of them.
    """

    base: MaskGitAndTokenizer
    superres: MaskGitAndTokenizer


@traced_once
def abstract(model: _Tokens) -> Any:
    """Shapes of the parameters, boxed; nothing is computed."""
    ids, text = jnp.zeros((1, model.num_tokens), jnp.int32), jnp.zeros((1, 1, model.text_embed_dim))
    cond = (
        None if model.cond_fmap_size is None else jnp.zeros((1, model.cond_fmap_size**2), "int32")
    )

    def init(key):
        return model.init(key, ids, text, jnp.ones((1, 1), bool), cond_ids_BM=cond)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def _preset(
    depth: int, dim: int, side: int, cond: int | None = None, **fields: Any
) -> MaskGitTransformer:
    """A network of the Muse paper: heads of 64 channels, 8192 codes, embeddings of T5-XXL."""
    return MaskGitTransformer(
        dim=dim,
        depth=depth,
        heads=dim // 64,
        fmap_size=side,
        codebook_size=8192,
        text_embed_dim=4096,
        cond_fmap_size=cond,
        **fields,
    )


# Of Muse (Chang et al. 2023): the base models on 16 x 16 tokens of 256 pixels, and a
# super-resolution to 64 x 64 tokens of 512 pixels. The paper tells depth and width of the 3B alone;
# the others are chosen for its numbers of parameters: 626 million, 3.26 billion and 260 million.
MUSE_632M = _preset(36, 1024, 16)
MUSE_3B = _preset(48, 2048, 16)
MUSE_SUPERRES_268M = _preset(14, 1024, 64, cond=16)

# The super-resolution beside the 3B: 32 multi-axis layers of width 1024 with an MLP of 4096, and 16
# layers over the small image's tokens. The side of the blocks is not told; with 8 both kinds of
# groups have 64 tokens.
MUSE_SUPERRES_MULTI_AXIS = _preset(32, 1024, 64, cond=16, multi_axis=8, cond_depth=16)
