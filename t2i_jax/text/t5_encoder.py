"""The encoder of T5 (Raffel et al. 2020), its version 1.1 and Flan-T5."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from t2i_jax.config import one_of
from t2i_jax.errors import UserError
from t2i_jax.nn import limits
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.transformer import layer_fields
from t2i_jax.types import Array

# The activation of a feed-forward layer, on its first product; "gated" ones multiply it with a
# second product (Shazeer 2020).
FEED_FORWARD = {
    "relu": nn.relu,
    "gated-gelu": lambda x: nn.gelu(x, approximate=True),
    "gated-silu": nn.silu,
}

DTYPES = ("float32", "bfloat16")  # T5 overflows in float16
_POSITIVE = ("dim", "depth", "heads", "dim_head", "mlp_dim", "vocab_size", "max_distance")


class T5Encoder(nn.Module):
    """Pre-norm transformer encoder with root-mean-square norms, one learnt bias per relative
    position, and no scaling.

    The parameters of all layers are stacked under "layers"; the relative bias is shared by all of
    them.

    Attributes:
      dim, depth, heads, dim_head, mlp_dim: widths and numbers; heads * dim_head need not be dim.
      vocab_size: rows of the token embedding.
      feed_forward: a key of `FEED_FORWARD`: "relu" for T5, "gated-gelu" for version 1.1 and
        Flan-T5.
      buckets, max_distance: of relative positions; further ones share a bucket.
      epsilon: of the norms.
      dtype: of the matmuls, "float32" or "bfloat16"; norms, scores and softmax are float32.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    dim_head: int = 64
    mlp_dim: int = 2048
    vocab_size: int = 32128
    feed_forward: str = "gated-gelu"
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        one_of("feed_forward", self.feed_forward, FEED_FORWARD)
        if self.dtype not in DTYPES:
            raise UserError(
                f"dtype={self.dtype!r} is no type in which T5 computes: its embeddings overflow in "
                "float16; give float32 or bfloat16."
            )
        limits.check(self)
        for field in _POSITIVE:
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is not positive; give 1 or more.")
        if self.buckets < 4 or self.buckets % 2:
            raise UserError(
                f"buckets={self.buckets} is not an even number of 4 or more; T5 has 32."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, text_BL: Array, mask_BL: Array) -> Array:
        """Embeddings (B, L, dim) in float32.

        Args:
          text_BL: int32 token ids.
          mask_BL: bool, False at padding; rows at padding are computed like others and mean
            nothing.
        """
        init = boxed(nn.initializers.normal(1.0), "vocab", "embed")
        table_VC = parameter(self, "embedding", init, (self.vocab_size, self.dim), jnp.float32)
        init = boxed(nn.initializers.normal(self.dim**-0.5), None, "heads")
        table_RH = parameter(self, "relative_bias", init, (self.buckets, self.heads), jnp.float32)
        bucket_QK = relative_bucket(text_BL.shape[1], self.buckets, self.max_distance)
        bias_HQK = table_RH.astype(jnp.float32)[bucket_QK].transpose(2, 0, 1)
        layers = nn.scan(
            T5Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(**layer_fields(self, T5Layer), name="layers")
        x_BLC, _ = layers(table_VC[text_BL].astype(self.dtype), bias_HQK, mask_BL)
        return _norm(self, "norm")(x_BLC).astype(jnp.float32)


class T5Layer(nn.Module):
    """Self-attention and a feed-forward layer, each behind a norm, with a residual.

    Fields as in `T5Encoder`.
    """

    dim: int
    heads: int
    dim_head: int
    mlp_dim: int
    feed_forward: str
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x_BLC: Array, bias_HQK: Array, mask_BL: Array) -> tuple[Array, None]:
        """(x, None): the pair that a scan wants."""
        x_BLC = x_BLC + self._attention(_norm(self, "norm_attention")(x_BLC), bias_HQK, mask_BL)
        return x_BLC + self._mlp(_norm(self, "norm_mlp")(x_BLC)), None

    def _attention(self, x_BLC, bias_HQK, mask_BL):
        inner = self.heads * self.dim_head
        # T5 starts its queries smaller by sqrt(dim_head) and never scales scores.
        std = {"q": (self.dim * self.dim_head) ** -0.5, "k": self.dim**-0.5, "v": self.dim**-0.5}
        q, k, v = (
            self._dense(inner, n, ("embed", "heads"), std[n])(x_BLC) for n in ("q", "k", "v")
        )

        def split(y):
            return y.reshape(*y.shape[:-1], self.heads, self.dim_head)

        seen = mask_BL[:, None, None]
        out_BQHD = attention(split(q), split(k), split(v), seen, bias_HQK, scale=1.0)
        return self._dense(self.dim, "out", ("heads", "embed"), inner**-0.5)(
            out_BQHD.reshape(*x_BLC.shape[:-1], inner)
        )

    def _mlp(self, x_BLC):
        activate, wide = FEED_FORWARD[self.feed_forward], ("embed", "mlp")
        h = activate(self._dense(self.mlp_dim, "wide", wide, self.dim**-0.5)(x_BLC))
        if self.feed_forward.startswith("gated"):
            h = h * self._dense(self.mlp_dim, "gate", wide, self.dim**-0.5)(x_BLC)
        return self._dense(self.dim, "narrow", ("mlp", "embed"), self.mlp_dim**-0.5)(h)

    def _dense(self, features, name, axes, std):
        return Dense(
            features,
            axes,
            bias=False,
            dtype=self.dtype,
            init=nn.initializers.normal(std),
            name=name,
        )


def relative_bucket(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every pair of positions, (query, key) int32 (Raffel et al. 2020, section 2.1).

    Half of the buckets is for keys behind the query. Of each half, one half has a bucket per
    distance, the rest covers the distances up to `max_distance` in steps that grow logarithmically.
    """
    offset_QK = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset_QK)
    # In float32, as T5 was trained: the boundaries are where a float32 logarithm puts them.
    log = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (
        log / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    ).astype(np.int32)
    near_or_far = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (near_or_far + np.where(offset_QK > 0, half, 0)).astype(np.int32)


def _norm(network, name):
    return nn.RMSNorm(
        epsilon=network.epsilon,
        dtype=network.dtype,
        scale_init=boxed(nn.initializers.ones, "embed"),
        name=name,
    )


def _sizes():
    v1 = dict(feed_forward="relu")
    small, base, large = (
        dict(dim=512, depth=6, heads=8),
        dict(dim=768),
        dict(dim=1024, depth=24, heads=16),
    )
    sizes = {
        "t5-small": T5Encoder(**v1, **small, mlp_dim=2048),
        "t5-base": T5Encoder(**v1, **base, mlp_dim=3072),
        "t5-large": T5Encoder(**v1, **large, mlp_dim=4096),
        "t5-3b": T5Encoder(**v1, dim=1024, depth=24, heads=32, dim_head=128, mlp_dim=16384),
        "t5-11b": T5Encoder(**v1, dim=1024, depth=24, heads=128, dim_head=128, mlp_dim=65536),
    }
    newer = {
        "small": T5Encoder(dim=512, depth=8, heads=6, mlp_dim=1024),
        "base": T5Encoder(**base),
        "large": T5Encoder(**large, mlp_dim=2816),
        "xl": T5Encoder(dim=2048, depth=24, heads=32, mlp_dim=5120),
        "xxl": T5Encoder(dim=4096, depth=24, heads=64, mlp_dim=10240),
    }
    for size, network in newer.items():
        sizes[f"google/t5-v1_1-{size}"] = sizes[f"google/flan-t5-{size}"] = network
    return sizes | {
        f"google-t5/{name}": network for name, network in sizes.items() if "/" not in name
    }


SIZES: dict[str, T5Encoder] = _sizes()  # the networks of the published weights, by the hub's names
