"""The transformer of MaskGIT (Chang et al. 2022, arXiv 2202.04200), weight for weight as in
google-research/maskgit: a BERT over image tokens, with a class in front of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models.token_decoder import check_complete, check_sizes, check_text
from t2i_jax.nn import limits
from t2i_jax.nn.attention import attend_where
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import REMAT, layer_fields, scanned
from t2i_jax.sharding import constrain
from t2i_jax.tracing import traced_once
from t2i_jax.types import Array

_normal = nn.initializers.truncated_normal(0.02)


class Layer(nn.Module):
    """Self-attention and an MLP with the tanh form of GELU, each added and then normalised (post-
    norm); fields as in `MaskGitBert`.
    """

    dim: int
    heads: int
    mlp_dim: int
    dtype: str

    @nn.compact
    def __call__(self, x_BNC: Array, mask_BN: Array, deterministic: bool) -> tuple[Array, None]:
        """(x, None): the pair that a scan over layers takes; a mask is True where a token may be
        seen.
        """
        update = self._attention(x_BNC, mask_BN)
        x = _norm("attention_norm", self.dtype)(x_BNC + update)
        hidden = nn.gelu(_dense(self, self.mlp_dim, "wide", ("embed", "mlp"))(x))
        hidden = constrain(hidden, "batch", "length", "mlp")
        update = _dense(self, self.dim, "narrow", ("mlp", "embed"))(hidden)
        x = _norm("mlp_norm", self.dtype)(x + update)
        return constrain(x, "batch", "length", None), None

    def _attention(self, x_BNC, mask_BN):
        def projected(name):
            y = _dense(self, self.dim, name, ("embed", "heads"))(x_BNC)
            return y.reshape(*y.shape[:-1], self.heads, -1)

        out = attend_where(projected("q"), projected("k"), projected("v"), mask_BN, False)
        return _dense(self, self.dim, "out", ("heads", "embed"))(out.reshape(x_BNC.shape))


class MaskGitBert(nn.Module):
    """The network of MaskGIT: it predicts image tokens where they are masked, given a class.

        MaskGitBert(dim=768, depth=24, heads=16, mlp_dim=3072)  # of ImageNet at 256 and 512 pixels

    It takes the place of a `MaskGitTransformer` in a `MaskGitTask` with `ClassLabels` of its width,
    or without texts. The class's embedding is the first of the sequence; where the class is dropped
    or there is none, no token sees it. Positions are learnt, the embeddings of the codes are the
    output's too. Of the package's vocabulary (codes, classes, mask) the logits here are those of
    the codes, as its sampler takes them.

    Attributes:
      dim, depth, heads, mlp_dim: sizes; dim is a multiple of heads.
      fmap_size: tokens per side of an image. codebook_size: number of image tokens. text_embed_dim:
        width of the class embeddings, which is `dim`. These three may be None where a `MaskGitTask`
        knows them.
      num_classes: classes in the vocabulary of the package's file, which holds an output bias for
        each of them and for the mask; they are kept for the file, and nothing reads them.
      remat: remat policy: "none", "full" (recomputes all), "attention" (keeps what the fused
        attention of a TPU gives), or "dots" (keeps matrix products too).
      dtype: of the computation; norms, softmax and logits are float32.
    """

    dim: int
    depth: int
    heads: int = 16
    mlp_dim: int = 3072
    fmap_size: int | None = None
    codebook_size: int | None = None
    text_embed_dim: int | None = None
    num_classes: int = 0
    remat: str = "none"
    dtype: str = "float32"

    dropout: ClassVar[float] = 0.0
    self_cond: ClassVar[bool] = False
    cond_fmap_size: ClassVar[None] = None

    def __post_init__(self):
        limits.check(self)
        check_sizes(self, "dim", "depth", "heads", "mlp_dim")
        if self.dim % self.heads:
            raise UserError(
                f"dim={self.dim} is not a multiple of heads={self.heads}; try "
                f"dim={-(-self.dim // self.heads) * self.heads}."
            )
        if self.text_embed_dim not in (None, self.dim):
            raise UserError(
                f"text_embed_dim={self.text_embed_dim} is not dim={self.dim}, and the class stands "
                f"among the tokens; give ClassLabels of dim={self.dim}."
            )
        if self.num_classes < 0:
            raise UserError(f"num_classes={self.num_classes} is below 0; give 0 for none.")
        config.one_of("remat", self.remat, REMAT)
        super().__post_init__()

    # the three sizes below are told as by `maskgit.MaskGitTransformer`
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

        def table(name, rows, axis=None):
            return parameter(
                self, name, boxed(_normal, axis, "embed"), (rows, self.dim), jnp.float32
            )

        self.embedding = table("embedding", self.codebook_size, "vocab")
        self.mask_embedding = table("mask_embedding", 1)
        self.pos = table("pos", 1 + self.num_tokens)
        self.norm_in = _norm(None, self.dtype)
        self.layers = scanned(Layer, self.depth, self.remat, inputs=2)(**layer_fields(self, Layer))
        self.to_out = _dense(self, self.dim, None, ("embed", None))
        self.norm_out = _norm(None, self.dtype)
        size = self.mask_id + self.num_classes + 1
        self.bias = parameter(
            self, "bias", boxed(nn.initializers.zeros, None), (size,), jnp.float32
        )

    def embed(
        self,
        ids_BN: Array,
        text_embeds_B1C: Array,
        text_mask_B1: Array,
        keep_B: Array | None = None,
        cond_ids_BM: None = None,
        self_cond_BNC: None = None,
    ) -> Array:
        """One vector per token, (B, N, dim), normalised.

        Args:
          ids_BN: tokens, row by row; `mask_id` where masked.
          text_embeds_B1C, text_mask_B1: the class's embedding, and True where there is one.
          keep_B: False in rows whose class is dropped (classifier-free guidance); None: all True.
          cond_ids_BM, self_cond_BNC: None; this network has neither.

        Raises:
          UserError: more than one embedding per image.
        """
        check_text(self, text_embeds_B1C)
        if text_embeds_B1C.shape[1] != 1:
            raise UserError(
                f"text_embeds has {text_embeds_B1C.shape[1]} embeddings per image, and MaskGitBert "
                "takes that of a class alone; give ClassLabels, or a MaskGitTransformer for texts."
            )
        seen_B1 = text_mask_B1 if keep_B is None else text_mask_B1 & keep_B[:, None]
        table = constrain(self.embedding, None, None)
        masked_BN1 = (ids_BN == self.mask_id)[..., None]
        codes = jnp.where(
            masked_BN1, self.mask_embedding, table[jnp.minimum(ids_BN, len(table) - 1)]
        )
        x = jnp.concatenate([text_embeds_B1C.astype(jnp.float32), codes], axis=1)
        x = self.norm_in(x + self.pos[: x.shape[1]])
        x = constrain(x.astype(self.dtype), "batch", "length", None)
        mask = jnp.concatenate([seen_B1, jnp.ones(ids_BN.shape, bool)], axis=1)
        x, _ = self.layers(x, mask, True)
        return self.norm_out(nn.gelu(self.to_out(x[:, 1:])))

    def __call__(self, *args: Any, **inputs: Any) -> Array:
        """Float32 logits (B, N, codebook_size) of every token; arguments as of `embed`."""
        return self.logits(self.embed(*args, **inputs))

    def logits(self, embed_BNC: Array) -> Array:
        """Float32 logits (B, N, codebook_size) from the vectors that `embed` gives."""
        table = self.embedding.astype(self.dtype)
        logits = jnp.einsum("BNC,VC->BNV", embed_BNC.astype(self.dtype), table)
        logits = constrain(logits, "batch", "length", "vocab").astype(jnp.float32)
        return logits + self.bias[: self.mask_id]


@traced_once
def abstract(model: MaskGitBert) -> Any:
    """Shapes of the parameters, boxed; nothing is computed."""
    ids, embeds = jnp.zeros((1, model.num_tokens), jnp.int32), jnp.zeros((1, 1, model.dim))

    def init(key):
        return model.init(key, ids, embeds, jnp.ones((1, 1), bool))["params"]

    return jax.eval_shape(init, jax.random.key(0))


def _preset(side: int) -> MaskGitBert:
    """A network of the MaskGIT paper for ImageNet, with VQGANs of 1024 codes."""
    return MaskGitBert(
        dim=768,
        depth=24,
        fmap_size=side,
        codebook_size=1024,
        text_embed_dim=768,
        num_classes=1000,
    )


# The networks with public weights: 256 and 512 pixels, 16 a token.
IMAGENET_256 = _preset(16)
IMAGENET_512 = _preset(32)


def _dense(network, features, name, axes):
    return Dense(features, axes, dtype=network.dtype, init=_normal, name=name)


def _norm(name, dtype):
    """Layer norm with scale and shift, epsilon 1e-12 as in BERT, statistics in float32."""
    return nn.LayerNorm(
        epsilon=1e-12,
        dtype=dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        bias_init=boxed(nn.initializers.zeros, "embed"),
        name=name,
    )
