"""The quantisers of the image tokenizers of parti-pytorch and muse-maskgit-pytorch: LFQ, or the
codebook on the unit sphere of the packages' first releases; and FSQ, which both packages only cite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from t2i_jax.errors import UserError
from t2i_jax.models.image_tokenizer import QuantizedAutoencoder
from t2i_jax.nn import quantize
from t2i_jax.types import Array, Key

# The fields of the quantisers by their names with the packages' prefixes.
ALIASES = {
    f"{prefix}_{name}": name
    for prefix, names in (
        ("vq", "codebook_size codebook_dim decay commitment_weight kmeans_init rotation_trick"),
        ("lfq", "entropy_loss_weight diversity_gamma"),
    )
    for name in names.split()
}


class LfqOrVq(QuantizedAutoencoder):
    """A `QuantizedAutoencoder` whose quantiser is LFQ, FSQ or a codebook on the unit sphere.

    A subclass has the fields that `ALIASES` names, `lookup_free_quantization`, `fsq_levels`,
    `dtype`, and as `discriminator()` needs them `dim`, `channels` and `discr_layers`; `setup` makes
    `self.quantizer = self.make_quantizer(width)`.
    """

    def __post_init__(self):
        if self.fsq_levels is not None:
            quantize.check_levels(self.fsq_levels, self.codebook_size)
            if not self.lookup_free_quantization:
                raise UserError(
                    f"fsq_levels={self.fsq_levels} is given beside lookup_free_quantization=False, "
                    "a codebook; leave one out."
                )
        super().__post_init__()

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        of_lfq = ("entropy_loss_weight", "diversity_gamma")
        of_codebook = ("codebook_dim", "decay", "kmeans_init", "rotation_trick")
        if self.fsq_levels is not None:
            names, why = (*of_lfq, *of_codebook, "commitment_weight"), "fsq_levels, which have none"
        elif self.lookup_free_quantization:
            names, why = of_codebook, "lookup_free_quantization=True"
        else:
            names, why = of_lfq, "lookup_free_quantization=False"
        return dict.fromkeys(names, why)

    @property
    def discriminator_dims(self) -> tuple[int, ...]:
        """Widths of the discriminator that the package trains the network against."""
        return (self.dim, *(self.dim * 2**i for i in range(self.discr_layers)))

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """The first codebook statistics."""
        # they do not depend on the width of the feature map
        return self.make_quantizer(self.codebook_dim, parent=None).start(key)

    @nn.nowrap
    def revive(
        self, params: Any, codebook: Mapping[str, Array], dead_K: Array, fresh_KE: Array
    ) -> tuple[Any, Mapping[str, Array]]:
        """(params, codebook) with the dead codes replaced by latents of a recent batch."""
        if self.lookup_free_quantization:
            return params, codebook
        return params, quantize.revive_average(codebook, dead_K, fresh_KE)

    @nn.nowrap
    def make_quantizer(self, width: int, **where: Any) -> Any:
        """The quantiser of a feature map with `width` channels."""
        weight = self.commitment_weight
        if self.fsq_levels is not None:
            return quantize.Fsq(width, self.fsq_levels, self.dtype, **where)
        if self.lookup_free_quantization:
            return quantize.Lfq(
                width, self.codebook_size, self.entropy_loss_weight, self.diversity_gamma,
                0.0 if weight is None else weight, self.dtype, **where,
            )  # fmt: skip
        return quantize.CosineVq(
            width, self.codebook_size, self.codebook_dim, self.decay,
            1.0 if weight is None else weight, self.kmeans_init, self.dtype, self.rotation_trick,
            **where,
        )  # fmt: skip
