"""The encoder's side of an image tokenizer: the parameters on which its tokens depend, so that the
decoder can change and the tokens stay.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.models import image_tokenizer
from t2i_jax.models.image_tokenizer import ImageTokenizer


@functools.lru_cache
def encoder_parameters(model: ImageTokenizer) -> tuple[str, ...]:
    """The paths ("encoder/norm/scale") of the parameters on which the codes of images depend:
    encoder and codebook, not what the decoder alone reads.

    Found in the trace of `image_tokenizer.tokens`, so that it holds for any network; nothing is
    computed.
    """
    weights = sharding.unbox(image_tokenizer.abstract(model))
    size = model.image_size
    image = jax.ShapeDtypeStruct((1, size, size, model.channels), jnp.uint8)

    def tokens(generator, stats, image):
        return image_tokenizer.tokens(model, {"generator": generator, "stats": stats}, image)

    jaxpr = jax.make_jaxpr(tokens)(weights["generator"], weights["stats"], image).jaxpr
    read = _read(jaxpr)
    leaves = jax.tree_util.tree_leaves_with_path(weights["generator"])
    # the arguments of the trace begin with the leaves of the first tree, in order
    return tuple(
        path_of(path)
        for (path, _), argument in zip(leaves, jaxpr.invars[: len(leaves)], strict=True)
        if argument in read
    )


def same_tokens(
    model: ImageTokenizer,
    weights: Mapping[str, Any],
    other: ImageTokenizer,
    other_weights: Mapping[str, Any],
) -> bool:
    """Whether two tokenizers have the same codes for every image, whatever their decoders are.

    The weights of the encoder's side are equal bit for bit, and so are the codes of two images of
    noise, which tells networks apart that differ in more than shapes.

    Args:
      weights, other_weights: {"generator", "stats"} of each.
    """
    sizes = ("image_size", "channels", "codebook_size", "grid")
    if any(getattr(model, name) != getattr(other, name) for name in sizes):
        return False
    one, two = (_encoder_side(*pair) for pair in ((model, weights), (other, other_weights)))
    if one.keys() != two.keys() or any(not np.array_equal(one[path], two[path]) for path in one):
        return False
    size = (2, model.image_size, model.image_size, model.channels)
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    tokens = Program(image_tokenizer.tokens, static_argnums=0)
    ids = tokens(model, weights, noise)
    return np.array_equal(ids, tokens(other, other_weights, noise))


def fingerprint(model: ImageTokenizer, weights: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that tell apart the arrays on which tokens depend; those of a tokenizer
    whose decoder was trained further are the same. `runs.fingerprint` is of all weights.

    Args:
      weights: {"generator", "stats"}.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(_encoder_side(model, weights).items()):
        value = np.asarray(leaf)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()[:16]


def path_of(keys: tuple[Any, ...]) -> str:
    """The path "encoder/norm/scale" of a leaf in nested dicts."""
    return "/".join(str(key.key) for key in keys)


def _encoder_side(model, weights):
    """The arrays on which codes depend, by path."""
    names = set(encoder_parameters(model))
    flat = jax.tree_util.tree_leaves_with_path(weights["generator"])
    own = {path_of(path): leaf for path, leaf in flat if path_of(path) in names}
    stats = jax.tree_util.tree_leaves_with_path(dict(weights["stats"]))
    return own | {f"stats/{path_of(path)}": leaf for path, leaf in stats}


def _read(jaxpr):
    """The variables on which the outputs depend; what a called function is given, it reads."""
    read = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}
    for equation in reversed(jaxpr.eqns):
        if any(variable in read for variable in equation.outvars):
            read |= {variable for variable in equation.invars if not hasattr(variable, "val")}
    return read
