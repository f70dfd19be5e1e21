"""Quantisers with a codebook that gradients train, in the space of the latents: the nearest code
(VQ-VAE, VQGAN), and the code of the highest logit (Gumbel-softmax).

They have the interface of `nn.quantize`.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.nn.quantize import Quantized, straight_through
from t2i_jax.types import Array, Key

NOISE = "codes"  # the name of the keys (`rngs` of `apply`) that `GumbelVq` draws its noise from


class _Codebook(nn.Module):
    """The base of `NearestVq` and `GumbelVq`.

    Attributes:
      dim: channels of the feature map. codebook_size, codebook_dim: number and width of the codes.
      projected: whether linear maps with a bias lead to the width of the codes and back; False:
        `dim` is that width.
      dtype: of what goes to the decoder; codes are compared in float32.
    """

    dim: int
    codebook_size: int
    codebook_dim: int
    projected: bool = True
    dtype: str = "float32"

    def setup(self):
        """Makes the layers and parameters."""
        if self.projected:
            self.project_in = Dense(self.codebook_dim, ("embed", "latent"))
            self.project_out = Dense(self.dim, ("latent", "embed"), dtype=self.dtype)
        limit = 1 / self.codebook_size
        self.embedding = parameter(
            self,
            "embedding",
            boxed(lambda *args: jax.random.uniform(*args, -limit, limit), "code", "latent"),
            (self.codebook_size, self.codebook_dim),
            jnp.float32,
        )

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codebook is a parameter."""
        return {}

    def lookup(self, ids: Array, codebook: Mapping[str, Array]) -> Array:
        """Decoder input (..., dim) of indices (...)."""
        return self._out(self.embedding[ids])

    def _in(self, x_BHWC):
        x = x_BHWC.astype(jnp.float32)
        return self.project_in(x) if self.projected else x

    def _out(self, code):
        return self.project_out(code) if self.projected else code.astype(self.dtype)


class NearestVq(_Codebook):
    """The code at the least Euclidean distance (van den Oord et al. 2017, section 3.1; Esser et al.
    2021, equation 2).

    loss = commitment_weight * |sg(code) - z|^2 + codebook_weight * |code - sg(z)|^2. The paper has
    a beta of 0.25 at the commitment; the code of taming-transformers has it at the other term, and
    what is public was trained so.

    Attributes:
      commitment_weight, codebook_weight: (0.25, 1) as in the paper, (1, 0.25) as in
        taming-transformers.
      entropy_weight: of `affinity_entropy`, which makes all codes used; 0: there is none, and
        0.1 in MaskGIT's code. entropy_temperature: of its softmax.
    """

    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the losses are computed and the gradient passes
        straight through.
        """
        z = self._in(x_BHWC)
        # |z - e|^2 without |z|^2. In full precision on every backend: codes lie close together.
        products = jnp.matmul(z, self.embedding.T, precision="highest")
        far = products - 0.5 * jnp.sum(self.embedding**2, axis=-1)
        ids = jnp.argmax(far, axis=-1).astype(jnp.int32)
        code, loss = self.embedding[ids], jnp.float32(0)
        if train:
            loss = self.commitment_weight * jnp.mean((jax.lax.stop_gradient(code) - z) ** 2)
            loss += self.codebook_weight * jnp.mean((code - jax.lax.stop_gradient(z)) ** 2)
            if self.entropy_weight:
                # -|z - e|^2 but for |z|^2, which a softmax over the codes does not see
                entropy = affinity_entropy(2 * far, self.entropy_temperature)
                loss += self.entropy_weight * entropy
            code = straight_through(z, code)
        return Quantized(self._out(code), ids, loss, z, codebook)


def affinity_entropy(affinities: Array, temperature: float) -> Array:
    """The mean entropy of a token's distribution over the codes, minus the entropy of the mean
    distribution, in nats: it falls where each token is sure of a code and the tokens share all of
    them.

    As in google-research/maskgit (`entropy_loss`, "softmax"), where 1e-5 is added within the
    logarithm of the mean. All tokens of the batch meet all codes at once.

    Args:
      affinities: (..., K), minus the squared distance of a token to each of K codes.
      temperature: of the softmax over the codes.
    """
    logits_NK = affinities.reshape(-1, affinities.shape[-1]) / temperature
    log_p_NK = jax.nn.log_softmax(logits_NK, axis=-1)
    p_NK = jnp.exp(log_p_NK)
    of_token = -jnp.mean(jnp.sum(p_NK * log_p_NK, axis=-1))
    mean_K = jnp.mean(p_NK, axis=0)
    return of_token + jnp.sum(mean_K * jnp.log(mean_K + 1e-5))


class GumbelVq(_Codebook):
    """The code of the highest logit, a linear map of the latent; in training with Gumbel noise, and
    with the gradient of the softmax (Jang et al. 2017; the f8 network of taming-transformers).

    loss = kl_weight * KL(softmax of the logits, uniform). The noise comes from the key `NOISE` of
    `apply`; without that key there is none.

    Attributes:
      temperature: of the softmax. kl_weight: of the loss.
    """

    temperature: float = 1.0
    kl_weight: float = 5e-4

    def setup(self):
        """Makes the layers and parameters."""
        super().setup()
        self.to_logits = Dense(self.codebook_size, ("latent", "code"))

    def __call__(
        self, x_BHWC: Array, codebook: Mapping[str, Array], train: bool = False
    ) -> Quantized:
        """Quantises a feature map; with `train` the loss is computed and the logits get noise."""
        z = self._in(x_BHWC)
        logits = self.to_logits(z)
        if not train:
            ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return Quantized(self._out(self.embedding[ids]), ids, jnp.float32(0), z, codebook)
        noise = jnp.float32(0)
        if self.has_rng(NOISE):
            noise = jax.random.gumbel(self.make_rng(NOISE), logits.shape)
        soft = jax.nn.softmax((logits + noise) / self.temperature, axis=-1)
        ids = jnp.argmax(soft, axis=-1).astype(jnp.int32)
        chosen = straight_through(soft, jax.nn.one_hot(ids, self.codebook_size))
        plain = jax.nn.softmax(logits, axis=-1)
        apart = jnp.sum(plain * jnp.log(plain * self.codebook_size + 1e-10), axis=-1)
        loss = self.kl_weight * jnp.mean(apart)
        return Quantized(self._out(chosen @ self.embedding), ids, loss, z, codebook)
