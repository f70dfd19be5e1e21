"""What a machine can do at best in float32: products of matrices and reading of memory, measured in
the process that measures the rows, and the floor that follows for a unit of work.
"""

from __future__ import annotations

import dataclasses
import time

_SIDE = 2048  # of square matrices
_READ = 2**28  # bytes, more than any cache holds
_TIMES = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that a unit of work has to do, whoever does it.

    Attributes:
      flops: FLOPs of its matrix products and convolutions. bytes: of weights that it has to read
        again and again, as decoding does at each token; 0 where products decide.
    """

    flops: float
    bytes: float = 0.0


def machine() -> dict[str, float]:
    """What it does in a second: "flops" of the quicker of XLA's and PyTorch's products, "bytes" of
    PyTorch's sum of a large array; the best of five each.
    """
    import jax
    import jax.numpy as jnp
    import torch

    a = torch.rand(_SIDE, _SIDE)
    x, product = jnp.asarray(a.numpy()), jax.jit(jnp.matmul)
    large = torch.zeros(_READ // 4)
    seconds = min(_best(lambda: a @ a), _best(lambda: product(x, x).block_until_ready()))
    return {"flops": 2 * _SIDE**3 / seconds, "bytes": _READ / _best(large.sum)}


def floor(work: Work, of: dict[str, float]) -> float:
    """Seconds that the work takes at least on a machine of such rates."""
    return max(work.flops / of["flops"], work.bytes / of["bytes"])


def read_per_token(decoder) -> list:
    """The parameters of Parti's decoder, a tree of names, that each token reads whole.

    Keys and values of the text are projected once for all tokens, and of embeddings a token has one
    row, unless their table gives the logits too.
    """
    from flax.traverse_util import flatten_dict

    rows = {"start_token", "null_text", "height_pos", "width_pos", "pos"}
    rows |= {"embedding"} if "to_logits" in decoder else set()
    once = ("k", "v", "to_kv")
    return [
        leaf
        for path, leaf in flatten_dict(decoder).items()
        if path[0] not in rows and not ("cross_attention" in path and path[-2] in once)
    ]


def _best(run):
    times = []
    for _ in range(_TIMES + 1):  # one before them warms up
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
