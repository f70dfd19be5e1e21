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
from t2i_jax.nn.query_blocks import by_queries
from t2i_jax.types import Array

_BLOCK = 512  # queries and keys that a TPU works on at a time
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
    """One block alone while the length is split: each device has its own queries then."""
    length = k_BNHD.shape[1]

    def attend(q, first):
        seen = first + jnp.arange(q.shape[1])[:, None] >= jnp.arange(length) if causal else None
        return jax.nn.dot_product_attention(
            q, k_BNHD, v_BNHD, mask=None if seen is None else seen[None, None]
        )

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


def _on_each_device(kernel, q_BQHD, k_BKGD, v_BKGD):
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(q_BQHD, k_BKGD, v_BKGD)

    def of(heads):
        return PartitionSpec(sharding.BATCH_AXES, None, "tensor" if heads > 1 else None, None)

    q, kv = of(q_BQHD.shape[2]), of(k_BKGD.shape[2])
    return jax.shard_map(kernel, in_specs=(q, kv, kv), out_specs=q, check_vma=False)(
        q_BQHD, k_BKGD, v_BKGD
    )


def splash(
    q_BNHD: Array, k_BNHD: Array, v_BNHD: Array, causal: bool = False, interpret: bool = False
) -> Array:
    """`attend` by the Pallas kernel of JAX, on one device; `interpret`: step by step on any
    backend, to test.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, width = q_BNHD.shape
    block = next(size for size in (_BLOCK, 256, 128) if length % size == 0)
    names = (
        "block_q",
        "block_kv",
        "block_kv_compute",
        "block_q_dkv",
        "block_kv_dkv",
        "block_kv_dkv_compute",
        "block_q_dq",
        "block_kv_dq",
    )
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.MultiHeadMask(
        [(masks.CausalMask if causal else masks.FullMask)((length, length))] * heads
    )
    kernel = kernels.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    q_BHND, k_BHND, v_BHND = (t.swapaxes(1, 2) for t in (q_BNHD * width**-0.5, k_BNHD, v_BNHD))
    out_BHND: Any = jax.vmap(kernel)(q_BHND, k_BHND, v_BHND)
    return out_BHND.swapaxes(1, 2).astype(v_BNHD.dtype)
