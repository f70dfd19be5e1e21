"""MaskGIT (Chang et al. 2022) with a text, as Muse uses it: image tokens, some of them masked, to
all of them, and larger images from the tokens of smaller ones.
"""

NAMES = {
    "MaskGitTask": "t2i_jax.systems.maskgit.task",
    "MaskGitOptions": "t2i_jax.systems.maskgit.options",
    "MaskGitSystem": "t2i_jax.systems.maskgit.system",
}
WEIGHTS = "t2i_jax.systems.maskgit.weights"
