"""A remat policy: what the backward pass recomputes, and that a loss is what it is without."""

import jax
import pytest

import t2i_jax as t2i
from t2i_jax import config, sharding
from tests.systems import toy_dalle2, toy_muse

_UNET = toy_dalle2.UNET.clone(cond_on_text_encodings=False)
_NETWORK = toy_muse.NETWORK.clone(fmap_size=4, codebook_size=16)
_TASKS = {
    "CLIP": (t2i.ClipTask(toy_dalle2.CLIP), "model"),
    "prior": (t2i.PriorTask(toy_dalle2.NETWORK, stored=True), "model"),
    "decoder": (
        t2i.DecoderTask((t2i.DecoderStage(_UNET, image_size=8),), image_embed_dim=6),
        "stages.0.unet",
    ),
    "MaskGIT": (t2i.MaskGitTask(_NETWORK, toy_muse.TEXT), "model"),
}


def _products(jaxpr, recomputed):
    """Shapes of the matrix products and convolutions in their order; counts in `recomputed` the
    parts of a network that the backward pass computes again.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name.startswith(("checkpoint", "remat")):
            recomputed.append(name)
        if name in ("dot_general", "conv_general_dilated"):
            yield [one.aval.shape for one in (*equation.invars, *equation.outvars)]
        for leaf in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from _products(inner, recomputed)


@pytest.mark.parametrize(("task", "network"), _TASKS.values(), ids=_TASKS)
def test_a_loss_is_made_of_the_same_products_whatever_is_recomputed(task, network):
    params = sharding.unbox(sharding.parameters_of(task))
    stats = jax.eval_shape(task.init, jax.random.key(0))[1]
    found = {}
    for remat in ("none", "full"):
        [objective] = config.override(task, [f"{network}.remat={remat}"]).objectives

        def loss(params, stats, batch, key, loss=objective.loss):
            return loss(params, stats, {}, batch, key, 0)

        traced = jax.make_jaxpr(loss)(params, stats, task.batch_spec(2), jax.random.key(0))
        recomputed = []
        found[remat] = list(_products(traced.jaxpr, recomputed))
        assert bool(recomputed) == (remat == "full")
    assert found["none"] == found["full"] and found["none"]
