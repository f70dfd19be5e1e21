"""Self-supervised learning of the image transformer beside the contrastive loss (Mu et al. 2021,
SLIP; Li et al. 2022, DeCLIP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.config import one_of, some_of
from t2i_jax.errors import UserError
from t2i_jax.models.image_text import Features, unit
from t2i_jax.nn import contrastive
from t2i_jax.nn.conv import Dense, boxed
from t2i_jax.nn.parameter import parameter
from t2i_jax.systems.clip.views import Views
from t2i_jax.types import Array, Key, Params

KINDS = ("simclr", "simsiam")
# "by_tokens": views are compared token by token, the pooled vector counting as one of them;
# "unnormalised": SimCLR's vectors keep their lengths. As in x-clip (visual_ssl.py).
COMPATS = ("by_tokens", "unnormalised")
_OTHERS = -1e9  # the score of a view with itself


@dataclasses.dataclass(frozen=True)
class VisualSsl:
    """Two views of each image whose vectors shall agree.

    x-clip (visual_ssl.py) compares the views patch by patch, which patch dropout puts into another
    order in each, and without normalising; here their pooled vectors are compared, as in SLIP.

    Attributes:
      kind: "simclr" (Chen et al. 2020): the other view among all views of the batch; or "simsiam"
        (Chen and He 2020): the other view is predicted, without other images.
      weight: of the loss; the contrastive loss keeps the rest of 1.
      temperature: of SimCLR.
      hidden_dim, projection_dim: widths of the projector, which training alone uses.
      views: how the two views differ from the image.
      compat: what to keep of x-clip where it is wrong: "by_tokens", views are compared token by
        token; "unnormalised", SimCLR's vectors keep their lengths.
    """

    kind: str = "simsiam"
    weight: float = 0.05
    temperature: float = 0.1
    hidden_dim: int = 4096
    projection_dim: int = 256
    views: Views = Views(images=2, crop=0.5, flip=True, brightness=0.3)
    compat: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("visual_ssl.kind", self.kind, KINDS)
        some_of("visual_ssl.compat", self.compat, COMPATS)
        if not 0 <= self.weight <= 1:
            raise UserError(f"visual_ssl.weight={self.weight} is outside [0, 1]; try 0.05.")
        if not self.temperature > 0:
            raise UserError(f"visual_ssl.temperature={self.temperature} is not above 0; try 0.1.")
        for field in ("hidden_dim", "projection_dim"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"visual_ssl.{field}={getattr(self, field)} is not positive; give 1 or more."
                )
        if self.views.images != 2 or self.views.texts:
            raise UserError(
                f"visual_ssl.views={self.views} are not two of each image; give images=2, texts=0."
            )

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        return {} if self.kind == "simclr" else {"temperature": f"kind={self.kind!r}"}

    def init(self, width: int, key: Key) -> Params:
        """First parameters of the projector, boxed, for features of this width."""
        return self._heads.init(key, jnp.zeros((2, width)))["params"]

    def shapes(self, width: int) -> Params:
        """Shapes of the parameters of `init`, unboxed."""
        boxed = jax.eval_shape(lambda key: self.init(width, key), jax.random.key(0))
        return sharding.unbox(boxed)

    def loss(
        self, params: Params, features_of: Callable[[Array, Key], Features], image: Array, key: Key
    ) -> Array:
        """The loss of a batch of float images.

        Args:
          params: of `init`. features_of: from images and a key to what the transformer makes.
        """
        for_views, *keys = jax.random.split(key, 3)
        vectors = [
            self._project(params, self._vectors(features_of(view, one)))
            for view, one in zip(self.views.of_images(image, for_views), keys, strict=True)
        ]
        (z_BD, p_BD), (other_z_BD, other_p_BD) = vectors
        if self.kind == "simclr" and "unnormalised" in self.compat:
            return nt_xent(z_BD, other_z_BD, self.temperature)
        if self.kind == "simclr":
            return nt_xent(unit(z_BD), unit(other_z_BD), self.temperature)
        return _distance(p_BD, other_z_BD) + _distance(other_p_BD, z_BD)

    def _vectors(self, features):
        """The vectors of a batch that are projected, one per row."""
        if "by_tokens" not in self.compat:
            return features.pooled_BE
        tokens = jnp.concatenate([features.pooled_BE[:, None], features.tokens_BNE], axis=1)
        return tokens.reshape(-1, tokens.shape[-1])

    def _project(self, params, vectors) -> tuple[Array, Array]:
        """(projections, their predictions of the other view)."""
        found: Any = self._heads.apply({"params": params}, vectors)
        return found

    @property
    def _heads(self):
        return _Heads(self.hidden_dim, self.projection_dim, self.kind == "simsiam")


def nt_xent(one_BD: Array, other_BD: Array, temperature: float) -> Array:
    """-log softmax of a view's other one among all 2 B - 1 other views, in nats (Chen et al. 2020,
    equation 1), the mean over all views.

    Args:
      one_BD, other_BD: l2-normalised, but for the compat "unnormalised".
    """
    views, batch = jnp.concatenate([one_BD, other_BD]), one_BD.shape[0]
    number = jnp.arange(2 * batch)
    partners = jnp.roll(views, batch, axis=0), jnp.roll(number, batch)

    def scores(query, key):
        (view, own), (other, others) = query, key
        return jnp.where(own[:, None] == others, _OTHERS, contrastive.cosine(view, other))

    matches = contrastive.cross_entropy(
        scores, (views, number), partners, jnp.float32(1 / temperature)
    )
    return jnp.mean(matches.nats_B)


def _distance(p_BD, z_BD):
    """2 - 2 cos of a prediction and what it predicts, which gets no gradient."""
    return 2 - 2 * jnp.mean(jnp.sum(unit(p_BD) * unit(jax.lax.stop_gradient(z_BD)), axis=-1))


class _Heads(nn.Module):
    """The projector, and the predictor of SimSiam."""

    hidden: int
    features: int
    predicts: bool

    @nn.compact
    def __call__(self, x_BE):
        def linear(width, name, bias=False):
            return Dense(width, ("embed", "mlp"), bias=bias, name=name)

        h = nn.relu(_batch_norm(self, linear(self.hidden, "wide")(x_BE), "norm_wide"))
        h = nn.relu(_batch_norm(self, linear(self.hidden, "middle")(h), "norm_middle"))
        z = _normalised(linear(self.features, "out")(h))
        if not self.predicts:
            return z, z
        p = linear(self.hidden, "predictor", bias=True)(z)
        p = nn.relu(_batch_norm(self, p, "norm_predictor"))
        return z, linear(self.features, "prediction", bias=True)(p)


def _normalised(x_BC):
    """x over the standard deviation of the batch, as batch norm trains."""
    mean_1C = jnp.mean(x_BC, axis=0, keepdims=True)
    variance_1C = jnp.mean((x_BC - mean_1C) ** 2, axis=0, keepdims=True)
    return (x_BC - mean_1C) * jax.lax.rsqrt(variance_1C + 1e-5)


def _batch_norm(module, x_BC, name):
    gain = parameter(module, f"{name}_scale", boxed(nn.initializers.ones, "mlp"), x_BC.shape[1:])
    shift = parameter(module, f"{name}_bias", boxed(nn.initializers.zeros, "mlp"), x_BC.shape[1:])
    return _normalised(x_BC) * gain + shift
