"""The convolutional VQGAN of taming-transformers (Esser et al. 2021, arXiv 2012.09841) and the
networks that came of it: those of MaskGIT, Muse, aMUSEd and LlamaGen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models import image_tokenizer
from t2i_jax.nn import codebook as codebooks
from t2i_jax.nn import limits, quantize
from t2i_jax.nn.conv import conv
from t2i_jax.nn.taming_layers import Decoder, Encoder
from t2i_jax.nn.transformer import REMAT
from t2i_jax.pixels import SIGNED
from t2i_jax.types import Array, Key
from t2i_jax.values import Range, Signed

ASSIGNMENTS = ("nearest", "unit", "gumbel")
COMPAT = ("shortcut_of_output",)
_DOWNSAMPLINGS = ("conv", "mean")
_UNIT = (0.0, 1.0)

_F16, _F8 = {"dim_mults": (1, 1, 2, 2, 4)}, {"dim_mults": (1, 1, 2, 4)}
_CONVOLUTIONAL = {"attention": (), "middle_attention": False}
_MASKGIT = {
    **_F16, **_CONVOLUTIONAL, "decoder_blocks": 2, "downsampling": "mean", "biased": False,
    "projected": False, "commitment_weight": 0.25, "codebook_weight": 1.0,
    "compat": ("shortcut_of_output",), "pixel_range": _UNIT, "entropy_weight": 0.1,
}  # fmt: skip
# Section 3 of the paper counts 19 residual blocks, appendix A.2 two at each resolution, without
# attention. With one in each level of the encoder and two in those of the decoder, and two in the
# middle of both, five levels have 19. The multiples of the width are not told; they are taming's.
_MUSE = {**_CONVOLUTIONAL, "encoder_blocks": 1, "decoder_blocks": 2, "codebook_size": 8192}
_LLAMAGEN = {
    "assignment": "unit", "codebook_size": 16384, "codebook_dim": 8, "commitment_weight": 0.25,
    "codebook_weight": 1.0,
}  # fmt: skip

# "taming", "maskgit", "amused" and "llamagen" are networks with public weights.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "taming-f16-1024": _F16,
    "taming-f16-16384": {**_F16, "codebook_size": 16384},
    "taming-f8-gumbel": {**_F8, "assignment": "gumbel", "codebook_size": 8192},
    "maskgit-f16": _MASKGIT,
    "muse-f16": {**_F16, **_MUSE},
    "muse-f8": {**_F8, **_MUSE},
    "amused": {
        **_CONVOLUTIONAL, "dim_mults": (1, 2, 2, 4, 6), "codebook_size": 8192, "z_channels": 64,
        "codebook_dim": 64, "pixel_range": _UNIT,
    },
    "llamagen-f16": {**_F16, **_LLAMAGEN},
    "llamagen-f8": {"dim_mults": (1, 2, 2, 4), **_LLAMAGEN},
}  # fmt: skip


def preset(name: str, **fields: Any) -> VQGAN:
    """A published network, with `fields` put over it.

        preset("muse-f16", fsq_levels=(8, 8, 8, 5, 5, 5))
        preset("muse-f16", decoder_dim=256, decoder_blocks=4)  # the larger decoder of section 2.5

    Args:
      name: a key of `PRESETS`. "taming-*": of taming-transformers. "maskgit-f16": of MaskGIT
        (Chang et al. 2022). "muse-*": of Muse (Chang et al. 2023), whose weights are not public.
        "amused": of aMUSEd. "llamagen-*": of LlamaGen (Sun et al. 2024).
    """
    config.one_of("preset", name, PRESETS)
    given = dict(PRESETS[name])
    if "fsq_levels" in fields:
        for of_codebook in ("codebook_size", "entropy_weight"):
            given.pop(of_codebook, None)
    return VQGAN(**{**given, **fields})


class _Network(image_tokenizer.QuantizedAutoencoder):
    """A `VQGAN` that does not derive its `codebook_size` from `fsq_levels`."""

    image_size: int = 256
    channels: int = 3
    dim: int = 128
    dim_mults: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    decoder_dim: int | None = None
    attention: tuple[Annotated[int, Range(-1000, 1000)], ...] = (-1,)
    middle_attention: bool = True
    downsampling: str = "conv"
    groups: int = 32
    biased: bool = True
    z_channels: int = 256
    projected: bool = True
    assignment: str = "nearest"
    codebook_size: int = 1024
    codebook_dim: int = 256
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    temperature: float = 1.0
    kl_weight: float = 5e-4
    fsq_levels: tuple[int, ...] | None = None
    compat: tuple[str, ...] = ()
    pixel_range: tuple[Signed, Signed] = SIGNED
    remat: str = "none"
    dtype: str = "float32"
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01

    def __post_init__(self):
        limits.check(self)
        if not self.dim_mults or min(self.dim_mults) < 1:
            raise UserError(f"dim_mults={self.dim_mults} are no widths; try (1, 1, 2, 2, 4).")
        blocks = ("encoder_blocks", "decoder_blocks")
        image_tokenizer.check_sizes(self, "dim", "groups", "z_channels", "codebook_dim", *blocks)
        config.one_of("downsampling", self.downsampling, _DOWNSAMPLINGS)
        config.one_of("assignment", self.assignment, ASSIGNMENTS)
        config.one_of("remat", self.remat, REMAT)
        config.some_of("compat", self.compat, COMPAT)
        self._check_widths()
        self._check_codes()
        super().__post_init__()

    @nn.nowrap
    def _check_widths(self):
        levels = len(self.dim_mults)
        for level in self.attention:
            if not -levels <= level < levels:
                raise UserError(
                    f"attention={self.attention} names a level beyond the {levels} of dim_mults; "
                    "the last one is -1."
                )
        for field in ("dim", "decoder_dim"):
            width = getattr(self, field)
            if width is not None and (width < 1 or width % self.groups):
                raise UserError(
                    f"{field}={width} is no multiple of groups={self.groups}; try {field}="
                    f"{max(-(-width // self.groups), 1) * self.groups}."
                )

    @nn.nowrap
    def _check_codes(self):
        for field, usual in (("temperature", 1.0), ("entropy_temperature", 0.01)):
            if not getattr(self, field) > 0:
                raise UserError(f"{field}={getattr(self, field)} is not positive; try {usual}.")
        if self.entropy_weight and (self.assignment != "nearest" or self.fsq_levels is not None):
            raise UserError(
                f"entropy_weight={self.entropy_weight} is of a codebook's distances; set "
                "assignment='nearest' and leave out fsq_levels, or entropy_weight=0."
            )
        if self.assignment == "unit" and not self.projected:
            raise UserError(
                "projected=False has no form with assignment='unit'; set projected=True."
            )
        if self.fsq_levels is None:
            return
        quantize.check_levels(self.fsq_levels, self.codebook_size)
        if self.assignment != "nearest":
            raise UserError(
                f"fsq_levels={self.fsq_levels} is given beside assignment={self.assignment!r}, a "
                "codebook; leave one out."
            )

    @property
    def patch_size(self) -> int:
        """Pixels per side of a token."""
        return 2 ** (len(self.dim_mults) - 1)

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        if self.fsq_levels is not None:  # the others may be those of a preset, set by nobody
            return {}
        used = {
            "nearest": ("commitment_weight", "codebook_weight", "entropy_weight"),
            "unit": ("commitment_weight", "codebook_weight"),
            "gumbel": ("temperature", "kl_weight"),
        }
        why, mine = f"assignment={self.assignment!r}", used[self.assignment]
        found = {name: why for names in used.values() for name in names if name not in mine}
        if "entropy_weight" in found or not self.entropy_weight:
            found["entropy_temperature"] = found.get("entropy_weight", "entropy_weight=0")
        return found

    @property
    def code_dim(self) -> int:
        """Width of a code."""
        return self.codebook_dim if self.fsq_levels is None else len(self.fsq_levels)

    @property
    def fmap_dim(self) -> int:
        """Channels of the feature map that is quantised, and of the one that is decoded."""
        return self.z_channels if self.projected else self.code_dim

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """Levels with attention, from 0 on."""
        return tuple(sorted({level % len(self.dim_mults) for level in self.attention}))

    @property
    def residual_blocks(self) -> int:
        """Residual blocks of encoder and decoder."""
        return len(self.dim_mults) * (self.encoder_blocks + self.decoder_blocks) + 4

    @nn.nowrap
    def start(self, key: Key) -> dict[str, Array]:
        """Empty codebook statistics: the codebook is a parameter."""
        return {}

    @nn.nowrap
    def revive(self, params, codebook, dead_K: Array, fresh_KE: Array):
        """(params, codebook) with the dead codes replaced by latents of a recent batch, where codes
        are compared with latents.
        """
        if self.fsq_levels is not None or self.assignment == "gumbel":
            return params, codebook
        return image_tokenizer.revive_embedding(params, dead_K, fresh_KE), codebook

    def setup(self):
        """Makes the layers and parameters."""
        widths = tuple(self.dim * mult for mult in self.dim_mults)
        decoder_dim = self.dim if self.decoder_dim is None else self.decoder_dim
        shared = {
            "attention": self.attention_levels,
            "middle_attention": self.middle_attention,
            "groups": self.groups,
            "biased": self.biased,
            "shortcut_of_output": "shortcut_of_output" in self.compat,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(
            self.fmap_dim,
            widths,
            self.encoder_blocks,
            base=self.dim,
            last_kernel=3 if self.projected else 1,
            downsampling=self.downsampling,
            **shared,
        )
        self.quantizer = self._quantizer()
        self.decoder = Decoder(
            self.fmap_dim,
            tuple(decoder_dim * mult for mult in self.dim_mults),
            self.decoder_blocks,
            **shared,
        )
        self.to_pixels = conv(self.channels, 3, None, dtype=self.dtype)

    def encoder_fmap(self, image_BHWC: Array) -> Array:
        """The feature map (B, rows, columns, fmap_dim) before quantisation."""
        return self.encoder(image_BHWC.astype(self.dtype))

    def features(self, fmap_BHWC: Array) -> Array:
        """The feature map that the last layer turns into pixels."""
        return self.decoder(fmap_BHWC)

    def pixels(self, features_BHWC: Array) -> Array:
        """Float32 images from `features`."""
        return self.to_pixels(features_BHWC).astype(jnp.float32)

    @nn.nowrap
    def _quantizer(self):
        if self.fsq_levels is not None:
            return quantize.Fsq(self.fmap_dim, self.fsq_levels, self.dtype)
        sizes = (self.fmap_dim, self.codebook_size, self.codebook_dim)
        weights = (self.commitment_weight, self.codebook_weight)
        if self.assignment == "unit":
            beta, weight = weights
            return quantize.FactorisedVq(*sizes, beta, self.dtype, codebook_weight=weight)
        where = (self.projected, self.dtype)
        if self.assignment == "gumbel":
            return codebooks.GumbelVq(*sizes, *where, self.temperature, self.kl_weight)
        entropy = (self.entropy_weight, self.entropy_temperature)
        return codebooks.NearestVq(*sizes, *where, *weights, *entropy)


class VQGAN(_Network):
    """The VQGAN of taming-transformers, weight for weight, and those that came of it (`preset`).

        network = preset("taming-f16-16384")  # 256 pixels to 256 tokens
        network = VQGAN(image_size=32, dim=32, dim_mults=(1, 2), fsq_levels=(8, 5, 5, 5))

    It is convolutional: `network.clone(image_size=512)` is the same network, with the same weights,
    for other images. Attention sees all places of its level, so that one network gives other
    results at other sizes than a network without.

    Attributes:
      image_size: side in pixels, a multiple of `patch_size`. channels: of the images.
      dim: width of the first convolution, a multiple of `groups`. dim_mults: width of each level
        over `dim`; all levels but the last halve the sides.
      encoder_blocks, decoder_blocks: residual blocks of each level; both have two in the middle.
        decoder_dim: `dim` of the decoder; None: the same.
      attention: levels whose residual blocks are followed by attention, -1 for the last.
        middle_attention: whether the middle has it.
      downsampling: "conv", with stride 2, padded on the right and below; or "mean" of 2x2 places.
      groups: of the group norms. biased: whether the encoder's first convolution and the residual
        blocks have biases.
      z_channels, projected: channels of the encoder's last 3x3 convolution, from which a linear map
        leads to the width of a code, and another one back. projected=False: the last convolution is
        1x1 and gives the codes' width.
      assignment: "nearest", the code at the least Euclidean distance (`nn.codebook.NearestVq`);
        "unit", the nearest of both brought to unit length (`nn.quantize.FactorisedVq`); "gumbel",
        the code of the highest logit (`nn.codebook.GumbelVq`).
      codebook_size, codebook_dim: number and width of the codes. commitment_weight,
        codebook_weight: of the loss's two terms; (1, 0.25) is the order of taming-transformers,
        (0.25, 1) that of its paper. temperature, kl_weight: of "gumbel".
      entropy_weight, entropy_temperature: of a third term for "nearest"
        (`nn.codebook.affinity_entropy`); 0.1 and 0.01 in MaskGIT's code. 0: there is none.
      fsq_levels: the values of each channel of FSQ, which takes the place of a codebook and has no
        losses; `codebook_size` is then their product and need not be given, and `codebook_dim` has
        no effect. None: no FSQ.
      compat: what to keep of published code where it is wrong: "shortcut_of_output", where the
        width changes a residual block loses its input (MaskGIT).
      pixel_range: lowest and highest value of the float images. remat: remat policy of the residual
        blocks: "none", "full" (recomputes all), or "dots". dtype: of the computation.
    """

    def __init__(self, *args: Any, **fields: Any) -> None:
        """Takes the fields, `codebook_size` from `fsq_levels` where it is not given.

        Raises:
          UserError: an unknown field.
        """
        config.take_aliases(VQGAN, fields, {})
        super().__init__(*args, **quantize.sized(fields))
