"""How a process learns that it is one of several, with environments made up.

Nothing is asked over a network.
"""

import jax
import pytest
from jax._src import cloud_tpu_init

from t2i_jax.cluster import environment as cluster_environment
from t2i_jax.errors import UserError

_PLAIN = {"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
_SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
_OTHERS = (
    "JAX_",
    "SLURM_",
    "TPU_",
    "MEGASCALE_",
    "KUBERNETES_",
    "JOB_COMPLETION_INDEX",
    "CUDA_VISIBLE_DEVICES",
)


@pytest.fixture
def environment(monkeypatch):
    """Makes exactly these variables of those that matter be set; `tpu`: on a TPU VM."""

    def use(variables, tpu=False):
        for name in [name for name in cluster_environment.os.environ if name.startswith(_OTHERS)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", tpu)
        monkeypatch.setattr(cluster_environment.register, "enter", lambda *address: None)

    return use


@pytest.mark.parametrize(
    ("variables", "tpu"),
    [
        ({}, False),
        ({**_PLAIN, "JAX_NUM_PROCESSES": "1"}, False),
        ({"JAX_NUM_PROCESSES": "1", **_SLURM}, False),
        ({**_SLURM, "SLURM_STEP_NUM_TASKS": "1"}, False),
        # no step
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            False,
        ),
        (_POD, False),  # a pod of no indexed job
        # variables of a TPU without one
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, True),  # one machine
        ({"TPU_SKIP_MDS_QUERY": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "JAX_PLATFORMS": "cpu"}, True),
    ],
)
def test_alone(environment, variables, tpu):
    environment(variables, tpu)
    assert cluster_environment.detect() is None
    cluster_environment.start()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "tpu", "found"),
    [
        (
            _PLAIN,
            False,
            {
                "coordinator_address": "a:1234", "num_processes": 4, "process_id": 3,
                "cluster_detection_method": "deactivate",
            },
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
            True,
            {"cluster_detection_method": "gketpu"},
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"},
            True,
            {"cluster_detection_method": "gketpu"},
        ),
        ({}, True, {"cluster_detection_method": "gcetpu"}),
        (_SLURM, False, {"cluster_detection_method": "slurm", "num_processes": 16}),
        (
            {**_SLURM, "SLURM_STEP_NUM_TASKS": "2"},
            False,
            {"cluster_detection_method": "slurm", "num_processes": 2, "local_device_ids": []},
        ),
        (
            {**_SLURM, "CUDA_VISIBLE_DEVICES": "0"},
            False,
            {"cluster_detection_method": "slurm", "num_processes": 16, "local_device_ids": []},
        ),
    ],
)  # fmt: skip
def test_one_of_several(environment, monkeypatch, variables, tpu, found):
    environment(variables, tpu)
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: given.append(named))
    cluster_environment.start()
    assert (
        [{**named, **found} for named in given]
        == given
        == [{**found, "initialization_timeout": 360}]
    )


def test_what_slurm_gives_is_what_jax_reads(environment):
    from jax._src.clusters import SlurmCluster

    environment(_SLURM)
    assert SlurmCluster.is_env_present() and SlurmCluster.get_process_id() == 3
    assert SlurmCluster.get_coordinator_address(None, None).startswith("n1:")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {**_PLAIN, "JAX_PROCESS_ID": "5"},
            r"JAX_PROCESS_ID='5' is none of 4 processes; count them from 0 to 3\.",
        ),
        ({**_PLAIN, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID='-1' is none"),
        (
            {**_PLAIN, "JAX_PROCESS_ID": ""},
            "JAX_PROCESS_ID='' beside .*JAX_NUM_PROCESSES=4; set all three",
        ),
        ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS='' beside JAX_PROCESS_ID=0"),
        ({**_PLAIN, "JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES='four' is not a whole number"),
        ({**_PLAIN, "JAX_NUM_PROCESSES": "²"}, "JAX_NUM_PROCESSES='²' is not a whole number"),
        ({**_PLAIN, "JAX_PROCESS_ID": "²"}, "JAX_PROCESS_ID='²' is none of 4 processes"),
        ({**_PLAIN, "JAX_COORDINATOR_ADDRESS": "a:99999"}, "is no address"),
        ({**_SLURM, "SLURM_STEP_NUM_TASKS": "²"}, "SLURM_STEP_NUM_TASKS='²' of the environment is"),
        (
            {**_PLAIN, "JAX_COORDINATOR_ADDRESS": "machine"},
            "JAX_COORDINATOR_ADDRESS='machine' is no address",
        ),
        (
            {**_POD, "JOB_COMPLETION_INDEX": "1"},
            "pip install kubernetes, or set JAX_COORDINATOR_ADDRESS",
        ),
    ],
)
def test_nonsense_is_refused(environment, monkeypatch, variables, message):
    environment(variables)
    monkeypatch.setattr(cluster_environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        cluster_environment.start()


def test_an_indexed_pod_is_left_to_jax(environment, monkeypatch):
    environment({**_POD, "JOB_COMPLETION_INDEX": "1"})
    monkeypatch.setattr(cluster_environment.importlib.util, "find_spec", lambda name: object())
    assert cluster_environment.detect() == {"cluster_detection_method": "k8s"}


def test_an_address_that_is_taken_is_refused(environment, monkeypatch):
    def initialize(**named):
        raise RuntimeError("UNKNOWN: Failed to start RPC server\nand more")

    environment({**_PLAIN, "JAX_PROCESS_ID": "0"})
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        UserError, match=r"process 0 of 4 at 'a:1234' does not start \(UNKNOWN: .*server\); start"
    ):
        cluster_environment.start()


@pytest.mark.parametrize(
    ("number", "host", "address"),
    [
        (0, "here", "10.0.0.1:1234"),
        (0, "[six]", "[fd00::1]:1234"),
        (0, "gateway", None),  # all addresses
        (1, "here", None),
    ],
)
def test_process_0_listens_at_the_address_that_it_was_given(
    environment, monkeypatch, number, host, address
):
    given = []
    bound = {"here": "10.0.0.1", "six": "fd00::1"}.get
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: given.append(named))
    monkeypatch.setattr(cluster_environment.lines, "bound", bound)
    monkeypatch.setattr(cluster_environment.register, "enter", lambda *_: None)
    environment(
        {**_PLAIN, "JAX_COORDINATOR_ADDRESS": f"{host}:1234", "JAX_PROCESS_ID": str(number)}
    )
    cluster_environment.start()
    assert [named.get("coordinator_bind_address") for named in given] == [address]


@pytest.mark.parametrize("number", ["\u00b2", "\u0663", "9" * 5000, "-1", "1e3", " 2", "0", "x"])
def test_what_is_no_number_of_processes_is_refused(monkeypatch, number):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", number)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES="):
        cluster_environment.detect()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "2" if number == "0" else number)
    with pytest.raises(UserError, match="JAX_PROCESS_ID="):
        cluster_environment.detect()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{number}")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS="):
        cluster_environment.detect()
