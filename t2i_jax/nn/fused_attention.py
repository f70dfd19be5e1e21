"""Self-attention by the backend's fused kernel, which never holds the matrix of scores; elsewhere
as XLA does it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.nn.dot_product import attention
from t2i_jax.nn.query_blocks import by_queries
from t2i_jax.types import Array

KEPT = "attention"
"""The name, for remat policies, of what the fused kernel of a TPU gives and its gradient needs."""

_BLOCK = 512  # queries and keys of a block on a TPU
_MANY_SCORES = 2**17  # scores of one head: 1024 tokens that see 128 of a text
_CUDNN = ("bfloat16", "float16")


def attend(q_BNHD: Array, k_BNHD: Array, v_BNHD: Array, causal: bool = False) -> Array:
    """Self-attention softmax(q k / sqrt(D)) v, (B, N, H, D); `causal`: a position sees those up to
    itself.

    On a TPU by splash attention, for lengths that are multiples of 128; on a GPU by cuDNN
    (`cudnn_takes`); elsewhere, and while the length is split over "sequence", by XLA, many scores
    in blocks of queries. On a mesh each device works on its own rows and heads.
    """
    if cudnn_takes(q_BNHD):
        return cudnn(q_BNHD, k_BNHD, v_BNHD, causal)
    plain = functools.partial(_plain, causal=causal)
    if q_BNHD.shape[1] % 128 or not _splits(q_BNHD.shape):
        return plain(q_BNHD, k_BNHD, v_BNHD)
    fused = functools.partial(_on_each_device, functools.partial(splash, causal=causal))
    return jax.lax.platform_dependent(q_BNHD, k_BNHD, v_BNHD, tpu=fused, default=plain)


def attend_to(
    q_BQHD: Array,
    k_BKHD: Array,
    v_BKHD: Array,
    mask_BK: Array | None,
    scale: float | None = 1.0,
) -> Array:
    """softmax(scale q k) v of keys that are not the queries' own, or not only: (B, Q, H, D).

    On a TPU by splash attention, for numbers of queries that are multiples of 128 and many scores:
    of 256 tokens XLA's own fusions read and write less than the keys that fill a block; on a GPU by
    cuDNN, without a mask; elsewhere, and while the length is split over "sequence", by XLA.

    Args:
      mask_BK: True where a key may be seen, at least one of each row; None: everywhere.
      scale: None: 1 / sqrt(D).
    """
    if mask_BK is None and cudnn_takes(q_BQHD):
        return cudnn(q_BQHD, k_BKHD, v_BKHD, scale=scale)

    def plain(q, k, v, seen_BK=None):
        return attention(q, k, v, None if seen_BK is None else seen_BK[:, None, None], scale=scale)

    queries = q_BQHD.shape[1]
    is_small = queries * k_BKHD.shape[1] < _MANY_SCORES
    if queries % 128 or is_small or not _splits(q_BQHD.shape):
        return plain(q_BQHD, k_BKHD, v_BKHD, mask_BK)

    def kernel(q, k, v, seen_BK=None):
        return splash(q, k, v, scale=scale, seen_BK=seen_BK)

    fused = functools.partial(_on_each_device, kernel)
    seen = () if mask_BK is None else (mask_BK,)
    return jax.lax.platform_dependent(q_BQHD, k_BKHD, v_BKHD, *seen, tpu=fused, default=plain)


def cudnn_takes(q_BQHD: Array) -> bool:
    """Whether `cudnn` works for such queries: an NVIDIA GPU from Ampere on, 16-bit numbers, heads
    of at most 128, multiples of 8, and an even number of queries.
    """
    device, (_, length, _, width) = jax.local_devices()[0], q_BQHD.shape
    if (
        device.platform != "gpu"
        or str(q_BQHD.dtype) not in _CUDNN
        or width % 8
        or width > 128
        or length % 2
    ):
        return False
    major = device.compute_capability.split(".")[0]  # "8.6" on NVIDIA's, "gfx942" on AMD's
    return major.isdigit() and int(major) >= 8 and _splits(q_BQHD.shape)


def cudnn(
    q_BQHD: Array, k_BKGD: Array, v_BKGD: Array, causal: bool = False, scale: float | None = None
) -> Array:
    """softmax(scale q k) v, (B, Q, H, D), by cuDNN.

    Args:
      k_BKGD, v_BKGD: one per head, or one for all heads (G = 1). scale: None: 1 / sqrt(D).
    """
    keys = k_BKGD.shape[1]

    def kernel(q, k, v):
        lengths = None
        if keys % 2:  # JAX refuses an odd number: one more key, which is masked
            k, v = (jnp.pad(t, ((0, 0), (0, 1), (0, 0), (0, 0))) for t in (k, v))
            lengths = jnp.full(k.shape[0], keys, jnp.int32)
        options = {"is_causal": causal, "scale": scale, "key_value_seq_lengths": lengths}
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **options)

    return _on_each_device(kernel, q_BQHD, k_BKGD, v_BKGD)


def _plain(q_BNHD, k_BNHD, v_BNHD, causal):
    """Attention in blocks of queries; in a single block while the length is split, as each device
    has its own queries then.
    """
    length = k_BNHD.shape[1]

    def attend(q, first):
        seen = first + jnp.arange(q.shape[1])[:, None] >= jnp.arange(length) if causal else None
        return attention(q, k_BNHD, v_BNHD, None if seen is None else seen[None, None])

    return (
        attend(q_BNHD, 0) if sharding.ways("sequence") > 1 else by_queries(attend, q_BNHD, length)
    )


def _splits(shape):
    rows = math.prod(sharding.ways(axis) for axis in sharding.BATCH_AXES)
    return (
        shape[0] % rows == 0
        and shape[2] % sharding.ways("tensor") == 0
        and sharding.ways("sequence") == 1
    )


def _on_each_device(kernel, q_BQHD, k_BKGD, v_BKGD, *seen_BK):
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(q_BQHD, k_BKGD, v_BKGD, *seen_BK)

    def of(heads):
        return PartitionSpec(sharding.BATCH_AXES, None, "tensor" if heads > 1 else None, None)

    q, kv = of(q_BQHD.shape[2]), of(k_BKGD.shape[2])
    places = (q, kv, kv, *[PartitionSpec(sharding.BATCH_AXES, None)] * len(seen_BK))
    return jax.shard_map(kernel, in_specs=places, out_specs=q, check_vma=False)(
        q_BQHD, k_BKGD, v_BKGD, *seen_BK
    )


def splash(
    q_BQHD: Array,
    k_BKHD: Array,
    v_BKHD: Array,
    causal: bool = False,
    interpret: bool = False,
    scale: float | None = None,
    seen_BK: Array | None = None,
) -> Array:
    """softmax(scale q k) v by the Pallas kernel of JAX, on one device.

    Args:
      causal: a position sees those up to itself; there are as many keys as queries then, a multiple
        of 128, as the number of queries always is. interpret: step by step on any backend, to test.
      scale: None: 1 / sqrt(D). seen_BK: True where a key may be seen, at least one of each row;
        None: everywhere.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (rows, queries, heads, width), keys = q_BQHD.shape, k_BKHD.shape[1]
    more = -keys % (128 if keys < _BLOCK else _BLOCK) if keys % 128 else 0
    if more:  # the kernel works on whole blocks
        k_BKHD, v_BKHD = (jnp.pad(t, ((0, 0), (0, more), (0, 0), (0, 0))) for t in (k_BKHD, v_BKHD))
        seen_BK = jnp.ones((rows, keys), bool) if seen_BK is None else seen_BK
        seen_BK = jnp.pad(seen_BK, ((0, 0), (0, more)))
    mask = (masks.CausalMask if causal else masks.FullMask)((queries, keys + more))
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads), block_sizes=_blocks(kernels, queries, keys + more),
        residual_checkpoint_name=KEPT, interpret=interpret,
    )  # fmt: skip
    factor = width**-0.5 if scale is None else scale
    q_BHQD, k_BHKD, v_BHKD = (t.swapaxes(1, 2) for t in (q_BQHD * factor, k_BKHD, v_BKHD))
    of_rows: Any = jax.vmap(kernel)
    if seen_BK is None:
        out_BHQD = of_rows(q_BHQD, k_BHKD, v_BHKD)
    else:  # a query sees the keys of its own segment
        segments = kernels.SegmentIds(
            jnp.ones((rows, queries), jnp.int32), seen_BK.astype(jnp.int32)
        )
        out_BHQD = of_rows(q_BHQD, k_BHKD, v_BHKD, segments)
    return out_BHQD.swapaxes(1, 2).astype(v_BKHD.dtype)


def _blocks(kernels, queries, keys):
    """Queries and keys that are worked on at a time, forwards and backwards."""
    q, kv = (next(size for size in (_BLOCK, 256, 128) if n % size == 0) for n in (queries, keys))
    return kernels.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
