"""Causal attention by the backend's fused kernel, which never holds the matrix of scores; elsewhere as XLA does it."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

from t2i_jax import sharding
from t2i_jax.types import Array

_BLOCK = 512  # queries and keys that a TPU works on at a time
_CUDNN = ("bfloat16", "float16")


def attend_causally(q_BNHD: Array, k_BNHD: Array, v_BNHD: Array) -> Array:
    """softmax(q k / sqrt(D)) v, (B, N, H, D), where a position sees those up to itself.

    On a TPU by splash attention, for lengths that are multiples of 128; on a GPU by cuDNN, for 16-bit numbers and heads
    of at most 128, multiples of 8. On a mesh each device works on its own rows and heads; while the length is split
    over "sequence", the scores of a device's own queries exist.
    """
    length, width = q_BNHD.shape[1], q_BNHD.shape[3]
    if jax.default_backend() == "gpu" and str(q_BNHD.dtype) in _CUDNN and width % 8 == 0 and width <= 128:
        return jax.nn.dot_product_attention(q_BNHD, k_BNHD, v_BNHD, is_causal=True, implementation="cudnn")
    if length % 128 or sharding.ways("sequence") > 1 or not _splits(q_BNHD.shape):
        return _plain(q_BNHD, k_BNHD, v_BNHD)
    return jax.lax.platform_dependent(q_BNHD, k_BNHD, v_BNHD, tpu=_on_each_device, default=_plain)


def _plain(q_BNHD, k_BNHD, v_BNHD):
    return jax.nn.dot_product_attention(q_BNHD, k_BNHD, v_BNHD, is_causal=True)


def _splits(shape):
    rows = math.prod(sharding.ways(axis) for axis in sharding.BATCH_AXES)
    return shape[0] % rows == 0 and shape[2] % sharding.ways("tensor") == 0


def _on_each_device(q_BNHD, k_BNHD, v_BNHD):
    if jax.sharding.get_abstract_mesh().empty:
        return splash(q_BNHD, k_BNHD, v_BNHD)
    spec = PartitionSpec(sharding.BATCH_AXES, None, "tensor", None)
    own = jax.shard_map(splash, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return own(q_BNHD, k_BNHD, v_BNHD)


def splash(q_BNHD: Array, k_BNHD: Array, v_BNHD: Array, interpret: bool = False) -> Array:
    """`attend_causally` by the Pallas kernel of JAX, on one device; `interpret`: step by step on any backend, to test."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, width = q_BNHD.shape
    block = next(size for size in (_BLOCK, 256, 128) if length % size == 0)
    names = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
        "block_kv_dq",
    )  # fmt: skip
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = kernels.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    q_BHND, k_BHND, v_BHND = (t.swapaxes(1, 2) for t in (q_BNHD * width**-0.5, k_BNHD, v_BNHD))
    return jax.vmap(kernel)(q_BHND, k_BHND, v_BHND).swapaxes(1, 2).astype(v_BNHD.dtype)
