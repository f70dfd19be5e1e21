"""FSQ against vector-quantize-pytorch: codes, ids, outputs, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2i_jax.nn.quantize import Fsq
from tests.parity.reference import load

library = load("vector_quantize_pytorch")
torch = pytest.importorskip("torch")

TOLERANCE = 1e-5  # one rounding, two linear maps


# without linear maps for levels of as many channels
@pytest.mark.parametrize(
    "dim, levels", [(4, (8, 5, 5, 5)), (12, (8, 8, 8, 5, 5, 5)), (6, (4, 3, 7, 16))]
)
def test_codes_outputs_and_gradients(dim, levels):
    torch.manual_seed(0)
    theirs = library.FSQ(levels=list(levels), dim=dim)
    rng = np.random.default_rng(0)
    x = rng.normal(scale=2.0, size=(2, 5, 5, dim)).astype(np.float32)
    slope = rng.normal(size=x.shape).astype(np.float32)
    params = {}
    if theirs.has_projections:
        params = {
            name: {
                "kernel": jnp.asarray(getattr(theirs, name).weight.detach().numpy().T),
                "bias": jnp.asarray(getattr(theirs, name).bias.detach().numpy()),
            }
            for name in ("project_in", "project_out")
        }
    ours = Fsq(dim, levels)
    assert ours.codebook_size == theirs.codebook_size

    t = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    out, ids = theirs(t)
    out.backward(torch.tensor(slope.transpose(0, 3, 1, 2)))

    def quantised(x, params):
        found = ours.apply({"params": params}, x, {}, True)
        return found.fmap, found

    with jax.default_matmul_precision("highest"):
        value, pull_back, found = jax.vjp(quantised, jnp.asarray(x), params, has_aux=True)
        of_x, of_params = pull_back(jnp.asarray(slope))
        looked_up = ours.apply({"params": params}, found.ids, {}, method="lookup")
    np.testing.assert_array_equal(found.ids, ids.numpy())
    theirs_out = out.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value, theirs_out, atol=TOLERANCE)
    np.testing.assert_allclose(looked_up, theirs_out, atol=TOLERANCE)
    np.testing.assert_allclose(of_x, t.grad.numpy().transpose(0, 2, 3, 1), atol=TOLERANCE)
    for name, wanted in of_params.items():
        layer = getattr(theirs, name)
        np.testing.assert_allclose(
            wanted["kernel"], layer.weight.grad.numpy().T, rtol=1e-5, atol=TOLERANCE
        )
        np.testing.assert_allclose(
            wanted["bias"], layer.bias.grad.numpy(), rtol=1e-5, atol=TOLERANCE
        )


def test_every_code_of_the_codebook():
    theirs = library.FSQ(levels=[8, 5, 5, 5])
    ids = np.arange(1000)
    codes = Fsq(4, (8, 5, 5, 5)).apply({}, jnp.asarray(ids), {}, method="lookup")
    np.testing.assert_allclose(codes, theirs.indices_to_codes(torch.tensor(ids)).numpy(), atol=1e-7)
