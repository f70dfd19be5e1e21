"""The two files of google-research/maskgit, tiny: as many codes and classes as the public ones."""

import jax
import numpy as np

from t2i_jax import convert
from t2i_jax.convert import flax_io
from t2i_jax.models.maskgit_bert import MaskGitBert
from t2i_jax.models.taming_vqgan import preset

_BERT = MaskGitBert(
    dim=8, depth=1, heads=2, mlp_dim=8, fmap_size=4, codebook_size=1024, text_embed_dim=8,
    num_classes=1000,
)  # fmt: skip
_VQGAN = preset("maskgit-f16", dim=32, dim_mults=(1, 1), codebook_dim=4, image_size=8)


def save(folder):
    """Writes them with weights by chance, under the names of the public files."""
    for kind, network, names in (
        ("maskgit", _BERT, "maskgit transformer (Flax)"),
        ("tokenizer", _VQGAN, "maskgit VQGAN (Flax)"),
    ):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf, rng=rng: np.float32(0.3 * rng.normal(size=leaf.shape)),
            convert.NETWORKS[names].shapes(network),
        )
        state = convert.to_state(network, params, names)
        flax_io.write(folder / f"{kind}_imagenet256_checkpoint", state)
