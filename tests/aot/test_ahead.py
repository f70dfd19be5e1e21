"""The training step compiled for TPU slices that are not there, with the real TPU compiler."""

import importlib.util
import types

import jax
import numpy as np
import pytest

from t2i_jax import sharding
from t2i_jax.aot import ahead
from t2i_jax.errors import UserError
from t2i_jax.train.config import TrainConfig
from tests.train.toy import ToyTask

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is installed on Linux x86-64 alone",
)


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("v5p", "give one such as v5p:8x8x8"),
        ("v9:2x2", "known: v4, v5e"),
        ("v5e:4000x4000", "more than 65536"),
        ("4000*v5e:16x16", "more than 65536"),
        ("0*v5e:2x2", "give one such as v5p:8x8x8"),
    ],
)
def test_what_is_no_slice_is_refused(topology, told):
    with pytest.raises(UserError, match=told):
        ahead.slice_devices(topology)


@needs_libtpu
def test_a_slice_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(UserError, match="no slice that libtpu knows"):
        ahead.slice_devices("v5e:3x5")


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "chips"), [("v4:2x2x1", 4), ("v5p:2x2x2", 8), ("v6e:2x4", 8), ("2*v5e:2x2", 8)]
)
def test_a_device_is_a_chip(topology, chips):
    assert len(ahead.slice_devices(topology)) == chips


@needs_libtpu
def test_an_axis_of_the_mesh_may_take_a_part_of_an_axis_of_the_torus():
    mesh = sharding.make_mesh({"data": 16, "fsdp": 16}, ahead.slice_devices("v4:8x8x4"))
    assert mesh.shape["data"] == mesh.shape["fsdp"] == 16
    assert len({device.id for device in mesh.devices.flat}) == 256


@needs_libtpu
def test_a_step_is_compiled_and_its_costs_are_reported():
    report = ahead.compile_step(
        ToyTask(), TrainConfig(batch_size=16, mesh={"data": 2, "fsdp": 4}), {}, "v5e:2x4"
    )
    assert report.fits and report.chips == 8 and report.mesh == {"data": 2, "fsdp": 4}
    assert 0 < report.arguments < report.peak < report.hbm == 16
    assert report.flops > 0 and report.traffic > 0 and sum(report.collectives.values()) > 0
    assert report.step == max(report.compute, report.memory, report.interconnect) > 0
    assert "fits: peak" in ahead.text(report, "")


@needs_libtpu
def test_slices_exchange_over_the_network_between_them():
    report = ahead.compile_step(
        ToyTask(), TrainConfig(batch_size=16, mesh={"data": -1}), {}, "2*v5e:2x2"
    )
    assert report.mesh == {"slice": 2, "data": 4} and report.between_slices > 0


@needs_libtpu
def test_a_mesh_that_does_not_fit_the_slice_is_refused():
    with pytest.raises(UserError, match="does not fit 4 device"):
        ahead.compile_step(ToyTask(), TrainConfig(batch_size=16, mesh={"data": 8}), {}, "v5e:2x2")


def test_a_task_that_makes_no_images_has_no_sampling_programs():
    with pytest.raises(UserError, match="generate=4 is given for ToyTask, which makes no images"):
        ahead.compile_sampling(ToyTask(), TrainConfig(batch_size=16), {}, "v5e:2x2", 4)


@pytest.mark.parametrize(
    ("said", "peak"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 35.83G of 15.75G hbm. Exceeded hbm capacity by 20.08G.",
            35.83,  # with the arguments
        ),
        (
            "RESOURCE_EXHAUSTED: The total memory required for HLO temporaries (30.25G) exceeds "
            "available HBM (15.75G)",
            36.25,  # beside the arguments
        ),
    ],
)
def test_what_a_program_wanted_counts_its_arguments_once(said, peak):
    def refuse():
        raise jax.errors.JaxRuntimeError(said)

    chip = types.SimpleNamespace(device_kind="TPU v5e")
    mesh = types.SimpleNamespace(devices=np.array([chip]), shape={"data": 1}, size=1)
    arguments = {"state": jax.ShapeDtypeStruct((6, 2**28), "float32")}
    lowered = types.SimpleNamespace(compile=refuse)
    report = ahead._report(lowered, "v5e:1x1", mesh, 0.0, 1e12, arguments)
    assert not report.fits and report.arguments == 6
    assert (report.peak, report.temporaries) == pytest.approx((peak, peak - 6))
    told = ahead.text(report, "try more chips.").splitlines()
    assert told[1] == (
        f"does not fit: wants {peak:.1f} GiB in all, 6.0 of them arguments, and a chip has 16 GiB "
        "of HBM"
    )
    assert told[-1] == "try more chips."
