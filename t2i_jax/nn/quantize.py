"""Quantisers: look-up free bits (LFQ), finite scalars (FSQ), a cosine codebook of moving averages,
a codebook on the unit sphere that is trained by gradients. `nn.codebook` has codebooks in the whole
space.

All have one interface. A call gives a `Quantized`; what training changes without a gradient (the
codebook of moving averages) comes in as `codebook`, a dict of arrays, and goes out changed.
`lookup` turns indices into what the decoder reads; `start` gives the first `codebook` ({} where
everything is a parameter).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from t2i_jax.errors import UserError
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.types import Array, Key


@flax.struct.dataclass
class Quantized:
    """The result of a quantiser.

    Attributes:
      fmap: (B, H, W, C) quantised feature map for the decoder, with a straight-through gradient in
        training.
      ids: (B, H, W) int32 codes.
      loss: float32 scalar, already weighted; 0 outside training.
      latents: (B, H, W, E) float32 vectors that were compared with the codebook.
      codebook: the codebook statistics after this batch; unchanged outside training.
    """

    fmap: Array
    ids: Array
    loss: Array
    latents: Array
    codebook: Mapping[str, Array]


def unit(x: Array, epsilon: float = 1e-12) -> Array:
    """Vectors of length one along the last axis, in float32; a zero vector stays (nearly) zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(
        jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), epsilon**2 + 1e-30)
    )


def straight_through(x: Array, quantised: Array) -> Array:
    """The value of `quantised` with the gradient of `x`."""
    return x + jax.lax.stop_gradient(quantised - x)


def rotated(x: Array, quantised: Array) -> Array:
    """The value of `quantised`, with a gradient for `x` that is turned as x would have to be turned
    to become it (Fifty et al. 2024, the rotation trick, section 4.2).
    """
    q = jax.lax.stop_gradient(quantised)
    lengths = [jnp.linalg.norm(jax.lax.stop_gradient(t), axis=-1, keepdims=True) for t in (x, q)]
    u, v = (
        jax.lax.stop_gradient(t) / jnp.maximum(length, 1e-6)
        for t, length in zip((x, q), lengths, strict=True)
    )
    w = unit(u + v, 1e-6)
    along_w, along_u = (jnp.sum(x * axis, axis=-1, keepdims=True) for axis in (w, u))
    turned = x - 2 * along_w * w + 2 * along_u * v
    return turned * (lengths[1] / jnp.maximum(lengths[0], 1e-6))


class Lfq(nn.Module):
    """Look-up free quantisation: each code is `log2(codebook_size)` signs (Yu et al. 2023,
    MAGVIT-v2, section 3).

    As in vector-quantize-pytorch: linear maps to and from the bits, inverse temperature 100, the
    first channel the most significant bit, a value of exactly 0 counts as -1.
    """

    dim: int
    codebook_size: int
    entropy_weight: float = 0.1
    diversity: float = 2.0
    commitment_weight: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            power = 2 ** max(round(math.log2(max(self.codebook_size, 2))), 1)
            raise UserError(
                f"codebook_size={self.codebook_size} is no power of 2, as LFQ needs; try {power}."
            )
        super().__post_init__()

    @property
    def bits(self) -> int:
        """Signs per code."""
        return self.codebook_size.bit_length() - 1

    def setup(self):
        """Makes the layers and parameters."""
        if self.bits != self.dim:
            self.project_in = Dense(self.bits, ("embed", "latent"))
            self.project_out = Dense(self.dim, ("latent", "embed"), dtype=self.dtype)

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codes are fixed."""
        return {}

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the entropy loss is computed and the gradient
        passes straight through.
        """
        z = x_BHWC.astype(jnp.float32)
        z = self.project_in(z) if self.bits != self.dim else z
        on = z > 0
        code = jnp.where(on, 1.0, -1.0)
        ids = jnp.sum(on.astype(jnp.int32) << self._shifts(), axis=-1)
        loss = jnp.float32(0)
        if train:
            per_token, overall = lfq_entropies(z.reshape(-1, self.bits))
            loss = self.entropy_weight * (per_token - self.diversity * overall)
            loss += self.commitment_weight * jnp.mean((z - jax.lax.stop_gradient(code)) ** 2)
            code = straight_through(z, code)
        return Quantized(self._out(code), ids, loss, z, codebook)

    def lookup(self, ids: Array, codebook: Mapping[str, Array]) -> Array:
        """Decoder input (..., dim) of indices (...)."""
        bits = (ids[..., None] >> self._shifts()) & 1
        return self._out(bits.astype(jnp.float32) * 2 - 1)

    def _shifts(self):
        return jnp.arange(self.bits - 1, -1, -1, dtype=jnp.int32)

    def _out(self, code):
        return self.project_out(code) if self.bits != self.dim else code.astype(self.dtype)


def lfq_entropies(z_ND: Array, inverse_temperature: float = 100.0) -> tuple[Array, Array]:
    """The mean entropy of a token's code and the entropy of the mean code distribution, over all
    2^D codes.

    p(code) is a softmax of 2 * inverse_temperature * (z . code), which factorises over the bits:
    p(bit = +1) is sigmoid(4 * inverse_temperature * z). So a token's entropy is a sum over bits,
    and the mean of the joint distribution is a product of two tables over half of the bits each:
    exact, at N * 2^(D/2) memory.
    """
    logits_ND = 4 * inverse_temperature * z_ND.astype(jnp.float32)
    on, log_on, log_off = (
        jax.nn.sigmoid(logits_ND),
        jax.nn.log_sigmoid(logits_ND),
        jax.nn.log_sigmoid(-logits_ND),
    )
    per_token = -jnp.mean(jnp.sum(on * log_on + (1 - on) * log_off, axis=-1))
    half = z_ND.shape[-1] // 2
    high, low = (
        _joint(log_on[:, :half], log_off[:, :half]),
        _joint(log_on[:, half:], log_off[:, half:]),
    )
    mean = jnp.einsum("NI,NJ->IJ", high, low, precision="highest") / z_ND.shape[0]
    return per_token, -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-5)))  # the clamp of the package


def _joint(log_on_ND, log_off_ND):
    """Probabilities (N, 2^D) of all sign patterns, the first bit the most significant."""
    log_p = jnp.zeros((log_on_ND.shape[0], 1))
    for i in range(log_on_ND.shape[1]):
        pair = jnp.stack([log_off_ND[:, i], log_on_ND[:, i]], axis=-1)
        log_p = (log_p[:, :, None] + pair[:, None, :]).reshape(log_p.shape[0], -1)
    return jnp.exp(log_p)


class Fsq(nn.Module):
    """Finite scalar quantisation: every channel is bounded and rounded to one of a few values, and
    a code is one value of each channel (Mentzer et al. 2023, arXiv 2309.15505, section 3.1).

    There is no codebook that could collapse, and no loss. As in vector-quantize-pytorch: linear
    maps to and from the channels where their number is not `dim`; the first channel is the least
    significant digit of a code.

    Attributes:
      dim: channels of the feature map. levels: values of each channel that is quantised, 3 or more
        each; (8, 5, 5, 5) are 1000 codes, (8, 8, 8, 5, 5, 5) are 64,000.
    """

    dim: int
    levels: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self):
        check_levels(self.levels)
        super().__post_init__()

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    def setup(self):
        """Makes the layers and parameters."""
        if len(self.levels) != self.dim:
            self.project_in = Dense(len(self.levels), ("embed", "latent"))
            self.project_out = Dense(self.dim, ("latent", "embed"), dtype=self.dtype)

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codes are fixed."""
        return {}

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the gradient passes straight through the
        rounding.
        """
        z = x_BHWC.astype(jnp.float32)
        z = self.project_in(z) if len(self.levels) != self.dim else z
        bounded = self._bounded(z)
        whole = jnp.round(bounded)
        ids = jnp.sum((whole.astype(jnp.int32) + self._half()) * self._basis(), axis=-1)
        code = straight_through(bounded, whole) if train else whole
        return Quantized(self._out(code / self._half()), ids, jnp.float32(0), z, codebook)

    def lookup(self, ids: Array, codebook: Mapping[str, Array]) -> Array:
        """Decoder input (..., dim) of indices (...)."""
        digits = ids[..., None] // self._basis() % jnp.array(self.levels, jnp.int32)
        return self._out((digits - self._half()) / self._half())

    def _bounded(self, z):
        """Latents within the range of the whole numbers that stand for a channel's values. An even
        number of these lies half a step lower, and 0 stays where it was.
        """
        levels = jnp.array(self.levels, jnp.float32)
        reach = (levels - 1) * (1 + 1e-3) / 2  # a little more, so that the outermost are reached
        offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
        return jnp.tanh(z + jnp.arctanh(offset / reach)) * reach - offset

    def _half(self):
        return jnp.array([level // 2 for level in self.levels], jnp.int32)

    def _basis(self):
        basis = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return jnp.array(basis, jnp.int32)

    def _out(self, code):
        projected = len(self.levels) != self.dim
        return self.project_out(code) if projected else code.astype(self.dtype)


def check_levels(levels: Any, codebook_size: int | None = None) -> None:
    """Refuses `fsq_levels` that make no FSQ.

    Args:
      codebook_size: of the network that has them; None: not to be compared.

    Raises:
      UserError: what is no tuple of whole numbers, a channel of fewer than 3 values, more codes
        than int32 counts, or another number of codes than `codebook_size`.
    """
    if (
        not isinstance(levels, (tuple, list))
        or not levels
        or any(type(level) is not int or level < 3 for level in levels)
    ):
        raise UserError(
            f"fsq_levels={levels!r} are no whole numbers of 3 or more, one per channel; try "
            "(8, 5, 5, 5) for 1000 codes."
        )
    size = math.prod(levels)
    if size >= 2**31:
        raise UserError(f"fsq_levels={levels!r} make {size} codes; give fewer than 2**31.")
    if codebook_size not in (None, size):
        raise UserError(
            f"codebook_size={codebook_size} is not the {size} codes of fsq_levels={levels!r}; set "
            f"codebook_size={size}."
        )


def sized(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a network, with the `codebook_size` of `fsq_levels` where it is not given."""
    levels = fields.get("fsq_levels")
    if levels is None or "codebook_size" in fields:
        return dict(fields)
    check_levels(levels)
    return {**fields, "codebook_size": math.prod(levels)}


class CosineVq(nn.Module):
    """A codebook on the unit sphere that follows the moving average of what is assigned to it.

    As in vector-quantize-pytorch with cosine similarity and no replacement of codes inside; codes
    that fall out of use are revived by the training task. No gradient reaches the codebook. With
    `rotation_trick` the gradient is that of `rotated`, else it passes straight through.
    """

    dim: int
    codebook_size: int
    codebook_dim: int = 64
    decay: float = 0.9
    commitment_weight: float = 1.0
    kmeans_init: bool = True
    dtype: str = "float32"
    rotation_trick: bool = False

    def setup(self):
        """Makes the layers and parameters."""
        if self.codebook_dim != self.dim:
            self.project_in = Dense(self.codebook_dim, ("embed", "latent"))
            self.project_out = Dense(self.dim, ("latent", "embed"), dtype=self.dtype)

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Random unit codes; with `kmeans_init` they are replaced by the clusters of the first
        training batch.
        """
        embed = unit(jax.random.normal(key, (self.codebook_size, self.codebook_dim)))
        return {
            "embed": embed,
            "embed_avg": embed,
            "cluster_size": jnp.ones((self.codebook_size,)),
            "started": jnp.array(not self.kmeans_init),
        }

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the statistics move and the commitment loss is
        computed.
        """
        z = unit(
            self.project_in(x_BHWC.astype(jnp.float32)) if self.codebook_dim != self.dim else x_BHWC
        )
        z_NE = jax.lax.stop_gradient(z.reshape(-1, self.codebook_dim))
        if train:
            codebook = jax.lax.cond(
                codebook["started"], lambda: dict(codebook), lambda: _kmeans(z_NE, codebook)
            )
        # Of length one already, but for codebooks of the package's first releases, which were
        # compared in this way too.
        ids = jnp.argmax(z @ unit(codebook["embed"]).T, axis=-1).astype(jnp.int32)
        code, loss = codebook["embed"][ids], jnp.float32(0)
        if train:
            loss = self.commitment_weight * jnp.mean((jax.lax.stop_gradient(code) - z) ** 2)
            codebook = self._moved(codebook, z_NE, ids.reshape(-1))
            code = rotated(z, code) if self.rotation_trick else straight_through(z, code)
        return Quantized(self._out(code), ids, loss, z, codebook)

    def lookup(self, ids: Array, codebook: Mapping[str, Array]) -> Array:
        """Decoder input (..., dim) of indices (...)."""
        return self._out(codebook["embed"][ids])

    def _moved(self, codebook, z_NE, ids_N):
        counts, sums = _assigned(z_NE, ids_N, self.codebook_size)
        moved = dict(codebook)
        moved["cluster_size"] = codebook["cluster_size"] * self.decay + counts * (1 - self.decay)
        moved["embed_avg"] = codebook["embed_avg"] * self.decay + sums * (1 - self.decay)
        return moved | {"embed": _centres(moved)}

    def _out(self, code):
        return self.project_out(code) if self.codebook_dim != self.dim else code.astype(self.dtype)


def _assigned(z_NE, ids_N, size):
    return jnp.bincount(ids_N, length=size).astype(jnp.float32), jnp.zeros(
        (size, z_NE.shape[1])
    ).at[ids_N].add(z_NE)


def _centres(codebook, epsilon=1e-5):
    size, total = codebook["cluster_size"], jnp.sum(codebook["cluster_size"])
    smoothed = (size + epsilon) / (total + size.shape[0] * epsilon) * total  # Laplace smoothing
    return unit(codebook["embed_avg"] / smoothed[:, None], 1e-6)


def _kmeans(z_NE, codebook, iterations=10):
    """Spherical k-means on the first batch, started from vectors spread over it."""
    size = codebook["embed"].shape[0]
    count = z_NE.shape[0]
    chosen = jax.random.permutation(jax.random.key(0), count)[jnp.arange(size) % count]

    def improve(_, centres):
        counts, sums = _assigned(z_NE, jnp.argmax(z_NE @ centres.T, axis=-1), size)
        return jnp.where(counts[:, None] > 0, unit(sums, 1e-6), centres)

    centres = jax.lax.fori_loop(0, iterations, improve, z_NE[chosen])
    counts, _ = _assigned(z_NE, jnp.argmax(z_NE @ centres.T, axis=-1), size)
    found = {
        "cluster_size": counts,
        "embed_avg": centres * counts[:, None],
        "started": jnp.array(True),
    }
    return {**codebook, **found, "embed": _centres(found)}


def revive_average(
    codebook: Mapping[str, Array], dead_K: Array, fresh_KE: Array
) -> dict[str, Array]:
    """The statistics of a `CosineVq` with the codes that are True in `dead_K` started again from
    these latents.
    """
    rows = {
        name: jnp.where(dead_K[:, None], fresh_KE.astype(codebook[name].dtype), codebook[name])
        for name in ("embed", "embed_avg")
    }
    counts = jnp.where(dead_K, 1.0, codebook["cluster_size"])
    return {**codebook, **rows, "cluster_size": counts}


class FactorisedVq(nn.Module):
    """The codebook of ViT-VQGAN: few dimensions, unit length on both sides, trained by gradients
    (Yu et al. 2021, 3.2).

    loss = beta * |sg(code) - z|^2 + codebook_weight * |code - sg(z)|^2, both normalised; the
    decoder reads the unit code.
    """

    dim: int
    codebook_size: int
    codebook_dim: int = 32
    beta: float = 0.25
    dtype: str = "float32"
    dim_out: int | None = None  # None: dim
    codebook_weight: float = 1.0

    def setup(self):
        """Makes the layers and parameters."""
        self.project_in = Dense(
            self.codebook_dim, ("embed", "latent"), init=nn.initializers.xavier_uniform()
        )
        self.project_out = Dense(
            self.dim_out or self.dim,
            ("latent", "embed"),
            dtype=self.dtype,
            init=nn.initializers.xavier_uniform(),
        )
        self.embedding = parameter(
            self,
            "embedding",
            boxed(nn.initializers.normal(1.0), "code", "latent"),
            (self.codebook_size, self.codebook_dim),
            jnp.float32,
        )

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codebook is a parameter."""
        return {}

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the two losses are computed and the gradient passes
        straight through.
        """
        raw = self.project_in(x_BHWC.astype(jnp.float32))
        z, codes = unit(raw), unit(self.embedding)
        ids = jnp.argmax(z @ codes.T, axis=-1).astype(jnp.int32)  # nearest, for unit vectors
        code, loss = codes[ids], jnp.float32(0)
        if train:
            loss = self.beta * jnp.mean((jax.lax.stop_gradient(code) - z) ** 2)
            loss += self.codebook_weight * jnp.mean((code - jax.lax.stop_gradient(z)) ** 2)
            # The gradient reaches the latents before their normalisation.
            code = straight_through(raw, code)
        return Quantized(self.project_out(code), ids, loss, z, codebook)

    def lookup(self, ids: Array, codebook: Mapping[str, Array]) -> Array:
        """Decoder input (..., dim) of indices (...)."""
        return self.project_out(unit(self.embedding)[ids])
