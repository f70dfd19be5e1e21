"""MaskGits of muse-maskgit-pytorch, so small that a step of training compiles in seconds, and the
same as systems here.
"""

import contextlib
import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.maskgit import weights
from tests.parity.reference import load

T5, TEXT_WIDTH = "t5-small", 512


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A configuration.

    Attributes:
      critic: "token", "self" or None. small: side of the images that are enlarged; None: none are.
      two_tokenizers: the small images have their own. The others: arguments of the package.
    """

    dim: int = 16
    depth: int = 1
    heads: int = 2
    dim_head: int = 8
    ff_mult: float = 2
    codes: int = 16
    image_size: int = 8
    layers: int = 1
    self_cond: bool = False
    critic: str | None = None
    small: int | None = None
    two_tokenizers: bool = False
    no_mask_token_prob: float = 0.0
    text_width: int = TEXT_WIDTH
    cond_drop_prob: float = 0.4

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return (self.image_size // 2**self.layers) ** 2


def drawn(seed: int) -> Sizes:
    """A configuration by chance."""
    rng = np.random.default_rng(seed)

    def of(*values):
        return values[rng.integers(len(values))]

    image_size, layers = of((8, 1), (8, 2), (16, 2))
    return Sizes(
        dim=of(8, 24), depth=of(1, 2), heads=of(1, 3), dim_head=of(4, 8), ff_mult=of(1, 4, 8 / 3),
        codes=of(8, 32), image_size=image_size, layers=layers, self_cond=of(False, True),
        critic=of("token", "self", None), small=of(None, image_size // 2),
        no_mask_token_prob=of(0.0, 0.3), cond_drop_prob=of(0.0, 0.9),
    )  # fmt: skip


def vae(**options: Any) -> Any:
    """A tokenizer; discriminators are 8 wide at the least."""
    sizes = dict(dim=8, layers=1, encdec_resnet_groups=4, codebook_size=16, use_vgg_and_gan=False)
    return load("muse_maskgit_pytorch").VQGanVAE(**{**sizes, **options})


def maskgit(sizes: Sizes, *, seed: int = 0, **options: Any) -> Any:
    """The package's MaskGit, with gains that are not one."""
    torch, muse = load("torch"), load("muse_maskgit_pytorch")
    torch.manual_seed(seed)
    common = dict(
        num_tokens=sizes.codes, dim=sizes.dim, seq_len=sizes.num_tokens, depth=sizes.depth,
        dim_head=sizes.dim_head, heads=sizes.heads, ff_mult=sizes.ff_mult, flash=False, t5_name=T5,
    )  # fmt: skip
    width = mock.patch.object(
        muse.muse_maskgit_pytorch, "get_encoded_dim", lambda name: sizes.text_width
    )
    with contextlib.nullcontext() if sizes.text_width == TEXT_WIDTH else width:
        transformer = muse.MaskGitTransformer(**common, self_cond=sizes.self_cond)
        critic = muse.TokenCritic(**common) if sizes.critic == "token" else None
    of_vae = dict(codebook_size=sizes.codes, layers=sizes.layers)
    theirs = muse.MaskGit(
        **{
            "image_size": sizes.image_size,
            "transformer": transformer,
            "token_critic": critic,
            "self_token_critic": sizes.critic == "self",
            "vae": vae(**of_vae),
            "cond_vae": vae(**of_vae) if sizes.two_tokenizers else None,
            "cond_image_size": sizes.small,
            "cond_drop_prob": sizes.cond_drop_prob,
            "self_cond_prob": 0.7,
            "no_mask_token_prob": sizes.no_mask_token_prob,
            "critic_loss_weight": 0.6,
            **options,
        }
    )
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith(("gamma", "_scale")):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return theirs


def imported(source: Any, **fields: Any) -> Imported:
    """What the weights make here."""
    found = weights.from_torch(TorchFile(source, None, fields, {}))
    assert found is not None
    return found


def frozen(found: Imported) -> dict[str, Any]:
    """The weights of its tokenizers."""
    return {name: {**part.params, "stats": part.stats} for name, part in found.parts.items()}


def save(path: Any) -> Any:
    """Writes a MaskGit on a T5 as narrow as that of tests/e2e/tiny_t5.py; returns it."""
    sizes = Sizes(text_width=16)
    theirs = maskgit(sizes, vae=vae(dim=16, encdec_resnet_groups=16))
    theirs.save(path)
    return theirs


def texts(rows: int) -> np.ndarray:
    """Embeddings, of which the package takes rows of zeros for padding."""
    text = np.random.default_rng(3).normal(size=(rows, 5, TEXT_WIDTH)).astype(np.float32)
    text[0, 3:] = 0
    return text


def pictures(rows: int, size: int) -> np.ndarray:
    """uint8 images."""
    return np.random.default_rng(size).integers(0, 256, (rows, size, size, 3), np.uint8)


def channels_first(images: np.ndarray) -> Any:
    """The same for the package, from 0 to 1."""
    return load("torch").tensor(images.transpose(0, 3, 1, 2) / np.float32(255))


@functools.partial(jax.jit, static_argnums=(1, 2))
def noise_per_place(key, tokens, codes):
    """The Gumbel noise that a row has at every place, (tokens, codes)."""
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(tokens))
    return jax.vmap(lambda key: jax.random.gumbel(key, (codes,)))(keys)
