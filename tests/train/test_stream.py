"""Batches on their way to the devices, and where the data are after them."""

import pytest

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.train import stream
from tests.train.toy import ToyBatches, ToyTask


def test_processes_with_the_same_rows_must_come_to_the_same_position(monkeypatch):
    """As with the axis "tensor" over two processes; those of other rows may be further."""
    halves = (tuple(range(8)), tuple(range(8, 16)))
    made = stream.Stream(ToyBatches(), ToyTask().batch_spec, 16, sharding.make_mesh())
    try:
        made._shares = [halves[0], halves[0], halves[1], halves[1]]
        for positions, drifted in (([5, 5, 6, 6], None), ([5, 5, 6, 5], "processes 2 and 3 hold")):
            monkeypatch.setattr(stream, "gather", lambda mine, positions=positions: positions)
            if drifted is None:
                assert made.positions(5) == positions
            else:
                with pytest.raises(UserError, match=f"{drifted} the same rows .*; give all the sa"):
                    made.positions(5)
    finally:
        made.close()
